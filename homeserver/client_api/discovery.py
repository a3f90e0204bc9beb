"""What clients ask first: versions, well-known, capabilities (Client-Server API, "API Versions", "Well-known URIs")."""

from collections.abc import Sequence

from msgspec import Struct

from federation.protocol.errors import NotFound
from federation.protocol.room_versions import ROOM_VERSIONS
from federation.protocol.types import JsonObject
from federation.web import Answer, Call
from homeserver.client_api.routing import requester

# Clients switch features on by these, so a version is named only when all is served that it brought: with v1.4, for
# instance, js-sdk leaves threads to the server, without it puts them together itself. What a client can use of later
# versions is named below, one by one. r0 and v1.1 are named although upstream sign-on and lookups by application
# services answer M_UNRECOGNIZED: nobody switches by them, and clients refuse a server without them.
VERSIONS = (
    *("r0.0.1", "r0.1.0", "r0.2.0", "r0.3.0", "r0.4.0", "r0.5.0", "r0.6.0", "r0.6.1"),
    *("v1.1", "v1.2", "v1.3", "v1.4", "v1.5", "v1.6", "v1.7", "v1.8", "v1.9", "v1.10", "v1.11", "v1.12"),
)

# Names that clients look for where no version tells them, each served whole.
UNSTABLE_FEATURES: dict[str, bool] = {
    "com.beeper.msc4446": True,  # the fully read marker may move back
    "org.matrix.msc2285.stable": True,  # private receipts
    "org.matrix.msc3030": True,  # events by timestamp
    "org.matrix.msc3391": True,  # account data can be deleted
    "org.matrix.msc3440.stable": True,  # threads
    "org.matrix.msc3715.stable": True,  # relations in either direction
    "org.matrix.msc3771": True,  # receipts in threads
    "org.matrix.msc3773": True,  # unread counts by thread
    "org.matrix.msc3827.stable": True,  # published rooms by type
    "org.matrix.msc3856.stable": True,  # lists of threads
    "org.matrix.msc3881": True,  # pushers are switched off from another device
    "org.matrix.msc3916.stable": True,  # media for who is logged in
    "org.matrix.msc3981": True,  # relations of relations
    "org.matrix.msc4076": True,  # pushers that are told of no counts
    "org.matrix.msc4140": True,  # delayed events
    "org.matrix.simplified_msc3575": True,  # sliding sync (MSC4186)
    "uk.half-shot.msc2666.query_mutual_rooms": True,
    "uk.half-shot.msc2666.query_mutual_rooms.stable": True,
    "uk.tcpip.msc4133": True,  # any profile field
    "uk.tcpip.msc4133.stable": True,
}


class ServerDescription(Struct, frozen=True, kw_only=True):
    """What this server says of itself."""

    base_url: str
    federation_server: str | None
    """What `/.well-known/matrix/server` delegates to."""
    default_room_version: str
    makes_previews: bool = False
    forgets_rooms_on_leave: bool = False
    changes_identifiers: bool = False
    """Whether users can add and remove e-mail addresses, or phone numbers."""
    livekit_service_urls: Sequence[str] = ()
    policy_server_key: str | None = None
    support_page: str | None = None
    support_email: str | None = None
    support_matrix_id: str | None = None


class DiscoveryAPI:
    """Answers that are the same for everybody."""

    def __init__(self, description: ServerDescription) -> None:
        self._description = description

    async def get_versions(self, _call: Call) -> Answer:
        """GET /versions."""
        return {"versions": list(VERSIONS), "unstable_features": UNSTABLE_FEATURES}

    async def get_capabilities(self, call: Call) -> Answer:
        """GET /capabilities."""
        who = requester(call)
        capabilities: JsonObject = {
            "m.room_versions": {
                "default": self._description.default_room_version,
                "available": {version: "stable" for version in ROOM_VERSIONS},
            },
            "m.change_password": {"enabled": not who.is_guest},
            "m.set_displayname": {"enabled": True},
            "m.set_avatar_url": {"enabled": True},
            "m.profile_fields": {"enabled": True},
            "m.3pid_changes": {"enabled": self._description.changes_identifiers},
            "m.forget_forced_upon_leave": {"enabled": self._description.forgets_rooms_on_leave},
            "m.get_login_token": {"enabled": not who.is_guest},
            "io.element.msc4452.preview_url": {"enabled": self._description.makes_previews and not who.is_guest},
        }
        if who.is_admin:
            capabilities["m.account_moderation"] = {"suspend": True, "lock": True}
        return {"capabilities": capabilities}

    async def get_well_known_client(self, _call: Call) -> Answer:
        """GET /.well-known/matrix/client."""
        answer: JsonObject = {"m.homeserver": {"base_url": self._description.base_url}}
        if foci := self._livekit():
            answer["org.matrix.msc4143.rtc_foci"] = foci
        return answer

    async def get_rtc_transports(self, _call: Call) -> Answer:
        """GET /rtc/transports (MSC4143, MSC4195): what carries group calls."""
        return {"rtc_transports": self._livekit()}

    def _livekit(self) -> list[JsonObject]:
        return [{"type": "livekit", "livekit_service_url": url} for url in self._description.livekit_service_urls]

    async def get_well_known_server(self, _call: Call) -> Answer:
        """GET /.well-known/matrix/server."""
        if self._description.federation_server is None:
            raise NotFound("This server is not reached by delegation")
        return {"m.server": self._description.federation_server}

    async def get_well_known_policy_server(self, _call: Call) -> Answer:
        """GET /.well-known/matrix/policy_server."""
        if self._description.policy_server_key is None:
            raise NotFound("No policy server runs under this name")
        return {"public_keys": {"ed25519": self._description.policy_server_key}}

    async def get_well_known_support(self, _call: Call) -> Answer:
        """GET /.well-known/matrix/support."""
        contact: JsonObject = {}
        if self._description.support_email is not None:
            contact["email_address"] = self._description.support_email
        if self._description.support_matrix_id is not None:
            contact["matrix_id"] = self._description.support_matrix_id
        answer: JsonObject = {"contacts": [{"role": "m.role.admin", **contact}]} if contact else {}
        if self._description.support_page is not None:
            answer["support_page"] = self._description.support_page
        if not answer:
            raise NotFound("This server names no contact")
        return answer
