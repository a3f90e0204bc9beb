"""PUT /send/{txnId}: what other servers push (Server-Server API, "Transactions").

A transaction that comes again gets its old answer, also after a restart, and one that is still at work is waited for.
Its rooms are taken side by side, and in each the events in order; a room that takes longer than others have to wait
for has its events set aside on the dead-letter list, and the server goes on with its next transaction.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial

from federation.inbound.authentication import FederationCall, FederationRoute
from federation.inbound.dead_letters import DeadLetters
from federation.inbound.edus import EDUs
from federation.protocol import event_format, transactions
from federation.protocol.errors import InvalidInput, LimitExceeded, MatrixError, Unavailable
from federation.protocol.identifiers import fits
from federation.protocol.pdu import PDU
from federation.protocol.transactions import Transaction
from federation.protocol.types import EventID, JsonObject, RoomID, ServerName
from federation.rooms.outside import OutsideRooms
from federation.rooms.receive import Receiver, is_passing
from federation.web import Answer
from storage import background, received_transactions
from storage.database import Database
from storage.figures import Figures, Tally
from storage.rooms import Room
from storage.spans import NO_SPANS, Spans

logger = logging.getLogger(__name__)

MAX_BYTES = 10 * 1024 * 1024
MAX_PER_ORIGIN = 3
"""Transactions of one server at work at the same time: it should wait for each answer. So its memory is bounded."""
MAX_PER_NETWORK = 50
"""The same of all servers at one address: names are to be had in any number. Well above what a host of many needs."""
MAX_AT_ONCE = 200
LARGE_BYTES = 1024 * 1024
"""Transactions with more than this are few, even among servers that are behind."""
MAX_LARGE_BYTES = 64 * 1024 * 1024
"""Of these together that are at work: what was parsed takes several times that."""
ITEMS_PER_REQUEST = 10
"""So many PDUs and EDUs cost as much of a server's budget as one more request: each may be an entry of the log."""
CLOSING_SECONDS = 5.0
ROOM_SECONDS = 25.0
"""For how long a room may keep the answer waiting."""

Results = dict[EventID, MatrixError | None]


