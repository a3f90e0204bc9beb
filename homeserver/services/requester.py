"""Who asks: what an access token stands for, once `services/accounts.py` has said that the account may act."""

from msgspec import Struct

from federation.protocol.errors import Forbidden
from federation.protocol.types import DeviceID, UserID


class Requester(Struct, frozen=True, kw_only=True):
    """The account, and the device, behind a request."""

    user_id: UserID
    device_id: DeviceID | None
    """None only for an application service that acts without a device."""
    device: int | None
    """The device's number in the database; transaction IDs are scoped to it."""
    is_guest: bool = False
    is_admin: bool = False
    is_suspended: bool = False
    is_rate_limited: bool = True
    application_service: str | None = None
    """The ID of the application service that acts, if one does."""

    def check_not_suspended(self) -> None:
        """Raise M_USER_SUSPENDED for what a suspended account may not do ("Account suspension")."""
        if self.is_suspended:
            raise Forbidden("This account is suspended: it can read and leave, and nothing else", "M_USER_SUSPENDED")
