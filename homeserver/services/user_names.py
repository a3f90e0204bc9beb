"""Which user IDs this server gives out, and to whom."""

from federation.protocol.errors import InvalidInput
from federation.protocol.identifiers import check_localpart, is_user_id, server_name_of
from federation.protocol.types import ServerName, UserID
from homeserver.services.application_services import ApplicationService, ApplicationServices


class UserNames:
    """The user IDs of this server: the grammar of localparts, and what is reserved by application services."""

    def __init__(self, server_name: ServerName, services: ApplicationServices) -> None:
        self.server_name = server_name
        self._services = services

    def new(self, localpart: object) -> UserID:
        """The user ID of a new account; raises M_INVALID_USERNAME."""
        return check_localpart(localpart, self.server_name)

    def for_people(self, localpart: object) -> UserID:
        """The user ID that a person may have; raises M_INVALID_USERNAME or M_EXCLUSIVE."""
        user_id = self.new(localpart)
        self._services.check_user_not_exclusive(user_id)
        return user_id

    def for_service(self, service: ApplicationService, localpart: object) -> UserID:
        """The user ID that a service may make; raises M_INVALID_USERNAME or M_EXCLUSIVE."""
        user_id = self.new(localpart)
        self._services.check_user_not_exclusive(user_id, service.id)
        self.check_namespace(service, user_id)
        return user_id

    def check_namespace(self, service: ApplicationService, user_id: UserID | None) -> UserID:
        """The user, if the service may act as them; raises M_EXCLUSIVE."""
        if user_id is None or not service.may_act_as(user_id):
            raise InvalidInput("This user is outside the application service's namespaces", "M_EXCLUSIVE")
        return user_id

    def is_local(self, user_id: object) -> bool:
        """Whether this is the ID of a user of this server."""
        return is_user_id(user_id) and server_name_of(user_id) == self.server_name

    def find(self, text: str) -> UserID | None:
        """The local user that somebody means by a whole user ID or its localpart; None for another server's."""
        user_id = UserID(text if text.startswith("@") else f"@{text}:{self.server_name}")
        return user_id if self.is_local(user_id) else None
