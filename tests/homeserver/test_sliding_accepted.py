"""Where sliding sync as accepted differs from what was deployed (MSC4186, "Changelog")."""

from typing import Any

import pytest

from federation.protocol.room_versions import get_rules
from federation.protocol.types import RoomID, StateKey
from federation.rooms.required_state import StatePattern
from federation.rooms.room_news import RoomNews
from homeserver.services.sliding_connections import SentRoom
from homeserver.services.sliding_lists import Rule
from homeserver.services.sliding_request import Form
from homeserver.services.sliding_sorting import Joined
from homeserver.services.sliding_words import Telling, tell
from homeserver.tokens import StreamToken
from storage.rooms import Room
from tests.client import Client
from tests.homeserver.rooms import a_room, act, leave
from tests.homeserver.sliding import ACCEPTED, DEPLOYED, a_new_list, extension, new_sliding, room, state, timeline
from tests.rooms import put_state, send


def a_state(*include: Any, **fields: Any) -> Any:
    """A required state."""
    return {"include": list(include), **fields}


async def wanted(client: Client, required_state: Any) -> set[StateKey]:
    """The state that comes."""
    answer = await new_sliding(client, lists={"all": a_new_list(1, required_state)}, conn_id="x").next()
    (room_id,) = answer["rooms"]
    return set(state(answer, room_id))


async def test_rooms_say_how_the_user_stands_to_them_and_which_lists_they_are_in(alice: Client, bob: Client) -> None:
    room_id, other = await a_room(alice, bob), await a_room(alice)
    lists = {"all": a_new_list(1), "first": a_new_list(1, range=[0, 0])}
    subscriptions = {room_id: {"timeline_limit": 1, "required_state": {}}}
    await send(alice, room_id, "the newest")
    sync = new_sliding(alice, lists=lists, room_subscriptions=subscriptions)

    answer = await sync.next()
    assert room(answer, room_id)["membership"] == "join"
    assert room(answer, room_id)["lists"] == ["all", "first"]
    assert room(answer, other)["lists"] == ["all"]
    assert not {"notification_count", "highlight_count"} & room(answer, room_id).keys()

    only = await new_sliding(alice, lists={}, room_subscriptions=subscriptions, conn_id="x").next()
    assert "lists" not in room(only, room_id)

    theirs = new_sliding(bob, lists={"all": a_new_list(1)})
    await theirs.next()
    await leave(bob, room_id)
    assert room(await theirs.next(), room_id)["membership"] == "leave"


async def test_an_invite_and_a_declined_invite_have_stripped_state(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, name="Hall")
    await act(alice, "invite", room_id, bob)
    sync = new_sliding(bob)

    told = room(await sync.next(), room_id)
    assert told["membership"] == "invite"
    assert {"m.room.member", "m.room.name"} <= {event["type"] for event in told["stripped_state"]}
    assert "invite_state" not in told

    await leave(bob, room_id)
    told = room(await sync.next(), room_id)
    assert told["membership"] == "leave"
    assert [event["content"]["membership"] for event in told["stripped_state"]][-1] == "leave"


async def test_one_range_or_none(alice: Client) -> None:
    rooms = [await a_room(alice) for _ in range(3)]

    async def listed(**fields: Any) -> set[str]:
        return set((await new_sliding(alice, lists={"all": a_new_list(1, **fields)}, conn_id="x").next())["rooms"])

    assert await listed() == set(rooms)
    assert await listed(range=[0, 1]) == set(rooms[1:])
    assert await listed(range=[2, 2]) == {rooms[0]}
    assert await listed(filters={"is_invited": True}) == set()
    assert await listed(filters={"is_invited": False}) == set(rooms)


