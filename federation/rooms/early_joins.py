"""A join that counts before the members of the room are here (Server-Server API, "Joining rooms": `omit_members`).

Only of a room of which nothing is known here yet: what became of members whom we knew would be as unknown as all
others, and we would take what we had for the present.
"""

import asyncio
import logging
from collections.abc import Collection
from functools import partial

from federation.protocol import auth_rules
from federation.protocol.auth_events import CREATE, auth_keys_for
from federation.protocol.errors import AuthRuleViolated, InvalidInput, MatrixError, RemoteServerError, Unavailable
from federation.protocol.identifiers import is_user_id, server_name_of
from federation.protocol.pdu import VerifiedPDU
from federation.protocol.types import EventID, JsonObject, ServerName
from federation.rooms.append import Outcome, RoomWriter
from federation.rooms.append_join import Awaited
from federation.rooms.handshakes import Handshakes
from federation.rooms.join_requests import JoinRequest
from federation.rooms.ordering import cited_by
from federation.rooms.peer_answers import candidates
from federation.rooms.received_state import ReceivedState
from storage import remote_joins, rooms
from storage.database import Database, Tx
from storage.remote_joins import Placed, RemoteJoin

logger = logging.getLogger(__name__)

MAX_SERVERS_NAMED = 10_000
"""Servers that are told of what happens in the room because another one says that they are in it."""

Whole = asyncio.Task[tuple[ReceivedState, JsonObject]]
"""What brings the whole state."""


class EarlyJoins:
    """Places joins without members, where those take long."""

    def __init__(self, database: Database, writer: RoomWriter, handshakes: Handshakes) -> None:
        self._database = database
        self._writer = writer
        self._handshakes = handshakes

    async def place(
        self, join: RemoteJoin, request: JoinRequest, whole: Whole, destination: ServerName, *, patience: float
    ) -> Placed | None:
        """Have the join count without members, if the whole state takes longer than `patience` and than this.

        None where it does not count: because the state is here, or the server does not do its part.
        """
        if await self._is_known(join):
            return None
        await asyncio.wait((whole,), timeout=patience)
        if whole.done():
            return None
        asking = asyncio.create_task(request.send_without_members(destination))
        try:
            await asyncio.wait((whole, asking), return_when=asyncio.FIRST_COMPLETED)
            if whole.done():
                return None
            given, rest, ids = await asking
            return await self._take(join, request.pdu, given, rest, ids)
        except Unavailable:
            raise
        except MatrixError as error:
            logger.info("%s does not give %s without its members: %s", destination, join.room_id, error.message)
            return None
        finally:
            asking.cancel()
            (result,) = await asyncio.gather(asking, return_exceptions=True)
            if not isinstance(result, BaseException):
                result[0].close()

    async def _is_known(self, join: RemoteJoin) -> bool:
        async with self._database.read() as tx:
            room = await rooms.find(tx, join.room_id)
            return room is not None and (await rooms.rows(tx, [room.number]))[room.number].state_version > 0

    async def _take(
        self, join: RemoteJoin, pdu: VerifiedPDU, given: ReceivedState, rest: JsonObject, ids: Collection[EventID]
    ) -> Placed:
        """Put the join and what was given of the state before it into the room."""
        given.add_members(ids)
        await given.judge(self._database, None)
        pdu = await countersigned(self._handshakes, pdu, rest)
        check_join(given, pdu)
        servers = candidates(
            (name for name in rest["servers_in_room"] if isinstance(name, str)),
            besides=self._handshakes.server_name,
            at_most=MAX_SERVERS_NAMED,
        )
        async with self._database.transaction() as tx:
            await remote_joins.check_held(tx, join)
            room = await rooms.create(tx, pdu.room_id, pdu.rules)
        entries = await given.store(self._database, room)
        found: list[Placed] = []

        async def note(tx: Tx, version: int, joined: int, invited: int) -> None:
            found[:] = [Placed(version=version, servers_in_room=tuple(servers), joined=joined, invited=invited)]
            await remote_joins.note_placed(tx, join, found[0], ids)

        received = await self._writer.append_join(
            pdu, entries, partial(remote_joins.check_held, join=join), Awaited(len(ids) - len(given.state), note)
        )
        if received.outcome is not Outcome.ACCEPTED:
            raise RemoteServerError(f"The join was not accepted: {received.reason}", is_transient=False)
        logger.info("joined %s for %s: %d members are to come", join.room_id, join.user_id, len(ids) - len(given.state))
        return found[0]


async def countersigned(handshakes: Handshakes, pdu: VerifiedPDU, rest: JsonObject) -> VerifiedPDU:
    """The join event with the signature of the server whose user vouches for ours, where there is one."""
    authoriser = pdu.content.get("join_authorised_via_users_server")
    if not is_user_id(authoriser):
        return pdu
    return await handshakes.countersigned(pdu, rest.get("event"), server_name_of(authoriser))


def check_join(state: ReceivedState, pdu: VerifiedPDU) -> None:
    """Raise InvalidInput unless the state allows the join, and has all that the join refers to."""
    if not state.has_all(cited_by(pdu)):
        raise InvalidInput("The answer lacks what authorises the join", "M_BAD_JSON")
    try:
        state.check(pdu)
        keys = auth_keys_for(pdu.type, pdu.sender, pdu.state_key, pdu.content, pdu.rules)
        auth_rules.check(pdu, state.state_for({*keys, CREATE}))
    except AuthRuleViolated as error:
        raise InvalidInput(f"The state in the answer does not allow the join: {error.message}", "M_BAD_JSON") from None