class TransactionsAPI:
    """The endpoint."""

    def __init__(
        self,
        *,
        database: Database,
        receiver: Receiver,
        outside: OutsideRooms,
        edus: EDUs,
        dead_letters: DeadLetters,
        spans: Spans = NO_SPANS,
    ) -> None:
        self._spans = spans
        self._database = database
        self._receiver = receiver
        self._outside = outside
        self._edus = edus
        self._dead_letters = dead_letters
        self._at_work: dict[tuple[ServerName, str], asyncio.Task[JsonObject]] = {}
        self._by_origin: Counter[ServerName] = Counter()
        self._by_network: Counter[str] = Counter()
        self._large_bytes = 0
        self._seconds = Tally()
        self._events = dict.fromkeys(("taken", "refused", "dropped", "set_aside"), 0)
        self._edus_received = self._repeated = 0

    def figures(self) -> Figures:
        """For `homeserver.metrics`."""
        return {
            "federation_receiving": len(self._at_work),
            "federation_receiving_limit": MAX_AT_ONCE,
            "federation_receive_seconds": self._seconds,
            "federation_received_events_total": self._events,
            "federation_received_edus_total": self._edus_received,
            "federation_repeated_transactions_total": self._repeated,
        }

    def routes(self) -> list[FederationRoute]:
        """Its one route."""
        path = "/_matrix/federation/v1/send/{txn_id}"
        return [FederationRoute("PUT", path, self.put_transaction, max_bytes=MAX_BYTES, max_depth=None)]

    async def put_transaction(self, call: FederationCall) -> Answer:
        """Take a transaction; the answer says of each PDU, by event ID, what was wrong with it, if anything."""
        origin, txn_id = call.origin, call.path["txn_id"]
        if not fits(txn_id):
            raise InvalidInput("The transaction ID is too long")
        task = self._at_work.get((origin, txn_id))
        if task is None:
            large_bytes = call.size if call.size > LARGE_BYTES else 0
            self._check_room_for(origin, call.network, large_bytes)
            transaction = transactions.parse(call.json, origin)
            call.spend((len(transaction.pdus) + len(transaction.edus)) // ITEMS_PER_REQUEST)
            task = asyncio.get_running_loop().create_task(self._take(origin, txn_id, transaction))
            self._at_work[origin, txn_id] = task
            self._by_origin[origin] += 1
            self._by_network[call.network] += 1
            self._large_bytes += large_bytes
            task.add_done_callback(partial(self._done, origin, txn_id, call.network, large_bytes))
        return await asyncio.shield(task)  # who asked may go away, and asks again

    async def close(self) -> None:
        """Wait a little for what is at work; the rest, which was not answered, will be sent again."""
        tasks = list(self._at_work.values())
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=CLOSING_SECONDS)
            await background.end(late)

    def _check_room_for(self, origin: ServerName, network: str, large_bytes: int) -> None:
        if (
            self._by_origin[origin] >= MAX_PER_ORIGIN
            or self._by_network[network] >= MAX_PER_NETWORK
            or len(self._at_work) >= MAX_AT_ONCE
        ):
            raise LimitExceeded(1000)
        if large_bytes and self._large_bytes + large_bytes > MAX_LARGE_BYTES:
            raise LimitExceeded(5000)

    def _done(
        self, origin: ServerName, txn_id: str, network: str, large_bytes: int, task: "asyncio.Task[JsonObject]"
    ) -> None:
        if not task.cancelled():
            task.exception()  # told to who asks, if anybody still does
        self._at_work.pop((origin, txn_id), None)
        self._large_bytes -= large_bytes
        self._by_origin[origin] -= 1
        if not self._by_origin[origin]:
            del self._by_origin[origin]
        self._by_network[network] -= 1
        if not self._by_network[network]:
            del self._by_network[network]

    async def _take(self, origin: ServerName, txn_id: str, transaction: Transaction) -> JsonObject:
        counts = {"hearth.events": len(transaction.pdus), "hearth.edus": len(transaction.edus)}
        with self._spans.within("receive transaction", {"hearth.origin": origin, **counts}):
            return await self._receive(origin, txn_id, transaction)

    async def _receive(self, origin: ServerName, txn_id: str, transaction: Transaction) -> JsonObject:
        async with self._database.read() as tx:
            answer = await received_transactions.find(tx, origin, txn_id)
        if answer is not None:
            self._repeated += 1
            return answer
        began = time.monotonic()
        results, _ = await asyncio.gather(
            self._receive_pdus(origin, transaction.pdus), self._edus.receive_all(origin, transaction.edus)
        )
        answer = {"pdus": {event_id: _result(error) for event_id, error in results.items()}}
        async with self._database.write() as tx:
            await received_transactions.insert(tx, origin, txn_id, answer, time.time_ns() // 1_000_000)
        self._seconds.add(time.monotonic() - began)
        self._edus_received += len(transaction.edus)
        return answer

    async def _receive_pdus(self, origin: ServerName, jsons: Sequence[JsonObject]) -> Results:
        """What became of each PDU that can be called by an ID. Raises Unavailable where the database is away."""
        by_room: dict[RoomID, tuple[Room, list[PDU]]] = {}
        ended: Results = {}
        for json in jsons:
            try:
                event_id = await self._outside.retract(origin, json)
                if event_id is not None:
                    ended[event_id] = None
                    continue
                room = await self._receiver.get_expected_room(json.get("room_id"))
                pdu = event_format.parse(json, room.rules)
            except Unavailable:
                raise
            except MatrixError as error:  # without its room's version, or its format, it has no ID
                self._events["dropped"] += 1
                logger.info("a PDU from %s was dropped: %s", origin, error.message)
                continue
            except Exception:  # it may fail, others may not
                self._events["dropped"] += 1
                logger.exception("a PDU from %s was dropped", origin)
                continue
            by_room.setdefault(room.room_id, (room, []))[1].append(pdu)
        found = await asyncio.gather(*(self._receive_room(origin, room, pdus) for room, pdus in by_room.values()))
        return ended | {event_id: error for results in found for event_id, error in results.items()}

    async def _receive_room(self, origin: ServerName, room: Room, pdus: Sequence[PDU]) -> Results:
        results: Results = {}
        try:
            async with asyncio.timeout(ROOM_SECONDS):
                await self._receiver.receive_room(origin, room, pdus, results)
        except TimeoutError:
            logger.warning("events of %s from %s take too long and are set aside", room.room_id, origin)
        for error in results.values():
            if isinstance(error, Unavailable):
                raise error
        try:
            await self._dead_letters.keep(origin, room, pdus, results)
        except Unavailable:
            raise
        except MatrixError as error:
            logger.warning("events of %s from %s could not be set aside: %s", room.room_id, origin, error.message)
        self._count(pdus, results)
        return {pdu.event_id: results.get(pdu.event_id) for pdu in pdus}

    def _count(self, pdus: Sequence[PDU], results: Results) -> None:
        for pdu in pdus:
            error = results.get(pdu.event_id)
            if pdu.event_id not in results or (error is not None and is_passing(error)):
                self._events["set_aside"] += 1
            else:
                self._events["taken" if error is None else "refused"] += 1


def _result(error: MatrixError | None) -> JsonObject:
    return {} if error is None else {"error": error.message}
