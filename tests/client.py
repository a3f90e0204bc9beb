"""Clients for tests: they speak HTTP to a running server and see what any client sees.

    async def test_something(server: Server) -> None:
        alice = await server.register("alice")
        status, body = await alice.get("/v3/account/whoami")
        assert (status, body["user_id"]) == (200, alice.user_id)

User names get a number, so that tests share a server without meeting each other's users.
"""

import dataclasses
import io
import itertools
import os
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote as quote_url

import aiohttp

from homeserver.app import Application
from tests.openapi import CLIENTS, SERVERS, specification

PASSWORD = "correct horse battery staple"

UNSPECIFIED = frozenset(("filter", "org.matrix.msc4140.delay"))
"""Parameters with which answers may differ from the schema: a filter's `event_fields` takes away from it."""

FOR_SERVERS = ("/_matrix/federation/", "/_matrix/key/", "/.well-known/matrix/server")

_numbers = itertools.count(1)


def unique(prefix: str = "user") -> str:
    """A name that no other test of this run uses."""
    return f"{prefix}-{os.getpid()}-{next(_numbers)}"


def quote(text: str) -> str:
    """An identifier as one segment of a path."""
    return quote_url(text, safe="")


@dataclass(slots=True)
class Answer:
    """A response: unpacks into status and JSON body."""

    status: int
    body: Any
    headers: Any

    def __iter__(self) -> Any:
        return iter((self.status, self.body))


@dataclass(slots=True)
class Client:
    """Somebody who speaks to a server; logged in when there is an access token."""

    base_url: str
    session: aiohttp.ClientSession
    user_id: str = ""
    device_id: str = ""
    access_token: str = ""
    refresh_token: str = ""
    password: str = PASSWORD
    headers: dict[str, str] = field(default_factory=dict)
    is_held_to_specification: bool = True
    """Whether every answer is checked against the specification's schema."""

    async def request(self, method: str, path: str, body: Any = None, **options: Any) -> Answer:
        """Send a request: `path` is below `/_matrix/client` unless it begins with `/_` or `/.` or is `/`.

        `body` is JSON, or bytes sent as they are. `params` is the query; `headers` are added.
        """
        url = self.base_url + (path if path.startswith(("/_", "/.")) or path == "/" else "/_matrix/client" + path)
        headers = {**self.headers, **options.pop("headers", {})}
        if self.access_token:
            headers.setdefault("Authorization", f"Bearer {self.access_token}")
        if isinstance(body, bytes):
            options["data"] = io.BytesIO(body) if len(body) > 1_000_000 else body  # aiohttp warns of large bytes
        elif body is not None:
            options["json"] = body
        async with self.session.request(method, url, headers=headers, **options) as response:
            is_json = response.content_type == "application/json"
            content = await response.json() if is_json else await response.read()
            if self.is_held_to_specification and method != "HEAD" and not response.url.query.keys() & UNSPECIFIED:
                api = SERVERS if response.url.raw_path.startswith(FOR_SERVERS) else CLIENTS
                specification(api).check(method, response.url.raw_path, response.status, content)
            return Answer(response.status, content, response.headers)

    async def get(self, path: str, **params: str | int) -> Answer:
        """GET with a query of keyword arguments (`from_` is `from`)."""
        query = {name.rstrip("_"): str(value) for name, value in params.items()}
        return await self.request("GET", path, params=query)

    async def post(self, path: str, body: Any = None, **params: str) -> Answer:
        """POST; without a body an empty object."""
        return await self.request("POST", path, {} if body is None else body, params=params)

    async def put(self, path: str, body: Any = None, **params: str) -> Answer:
        """PUT; without a body an empty object."""
        return await self.request("PUT", path, {} if body is None else body, params=params)

    async def delete(self, path: str, body: Any = None, **params: str) -> Answer:
        """DELETE."""
        return await self.request("DELETE", path, body, params=params)

    async def ok(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        """The body of a request that must succeed."""
        answer = await self.request(method, path, body, **options)
        assert answer.status == 200, (method, path, answer.status, answer.body)
        return answer.body

    # --- accounts

    async def register(self, name: str = "user", **fields: Any) -> "Client":
        """A new user, logged in; `name` gets a number."""
        return await self.register_as(unique(name), **fields)

    async def register_as(self, username: str, **fields: Any) -> "Client":
        """A new user with exactly this name, logged in."""
        body = {"username": username, "password": self.password, "auth": {"type": "m.login.dummy"}, **fields}
        return self.logged_in(await self.ok("POST", "/v3/register", body))

    async def login(self, **fields: Any) -> "Client":
        """The same user on another device (or on `device_id`)."""
        body = {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": self.user_id},
            "password": self.password,
            **fields,
        }
        return self.anonymous().logged_in(await self.anonymous().ok("POST", "/v3/login", body))

    def anonymous(self) -> "Client":
        """Nobody, to the same server."""
        return Client(
            self.base_url,
            self.session,
            password=self.password,
            is_held_to_specification=self.is_held_to_specification,
        )

    def logged_in(self, tokens: Any) -> "Client":
        """Who a login's answer belongs to."""
        return dataclasses.replace(
            self.anonymous(),
            user_id=tokens["user_id"],
            device_id=tokens["device_id"],
            access_token=tokens["access_token"],
            refresh_token=tokens.get("refresh_token", ""),
        )

    def password_auth(self, session: str | None = None) -> dict[str, Any]:
        """`auth` with this user's password, for endpoints with user-interactive authentication."""
        auth: dict[str, Any] = {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": self.user_id},
            "password": self.password,
        }
        return auth if session is None else {**auth, "session": session}


@dataclass(slots=True)
class Server:
    """A running server and a client of it that is not logged in."""

    application: Application
    anonymous: Client

    @property
    def name(self) -> str:
        """The server's name."""
        return self.application.config.server_name

    @property
    def base_url(self) -> str:
        """Its address."""
        return self.anonymous.base_url

    async def register(self, name: str = "user", **fields: Any) -> Client:
        """A new user, logged in; `name` gets a number."""
        return await self.anonymous.register(name, **fields)
