"""Sliding syncs as clients make them, in both forms."""

from dataclasses import dataclass, field
from typing import Any

from tests.client import Answer, Client

DEPLOYED = "/unstable/org.matrix.simplified_msc3575/sync"
ACCEPTED = "/v4/sync"

EVERYTHING: Any = [["*", "*"]]


def a_list(limit: int = 10, required_state: Any = (), **fields: Any) -> Any:
    """A list as deployed, of all rooms unless it has ranges."""
    return {"timeline_limit": limit, "required_state": list(required_state), "ranges": [[0, 1000]], **fields}


def a_new_list(limit: int = 10, required_state: Any = None, **fields: Any) -> Any:
    """A list as accepted, of all rooms unless it has a range."""
    return {"timeline_limit": limit, "required_state": required_state or {}, **fields}


@dataclass(slots=True)
class Sliding:
    """A connection of one client: goes on from the last answer."""

    client: Client
    body: Any = field(default_factory=lambda: {"lists": {"all": a_list()}})
    pos: str | None = None
    timeout: int = 0
    is_accepted: bool = False

    async def ask(self, **fields: Any) -> Answer:
        """One request; the place stays where it is. What is given here counts from now on."""
        self.body = {**self.body, **fields}
        if self.is_accepted:
            place = {"timeout": self.timeout, "set_presence": "offline"}
            if self.pos is not None:
                place["pos"] = self.pos
            return await self.client.request("POST", ACCEPTED, {**self.body, **place})
        params = {"timeout": str(self.timeout), "set_presence": "offline"}
        if self.pos is not None:
            params["pos"] = self.pos
        return await self.client.request("POST", DEPLOYED, self.body, params=params)

    async def next(self, **fields: Any) -> Any:
        """The next answer."""
        answer = await self.ask(**fields)
        assert answer.status == 200, answer.body
        self.pos = answer.body["pos"]
        return answer.body


def new_sliding(client: Client, **body: Any) -> Sliding:
    """A connection in the accepted form."""
    return Sliding(client, {"lists": {"all": a_new_list()}, **body}, is_accepted=True)


def room(answer: Any, room_id: str) -> Any:
    """A room of an answer; an empty object when it is not there."""
    return answer["rooms"].get(room_id, {})


def timeline(answer: Any, room_id: str) -> list[str]:
    """The IDs of a room's timeline."""
    return [event["event_id"] for event in room(answer, room_id).get("timeline", [])]


def state(answer: Any, room_id: str) -> dict[tuple[str, str], Any]:
    """A room's required state."""
    return {(event["type"], event["state_key"]): event for event in room(answer, room_id).get("required_state", [])}


def extension(answer: Any, name: str) -> Any:
    """An extension of an answer; an empty object when it is not there."""
    return answer["extensions"].get(name, {})
