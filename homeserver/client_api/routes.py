"""Every endpoint of the Client-Server API: one function an API.

One file, however long: it is a table to look paths up in.
"""

from collections.abc import Sequence

from federation.web import Endpoint, Route
from homeserver.client_api.account_data import AccountDataAPI
from homeserver.client_api.accounts import AccountsAPI
from homeserver.client_api.application_services import ApplicationServicesAPI
from homeserver.client_api.confirmation_page import ConfirmationPageAPI
from homeserver.client_api.content_repository import ContentRepositoryAPI
from homeserver.client_api.dehydrated_devices import DehydratedDevicesAPI
from homeserver.client_api.delayed_events import DelayedEventsAPI
from homeserver.client_api.device_management import DeviceManagementAPI
from homeserver.client_api.discovery import DiscoveryAPI
from homeserver.client_api.end_to_end_encryption import EndToEndEncryptionAPI
from homeserver.client_api.ephemeral import EphemeralAPI
from homeserver.client_api.filtering import FilteringAPI
from homeserver.client_api.key_backup import KeyBackupAPI
from homeserver.client_api.login import LoginAPI
from homeserver.client_api.moderation import ModerationAPI
from homeserver.client_api.notifications import NotificationsAPI
from homeserver.client_api.outside_services import OutsideServicesAPI
from homeserver.client_api.pages import PagesAPI
from homeserver.client_api.profiles import ProfilesAPI
from homeserver.client_api.push import PushRulesAPI
from homeserver.client_api.pushers import PushersAPI
from homeserver.client_api.reading_events import ReadingEventsAPI
from homeserver.client_api.reading_state import ReadingStateAPI
from homeserver.client_api.room_creation import RoomCreationAPI
from homeserver.client_api.room_directory import RoomDirectoryAPI
from homeserver.client_api.room_membership import RoomMembershipAPI
from homeserver.client_api.routing import ClientRoute, Login
from homeserver.client_api.send_to_device import SendToDeviceAPI
from homeserver.client_api.sending_events import SendingEventsAPI
from homeserver.client_api.server_administration import ServerAdministrationAPI
from homeserver.client_api.stage_pages import StagePagesAPI
from homeserver.client_api.third_party_identifiers import ThirdPartyIdentifiersAPI
from homeserver.services.identifiers import CONFIRM_PATH, SUBMIT_PATH
from storage.identifier_validations import Purpose

NONE, OPTIONAL = Login.NONE, Login.OPTIONAL


def discovery_routes(api: DiscoveryAPI) -> Sequence[ClientRoute]:
    """Versions and capabilities."""
    return [
        ClientRoute(method="GET", path="versions", endpoint=api.get_versions, login=NONE),
        ClientRoute(method="GET", path="v3/capabilities", endpoint=api.get_capabilities, guests=True, limit="requests"),
        ClientRoute(
            method="GET",
            path="unstable/org.matrix.msc4143/rtc/transports",
            endpoint=api.get_rtc_transports,
            guests=True,
        ),
    ]


def well_known_routes(api: DiscoveryAPI) -> Sequence[Route]:
    """What lies outside the API's own paths."""
    return [
        Route("GET", "/.well-known/matrix/client", api.get_well_known_client),
        Route("GET", "/.well-known/matrix/server", api.get_well_known_server),
        Route("GET", "/.well-known/matrix/support", api.get_well_known_support),
        Route("GET", "/.well-known/matrix/policy_server", api.get_well_known_policy_server),
    ]


def login_routes(api: LoginAPI) -> Sequence[ClientRoute]:
    """Login, refresh, logout."""
    refresh, get_token = ("unstable/org.matrix.msc2918/refresh",), ("unstable/org.matrix.msc3882/login/get_token",)
    return [
        ClientRoute(method="GET", path="v3/login", endpoint=api.get_flows, login=NONE, limit="requests"),
        ClientRoute(method="POST", path="v3/login", endpoint=api.login, login=NONE, limit="requests"),
        ClientRoute(
            method="POST", path="v1/login/get_token", endpoint=api.get_token, limit="login", unstable=get_token
        ),
        ClientRoute(
            method="POST", path="v3/refresh", endpoint=api.refresh, login=NONE, limit="requests", unstable=refresh
        ),
        ClientRoute(method="POST", path="v3/logout", endpoint=api.logout, guests=True, while_locked=True),
        ClientRoute(method="POST", path="v3/logout/all", endpoint=api.logout_all, guests=True, while_locked=True),
    ]


