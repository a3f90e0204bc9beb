"""What is known of one server's share, and how far it is: without a network or a database."""

from typing import cast

import pytest

from federation.outbound.availability import Availability
from federation.outbound.delivery import Delivery
from federation.outbound.destinations import MAX_QUEUED, MAX_RECEIPT_EDUS, Destination, QueuedEvent, Share
from federation.outbound.queues import Queues
from federation.protocol.transactions import MAX_EDUS, MAX_PDUS
from federation.protocol.types import DeviceID, EventID, RoomID, ServerName, UserID
from storage.outbox import OutgoingDeviceChange, OutgoingReceipt
from storage.outbox_leases import SHARDS, shard_of

THERE = ServerName("there.test")
ALICE = UserID("@alice:hearth.test")


def event(position: int) -> QueuedEvent:
    return QueuedEvent(position, EventID(f"${position}"), b"{}")


def receipt(position: int, thread: str = "") -> OutgoingReceipt:
    return OutgoingReceipt(position, 1, ALICE, thread, EventID("$1"), 0)


def change(position: int) -> OutgoingDeviceChange:
    return OutgoingDeviceChange(position, ALICE, (DeviceID("A"),))


def test_a_share_is_a_whole_part_of_the_log() -> None:
    share = Share(200, [event(n) for n in range(1, 101)], [change(30), change(60)], [receipt(20), receipt(55)])

    part = share.fitting(alone=False)

    assert part.upto == part.events[-1].position == MAX_PDUS
    assert [each.position for each in part.device_changes] == [30]
    assert [each.position for each in part.receipts] == [20]


def test_receipts_of_many_threads_need_several_transactions() -> None:
    share = Share(100, receipts=[receipt(n, f"${n}") for n in range(1, 41)])

    part = share.fitting(alone=False)

    assert len(part.receipts) == MAX_RECEIPT_EDUS
    assert part.upto < 40


def test_a_transaction_of_everything_has_no_more_edus_than_it_may() -> None:
    destination = Destination(THERE, 0)
    for position in range(1, 51):
        user_id = UserID(f"@user{position}:hearth.test")
        destination.add_event(QueuedEvent(position, EventID(f"${position}"), b"{}", announces=user_id))
        destination.typing[RoomID("!a:b"), user_id] = True
        destination.presence[user_id] = {}
    for position in range(51, 61):
        destination.add_receipt(receipt(position, f"${position}"))
    for position in range(61, 161):
        destination.add_device_change(change(position))

    most = 0
    while part := destination.next_share():
        typing, presence = destination.take_short_lived()
        announced = {event.announces for event in part.events}
        edus = len(part.device_changes) + len(announced) + len(part.receipts) + len(typing) + bool(presence)
        most = max(most, edus)
        destination.confirm(part)
    assert 0 < most <= MAX_EDUS


def test_what_is_under_way_is_not_confirmed() -> None:
    destination = Destination(THERE, 4)
    confirmed = []
    for position in (5, 6):
        destination.add_event(event(position))
    confirmed.append(destination.confirmed)
    share = destination.next_share()
    destination.add_event(event(9))
    confirmed.append(destination.confirmed)
    destination.confirm(share)
    confirmed.append(destination.confirmed)
    destination.confirm(destination.next_share())
    confirmed.append(destination.confirmed)

    assert confirmed == [4, 4, 8, None]
    assert destination.is_idle


def test_a_failure_leaves_a_position_and_nothing_else() -> None:
    destination = Destination(THERE, 4)
    destination.add_event(event(5))
    destination.next_share()
    destination.add_receipt(receipt(7))
    destination.fall_behind()
    destination.add_event(event(8))

    assert (destination.is_behind, destination.cursor, destination.latest) == (True, 4, 8)


def test_too_much_in_memory_makes_a_server_behind() -> None:
    destination = Destination(THERE, 0)
    for position in range(1, MAX_QUEUED + 3):
        destination.add_event(event(position))

    assert (destination.is_behind, destination.cursor, destination.latest) == (True, 0, MAX_QUEUED + 2)


async def test_a_shard_is_not_said_to_be_ahead_of_what_was_read_back() -> None:
    queues = Queues(ServerName("hearth.test"), cast(Delivery, None), Availability())
    shard = shard_of(THERE)
    queues.hold({shard: 10})

    assert queues.progress(100).positions == {shard: 10}
    queues.floors.clear()
    assert queues.progress(100).positions == {shard: 100}


async def test_a_shard_is_given_away_when_nothing_is_under_way_and_a_slow_server_holds_it_for_seconds_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queues = Queues(ServerName("hearth.test"), cast(Delivery, None), Availability())
    shard, other = shard_of(THERE), (shard_of(THERE) + 1) % SHARDS
    queues.hold({shard: 10, other: 10})
    (destination,) = queues.of([THERE], 10)
    destination.is_running = True

    assert queues.to_release({shard, other}) == {other}
    queues.drop({other})
    assert queues.to_release({shard}) == set()
    assert queues.to_release(()) == set(), "it is to stay here after all"
    assert queues.given == {}
    queues.to_release({shard})
    monkeypatch.setattr("federation.outbound.queues.MAX_GIVING_SECONDS", -1)
    assert queues.to_release({shard}) == {shard}


async def test_a_shard_is_as_far_as_the_slowest_of_those_that_keep_up() -> None:
    queues = Queues(ServerName("hearth.test"), cast(Delivery, None), Availability())
    shard = shard_of(THERE)
    queues.hold({shard: 10})
    queues.floors.clear()
    (destination,) = queues.of([THERE], 10)
    destination.add_event(event(50))

    progress = queues.progress(100)
    assert (progress.positions, progress.behind) == ({shard: 49}, {})
    destination.fall_behind()
    progress = queues.progress(100)
    assert (progress.positions, progress.behind) == ({shard: 100}, {THERE: 49})
    assert queues.progress(100).behind == {}, "once is enough"
    queues.note_unsaved(progress)
    assert queues.progress(100).behind == {THERE: 49}


def test_a_first_failure_is_news_only_where_something_is_to_be_sent() -> None:
    now = 0.0
    availability = Availability(now=lambda: now)
    news: list[ServerName] = []
    availability.on_news = news.append

    availability.failed(THERE)
    assert news == []
    availability.note_awaited(THERE)
    assert news == [THERE]
    now = 3_600.0
    availability.failed(THERE)
    assert news == [THERE] * 2
    availability.note_awaited(THERE)
    assert news == [THERE] * 2
    availability.alive(THERE)
    assert news == [THERE] * 3
