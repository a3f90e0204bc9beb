"""All of federation built in one place from arguments, in dependency order, as `app.py` does with the rest."""

from collections.abc import Collection

from msgspec import Struct

from federation.inbound import routes
from federation.inbound.authentication import Authenticator, build_federation_routes
from federation.inbound.content_repository import FederationMediaAPI, MediaAnswers
from federation.inbound.dead_letters import DeadLetters
from federation.inbound.devices import DeviceAnswers, DevicesAPI
from federation.inbound.edus import EDUReceivers, EDUs
from federation.inbound.events import EventsAPI
from federation.inbound.invitations import InvitationAPI, ThirdPartyInviteAPI
from federation.inbound.membership import MembershipAPI
from federation.inbound.openid import OpenIDAPI
from federation.inbound.queries import QueriesAPI, QueryAnswers
from federation.inbound.server_keys import ServerKeysAPI
from federation.inbound.transactions import TransactionsAPI
from federation.inbound.version import VersionAPI
from federation.outbound.addresses import AddressPolicy
from federation.outbound.availability import Availability
from federation.outbound.client import FederationClient
from federation.outbound.delivery import Delivery
from federation.outbound.device_requests import DeviceRequests
from federation.outbound.egress import Egress
from federation.outbound.key_requests import KeyRequests
from federation.outbound.keyring import Keyring
from federation.outbound.name_lookup import SystemNameLookup
from federation.outbound.policy_requests import PolicyRequests
from federation.outbound.queries import Queries
from federation.outbound.sender import Presences, Sender
from federation.outbound.server_discovery import ServerDiscovery
from federation.outbound.shared_availability import SharedAvailability
from federation.protocol.identifiers import server_name_of
from federation.protocol.types import JsonObject, ServerName, UserID
from federation.rooms.append import RoomWriter
from federation.rooms.backfill import Backfill
from federation.rooms.doors import RoomDoors
from federation.rooms.handshakes import Handshakes
from federation.rooms.incomplete_rooms import IncompleteRooms
from federation.rooms.invited import Invitations, MayBeInvited
from federation.rooms.joining import RemoteJoins
from federation.rooms.merging import Merger
from federation.rooms.missing_events import MissingEventsFetcher
from federation.rooms.outside import OutsideRooms
from federation.rooms.policy_servers import PolicyServers
from federation.rooms.questions import Questions
from federation.rooms.reader import RoomReader
from federation.rooms.receive import Receiver
from federation.rooms.remote_memberships import RemoteMemberships
from federation.rooms.remote_spaces import RemoteSpaces
from federation.rooms.resident import Resident
from federation.rooms.server_access import ServerAccess
from federation.rooms.server_reader import ServerReader
from federation.rooms.third_party_invites import ThirdPartyInvites
from federation.web import Route
from homeserver import configured, release
from homeserver.config import Config
from homeserver.services import key_answers
from homeserver.services.rate_limits import RateLimits
from homeserver.services.remote_rooms import RemoteRooms
from homeserver.signing_keys import OwnKeys
from storage.database import Database, Tx
from storage.log import Log
from storage.spans import NO_SPANS, Spans
from storage.tail import Tail


class Outbound:
    """What asks other servers; built before the services that use it."""

    def __init__(
        self,
        *,
        config: Config,
        database: Database,
        log: Log,
        server_name: ServerName,
        keys: OwnKeys,
        spans: Spans = NO_SPANS,
    ) -> None:
        self.server_name = server_name
        self.keys = keys
        settings = config.federation
        self.egress = Egress(
            AddressPolicy(settings.denied_ranges, settings.allowed_ranges),
            SystemNameLookup(),
            settings.certificate_authorities,
            user_agent=f"Hearth/{release.number()}",
            spans=spans,
        )
        self.discovery = ServerDiscovery(self.egress)
        self.availability = Availability()
        self.shared_availability = SharedAvailability(database, log, self.availability)
        self.speaks_with = configured.speaks_with(settings)
        self.client = FederationClient(
            server_name,
            keys.signing_key,
            self.egress,
            self.discovery,
            self.availability,
            speaks_with=self.speaks_with,
        )
        self.policies = PolicyServers(database, PolicyRequests(self.client).sign)
        self.queries = Queries(self.client)
        self.devices = DeviceRequests(self.client)
        self.keyring = Keyring(
            database,
            KeyRequests(self.client),
            server_name=server_name,
            own_keys=keys.verify_keys(),
            notaries=[ServerName(name) for name in settings.notary_servers],
        )

    async def stop(self) -> None:
        """End what runs by itself."""
        await self.keyring.close()
        await self.discovery.close()
        await self.egress.close()


