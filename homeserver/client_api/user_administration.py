"""Accounts as administrators manage them, under the paths that existing dashboards and bots use."""

from federation.protocol.errors import InvalidInput, NotFound
from federation.protocol.types import DeviceID, JsonObject, UserID
from federation.web import Answer, Call, json_response
from homeserver import release
from homeserver.client_api import fields
from homeserver.client_api.routing import requester
from homeserver.services.accounts import AccountService, NewAccount
from homeserver.services.passwords import Passwords
from homeserver.services.profiles import ProfileService
from homeserver.services.sessions import NewLogin, SessionService
from homeserver.services.user_names import UserNames
from storage import accounts, devices, identifiers, memberships, profiles, rooms
from storage.accounts import Account
from storage.database import Database

MAX_PAGE = 1000


class UserAdministrationAPI:
    """Below `/_synapse/admin/`; every endpoint is for administrators."""

    def __init__(
        self,
        database: Database,
        account_service: AccountService,
        sessions: SessionService,
        passwords: Passwords,
        profile_service: ProfileService,
        names: UserNames,
    ) -> None:
        self._database = database
        self._accounts = account_service
        self._sessions = sessions
        self._passwords = passwords
        self._profiles = profile_service
        self._names = names

    async def get_server_version(self, _call: Call) -> Answer:
        """GET /v1/server_version."""
        return {"server_version": f"Hearth {release.number()}"}

    # --- accounts

    async def list_users(self, call: Call) -> Answer:
        """GET /v2/users: in order of user ID; `from`, `limit`, `name`, `guests`, `deactivated`, `admins`."""
        offset, limit = call.query_int("from", 0), call.query_int("limit", 100, minimum=1, maximum=MAX_PAGE)
        wanted = accounts.Wanted(
            text=call.query_text("name") or call.query_text("user_id") or "",
            guests=call.query_bool("guests", default=True),
            deactivated=call.query_bool("deactivated"),
            admins=None if call.query_text("admins") is None else call.query_bool("admins"),
        )
        async with self._database.read() as tx:
            found, total = await accounts.search(tx, wanted, offset=offset, limit=limit)
            fields = await profiles.find_many(tx, [account.user_id for account in found])
        answer: JsonObject = {
            "users": [_user_fields(account, fields.get(account.user_id, {})) for account in found],
            "total": total,
        }
        if offset + len(found) < total:
            answer["next_token"] = str(offset + len(found))
        return answer

    async def get_user(self, call: Call) -> Answer:
        """GET /v2/users/{userId}."""
        account = await self._find(call)
        if account is None:
            raise NotFound("There is no such account")
        return await self._described(account.user_id)

    async def put_user(self, call: Call) -> Answer:
        """PUT /v2/users/{userId}: make the account, or change what the body names."""
        body = await call.body(max_bytes=64 * 1024)
        before = await self._find(call)
        user_id = before.user_id if before is not None else self._new_user_id(call)
        change = _Change(body, self._passwords)
        if before is None:
            localpart = user_id[1:].partition(":")[0]
            await self._accounts.register(
                NewAccount(localpart=localpart, password=change.password, is_admin=change.is_admin is True)
            )
        else:
            await self._change_account(call, before, change)
        for name, value in (("displayname", change.display_name), ("avatar_url", change.avatar_url)):
            if value is not None:
                await self._profiles.put_field(user_id, name, {name: value})
        if change.is_locked is not None:
            await self._accounts.set_locked(user_id, is_locked=change.is_locked)
        if change.is_deactivated and not (before is not None and before.is_deactivated):
            await self._accounts.deactivate(user_id, erase=False)
        return json_response(await self._described(user_id), 200 if before is not None else 201)

    async def _change_account(self, call: Call, before: Account, change: "_Change") -> None:
        if before.user_id == requester(call).user_id and (
            change.is_admin is False or change.is_locked or change.is_deactivated
        ):
            raise InvalidInput("You cannot take your own administrator's rights away")
        if before.is_deactivated and (change.password is not None or change.is_deactivated is False):
            raise InvalidInput("A deactivated account has ended for good")
        if change.password is not None:
            await self._accounts.change_password(
                before.user_id, change.password, keep=None, end_others=change.ends_devices
            )
        if change.is_admin is not None:
            await self._accounts.set_admin(before.user_id, is_admin=change.is_admin)

    async def put_admin(self, call: Call) -> Answer:
        """PUT /v1/users/{userId}/admin."""
        body = await call.body()
        is_admin = fields.required_bool(body, "admin")
        account = await self._existing(call)
        if account.user_id == requester(call).user_id and not is_admin:
            raise InvalidInput("You cannot take your own administrator's rights away")
        await self._accounts.set_admin(account.user_id, is_admin=is_admin)
        return {}

    async def deactivate(self, call: Call) -> Answer:
        """POST /v1/deactivate/{userId}."""
        erase = fields.get_bool(await call.body(optional=True), "erase")
        account = await self._existing(call)
        await self._accounts.deactivate(account.user_id, erase=erase)
        return {"id_server_unbind_result": "no-support"}

    async def reset_password(self, call: Call) -> Answer:
        """POST /v1/reset_password/{userId}."""
        body = await call.body()
        password = self._passwords.check_new(body.get("new_password"))
        ends_devices = fields.find_bool(body, "logout_devices")
        account = await self._existing(call)
        await self._accounts.change_password(account.user_id, password, keep=None, end_others=ends_devices is not False)
        return {}

    async def log_in_as(self, call: Call) -> Answer:
        """POST /v1/users/{userId}/login: a session of the user's on a device of its own."""
        account = await self._existing(call)
        if account.is_admin:
            raise InvalidInput("Administrators log in by themselves")
        tokens = await self._sessions.start(account.user_id, NewLogin(display_name="Administrator"))
        return {"access_token": tokens.access_token}

    # --- what belongs to accounts

    async def list_devices(self, call: Call) -> Answer:
        """GET /v2/users/{userId}/devices."""
        account = await self._existing(call)
        async with self._database.read() as tx:
            found = await devices.list_of_user(tx, account.user_id)
        fields = [
            {
                "device_id": device.device_id,
                "display_name": device.display_name,
                "last_seen_ip": device.last_seen_ip,
                "last_seen_ts": device.last_seen_ts,
                "last_seen_user_agent": device.last_seen_user_agent,
                "user_id": account.user_id,
            }
            for device in found
        ]
        return {"devices": fields, "total": len(fields)}

    async def delete_device(self, call: Call) -> Answer:
        """DELETE /v2/users/{userId}/devices/{deviceId}."""
        account = await self._existing(call)
        await self._sessions.end_devices(account.user_id, [DeviceID(call.path["device_id"])])
        return {}

    async def list_joined_rooms(self, call: Call) -> Answer:
        """GET /v1/users/{userId}/joined_rooms."""
        account = await self._existing(call)
        async with self._database.read() as tx:
            numbers = await memberships.joined_rooms(tx, account.user_id)
            found = await rooms.get_many(tx, numbers)
        room_ids = sorted(room.room_id for room in found.values())
        return {"joined_rooms": room_ids, "total": len(room_ids)}

    # --- looking up

    async def _find(self, call: Call) -> Account | None:
        user_id = UserID(call.path["user_id"])
        if not self._names.is_local(user_id):
            raise InvalidInput("This is not a user of this server")
        async with self._database.read() as tx:
            return await accounts.find(tx, user_id)

    async def _existing(self, call: Call) -> Account:
        return await self._accounts.get(UserID(call.path["user_id"]))

    def _new_user_id(self, call: Call) -> UserID:
        return self._names.new(call.path["user_id"][1:].partition(":")[0])

    async def _described(self, user_id: UserID) -> JsonObject:
        async with self._database.read() as tx:
            account = await accounts.find(tx, user_id)
            fields = await profiles.find(tx, user_id)
            own = await identifiers.list_of_user(tx, user_id)
        if account is None:
            raise NotFound("There is no such account")
        return {
            **_user_fields(account, fields or {}),
            "threepids": [
                {
                    "medium": each.identifier.medium,
                    "address": each.identifier.address,
                    "validated_at": each.validated_ts,
                    "added_at": each.added_ts,
                }
                for each in own
            ],
        }


class _Change:
    """What a body asks to change, each None where it is not named."""

    def __init__(self, body: JsonObject, passwords: Passwords) -> None:
        self.password = None if body.get("password") is None else passwords.check_new(body["password"])
        self.ends_devices = fields.find_bool(body, "logout_devices") is not False
        self.is_admin = fields.find_bool(body, "admin")
        self.is_locked = fields.find_bool(body, "locked")
        self.is_deactivated = fields.find_bool(body, "deactivated")
        self.display_name = fields.find_text(body, "displayname")
        self.avatar_url = fields.find_text(body, "avatar_url")


def _user_fields(account: Account, profile: JsonObject) -> JsonObject:
    return {
        "name": account.user_id,
        "displayname": profile.get("displayname"),
        "avatar_url": profile.get("avatar_url"),
        "admin": account.is_admin,
        "is_guest": account.is_guest,
        "deactivated": account.is_deactivated,
        "erased": account.is_erased,
        "locked": account.is_locked,
        "suspended": account.is_suspended,
        "shadow_banned": False,
        "appservice_id": account.application_service,
        "user_type": None,
        "external_ids": [],
        "creation_ts": account.created_ts,
    }
