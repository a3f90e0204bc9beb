"""Application services acting as their users (Application Service API, "Identity assertion")."""

import time

from msgspec import Struct

from federation.protocol.errors import Forbidden, InvalidInput
from federation.protocol.types import DeviceID, UserID
from homeserver.services.application_services import ApplicationService, ApplicationServices
from homeserver.services.requester import Requester
from homeserver.services.sessions import check_may_act
from storage import accounts, devices
from storage.accounts import Account
from storage.database import Database
from storage.invalidations import Invalidated, Kind
from storage.log_entries import Change

_REMEMBERED_USERS = 50_000


class _Remembered(Struct, frozen=True):
    account: Account
    requester: Requester


class Impersonation:
    """Who a service is when it acts; remembered in memory, forgotten through the log as sessions are."""

    def __init__(self, database: Database, services: ApplicationServices) -> None:
        self._database = database
        self._services = services
        self._remembered: dict[UserID, dict[tuple[str, DeviceID | None], _Remembered]] = {}
        self._invalidations = 0

    async def make_senders(self) -> None:
        """Make the accounts of the users that services act as by themselves."""
        async with self._database.transaction() as tx:
            for service in self._services.all:
                account = Account(
                    user_id=service.sender, application_service=service.id, created_ts=int(time.time() * 1000)
                )
                await accounts.insert(tx, account)

    async def requester(
        self, service: ApplicationService, user_id: UserID, device_id: DeviceID | None, *, while_locked: bool
    ) -> Requester:
        """The service as this user, on this device if one is named.

        Raises M_FORBIDDEN for a user outside its namespaces or not registered, M_UNKNOWN_DEVICE, or what
        `check_may_act` raises.
        """
        if not service.may_act_as(user_id):
            raise Forbidden("The application service cannot act as this user")
        found = self._remembered.get(user_id, {}).get((service.id, device_id))
        if found is None:
            found = await self._load(service, user_id, device_id)
        check_may_act(found.account, while_locked=while_locked)
        return found.requester

    async def _load(self, service: ApplicationService, user_id: UserID, device_id: DeviceID | None) -> _Remembered:
        before = self._invalidations
        async with self._database.read() as tx:
            account = await accounts.find(tx, user_id)
            device = None if device_id is None else await devices.find(tx, user_id, device_id)
        if account is None:
            raise Forbidden("The application service has not registered this user")
        if device_id is not None and device is None:
            raise InvalidInput("This user has no such device", "M_UNKNOWN_DEVICE")
        found = _Remembered(
            account,
            Requester(
                user_id=user_id,
                device_id=device_id,
                device=None if device is None else device.device,
                is_admin=account.is_admin,
                is_suspended=account.is_suspended,
                is_rate_limited=service.is_rate_limited and user_id != service.sender,
                application_service=service.id,
            ),
        )
        if before == self._invalidations:
            if len(self._remembered) >= _REMEMBERED_USERS:
                self._remembered.pop(next(iter(self._remembered)))
            self._remembered.setdefault(user_id, {})[service.id, device_id] = found
        return found

    def on_change(self, _position: int, change: Change) -> None:
        """A view of the tail: forget what is no longer so."""
        if isinstance(change, Invalidated) and change.kind_of is Kind.SESSIONS:
            self._invalidations += 1
            self._remembered.pop(change.user_id, None)
