"""A bot on mautrix-python, with its encryption, as bridges and maubot have it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from mautrix.api import HTTPAPI
from mautrix.client import Client, InternalEventType, MemorySyncStore
from mautrix.client.dispatcher import MembershipEventDispatcher
from mautrix.client.state_store import MemoryStateStore
from mautrix.crypto import MemoryCryptoStore, OlmMachine
from mautrix.crypto import StateStore as CryptoStateStore
from mautrix.types import EventType, MessageEvent, RoomID, StateEvent, UserID

from tests import client
from tests.client import Server, unique
from tests.clients.installing import are_installed
from tests.clients.storyteller import Story, Storyteller

pytestmark = [
    pytest.mark.skipif(not are_installed(), reason="no clients: `make clients` gets them from npm's registry"),
    # mautrix itself warns of what it reads.
    pytest.mark.filterwarnings("ignore:The (sender_key|device_id) field in Megolm events:DeprecationWarning"),
]


class Rooms(MemoryStateStore, CryptoStateStore):  # type: ignore[misc]  # both are abstract in the same methods
    """What the bot knows of its rooms."""

    async def find_shared_rooms(self, user_id: UserID) -> list[RoomID]:
        """Where that user is, too."""
        return [room_id for room_id, members in self.members.items() if user_id in members]


@asynccontextmanager
async def an_echo(server: Server) -> AsyncIterator[UserID]:
    """A bot that accepts invites, echoes what is said, and reacts to it."""
    account = await server.register("bot")
    rooms, keys = Rooms(), MemoryCryptoStore(account.user_id, "a key for pickles")
    api = HTTPAPI(server.base_url, client_session=account.session)
    bot = Client(mxid=UserID(account.user_id), api=api, state_store=rooms, sync_store=MemorySyncStore())
    await bot.login(password=client.PASSWORD, device_name=unique("echo"))
    bot.crypto = OlmMachine(bot, keys, rooms)
    await bot.crypto.load()
    bot.add_dispatcher(MembershipEventDispatcher)

    async def accept(event: StateEvent) -> None:
        await bot.join_room(event.room_id)

    async def echo(event: MessageEvent) -> None:
        if event.sender != bot.mxid:
            await bot.send_text(event.room_id, f"You said: {event.content.body}")
            await bot.react(event.room_id, event.event_id, "🤖")

    bot.add_event_handler(InternalEventType.INVITE, accept)
    bot.add_event_handler(EventType.ROOM_MESSAGE, echo)
    syncing = bot.start(None)
    try:
        yield bot.mxid
    finally:
        bot.stop()
        await syncing


async def test_a_bot_answers_in_an_encrypted_room(server: Server, storyteller: Storyteller) -> None:
    async with an_echo(server) as bot:
        story = Story("bots", "someone_talks_to_a_bot_in_an_encrypted_room")
        await storyteller.tell(story, {"base_url": server.base_url, "server_name": server.name, "bot": bot})
