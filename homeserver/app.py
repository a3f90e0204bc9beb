"""The whole server: every object built in one place from arguments, in dependency order, and its life.

`Application` is one process's server on a migrated database; `serving.py` runs it.
"""

import asyncio
import contextlib
import importlib
import logging
import shutil
import socket
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol

from aiohttp import web

from federation.inbound.edus import EDUReceivers
from federation.inbound.queries import QueryAnswers
from federation.protocol.errors import Unavailable
from federation.protocol.types import ServerName
from federation.rooms import client_events
from federation.rooms.append import RoomWriter
from federation.rooms.heads import RoomHeads
from federation.rooms.incomplete_rooms import IncompleteRooms
from federation.rooms.reader import RoomReader
from federation.rooms.timelines import Timelines
from federation.web import Route, Router, Serving, respond
from homeserver import configured
from homeserver.account_parts import AccountParts
from homeserver.client_api import routes
from homeserver.client_api.old_sync import OldSyncAPI
from homeserver.client_api.routing import ClientRoute, build_routes
from homeserver.client_api.syncing import SyncAPI
from homeserver.config import API, Config
from homeserver.federation_parts import (
    Answers,
    Fetching,
    Ground,
    Handshaking,
    Inbound,
    Outbound,
    Reception,
    build_sender,
)
from homeserver.followers import push
from homeserver.health import Health
from homeserver.key_parts import KeyParts
from homeserver.listening import Listening, Observer
from homeserver.media_parts import MediaParts
from homeserver.push_parts import PushNotificationParts
from homeserver.room_parts import RoomParts
from homeserver.search_parts import SearchParts
from homeserver.services.event_counts import EventCounter
from homeserver.services.mail import Mailer
from homeserver.services.sync import SyncService, SyncSources
from homeserver.services.sync_rooms import SyncRooms
from homeserver.services.user_views import UserViews
from homeserver.shared_memory import Shared
from homeserver.signing_keys import OwnKeys
from homeserver.sliding_parts import SlidingParts
from homeserver.user_data_parts import UserDataParts
from storage import background, exchange, log, short_lived_tokens, stored_figures
from storage.account_data import AccountDataChanged
from storage.append_events import RoomEvents
from storage.database import Database
from storage.device_lists import DeviceListChanged
from storage.figures import Counting, Figures
from storage.followers import Followers
from storage.invalidations import Invalidated
from storage.log import Log
from storage.log_entries import Change
from storage.outbox import EventRelayed, OutgoingMessages
from storage.outside_memberships import OutsideMembership
from storage.places import figures_of
from storage.receipts import ReceiptMoved
from storage.room_completeness import RoomCompleteness
from storage.send_to_device import ToDeviceMessages
from storage.spans import NO_SPANS, Spans
from storage.tail import Tail
from storage.thread_subscriptions import ThreadSubscription

logger = logging.getLogger(__name__)

KINDS: Sequence[type[Change]] = (
    Invalidated,
    DeviceListChanged,
    ToDeviceMessages,
    AccountDataChanged,
    ReceiptMoved,
    ThreadSubscription,
    OutgoingMessages,
    EventRelayed,
    OutsideMembership,
    RoomCompleteness,
    RoomEvents,
)
"""Every kind of change that the log may hold."""

SWEEP_SECONDS = 600
CLOCK_SECONDS = 60
"""How often to look at the database's clock."""


class _Metrics(Observer, Protocol):
    """`metrics.Metrics`."""

    def routes(self) -> list[Route]: ...

    async def run(self) -> None: ...

    async def close(self) -> None: ...


class _Tracer(Spans, Protocol):
    """`tracing.Tracer`."""

    async def respond(self, router: Router, request: web.BaseRequest, serving: Serving) -> web.StreamResponse: ...

    async def close(self) -> None: ...


