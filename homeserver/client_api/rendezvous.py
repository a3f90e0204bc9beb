"""Sessions for signing in by QR code, in both forms that clients use: MSC4108 of 2024, by HTTP's own means of saying
which message was seen, and its successor MSC4388, in JSON.

What is left there is anybody's: browsers are told to show none of it. Neither form is named by `/versions`: signing in
needs the device grant besides, which this server has not.
"""

from email.utils import formatdate

from aiohttp import web

from federation.protocol.errors import Forbidden, InvalidInput, MatrixError
from federation.web import CORS_HEADERS, Answer, Call, json_response
from homeserver.client_api import fields
from homeserver.client_api.routing import ClientRoute, Login
from homeserver.services.rendezvous import MAX_BYTES, OutOfDateError, RendezvousService
from storage.rendezvous import Session

PATH_2024 = "unstable/org.matrix.msc4108/rendezvous"
PATH = "unstable/io.element.msc4388/rendezvous"

MAX_BODY_BYTES = 8 * MAX_BYTES
"""JSON escapes take room, and a message that is too large is told so."""

_TEXT = {
    "Content-Type": "text/plain",
    "Content-Security-Policy": "sandbox; default-src 'none'",
    "X-Content-Type-Options": "nosniff",
}


_NOT_KEPT = {"Cache-Control": "no-store", "Pragma": "no-cache"}


class RendezvousAPI:
    """Nobody needs to be logged in: it is how one logs in."""

    def __init__(self, sessions: RendezvousService, *, base_url: str) -> None:
        self._sessions = sessions
        self._base_url = base_url

    def routes(self) -> list[ClientRoute]:
        """All endpoints. Creating costs of the same budget as logging in."""
        endpoints = [
            ("POST", PATH_2024, self.create_2024, "login"),
            ("GET", f"{PATH_2024}/{{session_id}}", self.get_2024, "requests"),
            ("PUT", f"{PATH_2024}/{{session_id}}", self.update_2024, "requests"),
            ("DELETE", f"{PATH_2024}/{{session_id}}", self.delete_2024, "requests"),
            ("GET", PATH, self.discover, "requests"),
            ("POST", PATH, self.create, "login"),
            ("GET", f"{PATH}/{{session_id}}", self.get, "requests"),
            ("PUT", f"{PATH}/{{session_id}}", self.update, "requests"),
            ("PUT", f"{PATH}/{{session_id}}/{{txn_id}}", self.update, "requests"),
            ("DELETE", f"{PATH}/{{session_id}}", self.delete, "requests"),
        ]
        return [
            ClientRoute(method=method, path=path, endpoint=endpoint, login=Login.NONE, limit=limit)
            for method, path, endpoint, limit in endpoints
        ]

    # --- MSC4108

    async def create_2024(self, call: Call) -> Answer:
        """POST: the message as text."""
        session = await self._sessions.create(await _text(call))
        url = f"{self._base_url}/_matrix/client/{PATH_2024}/{session.id}"
        return json_response({"url": url}, 201, _headers(session))

    async def get_2024(self, call: Call) -> Answer:
        """GET: nothing (304) if it is what `If-None-Match` names."""
        session = await self._sessions.get(call.path["session_id"])
        headers = {**CORS_HEADERS, **_TEXT, **_headers(session)}
        if _etag(session) in _tags(call, "If-None-Match"):
            return web.Response(status=304, headers=headers)
        return web.Response(body=session.data, headers=headers)

    async def update_2024(self, call: Call) -> Answer:
        """PUT: if the message is still what `If-Match` names."""
        seen, data = _tags(call, "If-Match"), await _text(call)
        if not seen:
            raise InvalidInput("If-Match is required", "M_MISSING_PARAM")
        try:
            session = await self._sessions.update(call.path["session_id"], seen[0].strip('"'), data)
        except OutOfDateError as error:
            body = {"errcode": "M_UNKNOWN", "org.matrix.msc4108.errcode": error.errcode, "error": error.message}
            return json_response(body, 412, _headers(error.current))
        return web.Response(status=202, headers={**CORS_HEADERS, **_TEXT, **_headers(session)})

    async def delete_2024(self, call: Call) -> Answer:
        """DELETE."""
        await self._sessions.delete(call.path["session_id"])
        return web.Response(status=204, headers={**CORS_HEADERS, **_NOT_KEPT})

    # --- MSC4388

    async def discover(self, _call: Call) -> Answer:
        """GET: whether who asks may begin a session."""
        return json_response({"create_available": True}, headers=_NOT_KEPT)

    async def create(self, call: Call) -> Answer:
        """POST."""
        body = await call.body(max_bytes=MAX_BODY_BYTES)
        session = await self._sessions.create(_data(fields.get_text(body, "data")))
        answer = {
            "id": session.id,
            "sequence_token": str(session.version),
            "expires_in_ms": self._sessions.left_ms(session),
        }
        return json_response(answer, headers=_NOT_KEPT)

    async def get(self, call: Call) -> Answer:
        """GET; not for who opens it as a page."""
        if call.request.headers.get("Sec-Fetch-Mode") == "navigate":
            raise Forbidden("This is no page")
        session = await self._sessions.get(call.path["session_id"])
        answer = {
            "data": session.data.decode(),
            "sequence_token": str(session.version),
            "expires_in_ms": self._sessions.left_ms(session),
        }
        return json_response(answer, headers=_NOT_KEPT)

    async def update(self, call: Call) -> Answer:
        """PUT, in the later drafts with a transaction ID."""
        body = await call.body(max_bytes=MAX_BODY_BYTES)
        seen, data = fields.get_text(body, "sequence_token"), _data(fields.get_text(body, "data"))
        try:
            session = await self._sessions.update(call.path["session_id"], seen, data, call.path.get("txn_id", ""))
        except OutOfDateError as error:
            raise MatrixError("IO_ELEMENT_MSC4388_CONCURRENT_WRITE", error.message, 409) from error
        return json_response({"sequence_token": str(session.version)}, headers=_NOT_KEPT)

    async def delete(self, call: Call) -> Answer:
        """DELETE."""
        await self._sessions.delete(call.path["session_id"])
        return {}


def _headers(session: Session) -> dict[str, str]:
    return {
        **_NOT_KEPT,
        "ETag": _etag(session),
        "Expires": formatdate(session.expires_ts / 1000, usegmt=True),
        "Last-Modified": formatdate(session.modified_ts / 1000, usegmt=True),
    }


def _etag(session: Session) -> str:
    return f'"{session.version}"'


def _tags(call: Call, header: str) -> list[str]:
    """What a header names, in the strong form whatever a proxy made of it."""
    tags = call.request.headers.get(header, "").split(",")
    return [tag.strip().removeprefix("W/") for tag in tags if tag.strip()]


async def _text(call: Call) -> bytes:
    """The body, which is text."""
    content_type = call.request.headers.get("Content-Type")
    if content_type is None:
        raise InvalidInput("Content-Type is required", "M_MISSING_PARAM")
    if content_type.partition(";")[0].strip().lower() != "text/plain":
        raise InvalidInput("Content-Type must be text/plain")
    data = await call.raw_body(MAX_BYTES)
    try:
        data.decode()
    except UnicodeDecodeError:
        raise InvalidInput("The body is not UTF-8") from None
    return data


def _data(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidInput("data is not UTF-8") from None
