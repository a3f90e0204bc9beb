"""The few web pages of a homeserver: the landing page, the login page, the fallback pages of authentication stages.

Pages carry no data of others; what is inserted is escaped, and a strict content policy names each script by its hash.
"""

import base64
import hashlib
import html
from urllib.parse import parse_qsl

from aiohttp import web

from federation.protocol.errors import InvalidInput, LimitExceeded, MatrixError, NotFound
from federation.protocol.types import JsonObject
from federation.web import Answer, Call
from homeserver.client_api.interactive_auth import DUMMY, REGISTRATION_TOKEN, TERMS, InteractiveAuth

_MAX_FORM = 16 * 1024

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:34rem;margin:4rem auto;padding:0 1rem;color:#222}"
    "input,button{font:inherit;padding:.4rem .6rem;margin:.3rem 0;box-sizing:border-box}"
    "input[type=text],input[type=password]{width:100%}.error{color:#a00}"
)

_DONE_SCRIPT = (
    "if(window.onAuthDone){window.onAuthDone();}"
    'else if(window.opener&&window.opener.postMessage){window.opener.postMessage("authDone","*");}'
)

_LOGIN_SCRIPT = """
document.getElementById("login").addEventListener("submit", async function (submitted) {
  submitted.preventDefault();
  const body = {};
  for (const [name, value] of new URLSearchParams(window.location.search)) body[name] = value;
  body.type = "m.login.password";
  body.identifier = {type: "m.id.user", user: document.getElementById("user").value};
  body.password = document.getElementById("password").value;
  if ("refresh_token" in body) body.refresh_token = body.refresh_token === "true";
  const answer = await fetch("/_matrix/client/v3/login", {method: "POST", body: JSON.stringify(body)});
  const result = await answer.json();
  if (!answer.ok) { document.getElementById("error").textContent = result.error || "Login failed"; return; }
  document.getElementById("error").textContent = "You are logged in.";
  if (window.matrixLogin && window.matrixLogin.onLogin) window.matrixLogin.onLogin(result);
});
"""


def page(title: str, body: str, *, script: str = "", status: int = 200) -> web.Response:
    """A whole page; `body` is HTML that is safe already."""
    text = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{_STYLE}</style></head>'
        f"<body><h1>{html.escape(title)}</h1>{body}{f'<script>{script}</script>' if script else ''}</body></html>"
    )
    policy = (
        f"default-src 'none'; style-src 'sha256-{_digest(_STYLE)}'; form-action 'self'; connect-src 'self';"
        f" base-uri 'none'; frame-ancestors 'none'"
    )
    if script:
        policy += f"; script-src 'sha256-{_digest(script)}'"
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "X-Frame-Options": "DENY",
        "Cache-Control": "no-store",
    }
    return web.Response(text=text, content_type="text/html", status=status, headers=headers)


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


class PagesAPI:
    """The pages."""

    def __init__(self, interactive_auth: InteractiveAuth, *, server_name: str) -> None:
        self._interactive_auth = interactive_auth
        self._server_name = server_name

    async def get_landing(self, _call: Call) -> Answer:
        """GET /: what somebody sees who opens the server's address in a browser."""
        name = html.escape(self._server_name)
        return page(
            "It works",
            f"<p>This is the Matrix homeserver of <b>{name}</b>.</p>"
            f"<p>To use it, choose a Matrix client and enter <b>{name}</b> as your homeserver.</p>",
        )

    async def get_login(self, _call: Call) -> Answer:
        """GET /_matrix/static/client/login/ ("Login Fallback")."""
        return page(
            f"Log in to {self._server_name}",
            '<form id="login"><label>User name<input type="text" id="user" autocomplete="username" required></label>'
            '<label>Password<input type="password" id="password" autocomplete="current-password" required></label>'
            '<button>Log in</button><p id="error" class="error" role="status"></p></form>',
            script=_LOGIN_SCRIPT,
        )

    async def get_stage(self, call: Call) -> Answer:
        """GET /auth/<auth type>/fallback/web ("Fallback")."""
        stage, session_id = self._stage(call), call.query_text("session")
        if not session_id:
            raise InvalidInput("session is required", "M_MISSING_PARAM")
        return self._form(stage, session_id)

    async def post_stage(self, call: Call) -> Answer:
        """POST of the page's own form."""
        stage = self._stage(call)
        try:
            fields = dict(parse_qsl((await call.raw_body(_MAX_FORM)).decode(), max_num_fields=20))
        except ValueError as error:
            raise InvalidInput("The form cannot be read") from error
        session_id = fields.get("session", "")
        try:
            await self._interactive_auth.complete_by_page(
                session_id, stage, {"type": stage, "token": fields.get("token", "")}, call.request.remote or ""
            )
        except LimitExceeded:
            raise
        except MatrixError as error:
            return self._form(stage, session_id, error=error)
        return page("Done", "<p>You can close this window and go back to your client.</p>", script=_DONE_SCRIPT)

    def _stage(self, call: Call) -> str:
        stage = call.path["auth_type"]
        if stage not in (DUMMY, REGISTRATION_TOKEN, TERMS) or not self._interactive_auth.has_stage(stage):
            raise NotFound("There is no page for this authentication type")
        return stage

    def _form(self, stage: str, session_id: str, error: MatrixError | None = None) -> web.Response:
        inner = ""
        if stage == REGISTRATION_TOKEN:
            inner = '<label>Registration token<input type="text" name="token" required></label>'
        elif stage == TERMS:
            inner = _policies(self._interactive_auth.params_of(TERMS) or {})
        complaint = f'<p class="error" role="alert">{html.escape(error.message)}</p>' if error else ""
        button = "I agree" if stage == TERMS else "Continue"
        return page(
            f"Register at {self._server_name}",
            f'<form method="post">{complaint}{inner}'
            f'<input type="hidden" name="session" value="{html.escape(session_id)}"><button>{button}</button></form>',
            status=error.http_status if error else 200,
        )


def _policies(params: JsonObject) -> str:
    links = [
        f'<li><a href="{html.escape(document["url"])}" rel="noopener" target="_blank">'
        f"{html.escape(document['name'])}</a></li>"
        for policy in params["policies"].values()
        for document in policy.values()
        if isinstance(document, dict)
    ]
    return f"<p>To register, you must agree to:</p><ul>{''.join(links)}</ul>"