def account_routes(api: AccountsAPI) -> Sequence[ClientRoute]:
    """Registration and account management."""
    return [
        ClientRoute(method="POST", path="v3/register", endpoint=api.register, login=NONE, limit="requests"),
        ClientRoute(
            method="GET", path="v3/register/available", endpoint=api.get_available, login=NONE, limit="requests"
        ),
        ClientRoute(
            method="GET",
            path="v1/register/m.login.registration_token/validity",
            endpoint=api.get_token_validity,
            login=NONE,
            limit="login",
        ),
        ClientRoute(method="GET", path="v3/account/whoami", endpoint=api.whoami, guests=True, limit="requests"),
        ClientRoute(
            method="POST",
            path="v3/account/password",
            endpoint=api.change_password,
            login=OPTIONAL,
            limit="requests",
        ),
        ClientRoute(method="POST", path="v3/account/deactivate", endpoint=api.deactivate, limit="requests"),
    ]


def identifier_routes(api: ThirdPartyIdentifiersAPI) -> Sequence[ClientRoute]:
    """Third-party identifiers."""
    request_tokens = [
        ClientRoute(
            method="POST", path=f"v3/{where}/{medium}/requestToken", endpoint=endpoint, login=NONE, limit="requests"
        )
        for where, purpose in (
            ("register", Purpose.REGISTER),
            ("account/password", Purpose.RESET_PASSWORD),
            ("account/3pid", Purpose.ADD),
        )
        for medium, endpoint in (("email", api.email_request(purpose)), ("msisdn", api.phone_request(purpose)))
    ]
    return [
        ClientRoute(method="GET", path="v3/account/3pid", endpoint=api.list_identifiers),
        *(
            ClientRoute(method="POST", path=f"v3/account/3pid{end}", endpoint=endpoint, limit="requests")
            for end, endpoint in (
                ("", api.bind_as_before),
                ("/add", api.add),
                ("/bind", api.bind),
                ("/delete", api.delete),
                ("/unbind", api.unbind),
            )
        ),
        *request_tokens,
        ClientRoute(method="POST", path=SUBMIT_PATH, endpoint=api.submit_code, login=NONE, limit="login"),
    ]


def outside_service_routes(api: OutsideServicesAPI) -> Sequence[ClientRoute]:
    """OpenID tokens, TURN servers."""
    openid = "v3/user/{user_id}/openid/request_token"
    return [
        ClientRoute(method="POST", path=openid, endpoint=api.request_openid_token, guests=True, limit="requests"),
        ClientRoute(
            method="GET", path="v3/voip/turnServer", endpoint=api.get_turn_server, guests=True, limit="requests"
        ),
    ]


def application_service_routes(api: ApplicationServicesAPI) -> Sequence[ClientRoute]:
    """What application services ask for themselves."""
    path = "appservice/{service_id}/ping"
    unstable = (f"unstable/fi.mau.msc2659/{path}",)
    return [ClientRoute(method="POST", path=f"v1/{path}", endpoint=api.ping, unstable=unstable)]


def device_routes(api: DeviceManagementAPI) -> Sequence[ClientRoute]:
    """A user's devices."""
    return [
        ClientRoute(method="GET", path="v3/devices", endpoint=api.list_devices, guests=True),
        ClientRoute(method="GET", path="v3/devices/{device_id}", endpoint=api.get_device, guests=True),
        ClientRoute(method="PUT", path="v3/devices/{device_id}", endpoint=api.put_device, guests=True),
        ClientRoute(method="DELETE", path="v3/devices/{device_id}", endpoint=api.delete_device),
        ClientRoute(method="POST", path="v3/delete_devices", endpoint=api.delete_devices),
    ]


def end_to_end_encryption_routes(api: EndToEndEncryptionAPI) -> Sequence[ClientRoute]:
    """Keys of devices and users."""
    cross_signing = [
        ClientRoute(
            method="POST",
            path=f"v3/keys/{path}",
            endpoint=endpoint,
            limit="requests",
            unstable=(f"unstable/keys/{path}",),
        )
        for path, endpoint in (
            ("device_signing/upload", api.upload_cross_signing_keys),
            ("signatures/upload", api.upload_signatures),
        )
    ]
    return [
        ClientRoute(method="GET", path="v3/keys/changes", endpoint=api.get_changes, limit="requests"),
        *cross_signing,
        *(
            ClientRoute(method="POST", path=f"v3/keys/{path}", endpoint=endpoint, limit="requests", guests=True)
            for path, endpoint in (
                ("upload", api.upload_keys),
                ("query", api.query_keys),
                ("claim", api.claim_keys),
            )
        ),
    ]


