"""Searching messages and users, built in one place from arguments, with how clients ask for it."""

from collections.abc import Coroutine, Sequence
from typing import Any

from federation.rooms.message_search import MessageSearch
from homeserver.client_api.reading_events import RoomReading
from homeserver.client_api.routing import ClientRoute
from homeserver.client_api.search import SearchAPI
from homeserver.client_api.user_directory import UserDirectoryAPI
from homeserver.config import Language
from homeserver.federation_parts import Ground
from homeserver.followers import message_index
from homeserver.followers.message_index import MessageIndexer
from homeserver.followers.user_directory import UserDirectoryKeeper
from storage.followers import Follower


class SearchParts:
    """The user directory, and the index of messages if they are searched, with the endpoints that use them."""

    def __init__(self, ground: Ground, reading: RoomReading) -> None:
        self._database = ground.database
        all_local = ground.config.user_directory.all_local_users
        self.directory = UserDirectoryKeeper(ground.database, ground.server_name)
        self.routes: list[ClientRoute] = [
            *UserDirectoryAPI(ground.database, ground.server_name, all_local=all_local).routes()
        ]
        self.indexer: MessageIndexer | None = None
        configured = ground.config.search
        if configured.enabled:
            dictionary = None if configured.language is Language.NONE else f"{configured.language}_stem"
            self.indexer = MessageIndexer(ground.database, dictionary=dictionary)
            self.routes += SearchAPI(reading, MessageSearch(ground.reader, dictionary=dictionary)).routes()

    @property
    def followers(self) -> Sequence[Follower]:
        """What follows the log."""
        return (self.directory,) if self.indexer is None else (self.directory, self.indexer)

    def tasks(self) -> dict[str, Coroutine[Any, Any, None]]:
        """What works off what was there before, by name."""
        tasks = {"user directory": self.directory.run()}
        if self.indexer is not None:
            tasks["older messages' index"] = self.indexer.run()
        return tasks

    async def start(self) -> None:
        """Forget the index where nobody keeps it."""
        if self.indexer is None:
            await message_index.forget_index(self._database)
