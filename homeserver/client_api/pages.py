"""The few web pages of a homeserver: how they are made, the landing page and the login page.

Pages carry no data of others; what is inserted is escaped, and a strict content policy names each script by its hash.
Whoever posts a form needs what only its page or a mail has told, so that no other site can post it for them.
"""

import base64
import hashlib
import html
from collections.abc import Mapping
from urllib.parse import parse_qsl

from aiohttp import web

from federation.protocol.errors import InvalidInput
from federation.web import Answer, Call

_MAX_FORM = 16 * 1024

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:34rem;margin:4rem auto;padding:0 1rem;color:#222}"
    "input,button{font:inherit;padding:.4rem .6rem;margin:.3rem 0;box-sizing:border-box}"
    "input{width:100%}input[type=hidden]{display:none}.error{color:#a00}"
)

_LOGIN_SCRIPT = """
document.getElementById("login").addEventListener("submit", async function (submitted) {
  submitted.preventDefault();
  const body = {};
  for (const [name, value] of new URLSearchParams(window.location.search)) body[name] = value;
  body.type = "m.login.password";
  const user = document.getElementById("user").value;
  body.identifier = user.indexOf("@") > 0
    ? {type: "m.id.thirdparty", medium: "email", address: user}
    : {type: "m.id.user", user: user};
  body.password = document.getElementById("password").value;
  if ("refresh_token" in body) body.refresh_token = body.refresh_token === "true";
  const answer = await fetch("/_matrix/client/v3/login", {method: "POST", body: JSON.stringify(body)});
  const result = await answer.json();
  if (!answer.ok) { document.getElementById("error").textContent = result.error || "Login failed"; return; }
  document.getElementById("error").textContent = "You are logged in.";
  if (window.matrixLogin && window.matrixLogin.onLogin) window.matrixLogin.onLogin(result);
});
"""


def page(
    title: str, body: str, *, script: str = "", status: int = 200, allowed: Mapping[str, str] | None = None
) -> web.Response:
    """A whole page; `body` is HTML that is safe already. `allowed` has further sources by directive of the policy."""
    text = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{_STYLE}</style></head>'
        f"<body><h1>{html.escape(title)}</h1>{body}{f'<script>{script}</script>' if script else ''}</body></html>"
    )
    policy = {
        "default-src": "'none'",
        "style-src": f"'sha256-{_digest(_STYLE)}'",
        "form-action": "'self'",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
    }
    if script:
        policy["script-src"] = f"'sha256-{_digest(script)}'"
    for directive, sources in (allowed or {}).items():
        policy[directive] = f"{policy.get(directive, '')} {sources}".strip()
    headers = {
        "Content-Security-Policy": "; ".join(f"{name} {sources}" for name, sources in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "X-Frame-Options": "DENY",
        "Cache-Control": "no-store",
    }
    return web.Response(text=text, content_type="text/html", status=status, headers=headers)


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


async def form_of(call: Call) -> dict[str, str]:
    """What a form of ours posts; raises M_INVALID_PARAM."""
    try:
        return dict(parse_qsl((await call.raw_body(_MAX_FORM)).decode(), max_num_fields=20))
    except ValueError as error:
        raise InvalidInput("The form cannot be read") from error


class PagesAPI:
    """The pages."""

    def __init__(self, *, server_name: str) -> None:
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
            '<form id="login"><label>User name or e-mail address'
            '<input type="text" id="user" autocomplete="username" required></label>'
            '<label>Password<input type="password" id="password" autocomplete="current-password" required></label>'
            '<button>Log in</button><p id="error" class="error" role="status"></p></form>',
            script=_LOGIN_SCRIPT,
        )
