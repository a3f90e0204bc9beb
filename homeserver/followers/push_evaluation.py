"""Whom an event notifies, of those members of its room who have pushers ("Push Rules"). Pure but for giving way.

Those who keep the default rules, and whom the event does not name, share one evaluation.
"""

import asyncio
import secrets
from collections.abc import Collection, Mapping
from typing import Any

import orjson
from msgspec import Struct

from federation.protocol.types import JsonObject, UserID
from federation.rooms.notices import RoomFacts
from homeserver.services.event_counts import LEAST_EFFORT, TOTAL_EFFORT
from homeserver.services.push_conditions import MAX_EFFORT, Situation
from homeserver.services.push_counting import invited_user, mentioned_users
from homeserver.services.push_rules import Outcome, Ruleset

_NOBODY = Ruleset(UserID(f"@{secrets.token_hex(16)}:"))
"""The default rules of somebody whom no event names."""
MAX_TWEAKS = 4096
"""Characters of JSON; a rule that sets more of them sets none."""
_GIVES_WAY_AFTER = 5
"""Evaluations of users' own rules."""


class Recipients(Struct, frozen=True):
    """Those who may be told of an event, with what decides whether they are."""

    user_ids: Collection[UserID]
    rulesets: Mapping[UserID, Ruleset]
    ignored: Mapping[UserID, frozenset[UserID]]


async def notified(event: JsonObject, facts: RoomFacts, recipients: Recipients) -> dict[UserID, Outcome]:
    """Those of the recipients whom the event, with its `room_id`, notifies, and how."""
    sender = UserID(event["sender"])
    own = [user_id for user_id in recipients.user_ids if not recipients.rulesets[user_id].is_default]
    effort = min(MAX_EFFORT, max(LEAST_EFFORT, TOTAL_EFFORT // max(1, len(own))))
    situation = Situation(event, facts.member_count, lambda key: facts.may_notify(sender, key), max_effort=effort)
    named: Collection[UserID | None] = mentioned_users(event) | {invited_user(event)}
    everybody = _NOBODY.evaluate(situation)
    found: dict[UserID, Outcome] = {}
    evaluated = 0
    for user_id in recipients.user_ids:
        if user_id == sender or sender in recipients.ignored.get(user_id, ()):
            continue
        ruleset, outcome = recipients.rulesets[user_id], everybody
        if user_id in named or not ruleset.is_default:
            outcome = ruleset.evaluate(situation)
            evaluated += 1
            if evaluated % _GIVES_WAY_AFTER == 0:
                await asyncio.sleep(0)
        if outcome.notify:
            found[user_id] = outcome
    return found


def tweaks_of(outcome: Outcome) -> str:
    """What the gateway is told of how to present the notification, as JSON."""
    found: dict[str, Any] = {}
    for action in outcome.actions:
        if isinstance(action, dict):
            name = action["set_tweak"]
            if "value" in action or name == "highlight":
                found[name] = action.get("value", True)
    text = orjson.dumps(found).decode()
    return text if len(text) <= MAX_TWEAKS else "{}"
