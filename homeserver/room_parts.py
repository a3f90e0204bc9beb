"""What users do in rooms, built in one place from arguments, with how clients ask for it."""

from federation.rooms.aggregations import Aggregations
from federation.rooms.hierarchy import Hierarchy
from federation.rooms.pages import Pages
from federation.rooms.sent import SentEvents
from federation.rooms.spaces import SpaceReader
from federation.rooms.summaries import RoomSummaries
from homeserver import configured
from homeserver.client_api import routes
from homeserver.client_api.delayed_events import DelayedEventsAPI
from homeserver.client_api.profiles import ProfilesAPI
from homeserver.client_api.reading_events import ReadingEventsAPI, RoomReading
from homeserver.client_api.reading_state import ReadingStateAPI
from homeserver.client_api.relations import RelationsAPI
from homeserver.client_api.room_creation import RoomCreationAPI
from homeserver.client_api.room_directory import RoomDirectoryAPI
from homeserver.client_api.room_membership import RoomMembershipAPI
from homeserver.client_api.room_summaries import RoomSummariesAPI
from homeserver.client_api.routing import ClientRoute
from homeserver.client_api.sending_events import SendingEventsAPI
from homeserver.client_api.spaces import SpacesAPI
from homeserver.federation_parts import Fetching, Ground, Handshaking, Outbound
from homeserver.followers.forced_forgetting import NAME as FORGETTING
from homeserver.followers.forced_forgetting import ForcedForgetting, leave_no_cursors
from homeserver.followers.guest_access import NAME as GUEST_ACCESS
from homeserver.followers.guest_access import GuestAccess
from homeserver.services.application_services import ApplicationServices
from homeserver.services.delayed_events import DelayedEventService
from homeserver.services.identity_servers import Identity, IdentityServers
from homeserver.services.member_upkeep import MemberUpkeep
from homeserver.services.membership import MembershipService
from homeserver.services.messages import MessageService
from homeserver.services.profiles import MemberFields, ProfileService
from homeserver.services.published_rooms import PublishedRooms
from homeserver.services.room_creation import RoomCreationService
from homeserver.services.room_directory import RoomDirectory
from homeserver.services.room_settings import RoomSettings
from homeserver.services.room_summaries import RoomSummaryService
from homeserver.services.room_upgrades import RoomUpgradeService
from homeserver.services.server_notices import ServerNotices
from homeserver.services.spaces import SpaceService
from homeserver.services.third_party_inviting import ThirdPartyInviting
from homeserver.user_data_parts import UserDataParts
from storage.append_events import RoomEvents
from storage.followers import Follower
from storage.invalidations import Invalidated


class RoomParts:
    """Rooms and who is in them, their events, their directory; profiles, which memberships repeat."""

    def __init__(
        self,
        ground: Ground,
        outbound: Outbound,
        fetching: Fetching,
        handshaking: Handshaking,
        user_data: UserDataParts,
        application_services: ApplicationServices,
    ) -> None:
        database, log, tail, writer, reader = ground.database, ground.log, ground.tail, ground.writer, ground.reader
        notices = configured.notice_policy(ground.config)
        member_fields = MemberFields(database)
        tail.add_view(member_fields.on_change, Invalidated)
        room_settings = RoomSettings(database, log)
        self.memberships = MembershipService(
            database,
            log,
            writer,
            remote=handshaking.rooms,
            profile_of=member_fields.get,
            is_invite_blocked=user_data.account_data.blocks_invites,
            settings=room_settings,
            notices_sender=None if notices is None else notices.sender,
        )
        self.member_upkeep = MemberUpkeep(database, writer, handshaking.rooms)
        self.profiles = ProfileService(
            database,
            log,
            server_name=ground.server_name,
            propagate=self.member_upkeep.update_profile,
            query_remote=outbound.queries.profile,
        )
        creation = RoomCreationService(
            writer,
            self.memberships,
            server_name=ground.server_name,
            default_version=ground.config.default_room_version,
            profile_of=member_fields.get,
            application_services=application_services,
        )
        self.identity_servers = IdentityServers(
            database,
            outbound.egress,
            Identity(server_name=ground.server_name, signing_key=outbound.keys.signing_key),
            trusts=configured.trusts(ground.config.identifiers),
        )
        third_party = ThirdPartyInviting(writer, self.memberships, self.identity_servers, member_fields.get)
        upgrades = RoomUpgradeService(database, writer, creation, room_settings, member_fields.get)
        summaries = RoomSummaries()
        space_reader = SpaceReader(summaries)
        spaces = SpaceService(database, space_reader, fetching.spaces, ground.server_name)
        self.hierarchy = Hierarchy(database, space_reader, ground.server_name)
        self.reading = RoomReading(
            database,
            tail,
            reader,
            Aggregations(reader),
            Pages(reader),
            user_data.account_data,
            fetching.backfill,
            ground.incomplete,
        )
        self.directory = RoomDirectory(
            database,
            writer,
            reader,
            application_services,
            server_name=ground.server_name,
            resolve_remote=outbound.queries.alias,
        )
        self.delayed_events = DelayedEventService(database, writer)
        tail.add_view(self.delayed_events.on_change, RoomEvents)
        self.messages = MessageService(writer, SentEvents(database), self.directory.find)
        self.notices = ServerNotices(
            database,
            writer,
            creation,
            self.messages,
            user_data.account_data,
            profile_of=member_fields.get,
            policy=notices,
        )
        self.directory_api = RoomDirectoryAPI(
            self.directory,
            PublishedRooms(database, summaries),
            ground.server_name,
            outbound.queries.public_rooms,
        )
        summary_service = RoomSummaryService(database, space_reader, self.directory, handshaking.rooms, fetching.spaces)
        self._database = database
        self.followers: list[Follower] = []
        """What follows the log."""
        if ground.config.forget_rooms_on_leave:
            self.followers.append(ForcedForgetting(log, ground.server_name))
        if ground.config.registration.allow_guests:
            self.followers.append(GuestAccess(self.member_upkeep))
        self.routes: list[ClientRoute] = [
            *routes.profile_routes(ProfilesAPI(self.profiles)),
            *routes.room_creation_routes(RoomCreationAPI(creation, upgrades, third_party)),
            *routes.membership_routes(RoomMembershipAPI(self.memberships, self.directory, third_party)),
            *routes.sending_routes(
                SendingEventsAPI(self.messages, self.memberships, user_data.presence, self.delayed_events)
            ),
            *routes.reading_routes(ReadingEventsAPI(self.reading), ReadingStateAPI(self.reading)),
            *RelationsAPI(self.reading).routes(),
            *routes.delayed_event_routes(DelayedEventsAPI(self.delayed_events)),
            *routes.directory_routes(self.directory_api),
            *RoomSummariesAPI(database, summary_service).routes(),
            *SpacesAPI(spaces).routes(),
        ]

    async def start(self) -> None:
        """Make the account that sends notices; leave no cursor of what is turned off."""
        await self.notices.prepare()
        await leave_no_cursors(self._database, {FORGETTING, GUEST_ACCESS} - {each.name for each in self.followers})
