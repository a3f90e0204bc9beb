"""User-interactive authentication (Client-Server API, "User-Interactive Authentication API").

An endpoint calls `begin` with the request, validates what the client asks for, and then `require`s one of several
flows of stages. A session belongs to one operation (method, path and user) and, once a stage is completed, to one
body: what was agreed to cannot be changed afterwards. A later request may leave the parameters out; those of the
first are then used again. They are stored only encrypted with the session ID, which is not stored.
"""

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from typing import Any, Protocol

import orjson
from msgspec import Struct, field
from msgspec.structs import replace
from nacl.secret import SecretBox

from federation.protocol.errors import Forbidden, InvalidInput, LimitExceeded, MatrixError
from federation.protocol.types import JsonObject, UserID
from federation.web import Call
from homeserver.services.rate_limits import RateLimits
from homeserver.services.requester import Requester
from storage import interactive_auth
from storage.database import Database
from storage.interactive_auth import StoredAttempt

LIFETIME_MS = 30 * 60 * 1000
MAX_REMEMBERED_BODY = 16 * 1024
_MAX_SESSION_ID = 128

PASSWORD = "m.login.password"  # noqa: S105  # the name of a stage
DUMMY = "m.login.dummy"
REGISTRATION_TOKEN = "m.login.registration_token"  # noqa: S105  # the name of a stage
TERMS = "m.login.terms"
RECAPTCHA = "m.login.recaptcha"
EMAIL = "m.login.email.identity"
PHONE = "m.login.msisdn"

Flows = Sequence[Sequence[str]]


class AuthenticationRequired(MatrixError):
    """401 with the flows to choose from; with an error code only when a stage was tried and failed."""

    def body(self) -> dict[str, Any]:
        """The object of "User-interactive API in the REST API"."""
        return super().body() if self.errcode else dict(self.fields)


class Asker(Struct, frozen=True, kw_only=True):
    """Who authenticates, and what for."""

    user_id: UserID | None
    """None: somebody who is not logged in."""
    address: str
    path: str
    """Of the endpoint that is asked in the end."""


class Stage(Protocol):
    """One kind of proof."""

    def params(self) -> JsonObject | None:
        """What a client must know to complete it."""

    async def check(self, auth: JsonObject, asker: Asker) -> str | None:
        """Raise a MatrixError unless `auth` proves it; what exactly it proved, where that is of use afterwards."""


class Attempt(Struct):
    """One request of an authentication."""

    operation: str
    requester: Requester | None
    address: str
    body: JsonObject
    """The parameters that hold, without `auth`: what this request has, or an earlier one of the session."""
    auth: JsonObject | None
    session_id: str
    is_new: bool = True
    """Whether nothing is stored of it yet."""
    completed: list[str] = field(default_factory=list)
    proofs: dict[str, str] = field(default_factory=dict)
    """By stage what it proved, where that is of use afterwards."""


