"""Searching messages, built in one place from arguments, with how clients ask for it."""

from collections.abc import Sequence

from federation.rooms.message_search import MessageSearch
from homeserver.client_api.reading_events import RoomReading
from homeserver.client_api.routing import ClientRoute
from homeserver.client_api.search import SearchAPI
from homeserver.config import Language
from homeserver.federation_parts import Ground
from homeserver.followers import message_index
from homeserver.followers.message_index import MessageIndexer
from storage.followers import Follower


class SearchParts:
    """The index of messages, and the endpoint that is answered from it; nothing where searching is turned off."""

    def __init__(self, ground: Ground, reading: RoomReading) -> None:
        self._database = ground.database
        self.routes: list[ClientRoute] = []
        self.indexer: MessageIndexer | None = None
        configured = ground.config.search
        if configured.enabled:
            dictionary = None if configured.language is Language.NONE else f"{configured.language}_stem"
            self.indexer = MessageIndexer(ground.database, dictionary=dictionary)
            self.routes = SearchAPI(reading, MessageSearch(ground.reader, dictionary=dictionary)).routes()

    @property
    def followers(self) -> Sequence[Follower]:
        """What follows the log."""
        return () if self.indexer is None else (self.indexer,)

    async def start(self) -> None:
        """Forget the index where nobody keeps it."""
        if self.indexer is None:
            await message_index.forget_index(self._database)
