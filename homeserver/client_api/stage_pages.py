"""The fallback pages of authentication stages (Client-Server API, "Fallback"): one form each, without any script until
the stage is completed, but for a captcha's own.
"""

import html
import secrets

from aiohttp import web
from yarl import URL

from federation.protocol.errors import InvalidInput, LimitExceeded, MatrixError, NotFound
from federation.protocol.types import JsonObject
from federation.web import Answer, Call
from homeserver.client_api.interactive_auth import (
    DUMMY,
    EMAIL,
    PASSWORD,
    PHONE,
    RECAPTCHA,
    REGISTRATION_TOKEN,
    TERMS,
    InteractiveAuth,
)
from homeserver.client_api.pages import form_of, page
from homeserver.services.identifiers import EmailRequest, IdentifierService, PhoneRequest
from storage.identifier_validations import Purpose

_DONE_SCRIPT = (
    "if(window.onAuthDone){window.onAuthDone();}"
    'else if(window.opener&&window.opener.postMessage){window.opener.postMessage("authDone","*");}'
)
_INPUTS = {
    DUMMY: "",
    PASSWORD: '<label>Password<input type="password" name="password" autocomplete="current-password" required></label>',
    REGISTRATION_TOKEN: '<label>Registration token<input type="text" name="token" required></label>',
    EMAIL: '<label>E-mail address<input type="email" name="email" autocomplete="email" required></label>',
    PHONE: "<label>Phone number, beginning with + and the code of its country"
    '<input type="tel" name="phone" autocomplete="tel" required></label>',
}
_SENT = {
    EMAIL: "<p>A message is on its way to you. Follow the link in it, then come back here and continue.</p>",
    PHONE: "<p>A message is on its way to you.</p><label>The code in it"
    '<input type="text" name="token" inputmode="numeric" autocomplete="one-time-code" required></label>',
}
"""What is asked once something is sent."""


class StagePagesAPI:
    """The pages; `captcha_script` is the address of a captcha's script, if registering needs one."""

    def __init__(
        self,
        interactive_auth: InteractiveAuth,
        identifiers: IdentifierService,
        *,
        server_name: str,
        captcha_script: str | None,
    ) -> None:
        self._interactive_auth = interactive_auth
        self._identifiers = identifiers
        self._server_name = server_name
        self._captcha_script = captcha_script

    async def get_stage(self, call: Call) -> Answer:
        """GET /auth/<auth type>/fallback/web."""
        stage, session_id = self._stage(call), call.query_text("session")
        if not session_id:
            raise InvalidInput("session is required", "M_MISSING_PARAM")
        return self._form(stage, session_id)

    async def post_stage(self, call: Call) -> Answer:
        """POST of the page's own form."""
        stage, form = self._stage(call), await form_of(call)
        session_id, address = form.get("session", ""), call.request.remote or ""
        try:
            if stage in _SENT and "sid" not in form:
                return await self._send(stage, session_id, form, address)
            if stage == PHONE:
                await self._identifiers.submit_code(form["sid"], form.get("client_secret", ""), form.get("token", ""))
            await self._interactive_auth.complete_by_page(session_id, stage, _auth_of(stage, form), address)
        except LimitExceeded:
            raise
        except MatrixError as error:
            if stage in _SENT and "sid" in form and error.errcode != "M_SESSION_EXPIRED":
                return self._awaiting(stage, session_id, form["sid"], form.get("client_secret", ""), error=error)
            return self._form(stage, session_id, error)
        return page("Done", "<p>You can close this window and go back to your client.</p>", script=_DONE_SCRIPT)

    def _stage(self, call: Call) -> str:
        stage = call.path["auth_type"]
        if not self._interactive_auth.has_stage(stage):
            raise NotFound("There is no page for this authentication type")
        return stage

    async def _send(self, stage: str, session_id: str, form: dict[str, str], address: str) -> web.Response:
        asker = await self._interactive_auth.asker_of(session_id, address)
        purpose = Purpose.RESET_PASSWORD if asker.path.endswith("/account/password") else Purpose.REGISTER
        client_secret = secrets.token_urlsafe(24)
        if stage == EMAIL:
            mail = EmailRequest(client_secret=client_secret, email=form.get("email", ""), send_attempt=1)
            sid = await self._identifiers.request_email(purpose, mail, asker=address)
        else:
            number = form.get("phone", "")
            sms = PhoneRequest(client_secret=client_secret, country=None, phone_number=number, send_attempt=1)
            sid = await self._identifiers.request_phone(purpose, sms, asker=address)
        return self._awaiting(stage, session_id, sid, client_secret)

    def _awaiting(
        self, stage: str, session_id: str, sid: str, client_secret: str, *, error: MatrixError | None = None
    ) -> web.Response:
        hidden = {"session": session_id, "sid": sid, "client_secret": client_secret}
        return self._page(_SENT[stage], hidden, "Continue", error)

    def _form(self, stage: str, session_id: str, error: MatrixError | None = None) -> web.Response:
        params = self._interactive_auth.params_of(stage) or {}
        hidden = {"session": session_id}
        if stage == TERMS:
            return self._page(_policies(params), hidden, "I agree", error)
        if stage in _SENT:
            return self._page(_INPUTS[stage], hidden, "Send me a message", error)
        if stage == RECAPTCHA:
            return self._captcha(params, hidden, error)
        return self._page(_INPUTS[stage], hidden, "Continue", error)

    def _captcha(self, params: JsonObject, hidden: dict[str, str], error: MatrixError | None) -> web.Response:
        script = self._captcha_script or ""
        sources = str(URL(script).origin())
        if sources == "https://www.google.com":
            sources += " https://www.gstatic.com"
        field = (
            f'<div class="g-recaptcha" data-sitekey="{html.escape(str(params.get("public_key", "")))}"></div>'
            f'<script src="{html.escape(script)}" async defer></script>'
        )
        allowed = {"script-src": sources, "frame-src": sources, "connect-src": sources}
        return self._page(field, hidden, "Continue", error, allowed=allowed)

    def _page(
        self,
        inner: str,
        hidden: dict[str, str],
        button: str,
        error: MatrixError | None,
        *,
        allowed: dict[str, str] | None = None,
    ) -> web.Response:
        complaint = f'<p class="error" role="alert">{html.escape(error.message)}</p>' if error else ""
        fields = "".join(
            f'<input type="hidden" name="{name}" value="{html.escape(value)}">' for name, value in hidden.items()
        )
        return page(
            self._server_name,
            f'<form method="post">{complaint}{inner}{fields}<button>{button}</button></form>',
            status=error.http_status if error else 200,
            allowed=allowed,
        )


def _auth_of(stage: str, form: dict[str, str]) -> JsonObject:
    """What a client would submit."""
    given: dict[str, JsonObject] = {
        PASSWORD: {"password": form.get("password", "")},
        REGISTRATION_TOKEN: {"token": form.get("token", "")},
        RECAPTCHA: {"response": form.get("g-recaptcha-response", "")},
        **{
            stage: {"threepid_creds": {name: form.get(name, "") for name in ("sid", "client_secret")}}
            for stage in _SENT
        },
    }
    return {"type": stage, **given.get(stage, {})}


def _policies(params: JsonObject) -> str:
    links = [
        f'<li><a href="{html.escape(document["url"])}" rel="noopener" target="_blank">'
        f"{html.escape(document['name'])}</a></li>"
        for policy in params["policies"].values()
        for document in policy.values()
        if isinstance(document, dict)
    ]
    return f"<p>To continue, you must agree to:</p><ul>{''.join(links)}</ul>"