class Ground(Struct, frozen=True, kw_only=True):
    """What all else stands on."""

    config: Config
    database: Database
    log: Log
    tail: Tail
    writer: RoomWriter
    reader: RoomReader
    incomplete: IncompleteRooms
    rate_limits: RateLimits

    @property
    def server_name(self) -> ServerName:
        """This server's."""
        return ServerName(self.config.server_name)


class Fetching:
    """What fetches from other servers what there is in rooms: events that newer ones refer to, history, spaces."""

    def __init__(self, outbound: Outbound, ground: Ground) -> None:
        database, writer = ground.database, ground.writer
        questions = Questions(outbound.client)
        self.access = ServerAccess(ground.incomplete)
        self.spaces = RemoteSpaces(outbound.client, outbound.server_name)
        self.missing = MissingEventsFetcher(
            database=database,
            writer=writer,
            verify=outbound.keyring.verify_events,
            questions=questions,
            server_name=outbound.server_name,
        )
        self.backfill = Backfill(
            database=database,
            fetcher=self.missing,
            questions=questions,
            access=self.access,
            incomplete=ground.incomplete,
            server_name=outbound.server_name,
        )
        outbound.availability.observers.append(self.backfill.notice)


class Handshaking:
    """Memberships for which servers need each other; built before the services that ask for them."""

    def __init__(self, outbound: Outbound, ground: Ground, *, enabled: bool) -> None:
        database, writer = ground.database, ground.writer
        self.doors = RoomDoors(database, outbound.server_name)
        self.resident = Resident(
            database=database,
            writer=writer,
            doors=self.doors,
            incomplete=ground.incomplete,
            verify_events=outbound.keyring.verify_events,
            signer=(outbound.server_name, outbound.keys.signing_key),
        )
        handshakes = Handshakes(
            client=outbound.client,
            keyring=outbound.keyring,
            server_name=outbound.server_name,
            signing_key=outbound.keys.signing_key,
            database=database,
            writer=writer,
            doors=self.doors,
        )
        self.joins = RemoteJoins(
            database=database, log=ground.log, writer=writer, handshakes=handshakes, doors=self.doors
        )
        self.outside = OutsideRooms(database, ground.log, outbound.keyring.verify_events, outbound.server_name)
        memberships = RemoteMemberships(
            writer=writer,
            outside=self.outside,
            handshakes=handshakes,
            stripped_state=self.resident.stripped_state,
        )
        self.rooms = RemoteRooms(
            database, self.joins, memberships, self.doors, server_name=outbound.server_name, enabled=enabled
        )
        self.third_party_invites = ThirdPartyInvites(
            database=database,
            writer=writer,
            resident=self.resident,
            invite_remote=memberships.invite,
            ask_inviter=memberships.exchange_third_party_invite,
            server_name=outbound.server_name,
        )


class Reception:
    """What takes other servers' events and EDUs."""

    def __init__(
        self,
        outbound: Outbound,
        ground: Ground,
        fetching: Fetching,
        handshaking: Handshaking,
        edu_receivers: EDUReceivers,
    ) -> None:
        database, verify = ground.database, outbound.keyring.verify_events
        doors, joins = handshaking.doors, handshaking.joins
        self.access = fetching.access
        self.receiver = Receiver(
            writer=ground.writer,
            verify=verify,
            missing=fetching.missing,
            doors=doors,
            find_join=joins.version_of,
            incomplete=ground.incomplete,
        )
        outbound.availability.observers.append(self.receiver.server_is_back)
        self.dead_letters = DeadLetters(database, self.receiver)
        self.merger = Merger(database, ground.writer, outbound.server_name)
        joins.observers.append(self.dead_letters.look)
        edus = EDUs(database=database, receiver=self.receiver, doors=doors, receivers=edu_receivers)
        self.transactions = TransactionsAPI(
            database=database,
            receiver=self.receiver,
            outside=handshaking.outside,
            edus=edus,
            dead_letters=self.dead_letters,
            spans=outbound.egress.spans,
        )


