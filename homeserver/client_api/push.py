"""Push rules (Client-Server API, "Push Rules: API")."""

import orjson

from federation.protocol.types import JsonObject
from federation.web import Answer, Call
from homeserver.client_api.routing import requester
from homeserver.services import push_edits
from homeserver.services.push import PushRuleService

MAX_BODY_BYTES = push_edits.MAX_STORED_BYTES


class PushRulesAPI:
    """The caller's own rules."""

    def __init__(self, rules: PushRuleService) -> None:
        self._rules = rules

    async def get_all(self, call: Call) -> Answer:
        """GET /pushrules/."""
        return (await self._rules.ruleset(requester(call).user_id)).as_json()

    async def get_global(self, call: Call) -> Answer:
        """GET /pushrules/global/."""
        rules: JsonObject = (await self._rules.ruleset(requester(call).user_id)).as_json()["global"]
        return rules

    async def get_kind(self, call: Call) -> Answer:
        """GET /pushrules/global/{kind}/: an array, as older clients ask for it."""
        rules = (await self._rules.ruleset(requester(call).user_id)).rules(push_edits.check_kind(call.path["kind"]))
        return orjson.dumps(rules)

    async def get_rule(self, call: Call) -> Answer:
        """GET /pushrules/global/{kind}/{ruleId}."""
        return await self._find(call)

    async def put_rule(self, call: Call) -> Answer:
        """PUT /pushrules/global/{kind}/{ruleId}."""
        body = await call.body(max_bytes=MAX_BODY_BYTES)
        new = push_edits.parse_rule(call.path["kind"], call.path["rule_id"], body)
        before, after = call.query_text("before"), call.query_text("after")
        await self._rules.change(
            requester(call).user_id, lambda stored: push_edits.put_rule(stored, new, before=before, after=after)
        )
        return {}

    async def delete_rule(self, call: Call) -> Answer:
        """DELETE /pushrules/global/{kind}/{ruleId}."""
        kind, rule_id = call.path["kind"], call.path["rule_id"]
        await self._rules.change(requester(call).user_id, lambda stored: push_edits.delete_rule(stored, kind, rule_id))
        return {}

    async def get_enabled(self, call: Call) -> Answer:
        """GET /pushrules/global/{kind}/{ruleId}/enabled."""
        return {"enabled": (await self._find(call))["enabled"]}

    async def put_enabled(self, call: Call) -> Answer:
        """PUT /pushrules/global/{kind}/{ruleId}/enabled."""
        enabled = push_edits.parse_enabled(await call.body(max_bytes=MAX_BODY_BYTES))
        return await self._change(call, {"enabled": enabled})

    async def get_actions(self, call: Call) -> Answer:
        """GET /pushrules/global/{kind}/{ruleId}/actions."""
        return {"actions": (await self._find(call))["actions"]}

    async def put_actions(self, call: Call) -> Answer:
        """PUT /pushrules/global/{kind}/{ruleId}/actions."""
        actions = push_edits.parse_actions(await call.body(max_bytes=MAX_BODY_BYTES))
        return await self._change(call, {"actions": actions})

    async def _find(self, call: Call) -> JsonObject:
        ruleset = await self._rules.ruleset(requester(call).user_id)
        return push_edits.find_rule(ruleset, call.path["kind"], call.path["rule_id"])

    async def _change(self, call: Call, change: JsonObject) -> Answer:
        kind, rule_id = call.path["kind"], call.path["rule_id"]
        await self._rules.change(
            requester(call).user_id, lambda stored: push_edits.change_rule(stored, kind, rule_id, change)
        )
        return {}