def dehydrated_device_routes(api: DehydratedDevicesAPI) -> Sequence[ClientRoute]:
    """MSC3814."""
    path = "unstable/org.matrix.msc3814.v1/dehydrated_device"
    return [
        ClientRoute(method="PUT", path=path, endpoint=api.put, limit="requests"),
        ClientRoute(method="GET", path=path, endpoint=api.get, limit="requests"),
        ClientRoute(method="DELETE", path=path, endpoint=api.delete, limit="requests"),
        ClientRoute(method="GET", path=f"{path}/{{device_id}}/events", endpoint=api.get_events, limit="requests"),
        ClientRoute(method="POST", path=f"{path}/{{device_id}}/events", endpoint=api.take_events, limit="requests"),
    ]


def key_backup_routes(api: KeyBackupAPI) -> Sequence[ClientRoute]:
    """Backups of room keys."""
    versions = [
        ClientRoute(method=method, path=f"v3/room_keys/version{path}", endpoint=endpoint, limit="requests")
        for method, path, endpoint in (
            ("POST", "", api.create_version),
            ("GET", "", api.get_current_version),
            ("GET", "/{version}", api.get_version),
            ("PUT", "/{version}", api.put_version),
            ("DELETE", "/{version}", api.delete_version),
        )
    ]
    keys = [
        ClientRoute(method=method, path=f"v3/room_keys/keys{path}", endpoint=endpoint, limit="requests")
        for path in ("", "/{room_id}", "/{room_id}/{session_id}")
        for method, endpoint in (("PUT", api.put_keys), ("GET", api.get_keys), ("DELETE", api.delete_keys))
    ]
    return [*versions, *keys]


def send_to_device_routes(api: SendToDeviceAPI) -> Sequence[ClientRoute]:
    """To-device messages."""
    path = "v3/sendToDevice/{event_type}/{txn_id}"
    return [ClientRoute(method="PUT", path=path, endpoint=api.send, limit="requests", guests=True)]


def filter_routes(api: FilteringAPI) -> Sequence[ClientRoute]:
    """Stored filters."""
    path = "v3/user/{user_id}/filter"
    return [
        ClientRoute(method="POST", path=path, endpoint=api.post_filter, limit="requests"),
        ClientRoute(method="GET", path=f"{path}/{{filter_id}}", endpoint=api.get_filter),
    ]


def account_data_routes(api: AccountDataAPI) -> Sequence[ClientRoute]:
    """Account data and tags."""
    data = [
        ClientRoute(
            method=method,
            path=f"{version}/user/{{user_id}}/{path}",
            endpoint=endpoint,
            limit=None if method == "GET" else "requests",
        )
        for path in ("account_data/{type}", "rooms/{room_id}/account_data/{type}")
        for method, version, endpoint in (
            ("GET", "v3", api.get_data),
            ("PUT", "v3", api.put_data),
            ("DELETE", "unstable/org.matrix.msc3391", api.delete_data),
        )
    ]
    tags = "v3/user/{user_id}/rooms/{room_id}/tags"
    return [
        *data,
        ClientRoute(method="GET", path=tags, endpoint=api.get_tags),
        ClientRoute(method="PUT", path=f"{tags}/{{tag}}", endpoint=api.put_tag, limit="requests"),
        ClientRoute(method="DELETE", path=f"{tags}/{{tag}}", endpoint=api.delete_tag, limit="requests"),
    ]