class InteractiveAuth:
    """The engine; `stages` by the name that flows use."""

    def __init__(self, database: Database, stages: dict[str, Stage], rate_limits: RateLimits) -> None:
        self._database = database
        self._stages = stages
        self._rate_limits = rate_limits

    async def require(self, call: Call, body: JsonObject, requester: Requester) -> JsonObject:
        """Have a logged-in user prove who they are by their password; the parameters that hold.

        Raises AuthenticationRequired until they have. Application services vouch for their users.
        """
        attempt = await self.begin(call, body, requester)
        if requester.application_service is None:
            await self.complete(attempt, [[PASSWORD]])
        return attempt.body

    async def begin(self, call: Call, body: JsonObject, requester: Requester | None) -> Attempt:
        """Take up the authentication that the request belongs to, or a new one."""
        auth = body.get("auth")
        if auth is not None and not isinstance(auth, dict):
            raise InvalidInput("auth must be an object", "M_BAD_JSON")
        attempt = Attempt(
            operation=" ".join((call.request.method, call.request.path, requester.user_id if requester else "")),
            requester=requester,
            address=call.request.remote or "",
            body={name: value for name, value in body.items() if name != "auth"},
            auth=auth,
            session_id="",
        )
        session_id = auth.get("session") if auth else None
        if session_id is not None and (not isinstance(session_id, str) or len(session_id) > _MAX_SESSION_ID):
            raise InvalidInput("auth.session must be the string that the server gave")
        if session_id:
            await self._take_up(attempt, session_id)
        attempt.is_new = not attempt.session_id
        attempt.session_id = attempt.session_id or secrets.token_urlsafe(24)
        return attempt

    async def _take_up(self, attempt: Attempt, session_id: str) -> None:
        async with self._database.read() as tx:
            known = await interactive_auth.find(tx, _session_hash(session_id), self._database.now_ms())
        if known is None or known.operation != attempt.operation:
            return  # expired, or not this operation's: the client starts again with a new session
        attempt.session_id = session_id
        attempt.completed = list(known.completed)
        attempt.proofs = dict(known.proofs)
        if not attempt.body and known.body is not None:
            attempt.body = _open(known.body, session_id)
        # Who registers may have asked for the flows, and completed stages on our pages, with an empty request.
        is_bound = bool(known.completed) and (attempt.requester is not None or known.body is not None)
        if is_bound and not hmac.compare_digest(known.body_hash, _body_hash(attempt.body, session_id)):
            raise Forbidden("The request is not the one that was being authenticated")

    async def complete(self, attempt: Attempt, flows: Flows) -> None:
        """Check the stage that the client submits; return when a whole flow is completed, else AuthenticationRequired.

        The session has then served its purpose and is forgotten.
        """
        failure: MatrixError | None = None
        stage_type = attempt.auth.get("type") if attempt.auth is not None else None
        if stage_type is not None and stage_type not in attempt.completed:
            try:
                await self._check_stage(attempt, stage_type, flows)
            except LimitExceeded:
                raise
            except MatrixError as error:
                failure = error
        if failure is None and any(set(flow) <= set(attempt.completed) for flow in flows):
            await self._forget(attempt)
            return
        await self._store(attempt)
        raise self._challenge(attempt, flows, failure)

    async def complete_by_page(self, session_id: str, stage_type: str, auth: JsonObject, address: str) -> None:
        """Complete a stage from the fallback page; raises M_NOT_FOUND-like errors and what the stage raises."""
        known = await self._find_known(session_id)
        proof = await self._stage(stage_type).check(auth, _asker(known.operation, address))
        proofs = {} if proof is None else {stage_type: proof}
        async with self._database.transaction() as tx:
            await interactive_auth.put(tx, replace(known, completed=(*known.completed, stage_type), proofs=proofs))

    async def asker_of(self, session_id: str, address: str) -> Asker:
        """Who authenticates, and what for, in a session of somebody at this address; raises where it has expired."""
        return _asker((await self._find_known(session_id)).operation, address)

    async def _find_known(self, session_id: str) -> StoredAttempt:
        async with self._database.read() as tx:
            known = await interactive_auth.find(tx, _session_hash(session_id), self._database.now_ms())
        if known is None:
            raise InvalidInput("This session has expired: go back to your client and start again", "M_UNKNOWN")
        return known

    def has_stage(self, stage_type: str) -> bool:
        """Whether there is such a stage."""
        return stage_type in self._stages

    def params_of(self, stage_type: str) -> JsonObject | None:
        """What a client must know of a stage."""
        return self._stage(stage_type).params()

    def _stage(self, stage_type: object) -> Stage:
        stage = self._stages.get(stage_type) if isinstance(stage_type, str) else None
        if stage is None:
            raise InvalidInput("Unknown authentication type", "M_UNRECOGNIZED")
        return stage

    async def _check_stage(self, attempt: Attempt, stage_type: object, flows: Flows) -> None:
        stage = self._stage(stage_type)
        if not any(stage_type in flow for flow in flows):
            raise InvalidInput("This authentication type is not part of any flow", "M_UNRECOGNIZED")
        proof = await stage.check(attempt.auth or {}, _asker(attempt.operation, attempt.address))
        attempt.completed.append(str(stage_type))
        if proof is not None:
            attempt.proofs[str(stage_type)] = proof

    async def _store(self, attempt: Attempt) -> None:
        who = attempt.requester
        if attempt.is_new and (who is None or who.is_rate_limited):  # what is stored is kept for half an hour
            self._rate_limits.spend("authentication", attempt.address if who is None else who.user_id)
        raw = orjson.dumps(attempt.body)
        stored = StoredAttempt(
            session_hash=_session_hash(attempt.session_id),
            expires_ts=self._database.now_ms() + LIFETIME_MS,
            operation=attempt.operation,
            body_hash=_body_hash(attempt.body, attempt.session_id),
            body=_seal(raw, attempt.session_id) if attempt.body and len(raw) <= MAX_REMEMBERED_BODY else None,
            completed=tuple(attempt.completed),
            proofs=attempt.proofs,
        )
        async with self._database.transaction() as tx:
            await interactive_auth.put(tx, stored)

    async def _forget(self, attempt: Attempt) -> None:
        if attempt.auth is not None and attempt.auth.get("session"):
            async with self._database.transaction() as tx:
                await interactive_auth.delete(tx, _session_hash(attempt.session_id))

    def _challenge(self, attempt: Attempt, flows: Flows, failure: MatrixError | None) -> AuthenticationRequired:
        stages = {stage for flow in flows for stage in flow}
        params = {stage: self._stage(stage).params() for stage in sorted(stages)}
        fields: JsonObject = {
            "flows": [{"stages": list(flow)} for flow in flows],
            "params": {stage: value for stage, value in params.items() if value is not None},
            "session": attempt.session_id,
        }
        if attempt.completed:
            fields["completed"] = attempt.completed
        if failure is None:
            return AuthenticationRequired("", "Authentication is required", 401, fields)
        return AuthenticationRequired(failure.errcode, failure.message, 401, fields)

    async def forget_expired(self) -> None:
        """Remove the sessions that nobody finished."""
        async with self._database.transaction() as tx:
            await interactive_auth.delete_expired(tx, self._database.now_ms())


def _asker(operation: str, address: str) -> Asker:
    _, path_and_user = operation.split(" ", 1)
    path, _, user_id = path_and_user.rpartition(" ")
    return Asker(user_id=UserID(user_id) if user_id else None, address=address, path=path)


def _session_hash(session_id: str) -> bytes:
    return hashlib.sha256(b"session " + session_id.encode("utf-8", "surrogatepass")).digest()


def _box(session_id: str) -> SecretBox:
    return SecretBox(hashlib.sha256(b"body " + session_id.encode("utf-8", "surrogatepass")).digest())


def _seal(raw: bytes, session_id: str) -> bytes:
    return bytes(_box(session_id).encrypt(raw))


def _open(sealed: bytes, session_id: str) -> JsonObject:
    body: JsonObject = orjson.loads(_box(session_id).decrypt(sealed))
    return body


def _body_hash(body: JsonObject, session_id: str) -> bytes:
    key = hashlib.sha256(b"hash " + session_id.encode("utf-8", "surrogatepass")).digest()
    return hmac.digest(key, orjson.dumps(body, option=orjson.OPT_SORT_KEYS), "sha256")