async def test_required_state_includes_and_excludes(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    for key in ("a", "b"):
        await put_state(alice, room_id, "org.example", {}, key)
    everything = await wanted(alice, a_state({}))
    of_bob, of_alice = ("m.room.member", bob.user_id), ("m.room.member", alice.user_id)

    assert {of_bob, of_alice, ("m.room.create", ""), ("org.example", "a")} <= everything
    assert await wanted(alice, a_state({}, exclude=[{"type": "org.example"}])) == {
        key for key in everything if key[0] != "org.example"
    }
    assert await wanted(alice, a_state({"type": "org.example"}, exclude=[{"state_key": "a"}])) == {("org.example", "b")}
    assert await wanted(alice, a_state({"state_key": "b"})) == {("org.example", "b")}
    assert await wanted(alice, {}) == set()
    assert await wanted(alice, a_state({}, lazy_members=True)) == everything - {of_bob}
    assert await wanted(alice, a_state({"type": "m.room.member", "state_key": bob.user_id}, lazy_members=True)) == {
        of_alice,
        of_bob,
    }
    assert await wanted(alice, a_state(lazy_members=True, exclude=[{"type": "m.room.member"}])) == {of_alice}


async def test_an_expanded_timeline(alice: Client) -> None:
    room_id = await a_room(alice)
    sent = [await send(alice, room_id, str(number)) for number in range(3)]
    sync = new_sliding(alice, lists={"all": a_new_list(1)})
    await sync.next()

    answer = await sync.next(lists={"all": a_new_list(3)})

    assert timeline(answer, room_id) == sent
    assert room(answer, room_id)["expanded_timeline"] is True


def test_state_that_is_no_longer_there_is_a_stub() -> None:
    """As a merge of two branches may leave it."""
    pattern = StatePattern(frozenset({("org.example", None)}))
    rule = Rule((pattern,), limit=1, flags=0, lists=())
    room = Room(1, RoomID("!a:b"), get_rules("11"))
    news = RoomNews(room=room, before=5, removed=[("org.example", "a"), ("org.other", "a")])

    def told(form: Form) -> Any:
        telling = Telling(Joined(rule, SentRoom(None, rule.patterns, 1), 1, is_fresh=False), 0, news=news)
        telling.choose_state()
        return tell(form, telling, StreamToken(1))

    assert told(Form.ACCEPTED) == {"required_state": [{"type": "org.example", "state_key": "a"}]}
    assert told(Form.DEPLOYED) == {}


async def test_all_parameters_are_in_the_body(alice: Client) -> None:
    room_id = await a_room(alice)
    body = {"lists": {"all": a_new_list(1)}, "conn_id": "main", "timeout": 10, "set_presence": "offline"}
    first = await alice.ok("POST", ACCEPTED, body, params={"pos": "nonsense", "timeout": "x"})
    assert room_id in first["rooms"]
    assert (await alice.ok("POST", ACCEPTED, {**body, "pos": first["pos"]}))["rooms"] == {}


async def test_extensions_are_the_same(alice: Client) -> None:
    answer = await new_sliding(alice, extensions={"account_data": {"enabled": True}}).next()
    assert extension(answer, "account_data")["global"]


async def test_both_forms_are_advertised(alice: Client) -> None:
    features = (await alice.ok("GET", "/versions"))["unstable_features"]
    assert features["org.matrix.simplified_msc3575"] is True
    assert (await alice.ok("POST", DEPLOYED, {}))["rooms"] == {}


LIST: Any = a_new_list(1)
OLD_LIST: Any = {"timeline_limit": 1, "required_state": []}


@pytest.mark.parametrize(
    ("path", "body", "errcode"),
    [
        (ACCEPTED, {"lists": {"a": {**LIST, "timeline_limit": None}}}, "M_MISSING_PARAM"),
        (ACCEPTED, {"lists": {"a": {"timeline_limit": 1}}}, "M_MISSING_PARAM"),
        (ACCEPTED, {"lists": {"a": {**LIST, "timeline_limit": -1}}}, "M_INVALID_PARAM"),
        (ACCEPTED, {"lists": {"a": {**LIST, "timeline_limit": 1.5}}}, "M_BAD_JSON"),
        (ACCEPTED, {"lists": {"a": {**LIST, "range": [0]}}}, "M_INVALID_PARAM"),
        (ACCEPTED, {"lists": {"a": {**LIST, "range": [3, 1]}}}, "M_INVALID_PARAM"),
        (ACCEPTED, {"lists": {"a": {**LIST, "range": [-1, 1]}}}, "M_INVALID_PARAM"),
        (ACCEPTED, {"lists": {"a": {**LIST, "range": [True, 1]}}}, "M_INVALID_PARAM"),
        (ACCEPTED, {"lists": {"": LIST}}, "M_INVALID_PARAM"),
        (ACCEPTED, {"lists": {"a": 1}}, "M_BAD_JSON"),
        (ACCEPTED, {"lists": []}, "M_BAD_JSON"),
        (ACCEPTED, {"lists": {"a": {**LIST, "filters": {"is_dm": 1}}}}, "M_BAD_JSON"),
        (ACCEPTED, {"lists": {"a": {**LIST, "filters": {"tags": "x"}}}}, "M_BAD_JSON"),
        (ACCEPTED, {"lists": {"a": {**LIST, "filters": {"room_types": [1]}}}}, "M_BAD_JSON"),
        (ACCEPTED, {"lists": {"a": {**LIST, "required_state": {"include": [["a", "b"]]}}}}, "M_BAD_JSON"),
        (ACCEPTED, {"lists": {"a": {**LIST, "required_state": {"include": [{"type": 1}]}}}}, "M_BAD_JSON"),
        (ACCEPTED, {"lists": {"a": {**LIST, "required_state": {"include": [{}] * 501}}}}, "M_INVALID_PARAM"),
        (ACCEPTED, {"timeout": -1}, "M_INVALID_PARAM"),
        (ACCEPTED, {"set_presence": "busy?"}, "M_INVALID_PARAM"),
        (ACCEPTED, {"conn_id": "x" * 256}, "M_INVALID_PARAM"),
        (ACCEPTED, {"conn_id": 1}, "M_BAD_JSON"),
        (ACCEPTED, {"extensions": {"typing": {"enabled": "yes"}}}, "M_BAD_JSON"),
        (ACCEPTED, {"extensions": {"typing": {"enabled": True, "lists": [1]}}}, "M_BAD_JSON"),
        (ACCEPTED, b"[]", "M_BAD_JSON"),
        (DEPLOYED, b"{", "M_NOT_JSON"),
        (DEPLOYED, b"[]", "M_BAD_JSON"),
        (DEPLOYED, {"lists": {"a": {**OLD_LIST, "ranges": [[0, 1, 2]]}}}, "M_INVALID_PARAM"),
        (DEPLOYED, {"lists": {"a": {**OLD_LIST, "ranges": [[0, 1]] * 101}}}, "M_INVALID_PARAM"),
        (DEPLOYED, {"lists": {"a": {**OLD_LIST, "ranges": {}}}}, "M_INVALID_PARAM"),
        (DEPLOYED, {"lists": {"a": {**OLD_LIST, "required_state": {}}}}, "M_BAD_JSON"),
        (DEPLOYED, {"lists": {"a": {**OLD_LIST, "required_state": [["a"]]}}}, "M_BAD_JSON"),
        (DEPLOYED, {"lists": {"a": {**OLD_LIST, "required_state": [["a", 1]]}}}, "M_BAD_JSON"),
        (DEPLOYED, {"lists": {"a": {**OLD_LIST, "required_state": [["a", ""]] * 501}}}, "M_INVALID_PARAM"),
        (DEPLOYED, {"room_subscriptions": {"!a:b": {"timeline_limit": "1"}}}, "M_BAD_JSON"),
        (DEPLOYED, b'{"a":"' + b"x" * 1_100_000 + b'"}', "M_TOO_LARGE"),
    ],
)
async def test_what_is_malformed_is_refused(alice: Client, path: str, body: Any, errcode: str) -> None:
    answer = await alice.request("POST", path, body)
    assert (answer.status in (400, 413), answer.body["errcode"]) == (True, errcode)


@pytest.mark.parametrize("path", [ACCEPTED, DEPLOYED])
async def test_what_is_absurd_is_answered(alice: Client, path: str) -> None:
    room_id = await a_room(alice)
    strange = ["m.room.member", "", "$ME", "x" * 5000]
    pairs = [[one, other] for one in strange for other in strange]
    elements = [{"type": one, "state_key": other} for one, other in pairs]
    last = 2**53 - 1
    given: dict[str, Any] = {"timeline_limit": last, "filters": {"tags": strange, "spaces": strange}}
    if path == ACCEPTED:
        config: Any = {"timeline_limit": last, "required_state": {"include": elements, "exclude": elements}}
        lists = {"a": {**config, "range": [0, last]}, "b": {**config, **given}}
    else:
        config = {"timeline_limit": last, "required_state": pairs}
        lists = {"a": {**config, "ranges": [[0, last], [last, last]]}, "b": {**config, **given, "ranges": []}}
    body = {"lists": lists, "room_subscriptions": dict.fromkeys(["", "!", "x" * 9000], config), "conn_id": "x"}

    answer = await alice.ok("POST", path, body)

    assert list(answer["rooms"]) == [room_id]
    for field in ({"conn_id": "\0"}, {"room_subscriptions": {"\0": config}}):
        assert (await alice.request("POST", path, {**body, **field})).status in (200, 400)