class Answers(Struct, frozen=True, kw_only=True):
    """What is known of this server's users and rooms."""

    queries: QueryAnswers
    devices: DeviceAnswers
    media: MediaAnswers


class Inbound:
    """What answers other servers; built after the services that it asks."""

    def __init__(
        self,
        outbound: Outbound,
        ground: Ground,
        *,
        reception: Reception,
        handshaking: Handshaking,
        may_be_invited: MayBeInvited,
        answers: Answers,
    ) -> None:
        database, resident = ground.database, handshaking.resident
        self.invitations = Invitations(
            database=database,
            outside=handshaking.outside,
            resident=resident,
            verify_events=outbound.keyring.verify_events,
            may_be_invited=_within_budget(may_be_invited, ground.rate_limits),
            signer=(outbound.server_name, outbound.keys.signing_key),
        )
        authenticator = Authenticator(
            outbound.server_name,
            outbound.keyring.verify_request,
            FederationBudget(ground.rate_limits),
            note_alive=outbound.availability.alive,
            tail=ground.tail,
            speaks_with=outbound.speaks_with,
        )
        events = EventsAPI(ServerReader(database, reception.access), outbound.server_name)
        self.routes: list[Route] = build_federation_routes(
            [
                *routes.version_routes(VersionAPI("Hearth", release.number())),
                *routes.server_key_routes(
                    ServerKeysAPI(outbound.server_name, outbound.keys.signing_key, outbound.keys.old, outbound.keyring)
                ),
                *routes.openid_routes(OpenIDAPI(database)),
                *routes.invitation_routes(InvitationAPI(self.invitations)),
                *routes.membership_routes(MembershipAPI(database, resident, outbound.server_name)),
                *routes.third_party_invite_routes(ThirdPartyInviteAPI(handshaking.third_party_invites)),
                *routes.event_routes(events),
                *routes.query_routes(QueriesAPI(answers.queries, outbound.server_name)),
                *routes.device_routes(DevicesAPI(answers.devices)),
                *routes.transaction_routes(reception.transactions),
                *routes.media_routes(FederationMediaAPI(answers.media)),
            ],
            authenticator,
        )


def build_sender(outbound: Outbound, config: Config, database: Database, tail: Tail, presences: Presences) -> Sender:
    """What tells other servers of what happens here."""
    delivery = Delivery(
        database=database,
        server_name=outbound.server_name,
        client=outbound.client,
        keys_of=_keys_of,
        with_device_names=config.federation.show_device_names,
        message_lifetime_ms=config.federation.message_lifetime,
    )
    sender = Sender(
        database=database,
        tail=tail,
        server_name=outbound.server_name,
        delivery=delivery,
        availability=outbound.availability,
        presences=presences if config.federation.send_presence else None,
    )
    outbound.availability.observers.append(sender.wake)
    return sender


async def _keys_of(tx: Tx, users: Collection[UserID]) -> JsonObject:
    return await key_answers.answer_query(tx, {user_id: frozenset() for user_id in users}, None)


def _within_budget(may_be_invited: MayBeInvited, rate_limits: RateLimits) -> MayBeInvited:
    """The same, and no server invites one user more often than `rate_limits.invites` says.

    Not one budget for all servers: then anybody could keep a user from being invited.
    """

    async def check(target: UserID, sender: UserID) -> None:
        rate_limits.spend("invites", f"{server_name_of(sender)} {target}")
        await may_be_invited(target, sender)

    return check


class FederationBudget:
    """`rate_limits.federation`."""

    def __init__(self, rate_limits: RateLimits) -> None:
        self._rate_limits = rate_limits

    def check(self, key: str) -> None:
        """Raise LimitExceeded when `key`, a server or an address, has none left."""
        self._rate_limits.check("federation", key)

    def spend(self, key: str, *, cost: int = 1) -> None:
        """Take so much; raises LimitExceeded, and takes nothing, when `key`, a server or an address, has less."""
        self._rate_limits.spend("federation", key, cost=cost)