class Application:
    """One process's server. `start` returns when it answers; `stop` loses no answered write.

    `shared` is what it shares with other processes.
    """

    def __init__(self, config: Config, conninfo: str, keys: OwnKeys, shared: Shared | None = None) -> None:
        self.config = config
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Gets the exception of a background task that ended."""
        self._tasks: list[asyncio.Task[None]] = []
        self._build(conninfo, keys, shared or Shared())

    def _build(self, conninfo: str, keys: OwnKeys, shared: Shared) -> None:
        """Every object, in dependency order."""
        config, server_name = self.config, ServerName(self.config.server_name)

        self.tracer = self._build_tracer()
        spans = self.tracer or NO_SPANS

        # storage
        self.database = Database(
            conninfo,
            max_connections=config.database.max_connections,
            replicas=[each.value for each in config.database.replicas],
        )
        self.bus = configured.bus(config.bus, self.database, shares=shared.is_with_others)
        self.tail = Tail(
            self.database,
            KINDS,
            newest=shared.newest,
            carrier=shared.carrier,
            patience_seconds=self.bus.patience_seconds,
        )
        self.log = Log(self.database, self.tail, self.bus, shared.carrier, newest=shared.newest, spans=self.tracer)

        # rooms
        self.incomplete = IncompleteRooms()
        self.tail.add_view(self.incomplete.apply, RoomCompleteness)
        self.heads = RoomHeads(self.database, self.incomplete, server_name)
        self.tail.add_view(self.heads.apply, RoomEvents, RoomCompleteness)
        self.tail.add_view(client_events.forget_redacted(self.tail), RoomEvents, plain=False)
        self.outbound = Outbound(
            config=config, database=self.database, log=self.log, server_name=server_name, keys=keys, spans=spans
        )
        self.tail.add_view(self.outbound.policies.apply, RoomEvents, RoomCompleteness, plain=False)
        self.event_counter = EventCounter(self.database, server_name)
        self.tail.add_view(self.event_counter.apply, RoomEvents, AccountDataChanged, plain=False)
        self.writer = RoomWriter(
            database=self.database,
            log=self.log,
            heads=self.heads,
            counter=self.event_counter,
            policies=self.outbound.policies,
            signer=(server_name, keys.signing_key),
        )
        self.reader = RoomReader(self.database)
        self.mailer = Mailer(self.database, configured.mail_server(config.mail))
        self.rate_limits = configured.rate_limits(config.rate_limits, shared.budgets)
        ground = Ground(
            config=config,
            database=self.database,
            log=self.log,
            tail=self.tail,
            writer=self.writer,
            reader=self.reader,
            incomplete=self.incomplete,
            rate_limits=self.rate_limits,
        )
        self.fetching = Fetching(self.outbound, ground)
        self.tail.add_view(self.fetching.access.apply, RoomEvents, RoomCompleteness, plain=False)
        self.handshaking = Handshaking(self.outbound, ground, enabled=config.federation.enabled)
        self.tail.add_view(self.handshaking.doors.apply, RoomEvents, RoomCompleteness, plain=False)

        # services, and the client API's endpoints that ask them
        application_services = configured.application_services(config)
        self.user_data = UserDataParts(ground, self.event_counter, self.bus)
        self.rooms = RoomParts(
            ground, self.outbound, self.fetching, self.handshaking, self.user_data, application_services
        )
        self.media = MediaParts(config, self.database, self.outbound)
        self.accounts = AccountParts(
            ground, self.outbound, self.rooms, application_services, self.mailer, self.media.cache
        )
        self.keys = KeyParts(ground, self.outbound, self.accounts.interactive_auth)
        sync_routes = self._build_sync(ground)
        self.sender = build_sender(self.outbound, config, self.database, self.tail, self.user_data.presence.told)
        if config.federation.enabled:
            self.tail.add_view(self.outbound.shared_availability.on_change, Invalidated)
            self.tail.add_view(self.sender.on_change)
            self.user_data.typists.observers.append(self.sender.typing)
            if config.federation.send_presence:
                self.user_data.presence.observers.append(self.sender.presence)

        # what follows the log from a cursor of its own, in one process at a time
        self.search = SearchParts(ground, self.rooms.reading)
        self.push = PushNotificationParts(
            ground,
            self.outbound,
            self.user_data,
            self.mailer,
            sees_to=lambda shard: self.followers.runs(push.name_of(shard)),
        )
        self.followers = Followers(
            self.database,
            self.tail,
            [*self.rooms.followers, *self.search.followers, *self.push.followers],
            is_busy=self.push.is_busy,
        )

        # what each listener serves
        client_routes = [
            *self.accounts.routes,
            *self.keys.routes,
            *self.user_data.routes,
            *self.push.routes,
            *sync_routes,
            *self.rooms.routes,
            *self.search.routes,
            *routes.media_routes(self.media.api),
        ]
        self.reception = Reception(
            self.outbound,
            ground,
            self.fetching,
            self.handshaking,
            EDUReceivers(
                typing=self.user_data.typing.receive,
                presence=self.user_data.presence.receive,
                receipt=self.user_data.receipts.receive,
                to_device=self.user_data.to_device.receive,
                device_list=self.keys.remote_devices.receive_update,
                signing_keys=self.keys.remote_devices.receive_signing_keys,
            ),
        )
        self.tail.add_view(self.reception.merger.apply, RoomEvents)
        inbound = Inbound(
            self.outbound,
            ground,
            reception=self.reception,
            handshaking=self.handshaking,
            may_be_invited=self.rooms.memberships.check_may_be_invited,
            answers=Answers(
                queries=QueryAnswers(
                    alias=self.rooms.directory.resolve,
                    profile=self.rooms.profiles.get_local,
                    public_rooms=self.rooms.directory_api.search if config.federation.publish_rooms else None,
                    hierarchy=self.rooms.hierarchy,
                ),
                devices=self.keys.answers,
                media=self.media.answers,
            ),
        )
        self.metrics = self._build_metrics()
        self.health = Health(self.tail)
        self.listening = Listening(
            {
                API.CLIENT: [
                    *build_routes(
                        client_routes,
                        self.accounts.authenticator,
                        ground.rate_limits.by_name(),
                        ground.rate_limits.spend_on_body,
                    ),
                    *self.accounts.page_routes,
                ],
                API.FEDERATION: inbound.routes if config.federation.enabled else [],
                API.ADMIN: self.accounts.admin_routes,
                API.HEALTH: self.health.routes(),
                API.METRICS: [] if self.metrics is None else self.metrics.routes(),
            },
            self.metrics,
            answer=respond if self.tracer is None else self.tracer.respond,
        )

    def _build_tracer(self) -> "_Tracer | None":
        """None unless the settings name a collector: only then it is imported, and costs something."""
        if self.config.tracing.endpoint is None:
            return None
        tracing = importlib.import_module("homeserver.tracing")
        found: _Tracer = tracing.Tracer(self.config.tracing, self.config.server_name)
        return found

    def _build_metrics(self) -> "_Metrics | None":
        """None unless a listener has them: only then they are imported, and cost something."""
        if not any(API.METRICS in listener.apis for listener in self.config.listeners):
            return None
        parts: Sequence[Counting] = (
            *(self.log, self.tail, self.database, self.heads, self.handshaking.joins, self.handshaking.doors),
            *(self.fetching.access, self.outbound.keyring, self.outbound.discovery, self.outbound.availability),
            *(self.outbound.egress, self.bus),
            self.followers,
            *(self.sender, self.reception.transactions, self.reception.dead_letters, self.rate_limits, self.accounts),
            *(self.user_data.account_data, self.user_data.push_rules, self.user_data.inbox_limits),
            *(self.media.repository, self.media.cache, self.media.previews, self.mailer, self.push.delivery),
            self.accounts.sms,
        )
        places = (
            self.accounts.places,
            self.media.thumbnails.places,
            self.media.previews.places,
            self.fetching.spaces.places,
        )
        readings = [
            *(part.figures for part in parts),
            lambda: figures_of((*places, self.fetching.backfill.places)),
            self._read_tasks,
        ]
        found: _Metrics = importlib.import_module("homeserver.metrics").Metrics(readings, self._read_stored)
        return found

    def _read_tasks(self) -> Figures:
        return {"background_tasks": {task.get_name(): not task.done() for task in self._tasks}}

    async def _read_stored(self) -> Figures:
        """What is told of the whole server: by the database, and by the disk."""
        async with self.database.read() as tx:
            found = await stored_figures.read(tx)
        disk = await asyncio.to_thread(shutil.disk_usage, self.config.data_directory)
        return {**found, "disk_free_bytes": disk.free, "disk_size_bytes": disk.total}

    @property
    def ports(self) -> list[int]:
        """The listeners' ports in their order, as bound."""
        return self.listening.ports

    def _build_sync(self, ground: Ground) -> list[ClientRoute]:
        """What syncs are answered from; the views of users come last, when all else knows of an entry."""
        self.views = UserViews(self.database, self.tail)
        self.tail.add_view(self.views.apply, RoomEvents, RoomCompleteness, OutsideMembership, ReceiptMoved)
        timelines = Timelines(self.database, self.tail, self.reader)
        kept = self.user_data
        sources = SyncSources(
            rooms=SyncRooms(
                database=self.database,
                tail=self.tail,
                views=self.views,
                timelines=timelines,
                typing=kept.typists,
                incomplete=self.incomplete,
            ),
            account_data=kept.account_data,
            key_counts=self.keys.counts,
            typing=kept.typists,
            presence=kept.board,
        )
        self.syncs = SyncService(self.database, self.tail, self.views, sources)
        self.sliding = SlidingParts(
            ground, views=self.views, timelines=timelines, user_data=kept, key_counts=self.keys.counts
        )
        return [
            *SyncAPI(self.syncs, kept.filters, kept.presence).routes(),
            *OldSyncAPI(self.rooms.reading, timelines, self.views, kept.board).routes(),
            *self.sliding.routes,
        ]

    async def start(self, sockets: Sequence[socket.socket] = ()) -> None:
        """Open the database, follow the log, listen: on these sockets, one a listener, if they are bound already.

        Whatever comes of it, `stop` has to follow: else what is under way would hold up the end of the process.
        """
        await self.database.open()
        await self.accounts.impersonation.make_senders()
        await self.rooms.start()
        await self.tail.start()
        await self.incomplete.start(self.database)
        await self.event_counter.start()
        await self.search.start()
        await self.followers.start()
        if self.config.federation.enabled:
            await self.outbound.shared_availability.start()
            await self.sender.start()
        self._run("log", self.log.run())
        hear = {log.CHANNEL: self.tail.hear, exchange.CHANNEL: self.user_data.exchange.hear}
        self._run("bus", self.bus.run(hear, self.tail.look))
        self._run("tail", self.tail.run())
        self._run("event counter", self.event_counter.run())
        self._run("followers", self.followers.run())
        for name, work in self.search.tasks().items():
            self._run(name, work)
        self._run("push", self.push.delivery.run())
        self._run("device activity", self.accounts.activity.run())
        self._run("delayed events", self.rooms.delayed_events.run())
        self._run("forgetting what expired", self._sweep())
        self._run("clock", self._keep_time())
        self._run("media that is kept no longer", self.media.cache.run())
        if self.mailer.is_enabled:
            self._run("mail", self.mailer.run())
            self._run("mail of unread messages", self.push.digests.run())
        if self.accounts.sms.is_enabled:
            self._run("SMS", self.accounts.sms.run())
        if self.config.federation.enabled:
            self._run("dead letters", self.reception.dead_letters.run())
            self._run("forked rooms", self.reception.merger.run())
            self._run("availability", self.outbound.shared_availability.run())
            self._run("sender", self.sender.run())
            self._run("device lists of other servers", self.keys.remote_devices.run())
        self._run("joins to rooms of other servers", self.handshaking.joins.run())
        if self.metrics is not None:
            self._run("metrics", self.metrics.run())
        if self.user_data.presence.enabled:
            self._run("presence", self.user_data.presence.run())
        await self.listening.start(self.config.listeners, sockets)

    async def give_notice(self) -> None:
        """Say by `/ready` that no more requests should come, and answer those that do, for as long as is configured."""
        self.health.note_end()
        await asyncio.sleep(self.config.shutdown_delay / 1000)

    async def stop(self, *, drain: bool = False) -> None:
        """Stop listening, finish what is under way, write what is pending, close.

        `drain` gives clients the time to ask once more on connections that they have, and to hear that those end.
        """
        self.tail.close()
        await self.listening.stop(drain=drain)
        await self.health.close()
        if self.metrics is not None:
            await self.metrics.close()
        await self.reception.transactions.close()
        await self.media.previews.close()
        await self.media.repository.close()
        await background.end(self._tasks[2:])
        await self.outbound.stop()
        await self.push.egress.close()
        await self.accounts.egress.close()
        self.user_data.typists.close()
        await self.accounts.activity.flush()
        await background.end(self._tasks[:1])
        await self.log.close()
        await background.end(self._tasks[:2])  # the bus last: others are told of what was written until the end
        if self.tracer is not None:
            await self.tracer.close()
        await self.database.close()
        self.failed.cancel()

    def _run(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Own a background task for as long as the server lives; its end before that ends the server."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        task.add_done_callback(self._note_end)
        self._tasks.append(task)

    def _note_end(self, task: "asyncio.Task[None]") -> None:
        if task.cancelled() or self.failed.done():
            return
        logger.critical("background task %r ended", task.get_name(), exc_info=task.exception())
        self.failed.set_exception(task.exception() or RuntimeError(f"{task.get_name()} ended"))

    async def _keep_time(self) -> None:
        while True:
            await asyncio.sleep(CLOCK_SECONDS)
            with contextlib.suppress(Unavailable):  # logged where it arose
                await self.database.set_clock()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                await self.accounts.interactive_auth.forget_expired()
                await self.accounts.identifiers.forget_expired()
                self.views.drop_unused()
                await self.keys.upkeep.run_once()
                await self.sliding.connections.forget_unused()
                await self.user_data.inbox_limits.give_up()
                await self.outbound.keyring.forget_old_lists()
                await self.media.repository.forget_unused()
                await self.media.previews.forget_old()
                self.views.drop_unused()
                async with self.database.transaction() as tx:
                    await short_lived_tokens.delete_expired(tx, self.database.now_ms())
            except Unavailable:  # logged where it arose
                continue
            except Exception:
                logger.exception("what expired could not be forgotten; the next turn tries again")
