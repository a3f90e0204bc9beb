"""The page that a mail of unread messages leads to. Following the link only shows it, as mail servers follow links,
too; its button, or the mail program's own (RFC 8058), ends the mails.
"""

import html

from aiohttp import web

from federation.protocol.errors import MatrixError
from federation.web import Answer, Call
from homeserver.client_api.pages import page
from homeserver.services.pushers import PusherService


class UnsubscribePageAPI:
    """The page."""

    def __init__(self, pushers: PusherService, *, server_name: str) -> None:
        self._pushers = pushers
        self._server_name = server_name

    async def get(self, call: Call) -> Answer:
        """GET: the question."""
        try:
            pusher = await self._pushers.find_by_token(call.query_text("token") or "")
        except MatrixError as error:
            return self._refusal(error)
        return page(
            self._server_name,
            f'<form method="post"><p>Do you want no more mails of unread messages at {html.escape(pusher.pushkey)}?</p>'
            "<button>No more mails</button></form>",
        )

    async def post(self, call: Call) -> Answer:
        """POST, by the button or by a mail program: no more mails."""
        try:
            await self._pushers.unsubscribe(call.query_text("token") or "")
        except MatrixError as error:
            return self._refusal(error)
        return page(self._server_name, "<p>You get no more of these mails.</p>")

    def _refusal(self, error: MatrixError) -> web.Response:
        return page(
            self._server_name,
            f'<p class="error" role="alert">{html.escape(error.message)}</p>',
            status=error.http_status,
        )
