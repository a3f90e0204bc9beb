"""Every endpoint of the Server-Server API: one function an API, joined in `homeserver/federation_parts.py`.

A `FederationRoute` is asked with a signature, a plain `Route` without.
"""

from collections.abc import Sequence

from federation.inbound.openid import OpenIDAPI
from federation.inbound.version import VersionAPI
from federation.web import Route


def version_routes(api: VersionAPI) -> Sequence[Route]:
    """What software this is."""
    return [Route("GET", "/_matrix/federation/v1/version", api.get_version)]


def openid_routes(api: OpenIDAPI) -> Sequence[Route]:
    """Whose token it is: asked by services that have no key."""
    return api.routes()
