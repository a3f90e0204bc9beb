"""The page that a link in mail leads to. Following the link only shows it, as mail servers follow links, too; pressing
its button is the proof.
"""

import html

from aiohttp import web
from yarl import URL

from federation.protocol.errors import MatrixError
from federation.web import Answer, Call
from homeserver.client_api.pages import form_of, page
from homeserver.services.identifiers import IdentifierService
from storage.identifier_validations import Purpose

_QUESTIONS = {
    Purpose.REGISTER: "Do you register an account with the address {address}?",
    Purpose.ADD: "Do you add the address {address} to your account?",
    Purpose.RESET_PASSWORD: "Do you want to set a new password for the account with the address {address}?",
}


class ConfirmationPageAPI:
    """The page."""

    def __init__(self, identifiers: IdentifierService, *, server_name: str) -> None:
        self._identifiers = identifiers
        self._server_name = server_name

    async def get(self, call: Call) -> Answer:
        """GET: the question."""
        sid, token = call.query_text("sid") or "", call.query_text("token") or ""
        try:
            awaited = await self._identifiers.find_awaited(sid, token)
        except MatrixError as error:
            return self._refusal(error)
        question = _QUESTIONS[awaited.purpose].format(address=awaited.identifier.address)
        # The browser lets a form lead on only to where the policy says.
        allowed = {} if awaited.next_link is None else {"form-action": str(URL(awaited.next_link).origin())}
        return page(
            self._server_name,
            f'<form method="post"><p>{html.escape(question)}</p>'
            f'<input type="hidden" name="sid" value="{html.escape(sid)}">'
            f'<input type="hidden" name="token" value="{html.escape(token)}">'
            f"<button>Yes</button></form><p>If you did not ask for this, close this page.</p>",
            allowed=allowed,
        )

    async def post(self, call: Call) -> Answer:
        """POST of the page's form: the proof."""
        form = await form_of(call)
        try:
            confirmed = await self._identifiers.confirm(form.get("sid", ""), form.get("token", ""))
        except MatrixError as error:
            return self._refusal(error)
        if confirmed.next_link is not None:
            return web.Response(status=303, headers={"Location": confirmed.next_link, "Referrer-Policy": "no-referrer"})
        return page(self._server_name, "<p>Thank you. You can close this page and go back to your client.</p>")

    def _refusal(self, error: MatrixError) -> web.Response:
        return page(
            self._server_name,
            f'<p class="error" role="alert">{html.escape(error.message)}</p>',
            status=error.http_status,
        )