def push_rule_routes(api: PushRulesAPI) -> Sequence[ClientRoute]:
    """Push rules; lists also with the slash at the end that the specification asks for."""
    rule = "v3/pushrules/global/{kind}/{rule_id}"
    return [
        *(ClientRoute(method="GET", path=f"v3/pushrules{end}", endpoint=api.get_all) for end in ("", "/")),
        *(ClientRoute(method="GET", path=f"v3/pushrules/global{end}", endpoint=api.get_global) for end in ("", "/")),
        *(
            ClientRoute(method="GET", path=f"v3/pushrules/global/{{kind}}{end}", endpoint=api.get_kind)
            for end in ("", "/")
        ),
        ClientRoute(method="GET", path=rule, endpoint=api.get_rule),
        ClientRoute(method="PUT", path=rule, endpoint=api.put_rule, limit="requests"),
        ClientRoute(method="DELETE", path=rule, endpoint=api.delete_rule, limit="requests"),
        ClientRoute(method="GET", path=f"{rule}/enabled", endpoint=api.get_enabled),
        ClientRoute(method="PUT", path=f"{rule}/enabled", endpoint=api.put_enabled, limit="requests"),
        ClientRoute(method="GET", path=f"{rule}/actions", endpoint=api.get_actions),
        ClientRoute(method="PUT", path=f"{rule}/actions", endpoint=api.put_actions, limit="requests"),
    ]


def push_routes(api: PushersAPI, notifications: NotificationsAPI) -> Sequence[ClientRoute]:
    """Pushers, and what users were notified of."""
    path = "v3/notifications"
    return [
        ClientRoute(method="GET", path=path, endpoint=notifications.list_notifications, limit="requests"),
        ClientRoute(method="GET", path="v3/pushers", endpoint=api.list_pushers),
        ClientRoute(method="POST", path="v3/pushers/set", endpoint=api.set_pusher, limit="requests"),
    ]


def profile_routes(api: ProfilesAPI) -> Sequence[ClientRoute]:
    """Profiles."""
    profile, field = "v3/profile/{user_id}", "v3/profile/{user_id}/{key}"
    unstable = ("unstable/uk.tcpip.msc4133/profile/{user_id}/{key}",)
    whole = ("unstable/uk.tcpip.msc4133/profile/{user_id}",)
    return [
        ClientRoute(method="GET", path=profile, endpoint=api.get_profile, login=OPTIONAL, guests=True, unstable=whole),
        ClientRoute(method="GET", path=field, endpoint=api.get_field, login=OPTIONAL, guests=True, unstable=unstable),
        ClientRoute(method="PUT", path=field, endpoint=api.put_field, limit="requests", guests=True, unstable=unstable),
        ClientRoute(
            method="DELETE", path=field, endpoint=api.delete_field, limit="requests", guests=True, unstable=unstable
        ),
    ]


def ephemeral_routes(api: EphemeralAPI) -> Sequence[ClientRoute]:
    """Typing, receipts, read markers, presence."""
    room, presence = "v3/rooms/{room_id}", "v3/presence/{user_id}/status"
    return [
        ClientRoute(
            method="PUT",
            path=f"{room}/typing/{{user_id}}",
            endpoint=api.put_typing,
            limit="requests",
        ),
        ClientRoute(
            method="POST",
            path=f"{room}/receipt/{{receipt_type}}/{{event_id}}",
            endpoint=api.post_receipt,
            limit="requests",
        ),
        ClientRoute(method="POST", path=f"{room}/read_markers", endpoint=api.post_read_markers, limit="requests"),
        ClientRoute(method="GET", path=presence, endpoint=api.get_presence),
        ClientRoute(method="PUT", path=presence, endpoint=api.put_presence, limit="requests"),
    ]


def room_creation_routes(api: RoomCreationAPI) -> Sequence[ClientRoute]:
    """New rooms."""
    upgrade = "v3/rooms/{room_id}/upgrade"
    return [
        ClientRoute(method="POST", path="v3/createRoom", endpoint=api.create, limit="room_creation"),
        ClientRoute(method="POST", path=upgrade, endpoint=api.upgrade, limit="room_creation"),
    ]


def membership_routes(api: RoomMembershipAPI) -> Sequence[ClientRoute]:
    """Who is where."""
    room = "v3/rooms/{room_id}"
    return [
        ClientRoute(method="GET", path="v3/joined_rooms", endpoint=api.joined_rooms, guests=True),
        ClientRoute(method="POST", path="v3/join/{room_id}", endpoint=api.join, limit="joins", guests=True),
        ClientRoute(method="POST", path=f"{room}/join", endpoint=api.join, limit="joins", guests=True),
        ClientRoute(method="POST", path="v3/knock/{room_id}", endpoint=api.knock, limit="joins"),
        ClientRoute(method="POST", path=f"{room}/invite", endpoint=api.invite, limit="invites"),
        ClientRoute(method="POST", path=f"{room}/leave", endpoint=api.leave, guests=True, limit="requests"),
        ClientRoute(method="POST", path=f"{room}/kick", endpoint=api.kick, limit="messages"),
        ClientRoute(method="POST", path=f"{room}/ban", endpoint=api.ban, limit="messages"),
        ClientRoute(method="POST", path=f"{room}/unban", endpoint=api.unban, limit="messages"),
        ClientRoute(method="POST", path=f"{room}/forget", endpoint=api.forget, guests=True, limit="requests"),
    ]


