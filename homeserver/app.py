"""The whole server: every object built in one place from arguments, in dependency order, and its life.

`Application` is one process's server on a migrated database; `serving.py` runs it.
"""

import asyncio
import logging
import time
from collections.abc import Coroutine, Sequence
from typing import Any

from federation.inbound.devices import DeviceAnswers
from federation.inbound.edus import EDUReceivers
from federation.inbound.queries import QueryAnswers
from federation.protocol.errors import Unavailable
from federation.protocol.types import ServerName
from federation.rooms import client_events
from federation.rooms.append import RoomWriter
from federation.rooms.heads import RoomHeads
from federation.rooms.hierarchy import Hierarchy
from federation.rooms.pages import Pages
from federation.rooms.reader import RoomReader
from federation.rooms.sent import SentEvents
from federation.rooms.spaces import SpaceReader
from federation.rooms.summaries import RoomSummaries
from federation.rooms.timelines import Timelines
from federation.web import Route
from homeserver import configured
from homeserver.client_api import interactive_auth as uia
from homeserver.client_api import routes
from homeserver.client_api.account_data import AccountDataAPI
from homeserver.client_api.accounts import AccountsAPI
from homeserver.client_api.auth_stages import DummyStage, PasswordStage, RegistrationTokenStage, TermsStage
from homeserver.client_api.authentication import TokenAuthenticator
from homeserver.client_api.dehydrated_devices import DehydratedDevicesAPI
from homeserver.client_api.delayed_events import DelayedEventsAPI
from homeserver.client_api.device_management import DeviceManagementAPI
from homeserver.client_api.discovery import DiscoveryAPI
from homeserver.client_api.end_to_end_encryption import EndToEndEncryptionAPI
from homeserver.client_api.ephemeral import EphemeralAPI
from homeserver.client_api.filtering import FilteringAPI
from homeserver.client_api.interactive_auth import InteractiveAuth
from homeserver.client_api.key_backup import KeyBackupAPI
from homeserver.client_api.login import LoginAPI
from homeserver.client_api.moderation import ModerationAPI
from homeserver.client_api.old_sync import OldSyncAPI
from homeserver.client_api.outside_services import OutsideServicesAPI
from homeserver.client_api.pages import PagesAPI
from homeserver.client_api.profiles import ProfilesAPI
from homeserver.client_api.push import PushRulesAPI
from homeserver.client_api.reading_events import ReadingEventsAPI, RoomReading
from homeserver.client_api.reading_state import ReadingStateAPI
from homeserver.client_api.room_creation import RoomCreationAPI
from homeserver.client_api.room_directory import RoomDirectoryAPI
from homeserver.client_api.room_membership import RoomMembershipAPI
from homeserver.client_api.room_summaries import RoomSummariesAPI
from homeserver.client_api.routing import build_routes
from homeserver.client_api.send_to_device import SendToDeviceAPI
from homeserver.client_api.sending_events import SendingEventsAPI
from homeserver.client_api.server_administration import ServerAdministrationAPI, SharedSecretRegistrationAPI
from homeserver.client_api.spaces import SpacesAPI
from homeserver.client_api.syncing import SyncAPI
from homeserver.client_api.user_administration import UserAdministrationAPI
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
from homeserver.listening import Listening
from homeserver.media_parts import MediaParts
from homeserver.services import device_keys
from homeserver.services.account_data import AccountDataService
from homeserver.services.accounts import AccountService
from homeserver.services.cross_signing import CrossSigningService
from homeserver.services.dehydrated_devices import DehydratedDeviceService
from homeserver.services.delayed_events import DelayedEventService
from homeserver.services.device_activity import DeviceActivity
from homeserver.services.event_counts import EventCounter
from homeserver.services.filters import FilterService
from homeserver.services.impersonation import Impersonation
from homeserver.services.key_backups import KeyBackupService
from homeserver.services.key_upkeep import KeyUpkeep
from homeserver.services.keys_for_servers import KeysForServers
from homeserver.services.member_upkeep import MemberUpkeep
from homeserver.services.membership import MembershipService
from homeserver.services.messages import MessageService
from homeserver.services.passwords import Passwords
from homeserver.services.presence import PresenceService
from homeserver.services.profiles import MemberFields, ProfileService
from homeserver.services.published_rooms import PublishedRooms
from homeserver.services.push import PushRuleService
from homeserver.services.receipts import ReceiptService
from homeserver.services.remote_devices import RemoteDevices
from homeserver.services.remote_keys import RemoteKeys
from homeserver.services.room_creation import RoomCreationService
from homeserver.services.room_directory import RoomDirectory
from homeserver.services.room_settings import RoomSettings
from homeserver.services.room_summaries import RoomSummaryService
from homeserver.services.room_upgrades import RoomUpgradeService
from homeserver.services.send_to_device import SendToDeviceService
from homeserver.services.sessions import SessionService
from homeserver.services.spaces import SpaceService
from homeserver.services.sync import SyncService, SyncSources
from homeserver.services.sync_rooms import SyncRooms
from homeserver.services.typing import TypingService
from homeserver.services.user_names import UserNames
from homeserver.services.user_views import UserViews
from homeserver.signing_keys import OwnKeys
from storage import background, send_to_device, short_lived_tokens
from storage.account_data import AccountDataChanged
from storage.append_events import RoomEvents
from storage.database import Database
from storage.device_lists import DeviceListChanged
from storage.end_to_end_keys import KeyCountCache
from storage.ephemeral import Exchange, PresenceBoard, Typing
from storage.invalidations import Invalidated
from storage.log import Change, Log
from storage.outbox import EventRelayed, OutgoingMessages
from storage.outside_memberships import OutsideMembership
from storage.receipts import ReceiptMoved
from storage.send_to_device import ToDeviceMessages
from storage.tail import Tail

