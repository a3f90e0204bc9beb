"""Sliding sync, built in one place from arguments, with its endpoints."""

from federation.rooms.timelines import Timelines
from homeserver.client_api.routing import ClientRoute
from homeserver.client_api.sliding_sync import SlidingSyncAPI
from homeserver.federation_parts import Ground
from homeserver.services.list_facts import ListFacts
from homeserver.services.outside_summaries import OutsideSummaries
from homeserver.services.room_recency import RoomSummaries
from homeserver.services.sliding_connections import SlidingConnections
from homeserver.services.sliding_extensions import ExtensionSources, SlidingExtensions
from homeserver.services.sliding_lists import RoomLists
from homeserver.services.sliding_rooms import SlidingRooms
from homeserver.services.sliding_sync import SlidingSources, SlidingSyncService
from homeserver.services.user_views import UserViews
from homeserver.user_data_parts import UserDataParts
from storage.account_data import AccountDataChanged
from storage.append_events import RoomEvents
from storage.end_to_end_keys import KeyCountCache
from storage.invalidations import Invalidated
from storage.room_completeness import RoomCompleteness


class SlidingParts:
    """What sliding syncs are answered from; made after the views of users, which are told of an entry first."""

    def __init__(
        self,
        ground: Ground,
        *,
        views: UserViews,
        timelines: Timelines,
        user_data: UserDataParts,
        key_counts: KeyCountCache,
    ) -> None:
        database, tail, incomplete = ground.database, ground.tail, ground.incomplete
        tail.add_view(timelines.state_events.apply, RoomEvents, plain=False)
        tail.add_view(timelines.current_rooms.apply, RoomEvents, RoomCompleteness)
        summaries = RoomSummaries(database, timelines)
        tail.add_view(summaries.apply, RoomEvents)
        facts = ListFacts(database)
        tail.add_view(facts.apply, RoomEvents, AccountDataChanged, Invalidated, plain=False)
        self.connections = SlidingConnections(database)
        sources = SlidingSources(
            connections=self.connections,
            lists=RoomLists(database, views, summaries, facts, OutsideSummaries(database, timelines)),
            rooms=SlidingRooms(database=database, tail=tail, views=views, timelines=timelines, incomplete=incomplete),
            extensions=SlidingExtensions(
                database,
                tail,
                incomplete,
                ExtensionSources(
                    account_data=user_data.account_data,
                    key_counts=key_counts,
                    typing=user_data.typists,
                    threads=user_data.thread_subscriptions,
                ),
            ),
            account_data=user_data.account_data,
            typing=user_data.typists,
        )
        self.syncs = SlidingSyncService(database, tail, views, sources)
        self.routes: list[ClientRoute] = SlidingSyncAPI(self.syncs, user_data.presence).routes()