def sending_routes(api: SendingEventsAPI) -> Sequence[ClientRoute]:
    """Messages, state, redactions."""
    room = "v3/rooms/{room_id}"
    send, redact = f"{room}/send/{{event_type}}/{{txn_id}}", f"{room}/redact/{{event_id}}/{{txn_id}}"
    state = [
        ClientRoute(method="PUT", path=f"{room}/state/{path}", endpoint=api.put_state, limit="messages", guests=True)
        for path in ("{event_type}", "{event_type}/{state_key}")
    ]
    return [
        ClientRoute(method="PUT", path=send, endpoint=api.send, limit="messages", guests=True),
        ClientRoute(method="PUT", path=redact, endpoint=api.redact, limit="messages"),
        *state,
    ]


def reading_routes(events: ReadingEventsAPI, state: ReadingStateAPI) -> Sequence[ClientRoute]:
    """What rooms hold: their history, their state, their members."""
    room = "v3/rooms/{room_id}"
    by_timestamp = "rooms/{room_id}/timestamp_to_event"
    open_to_guests = [
        ClientRoute(method="GET", path=path, endpoint=endpoint, guests=True, limit="requests")
        for path, endpoint in (
            (f"{room}/messages", events.get_messages),
            (f"{room}/event/{{event_id}}", events.get_event),
            (f"{room}/context/{{event_id}}", events.get_context),
            ("v3/events/{event_id}", events.find_event),
            (f"{room}/state", state.get_state),
            (f"{room}/state/{{event_type}}", state.get_state_event),
            (f"{room}/state/{{event_type}}/{{state_key}}", state.get_state_event),
            (f"{room}/members", state.get_members),
        )
    ]
    return [
        *open_to_guests,
        ClientRoute(
            method="GET",
            path=f"v1/{by_timestamp}",
            endpoint=events.get_by_timestamp,
            limit="requests",
            unstable=(f"unstable/org.matrix.msc3030/{by_timestamp}",),
        ),
        ClientRoute(method="GET", path=f"{room}/joined_members", endpoint=state.get_joined_members, limit="requests"),
    ]


def delayed_event_routes(api: DelayedEventsAPI) -> Sequence[ClientRoute]:
    """Events that wait (MSC4140). An ID is all that it takes to act on one, so that others may be left to do it."""
    path = "unstable/org.matrix.msc4140/delayed_events"
    one = f"{path}/{{delay_id}}"
    return [
        ClientRoute(method="GET", path=path, endpoint=api.list_waiting),
        ClientRoute(method="POST", path=one, endpoint=api.update, login=NONE, limit="requests"),
        ClientRoute(method="POST", path=f"{one}/{{action}}", endpoint=api.act, login=NONE, limit="requests"),
    ]


def directory_routes(api: RoomDirectoryAPI) -> Sequence[ClientRoute]:
    """Aliases and published rooms."""
    alias, listed = "v3/directory/room/{alias}", "v3/directory/list/room/{room_id}"
    return [
        ClientRoute(method="GET", path=alias, endpoint=api.get_alias, login=NONE, limit="requests"),
        ClientRoute(method="PUT", path=alias, endpoint=api.put_alias, limit="requests"),
        ClientRoute(method="DELETE", path=alias, endpoint=api.delete_alias, limit="requests"),
        ClientRoute(
            method="GET", path="v3/rooms/{room_id}/aliases", endpoint=api.list_aliases, guests=True, limit="requests"
        ),
        ClientRoute(method="GET", path=listed, endpoint=api.get_visibility, login=NONE, limit="requests"),
        ClientRoute(method="PUT", path=listed, endpoint=api.put_visibility, limit="requests"),
        ClientRoute(
            method="PUT", path="v3/directory/list/appservice/{network_id}/{room_id}", endpoint=api.put_on_network
        ),
        ClientRoute(
            method="GET",
            path="v3/publicRooms",
            endpoint=api.list_public_rooms,
            login=OPTIONAL,
            guests=True,
            limit="requests",
        ),
        ClientRoute(
            method="POST", path="v3/publicRooms", endpoint=api.search_public_rooms, guests=True, limit="requests"
        ),
    ]


