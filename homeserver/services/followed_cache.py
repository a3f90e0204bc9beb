"""Something built from one type of users' global account data, remembered while the log says that it did not change."""

from collections.abc import Callable, Collection
from typing import Generic, TypeVar

from federation.protocol.types import UserID
from storage import account_data
from storage.account_data import AccountDataChanged
from storage.database import Tx
from storage.figures import Figures, Lookups
from storage.log_entries import Change

V = TypeVar("V")

MAX_REMEMBERED = 20_000


class FollowedCache(Generic[V]):
    """Values by user. `on_change` is a view of the tail, so an answer is as new as the position that the tail is at."""

    def __init__(self, name: str, build: Callable[[UserID, bytes | None], V]) -> None:
        """`build` makes a value of the content of the data `name`, or of its absence."""
        self._name = name
        self._build = build
        self._values: dict[UserID, V] = {}
        self._changes = 0
        self._lookups = Lookups(name)

    def figures(self) -> Figures:
        """For `homeserver.metrics`."""
        return self._lookups.figures(len(self._values))

    def on_change(self, _position: int, change: Change) -> None:
        """Follow the log."""
        if isinstance(change, AccountDataChanged) and change.type == self._name and change.room is None:
            self._changes += 1
            self._values.pop(change.user_id, None)

    def known(self, user_id: UserID) -> V | None:
        """The value, if it is remembered: saves a query."""
        value = self._values.get(user_id)
        if value is not None:
            self._lookups.hits += 1
        return value

    async def get(self, tx: Tx, user_id: UserID) -> V:
        """One user's value."""
        value = self._values.get(user_id)
        self._lookups.note(is_hit=value is not None)
        if value is None:
            changes = self._changes
            value = self._build(user_id, await account_data.find(tx, user_id, None, self._name))
            if changes == self._changes:  # else what was read may be older than what the tail has told
                if len(self._values) >= MAX_REMEMBERED:
                    self._values.clear()
                self._values[user_id] = value
        return value

    async def get_many(self, tx: Tx, user_ids: Collection[UserID]) -> dict[UserID, V]:
        """Several users' values, by one query at most."""
        found: dict[UserID, V] = {}
        for user_id in user_ids:
            value = self._values.get(user_id)
            self._lookups.note(is_hit=value is not None)
            if value is not None:
                found[user_id] = value
        missing = [user_id for user_id in user_ids if user_id not in found]
        if missing:
            changes = self._changes
            stored = await account_data.find_many(tx, missing, self._name)
            built = {user_id: self._build(user_id, stored.get(user_id)) for user_id in missing}
            if changes == self._changes:
                if len(self._values) + len(built) > MAX_REMEMBERED:
                    self._values.clear()
                self._values.update(built)
            found.update(built)
        return found
