"""What software this is (Server-Server API, "Server implementation")."""

from federation.web import Answer, Call


class VersionAPI:
    """GET /_matrix/federation/v1/version."""

    def __init__(self, name: str, version: str) -> None:
        self._answer = {"server": {"name": name, "version": version}}

    async def get_version(self, _call: Call) -> Answer:
        """The same for everybody."""
        return self._answer