def page_routes(api: PagesAPI) -> Sequence[Route]:
    """Web pages that cost nothing."""
    return [
        Route("GET", "/", api.get_landing),
        Route("GET", "/_matrix/static/client/login/", api.get_login),
    ]


def form_routes(stages: StagePagesAPI, confirmation: ConfirmationPageAPI) -> Sequence[ClientRoute]:
    """Web pages with forms."""
    return [
        ClientRoute(method=method, path=path, endpoint=endpoint, login=NONE, limit="requests")
        for method, path, endpoint in (
            ("GET", "v3/auth/{auth_type}/fallback/web", stages.get_stage),
            ("POST", "v3/auth/{auth_type}/fallback/web", stages.post_stage),
            ("GET", CONFIRM_PATH, confirmation.get),
            ("POST", CONFIRM_PATH, confirmation.post),
        )
    ]


def administration_routes(api: ServerAdministrationAPI) -> Sequence[ClientRoute]:
    """What the specification gives to administrators."""
    lock, suspend = "v1/admin/lock/{user_id}", "v1/admin/suspend/{user_id}"
    return [
        ClientRoute(method="GET", path="v3/admin/whois/{user_id}", endpoint=api.whois),
        ClientRoute(method="GET", path=lock, endpoint=api.get_locked),
        ClientRoute(method="PUT", path=lock, endpoint=api.put_locked),
        ClientRoute(method="GET", path=suspend, endpoint=api.get_suspended),
        ClientRoute(method="PUT", path=suspend, endpoint=api.put_suspended),
    ]


def report_routes(api: ModerationAPI) -> Sequence[ClientRoute]:
    """Reports to the administrators."""
    room = "v3/rooms/{room_id}/report"
    return [
        ClientRoute(method="POST", path=f"{room}/{{event_id}}", endpoint=api.report_event, limit="reports"),
        ClientRoute(method="POST", path=room, endpoint=api.report_room, limit="reports"),
        ClientRoute(method="POST", path="v3/users/{user_id}/report", endpoint=api.report_user, limit="reports"),
    ]


def media_routes(api: ContentRepositoryAPI) -> Sequence[ClientRoute]:
    """Media; the old paths without a login know none."""
    one = "{server_name}/{media_id}"
    old = "/_matrix/media"

    def frozen(path: str) -> ClientRoute:
        return ClientRoute(
            method="GET",
            path=f"{old}/v3/{path}",
            endpoint=api.refuse_frozen,
            login=NONE,
            limit="requests",
            unstable=(f"{old}/r0/{path}", f"{old}/v1/{path}"),
        )

    def given(path: str, endpoint: Endpoint) -> ClientRoute:
        return ClientRoute(
            method="GET",
            path=f"v1/media/{path}",
            endpoint=endpoint,
            guests=True,
            limit="requests",
            waits=True,
            unstable=(f"unstable/org.matrix.msc3916/media/{path}",),
        )

    return [
        ClientRoute(
            method="POST",
            path=f"{old}/v3/upload",
            endpoint=api.upload,
            limit="requests",
            unstable=(f"{old}/r0/upload", f"{old}/v1/upload"),
        ),
        ClientRoute(method="POST", path=f"{old}/v1/create", endpoint=api.create, limit="requests"),
        ClientRoute(method="PUT", path=f"{old}/v3/upload/{one}", endpoint=api.upload_to, limit="requests"),
        ClientRoute(
            method="GET",
            path="v1/media/config",
            endpoint=api.get_config,
            guests=True,
            limit="requests",
            unstable=(f"{old}/v3/config", f"{old}/r0/config"),
        ),
        ClientRoute(
            method="GET",
            path="v1/media/preview_url",
            endpoint=api.preview,
            limit="previews",
            waits=True,
            unstable=(
                "unstable/org.matrix.msc3916/media/preview_url",
                *(f"{old}/{version}/preview_url" for version in ("v3", "r0", "v1")),
            ),
        ),
        given(f"download/{one}", api.download),
        given(f"download/{one}/{{file_name}}", api.download),
        given(f"thumbnail/{one}", api.thumbnail),
        frozen(f"download/{one}"),
        frozen(f"download/{one}/{{file_name}}"),
        frozen(f"thumbnail/{one}"),
    ]
