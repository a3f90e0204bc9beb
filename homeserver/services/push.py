"""Users' push rules where they are kept: read, changed, remembered. What they mean is in `push_rules.py`."""

from collections.abc import Awaitable, Callable, Collection

import orjson

from federation.protocol.types import JsonObject, UserID
from homeserver.services.followed_cache import FollowedCache
from homeserver.services.push_rules import Ruleset
from storage import account_data
from storage.account_data import AccountDataChanged
from storage.database import Database, Tx
from storage.log import Log
from storage.log_entries import Change, Entry

PUSH_RULES = "m.push_rules"


def build_ruleset(user_id: UserID, stored: bytes | None) -> Ruleset:
    """The rules of a user, from what is stored of them."""
    return Ruleset(user_id, orjson.loads(stored) if stored else None)


class PushRuleService:
    """The rules of all local users."""

    def __init__(self, database: Database, log: Log, on_own_rules: Callable[[UserID], Awaitable[None]]) -> None:
        """`on_own_rules` hears of a user whose rules are no longer the defaults, before the change is answered."""
        self._on_own_rules = on_own_rules
        self._database = database
        self._log = log
        self._rulesets = FollowedCache(PUSH_RULES, build_ruleset)
        self.figures = self._rulesets.figures

    def on_change(self, position: int, change: Change) -> None:
        """A view of the tail."""
        self._rulesets.on_change(position, change)

    async def ruleset(self, user_id: UserID) -> Ruleset:
        """One user's rules."""
        known = self._rulesets.known(user_id)
        if known is not None:
            return known
        async with self._database.read() as tx:
            return await self._rulesets.get(tx, user_id)

    async def rulesets(self, tx: Tx, user_ids: Collection[UserID]) -> dict[UserID, Ruleset]:
        """The rules of several users, from memory as a rule."""
        return await self._rulesets.get_many(tx, user_ids)

    async def change(self, user_id: UserID, edit: Callable[[JsonObject], JsonObject]) -> None:
        """Apply one of `push_edits` to what is stored; all the user's sessions hear. Raises what `edit` raises."""
        entry = Entry(width=1)

        async def work(tx: Tx) -> None:
            stored = await account_data.find(tx, user_id, None, PUSH_RULES)
            new = edit(orjson.loads(stored) if stored else {})
            change = AccountDataChanged(user_id, None, PUSH_RULES, orjson.dumps(new))
            await account_data.write(tx, change)
            entry.changes.append(change)

        entry.work = work
        await self._log.append(entry)
        await self._on_own_rules(user_id)
