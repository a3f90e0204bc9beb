"""Sending a join event, and getting the room's state for it (Server-Server API, "Joining rooms", "Retrieving events").

A server in the room is asked for all at once, streamed. Where it is large, that may be more than the server, or a proxy
before it, can give in the time that it takes: then it is asked to take the event and leave the members out
(`omit_members`), which is quick. The state is fetched afterwards, from it or from any of the servers that it names as
being in the room, until one gives all of it; what is no member event must be just what the first one gave.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence

from federation.outbound.client import path_of
from federation.protocol.errors import InvalidInput, MatrixError, PeerFailed, PeerRefused, Unavailable
from federation.protocol.pdu import VerifiedPDU
from federation.protocol.state_answer import EventSplitter
from federation.protocol.types import EventID, JsonObject, ServerName
from federation.rooms.handshakes import Handshakes
from federation.rooms.peer_answers import candidates, is_unknown_endpoint
from federation.rooms.questions import Questions
from federation.rooms.received_state import CHUNK, ReceivedState

logger = logging.getLogger(__name__)

MAX_ANSWER_BYTES = 2 * 1024**3
PROGRESS_EVERY = 5_000
"""Events between two lines in the log."""
TOO_MUCH_SECONDS = 10.0
"""Who fails earlier fails for another reason than the size of the answer."""
MAX_STATE_SERVERS = 5
"""Servers that are asked for a state after one has taken the join."""

_OF_JOIN = {"state": "state", "auth_chain": "auth_chain"}
_OF_STATE = {"pdus": "state", "auth_chain": "auth_chain"}
"""The arrays of an answer, as `ReceivedState` calls them."""


class JoinRequest:
    """One join event, and who may be asked about it."""

    def __init__(
        self, handshakes: Handshakes, pdu: VerifiedPDU, *, answer_seconds: float, note: Callable[[int], None]
    ) -> None:
        self._handshakes = handshakes
        self.pdu = pdu
        self._answer_seconds = answer_seconds
        self._note = note
        """Told how many events have come."""

    async def send(self, destination: ServerName) -> tuple[ReceivedState, JsonObject]:
        """The state before the event, whole and not judged yet, and what else the destination answered.

        Who calls closes the state. Raises what the destination's answer was where it does not take the event.
        """
        started = time.monotonic()
        try:
            return await self._complete(destination, *await self._send_for_all(destination))
        except (PeerFailed, InvalidInput) as error:
            if not _was_too_much(error, time.monotonic() - started):
                raise
            logger.info("%s cannot give the state of %s at once: %s", destination, self.pdu.room_id, error.message)
        path = path_of("/_matrix/federation/v2/send_join/{}/{}", self.pdu.room_id, self.pdu.event_id)
        answer = await self._receive("PUT", destination, path, [("omit_members", "true")], _OF_JOIN)
        return await self._complete(destination, *answer)

    async def send_without_members(
        self, destination: ServerName
    ) -> tuple[ReceivedState, JsonObject, tuple[EventID, ...]]:
        """The state before the event, not judged yet, as far as it is not members; what else the destination answered;
        and the IDs of the whole state's events.

        Who calls closes the state. Raises InvalidInput where the answer is of another kind, and as `send`.
        """
        path = path_of("/_matrix/federation/v2/send_join/{}/{}", self.pdu.room_id, self.pdu.event_id)
        given, rest = await self._receive("PUT", destination, path, [("omit_members", "true")], _OF_JOIN)
        try:
            if rest.get("members_omitted") is not True or not isinstance(rest.get("servers_in_room"), list):
                raise InvalidInput("The answer to the join is not without members", "M_BAD_JSON")
            ids = await Questions(self._handshakes.client).state_ids(destination, self.pdu.room_id, self.pdu.event_id)
        except BaseException:
            given.close()
            raise
        return given, rest, ids.state

    async def whole_state(
        self, servers: Sequence[ServerName], ids: Collection[EventID], believed: Collection[ServerName]
    ) -> ReceivedState:
        """The whole state before the event, which has just these events, from the first of the servers that gives it.

        Of those that are `believed` some events may be invalid: another one could leave members out by that. It is not
        judged yet; who calls closes it. Raises what became of asking the last one.
        """

        def is_it(server: ServerName, state: ReceivedState) -> bool:
            return state.is_all_valid_of(ids) if server in believed else state.is_just(ids)

        return await self._ask_for_state(servers, is_it)

    async def _send_for_all(self, destination: ServerName) -> tuple[ReceivedState, JsonObject]:
        segments = (self.pdu.room_id, self.pdu.event_id)
        try:
            path = path_of("/_matrix/federation/v2/send_join/{}/{}", *segments)
            return await self._receive("PUT", destination, path, (), _OF_JOIN)
        except PeerRefused as error:
            if not is_unknown_endpoint(error):
                raise
        path = path_of("/_matrix/federation/v1/send_join/{}/{}", *segments)
        return await self._receive("PUT", destination, path, (), _OF_JOIN)

    async def _complete(
        self, destination: ServerName, given: ReceivedState, rest: JsonObject
    ) -> tuple[ReceivedState, JsonObject]:
        """The same with the whole state, where members were left out."""
        if rest.get("members_omitted") is not True:
            return given, rest
        try:
            return await self._state(destination, given, rest.get("servers_in_room")), rest
        finally:
            given.close()

    async def _state(self, destination: ServerName, given: ReceivedState, in_room: object) -> ReceivedState:
        named = [name for name in in_room if isinstance(name, str)] if isinstance(in_room, list) else []
        servers = candidates([destination, *named], besides=self._handshakes.server_name)
        return await self._ask_for_state(servers, lambda _, state: state.extends(given))

    async def _ask_for_state(
        self, servers: Sequence[ServerName], is_it: Callable[[ServerName, ReceivedState], bool]
    ) -> ReceivedState:
        path = path_of("/_matrix/federation/v1/state/{}", self.pdu.room_id)
        failure: MatrixError = InvalidInput("The answer lacks the room's members, and nobody is named that has them")
        for server in servers[:MAX_STATE_SERVERS]:
            try:
                state, _ = await self._receive("GET", server, path, [("event_id", self.pdu.event_id)], _OF_STATE)
            except Unavailable:
                raise
            except MatrixError as error:
                logger.info("%s does not give the state of %s: %s", server, self.pdu.room_id, error.message)
                failure = error
                continue
            if is_it(server, state):
                return state
            state.close()
            logger.warning("%s gives another state of %s than was said before", server, self.pdu.room_id)
            failure = InvalidInput("The room's servers give different states", "M_BAD_JSON")
        raise failure

    async def _receive(
        self,
        method: str,
        destination: ServerName,
        path: str,
        query: Sequence[tuple[str, str]],
        arrays: Mapping[str, str],
    ) -> tuple[ReceivedState, JsonObject]:
        """The events of an answer, and the rest of it; raises InvalidInput for one that lacks one of the arrays."""
        state = ReceivedState(self.pdu.room_id, self.pdu.rules, self._handshakes.keyring)
        try:
            rest = await self._stream(method, destination, path, query, (state, arrays))
        except BaseException:
            state.close()
            raise
        return state, rest

    async def _stream(
        self,
        method: str,
        destination: ServerName,
        path: str,
        query: Sequence[tuple[str, str]],
        into: tuple[ReceivedState, Mapping[str, str]],
    ) -> JsonObject:
        state, arrays = into
        splitter = EventSplitter(arrays)
        found: list[tuple[str, bytes]] = []
        logged = 0
        async with self._handshakes.client.stream(
            method,
            destination,
            path,
            body=self.pdu.json if method == "PUT" else None,
            query=query,
            timeout=self._answer_seconds,
            max_bytes=MAX_ANSWER_BYTES,
            patient=True,
        ) as stream:
            async for chunk in stream.chunks():
                found += splitter.feed(chunk)
                if len(found) >= CHUNK:
                    await state.add([(arrays[array], event) for array, event in found])
                    found = []
                    self._note(len(state))
                if len(state) >= logged + PROGRESS_EVERY:
                    logged = len(state)
                    logger.info("joining %s by way of %s: %d events so far", self.pdu.room_id, destination, logged)
        last, rest = splitter.finish()
        await state.add([(arrays[array], event) for array, event in found + last])
        if splitter.arrays_seen != arrays.keys():
            raise InvalidInput("The answer to the join lacks the room's state", "M_BAD_JSON")
        return rest


def _was_too_much(error: MatrixError, seconds: float) -> bool:
    """Whether the answer may have failed for its size: it took long, and was no refusal."""
    if isinstance(error, PeerRefused):
        return error.status >= 500 and seconds >= TOO_MUCH_SECONDS
    return seconds >= TOO_MUCH_SECONDS and (isinstance(error, PeerFailed) or error.errcode == "M_NOT_JSON")
