"""Pushers, and what tells their gateways, built in one place from arguments."""

from collections.abc import Callable

from federation.outbound.addresses import AddressPolicy
from federation.outbound.egress import Egress
from federation.outbound.name_lookup import SystemNameLookup
from federation.outbound.turns import Places
from homeserver import release
from homeserver.client_api import routes
from homeserver.client_api.notifications import NotificationsAPI
from homeserver.client_api.pushers import PushersAPI
from homeserver.client_api.routing import ClientRoute, Login
from homeserver.client_api.unsubscribe_page import UnsubscribePageAPI
from homeserver.federation_parts import Ground, Outbound
from homeserver.followers.push import PushFollower, PushParts
from homeserver.followers.push_badges import Badges
from homeserver.followers.push_delivery import PushDelivery
from homeserver.followers.push_digests import DigestSettings, PushDigests
from homeserver.services.mail import Mailer
from homeserver.services.notifications import NotificationService
from homeserver.services.push_gateway import PushGateways
from homeserver.services.push_mail import UNSUBSCRIBE_PATH
from homeserver.services.pushers import PusherService
from homeserver.user_data_parts import UserDataParts
from storage.pushes import SHARDS

PLACES = Places(prompt=256, prompt_seconds=5.0, slow=256, per_host=16, unproven=2, kept=16)
"""Of its own, so that gateways take no place from other servers; few gateways are told of much."""


class PushNotificationParts:
    """What users set, and what follows the log for them."""

    def __init__(
        self,
        ground: Ground,
        outbound: Outbound,
        user_data: UserDataParts,
        mailer: Mailer,
        *,
        sees_to: Callable[[int], bool],
    ) -> None:
        """`sees_to` says of a shard whether this process runs its follower."""
        settings = ground.config.federation
        self.egress = Egress(
            AddressPolicy(settings.denied_ranges, settings.allowed_ranges),
            SystemNameLookup(),
            settings.certificate_authorities,
            user_agent=f"Hearth/{release.number()}",
            places=PLACES,
        )
        self.pushers = PusherService(ground.database, ground.log, sends_mail=mailer.is_enabled)
        badges = Badges(ground.database)
        self.delivery = PushDelivery(
            ground.database,
            PushGateways(self.egress, outbound.egress.spans),
            self.pushers,
            badges,
            sees_to=sees_to,
        )
        told = DigestSettings(server_name=ground.server_name, base_url=ground.config.base_url)
        self.digests = PushDigests(ground.database, mailer, told, sees_to=sees_to)
        parts = PushParts(
            database=ground.database,
            reader=ground.reader,
            rules=user_data.push_rules,
            account_data=user_data.account_data,
            badges=badges,
            delivery=self.delivery,
        )
        self.followers = [PushFollower(shard, parts) for shard in range(SHARDS)]
        self._shards = {follower.name: shard for shard, follower in enumerate(self.followers)}
        notifications = NotificationService(
            ground.database, ground.reader, user_data.push_rules, user_data.account_data
        )
        unsubscribe = UnsubscribePageAPI(self.pushers, server_name=ground.server_name)
        self.routes: list[ClientRoute] = [
            *routes.push_routes(PushersAPI(self.pushers), NotificationsAPI(notifications)),
            *(
                ClientRoute(method=method, path=UNSUBSCRIBE_PATH, endpoint=endpoint, login=Login.NONE, limit="requests")
                for method, endpoint in (("GET", unsubscribe.get), ("POST", unsubscribe.post))
            ),
        ]

    def is_busy(self, follower: str) -> bool:
        """Whether gateways are being told of what a follower of this name found."""
        return follower in self._shards and self.delivery.is_busy(self._shards[follower])
