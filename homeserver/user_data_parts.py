"""What users keep and what they tell of themselves, built in one place from arguments, with how clients ask for it."""

from homeserver.client_api import routes
from homeserver.client_api.account_data import AccountDataAPI
from homeserver.client_api.ephemeral import EphemeralAPI
from homeserver.client_api.filtering import FilteringAPI
from homeserver.client_api.push import PushRulesAPI
from homeserver.client_api.routing import ClientRoute
from homeserver.client_api.send_to_device import SendToDeviceAPI
from homeserver.client_api.thread_subscriptions import ThreadSubscriptionsAPI
from homeserver.federation_parts import Ground
from homeserver.services.account_data import AccountDataService
from homeserver.services.event_counts import EventCounter
from homeserver.services.filters import FilterService
from homeserver.services.inbox_limits import InboxLimits
from homeserver.services.presence import PresenceService
from homeserver.services.push import PushRuleService
from homeserver.services.receipts import ReceiptService
from homeserver.services.send_to_device import SendToDeviceService
from homeserver.services.thread_subscriptions import ThreadSubscriptionService
from homeserver.services.typing import TypingService
from storage import send_to_device
from storage.account_data import AccountDataChanged
from storage.bus import Bus
from storage.ephemeral import PresenceBoard, Typing
from storage.exchange import Exchange
from storage.send_to_device import ToDeviceMessages


class UserDataParts:
    """Account data, filters, push rules, receipts, followed threads, to-device messages, typing and presence."""

    def __init__(self, ground: Ground, event_counter: EventCounter, bus: Bus) -> None:
        database, log, tail = ground.database, ground.log, ground.tail
        self._tail = tail
        self.account_data = AccountDataService(database, log, event_counter.follow)
        tail.add_view(self.account_data.on_change, AccountDataChanged)
        self.push_rules = PushRuleService(database, log, event_counter.follow)
        tail.add_view(self.push_rules.on_change, AccountDataChanged)
        self.filters = FilterService(database)
        self.receipts = ReceiptService(database, log)
        self.thread_subscriptions = ThreadSubscriptionService(database, log, ground.reader)
        self.inbox_limits = InboxLimits(database, message_lifetime_ms=ground.config.federation.message_lifetime)
        self.to_device = SendToDeviceService(log, ground.server_name, self.inbox_limits)
        tail.add_view(send_to_device.drop_large_contents, ToDeviceMessages)
        self.typists = Typing(self._wake_room)
        self.board = PresenceBoard()
        self.exchange = Exchange(database, bus, self.typists, self.board)
        self.typing = TypingService(database, self.exchange)
        self.presence = PresenceService(database, tail, self.board, self.exchange, enabled=ground.config.presence)
        self.routes: list[ClientRoute] = [
            *routes.filter_routes(FilteringAPI(self.filters)),
            *routes.account_data_routes(AccountDataAPI(self.account_data)),
            *routes.push_rule_routes(PushRulesAPI(self.push_rules)),
            *routes.send_to_device_routes(SendToDeviceAPI(self.to_device)),
            *ThreadSubscriptionsAPI(database, tail, self.thread_subscriptions).routes(),
            *routes.ephemeral_routes(EphemeralAPI(self.typing, self.receipts, self.presence)),
        ]

    def _wake_room(self, room: int) -> None:
        for listener in self._tail.listeners_in(room):
            listener.wake()
