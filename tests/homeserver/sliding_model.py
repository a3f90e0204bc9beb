"""A client of sliding sync that keeps what it is sent, and nothing else."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

FIELDS = (
    *("name", "avatar", "heroes", "is_dm", "joined_count", "invited_count", "bump_stamp"),
    *("notification_count", "highlight_count", "membership"),
)


@dataclass(slots=True)
class ModelRoom:
    """A room, as the answers together tell it."""

    fields: dict[str, Any] = field(default_factory=dict)
    timeline: list[str] = field(default_factory=list)
    """Without a gap."""
    state: dict[tuple[str, str], str] = field(default_factory=dict)
    membership: str = ""
    """The user's own."""


@dataclass(slots=True)
class Model:
    """All that the answers of one connection told."""

    user_id: str
    rooms: dict[str, ModelRoom] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    account_data: dict[tuple[str, str], Any] = field(default_factory=dict)
    receipts: dict[tuple[str, str, str, str], str] = field(default_factory=dict)
    """By room, type, user and thread: the event."""
    typing: dict[str, list[str]] = field(default_factory=dict)
    to_device: list[Any] = field(default_factory=list)
    changed_devices: set[str] = field(default_factory=set)
    left_devices: set[str] = field(default_factory=set)
    key_counts: Any = None
    to_device_since: str | None = None

    def apply(self, answer: Any) -> None:
        """Take an answer."""
        self.counts = {name: each["count"] for name, each in answer["lists"].items()}
        for room_id, told in answer["rooms"].items():
            self._apply_room(room_id, told)
        for name, told in answer["extensions"].items():
            getattr(self, f"_apply_{name}")(told)

    def _apply_room(self, room_id: str, told: Any) -> None:
        if told.get("initial"):
            self.rooms[room_id] = ModelRoom()
            self.receipts = {key: event for key, event in self.receipts.items() if key[0] != room_id}
            self.typing.pop(room_id, None)
        room = self.rooms[room_id]  # what is not initial is of a room that is known
        for name in FIELDS:
            if name in told:
                room.fields[name] = told[name]
                if told[name] is None or (name == "is_dm" and not told[name]):
                    del room.fields[name]
        for stripped in told.get("invite_state", told.get("stripped_state", ())):
            self._note_own(room, stripped)
        events = told.get("timeline", [])
        ids = [event["event_id"] for event in events]
        is_expanded = told.get("unstable_expanded_timeline") or told.get("expanded_timeline")
        if is_expanded:
            assert ids[-len(room.timeline) :] == room.timeline[-len(ids) :] or told["num_live"] or told["limited"]
        if told.get("initial") or told.get("limited") or is_expanded:
            room.timeline = ids
        else:
            assert told.get("num_live", 0) <= len(ids), told
            room.timeline += ids
        assert len(set(room.timeline)) == len(room.timeline), "no event comes twice"
        for event in events:
            self._note_own(room, event)
        for event in told.get("required_state", ()):
            key = event["type"], event["state_key"]
            if "content" not in event:
                room.state.pop(key, None)
                continue
            room.state[key] = event["event_id"]
            self._note_own(room, event)
        if "membership" in told:
            assert told["membership"] == room.membership or not room.membership
            room.membership = told["membership"]

    def _note_own(self, room: ModelRoom, event: Any) -> None:
        if event["type"] == "m.room.member" and event.get("state_key") == self.user_id:
            room.membership = event["content"]["membership"]

    def _apply_account_data(self, told: Any) -> None:
        for room_id, events in [("", told["global"]), *told["rooms"].items()]:
            for event in events:
                self.account_data[room_id, event["type"]] = event["content"]

    def _apply_receipts(self, told: Any) -> None:
        for room_id, event in told["rooms"].items():
            for event_id, by_type in event["content"].items():
                for receipt_type, by_user in by_type.items():
                    for user_id, data in by_user.items():
                        self.receipts[room_id, receipt_type, user_id, data.get("thread_id", "")] = event_id

    def _apply_typing(self, told: Any) -> None:
        for room_id, event in told["rooms"].items():
            self.typing[room_id] = event["content"]["user_ids"]

    def _apply_to_device(self, told: Any) -> None:
        self.to_device_since = told["next_batch"]
        self.to_device.extend(event["content"] for event in told["events"])

    def _apply_e2ee(self, told: Any) -> None:
        lists = told.get("device_lists", {})
        self.changed_devices |= set(lists.get("changed", ()))
        self.left_devices -= set(lists.get("changed", ()))
        self.left_devices |= set(lists.get("left", ()))
        self.key_counts = told["device_one_time_keys_count"]


def assert_equal(held: Model, fresh: Model, extensions: Collection[str]) -> None:
    """Whoever followed the answers holds all that somebody gets who asks for the first time."""
    for room_id, room in fresh.rooms.items():
        known = held.rooms[room_id]
        if "name" in room.fields:
            known.fields.pop("heroes", None)  # they matter to who has no name
        assert room.membership in (known.membership, ""), (room_id, known, room)
        if known.membership in ("leave", "ban"):  # that is told once, with as much as was wanted then
            continue
        assert known.fields == room.fields, (room_id, known.fields, room.fields)
        missing = {key: event for key, event in room.state.items() if known.state.get(key) != event}
        assert not missing, (room_id, known, room)
        if room.timeline:
            assert known.timeline[-len(room.timeline) :] == room.timeline, (room_id, known, room)
        if "typing" in extensions:
            assert held.typing.get(room_id, []) == fresh.typing.get(room_id, []), room_id
    for data_type, content in fresh.account_data.items():
        assert held.account_data.get(data_type) == content, data_type
    for receipt, event in fresh.receipts.items():
        if not receipt[3]:  # where somebody has several at one event, only that of no thread is told
            assert held.receipts.get(receipt) == event, receipt
    for (room_id, name), content in held.account_data.items():
        if "account_data" in extensions and (not room_id or room_id in fresh.rooms):
            assert fresh.account_data.get((room_id, name), {}) == content, (room_id, name)
    assert held.key_counts == fresh.key_counts
    assert held.counts == fresh.counts
