"""Every endpoint of the Server-Server API: one function an API, joined in `homeserver/federation_parts.py`.

A `FederationRoute` is asked with a signature, a plain `Route` without.
"""

from collections.abc import Sequence

from federation.inbound.authentication import FederationRoute
from federation.inbound.content_repository import FederationMediaAPI
from federation.inbound.devices import DevicesAPI
from federation.inbound.events import EventsAPI
from federation.inbound.invitations import InvitationAPI, ThirdPartyInviteAPI
from federation.inbound.membership import MembershipAPI
from federation.inbound.openid import OpenIDAPI
from federation.inbound.queries import QueriesAPI
from federation.inbound.server_keys import ServerKeysAPI
from federation.inbound.transactions import TransactionsAPI
from federation.inbound.version import VersionAPI
from federation.web import Route


def version_routes(api: VersionAPI) -> Sequence[Route]:
    """What software this is."""
    return [Route("GET", "/_matrix/federation/v1/version", api.get_version)]


def openid_routes(api: OpenIDAPI) -> Sequence[Route]:
    """Whose token it is: asked by services that have no key."""
    return api.routes()


def membership_routes(api: MembershipAPI) -> Sequence[FederationRoute]:
    """How users of other servers join, leave and knock."""
    v1, v2 = "/_matrix/federation/v1", "/_matrix/federation/v2"
    return [
        FederationRoute("GET", v1 + "/make_join/{room_id}/{user_id}", api.make_join),
        FederationRoute("PUT", v1 + "/send_join/{room_id}/{event_id}", api.send_join_v1, is_large=True),
        FederationRoute("PUT", v2 + "/send_join/{room_id}/{event_id}", api.send_join, is_large=True),
        FederationRoute("GET", v1 + "/make_leave/{room_id}/{user_id}", api.make_leave),
        FederationRoute("PUT", v1 + "/send_leave/{room_id}/{event_id}", api.send_leave_v1),
        FederationRoute("PUT", v2 + "/send_leave/{room_id}/{event_id}", api.send_leave),
        FederationRoute("GET", v1 + "/make_knock/{room_id}/{user_id}", api.make_knock),
        FederationRoute("PUT", v1 + "/send_knock/{room_id}/{event_id}", api.send_knock),
    ]


def event_routes(api: EventsAPI) -> Sequence[FederationRoute]:
    """Rooms' events, states and history."""
    v1 = "/_matrix/federation/v1"
    return [
        FederationRoute("GET", f"{v1}/event/{{event_id}}", api.get_event),
        FederationRoute("GET", f"{v1}/state/{{room_id}}", api.get_state, is_large=True),
        FederationRoute("GET", f"{v1}/state_ids/{{room_id}}", api.get_state_ids, is_large=True),
        FederationRoute("GET", f"{v1}/event_auth/{{room_id}}/{{event_id}}", api.get_event_auth, is_large=True),
        FederationRoute("GET", f"{v1}/backfill/{{room_id}}", api.backfill),
        FederationRoute("POST", f"{v1}/get_missing_events/{{room_id}}", api.get_missing_events),
        FederationRoute("GET", f"{v1}/timestamp_to_event/{{room_id}}", api.get_by_timestamp),
    ]


def query_routes(api: QueriesAPI) -> Sequence[FederationRoute]:
    """Aliases, profiles, published rooms and spaces."""
    v1 = "/_matrix/federation/v1"
    return [
        FederationRoute("GET", v1 + "/query/directory", api.get_alias),
        FederationRoute("GET", v1 + "/query/profile", api.get_profile),
        FederationRoute("GET", v1 + "/publicRooms", api.list_rooms),
        FederationRoute("POST", v1 + "/publicRooms", api.search_rooms),
        FederationRoute("GET", v1 + "/hierarchy/{room_id}", api.get_hierarchy, is_large=True),
    ]


def device_routes(api: DevicesAPI) -> Sequence[FederationRoute]:
    """Devices and their keys."""
    v1 = "/_matrix/federation/v1"
    return [
        FederationRoute("GET", v1 + "/user/devices/{user_id}", api.get_devices),
        FederationRoute("POST", v1 + "/user/keys/query", api.query_keys),
        FederationRoute("POST", v1 + "/user/keys/claim", api.claim_keys),
    ]


def server_key_routes(api: ServerKeysAPI) -> Sequence[Route]:
    """Our keys and those of others: whoever asks needs them before a signature means anything."""
    return [
        Route("GET", "/_matrix/key/v2/server", api.get_own),
        Route("GET", "/_matrix/key/v2/server/{key_id}", api.get_own),
        Route("GET", "/_matrix/key/v2/query/{server_name}", api.query_one),
        Route("GET", "/_matrix/key/v2/query/{server_name}/{key_id}", api.query_one),
        Route("POST", "/_matrix/key/v2/query", api.query_many),
    ]


def invitation_routes(api: InvitationAPI) -> Sequence[FederationRoute]:
    """How users of ours are invited."""
    path = "/invite/{room_id}/{event_id}"
    return [
        FederationRoute("PUT", "/_matrix/federation/v1" + path, api.invite_v1),
        FederationRoute("PUT", "/_matrix/federation/v2" + path, api.invite),
    ]


def transaction_routes(api: TransactionsAPI) -> Sequence[FederationRoute]:
    """What other servers push."""
    return api.routes()


def third_party_invite_routes(api: ThirdPartyInviteAPI) -> Sequence[Route | FederationRoute]:
    """How invites by e-mail address become invites."""
    v1 = "/_matrix/federation/v1"
    return [
        FederationRoute("PUT", v1 + "/exchange_third_party_invite/{room_id}", api.exchange),
        Route("PUT", v1 + "/3pid/onbind", api.bind),
        Route("POST", v1 + "/3pid/onbind", api.bind),
    ]


def media_routes(api: FederationMediaAPI) -> Sequence[FederationRoute]:
    """Media of this server."""
    v1 = "/_matrix/federation/v1/media"
    return [
        FederationRoute("GET", v1 + "/download/{media_id}", api.download),
        FederationRoute("GET", v1 + "/thumbnail/{media_id}", api.thumbnail),
    ]