logger = logging.getLogger(__name__)

KINDS: Sequence[type[Change]] = (
    Invalidated,
    DeviceListChanged,
    ToDeviceMessages,
    AccountDataChanged,
    ReceiptMoved,
    OutgoingMessages,
    EventRelayed,
    OutsideMembership,
    RoomEvents,
)
"""Every kind of change that the log may hold."""

SWEEP_SECONDS = 600


class Application:
    """One process's server. `start` returns when it answers; `stop` loses no answered write."""

    def __init__(self, config: Config, conninfo: str, keys: OwnKeys) -> None:
        self.config = config
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Gets the exception of a background task that ended."""
        self._tasks: list[asyncio.Task[None]] = []
        self._build(conninfo, keys)

    def _build(self, conninfo: str, keys: OwnKeys) -> None:
        """Every object, in dependency order."""
        config, server_name = self.config, ServerName(self.config.server_name)

        # storage
        self.database = Database(conninfo, max_connections=config.database.max_connections)
        self.tail = Tail(self.database, KINDS)
        self.log = Log(self.database, self.tail)

        # rooms
        heads = RoomHeads(self.database)
        self.tail.add_view(heads.apply)
        self.tail.add_view(client_events.forget_redacted(self.tail))
        self.event_counter = EventCounter(self.database, server_name)
        self.tail.add_view(self.event_counter.apply)
        self.writer = RoomWriter(
            database=self.database,
            log=self.log,
            heads=heads,
            counter=self.event_counter,
            server_name=server_name,
            signing_key=keys.signing_key,
        )
        self.reader = RoomReader(self.database)
        self.outbound = Outbound(
            config=config, database=self.database, log=self.log, server_name=server_name, keys=keys
        )
        self.fetching = Fetching(self.outbound, database=self.database, writer=self.writer)
        self.tail.add_view(self.fetching.access.apply)

        # services
        self.rate_limits = configured.rate_limits(config.rate_limits)
        passwords = Passwords(min_length=config.registration.minimum_password_length)
        self.sessions = SessionService(
            self.database,
            self.log,
            configured.lifetimes(config.sessions),
            devices_changed=[device_keys.devices_changed],
        )
        self.tail.add_view(self.sessions.on_change)
        self.application_services = configured.application_services(config)
        self.impersonation = Impersonation(self.database, self.application_services)
        self.tail.add_view(self.impersonation.on_change)
        self.activity = DeviceActivity(self.database)
        self.account_data = AccountDataService(self.database, self.log, self.event_counter.follow)
        self.tail.add_view(self.account_data.on_change)
        self.ground = Ground(database=self.database, log=self.log, writer=self.writer, rate_limits=self.rate_limits)
        self._build_rooms(server_name)
        names = UserNames(server_name, self.application_services)
        self.accounts = AccountService(
            self.database,
            self.sessions,
            passwords,
            self.rate_limits,
            names,
            leave_all_rooms=self.member_upkeep.leave_all_rooms,
        )
        self.key_counts = KeyCountCache(self.database)
        self.key_upkeep = KeyUpkeep(self.database, self.tail)
        self.tail.add_view(self.key_counts.view)
        self.tail.add_view(send_to_device.drop_large_contents)
        self._build_user_data(server_name)
        self._build_keys(server_name)

        # the client API
        authenticator = TokenAuthenticator(
            self.sessions,
            self.application_services,
            self.impersonation,
            self.activity,
            query_string_tokens=config.query_string_tokens,
        )
        self.interactive_auth = InteractiveAuth(
            self.database,
            {
                uia.DUMMY: DummyStage(),
                uia.PASSWORD: PasswordStage(self.accounts),
                uia.REGISTRATION_TOKEN: RegistrationTokenStage(self.accounts),
                uia.TERMS: TermsStage(configured.policies(config.registration)),
            },
        )
        discovery = DiscoveryAPI(configured.description(config))
        administration = ServerAdministrationAPI(self.database, self.accounts, self.activity)
        secret = config.registration.shared_secret
        shared_secret_registration = SharedSecretRegistrationAPI(
            self.accounts, self.sessions, passwords, secret.value if secret is not None else None
        )
        moderation = ModerationAPI(self.database, self.reader, names)
        user_administration = UserAdministrationAPI(
            self.database, self.accounts, self.sessions, passwords, self.profiles, names
        )
        pages = PagesAPI(self.interactive_auth, server_name=server_name)
        directory = RoomDirectoryAPI(
            self.room_directory,
            PublishedRooms(self.database, self.summaries),
            server_name,
            self.outbound.queries.public_rooms,
        )
        client_routes = [
            *routes.discovery_routes(discovery),
            *routes.login_routes(
                LoginAPI(
                    self.accounts,
                    self.sessions,
                    authenticator,
                    self.interactive_auth,
                    base_url=config.public_base_url,
                )
            ),
            *routes.account_routes(
                AccountsAPI(
                    self.accounts,
                    self.sessions,
                    passwords,
                    self.interactive_auth,
                    authenticator,
                    registration=configured.registration_policy(config.registration),
                )
            ),
            *routes.device_routes(
                DeviceManagementAPI(self.database, self.sessions, self.activity, self.interactive_auth)
            ),
            *routes.end_to_end_encryption_routes(
                EndToEndEncryptionAPI(
                    self.device_keys,
                    CrossSigningService(self.log),
                    self.interactive_auth,
                )
            ),
            *routes.dehydrated_device_routes(
                DehydratedDevicesAPI(DehydratedDeviceService(self.database, self.log, self.tail))
            ),
            *routes.key_backup_routes(KeyBackupAPI(KeyBackupService(self.database))),
            *routes.send_to_device_routes(SendToDeviceAPI(self.to_device)),
            *routes.administration_routes(administration),
            *routes.report_routes(moderation),
            *routes.outside_service_routes(OutsideServicesAPI(self.database, configured.turn_servers(config.turn))),
            *routes.filter_routes(FilteringAPI(self.filters)),
            *routes.account_data_routes(AccountDataAPI(self.account_data)),
            *routes.push_rule_routes(PushRulesAPI(self.push_rules)),
            *routes.profile_routes(ProfilesAPI(self.profiles)),
            *routes.ephemeral_routes(EphemeralAPI(self.typing, self.receipts, self.presence)),
            *SyncAPI(self.syncs, self.filters, self.presence).routes(),
            *routes.room_creation_routes(RoomCreationAPI(self.room_creation, self.room_upgrades)),
            *routes.membership_routes(RoomMembershipAPI(self.memberships, self.room_directory)),
            *routes.sending_routes(
                SendingEventsAPI(
                    self.messages, self.memberships, self.member_upkeep, self.presence, self.delayed_events
                )
            ),
            *routes.reading_routes(ReadingEventsAPI(self.reading), ReadingStateAPI(self.reading)),
            *routes.delayed_event_routes(DelayedEventsAPI(self.delayed_events)),
            *routes.directory_routes(directory),
            *RoomSummariesAPI(
                self.database,
                RoomSummaryService(
                    self.database,
                    self.summaries,
                    self.room_directory,
                    self.handshaking.rooms,
                    self.outbound.queries.room_summary,
                ),
            ).routes(),
            *SpacesAPI(self.spaces).routes(),
            *self.old_syncs.routes(),
            *routes.media_routes(self.media.api),
        ]

        # what each listener serves
        self.reception = Reception(
            self.outbound,
            self.ground,
            self.fetching,
            self.handshaking.doors,
            EDUReceivers(
                typing=self.typing.receive,
                presence=self.presence.receive,
                receipt=self.receipts.receive,
                to_device=self.to_device.receive,
                device_list=self.remote_devices.receive_update,
                signing_keys=self.remote_devices.receive_signing_keys,
            ),
        )
        inbound = Inbound(
            self.outbound,
            self.ground,
            reception=self.reception,
            handshaking=self.handshaking,
            may_be_invited=self.memberships.check_may_be_invited,
            answers=Answers(
                queries=QueryAnswers(
                    alias=self.room_directory.resolve,
                    profile=self.profiles.get_local,
                    public_rooms=directory.search if config.federation.publish_rooms else None,
                    hierarchy=Hierarchy(self.database, self.summaries, server_name),
                ),
                devices=DeviceAnswers(
                    devices=self.keys_for_servers.devices,
                    query=self.keys_for_servers.query,
                    claim=self.keys_for_servers.claim,
                ),
                media=self.media.answers,
            ),
        )
        served: dict[API, list[Route]] = {
            API.CLIENT: [
                *build_routes(client_routes, authenticator, self.rate_limits.by_name()),
                *routes.well_known_routes(discovery),
                *routes.page_routes(pages),
            ],
            API.FEDERATION: inbound.routes if config.federation.enabled else [],
            API.ADMIN: [
                *routes.admin_api_routes(administration, shared_secret_registration, authenticator),
                *routes.user_admin_routes(user_administration, authenticator),
                *routes.report_admin_routes(moderation, authenticator),
            ],
        }
        self.listening = Listening(served)

    @property
    def ports(self) -> list[int]:
        """The listeners' ports in their order, as bound."""
        return self.listening.ports

    def _build_rooms(self, server_name: ServerName) -> None:
        """What is done in rooms."""
        member_fields = MemberFields(self.database)
        self.tail.add_view(member_fields.on_change)
        room_settings = RoomSettings(self.database, self.log)
        self.handshaking = Handshaking(self.outbound, self.ground, enabled=self.config.federation.enabled)
        self.tail.add_view(self.handshaking.doors.apply)
        self.memberships = MembershipService(
            self.database,
            self.writer,
            remote=self.handshaking.rooms,
            profile_of=member_fields.get,
            is_invite_blocked=self.account_data.blocks_invites,
            settings=room_settings,
        )
        self.member_upkeep = MemberUpkeep(self.database, self.writer, self.handshaking.rooms)
        self.room_creation = RoomCreationService(
            self.writer,
            self.memberships,
            server_name=server_name,
            default_version=self.config.default_room_version,
            profile_of=member_fields.get,
            application_services=self.application_services,
        )
        self.summaries = RoomSummaries()
        self.spaces = SpaceService(self.database, SpaceReader(self.summaries), self.fetching.spaces, server_name)
        self.reading = RoomReading(
            self.database, self.tail, self.reader, Pages(self.reader), self.account_data, self.fetching.backfill
        )
        self.room_upgrades = RoomUpgradeService(
            self.database, self.writer, self.room_creation, room_settings, member_fields.get
        )
        self.room_directory = RoomDirectory(
            self.database,
            self.writer,
            self.reader,
            self.application_services,
            server_name=server_name,
            resolve_remote=self.outbound.queries.alias,
        )
        self.delayed_events = DelayedEventService(self.database, self.writer)
        self.tail.add_view(self.delayed_events.on_change)
        self.messages = MessageService(self.writer, SentEvents(self.database), self.room_directory.find)

    def _build_user_data(self, server_name: ServerName) -> None:
        """What users keep, and what they tell of themselves."""
        self.filters = FilterService(self.database)
        self.media = MediaParts(self.config, self.database, self.outbound)
        self.push_rules = PushRuleService(self.database, self.log, self.event_counter.follow)
        self.tail.add_view(self.push_rules.on_change)
        self.profiles = ProfileService(
            self.database,
            self.log,
            server_name=server_name,
            propagate=self.member_upkeep.update_profile,
            query_remote=self.outbound.queries.profile,
        )
        self.receipts = ReceiptService(self.database, self.log)
        self.to_device = SendToDeviceService(self.log, server_name)
        self.typists = Typing(self._wake_room)
        board = PresenceBoard()
        self.exchange = Exchange(self.database, self.typists, board)
        self.typing = TypingService(self.database, self.exchange)
        self.presence = PresenceService(self.database, self.tail, board, self.exchange, enabled=self.config.presence)
        self._build_sync(board)
        self.sender = build_sender(self.outbound, self.config, self.database, self.tail)
        if self.config.federation.enabled:
            self.tail.add_view(self.outbound.shared_availability.on_change)
            self.tail.add_view(self.sender.on_change)
            self.typists.observers.append(self.sender.typing)
            if self.config.federation.send_presence:
                self.presence.observers.append(self.sender.presence)

    def _build_keys(self, server_name: ServerName) -> None:
        """Keys of devices, ours and those of other servers' users."""
        self.remote_devices = RemoteDevices(self.database, self.log, self.tail, self.outbound.devices)
        self.outbound.availability.observers.append(self.remote_devices.server_is_back)
        remote = RemoteKeys(self.database, self.outbound.devices, self.remote_devices)
        self.device_keys = device_keys.DeviceKeysService(self.database, self.log, server_name, remote)
        self.keys_for_servers = KeysForServers(
            self.database,
            self.device_keys,
            server_name,
            with_device_names=self.config.federation.show_device_names,
        )

    def _build_sync(self, board: PresenceBoard) -> None:
        """What syncs are answered from; the views of users come last, when all else knows of an entry."""
        self.views = UserViews(self.database, self.tail)
        self.tail.add_view(self.views.apply)
        timelines = Timelines(self.database, self.tail, self.reader)
        sources = SyncSources(
            rooms=SyncRooms(
                database=self.database, tail=self.tail, views=self.views, timelines=timelines, typing=self.typists
            ),
            account_data=self.account_data,
            key_counts=self.key_counts,
            typing=self.typists,
            presence=board,
        )
        self.syncs = SyncService(self.database, self.tail, self.views, sources)
        self.old_syncs = OldSyncAPI(self.reading, timelines, self.views, board)

    def _wake_room(self, room: int) -> None:
        for listener in self.tail.listeners_in(room):
            listener.wake()

    async def start(self) -> None:
        """Open the database, follow the log, listen."""
        await self.database.open()
        await self.impersonation.make_senders()
        await self.tail.start()
        await self.event_counter.start()
        if self.config.federation.enabled:
            await self.outbound.shared_availability.start()
            await self.sender.start()
        self._run("log", self.log.run())
        self._run("tail", self.tail.run())
        self._run("event counter", self.event_counter.run())
        self._run("device activity", self.activity.run())
        self._run("delayed events", self.delayed_events.run())
        self._run("forgetting what expired", self._sweep())
        self._run("exchange", self.exchange.run())
        if self.config.federation.enabled:
            self._run("dead letters", self.reception.dead_letters.run())
            self._run("availability", self.outbound.shared_availability.run())
            self._run("sender", self.sender.run())
            self._run("device lists of other servers", self.remote_devices.run())
        self._run("joins to rooms of other servers", self.handshaking.joins.run())
        if self.presence.enabled:
            self._run("presence", self.presence.run())
        try:
            await self.listening.start(self.config.listeners)
        except OSError:
            await self.stop()  # else what is under way would hold up the end of the process
            raise

    async def stop(self) -> None:
        """Stop listening, finish what is under way, write what is pending, close."""
        self.tail.close()
        await self.listening.stop()
        await self.reception.transactions.close()
        await self.media.repository.close()
        await background.end(self._tasks[1:])
        await self.outbound.stop()
        self.typists.close()
        await self.activity.flush()
        await background.end(self._tasks[:1])
        await self.log.close()
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

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                await self.interactive_auth.forget_expired()
                self.views.drop_unused()
                await self.key_upkeep.run_once()
                await self.outbound.keyring.forget_old_lists()
                await self.media.repository.forget_unused()
                self.views.drop_unused()
                async with self.database.transaction() as tx:
                    await short_lived_tokens.delete_expired(tx, int(time.time() * 1000))
            except Unavailable:  # logged where it arose
                continue
            except Exception:
                logger.exception("what expired could not be forgotten; the next turn tries again")
