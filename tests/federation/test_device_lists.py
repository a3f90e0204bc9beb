"""Changes of devices of other servers' users (Server-Server API, "Device Management")."""

from tests.client import Client, quote
from tests.devices import a_device, cross_signing, query
from tests.federation.servers import Pair


async def people_in_a_room(pair: Pair) -> tuple[Client, Client, str]:
    """One of each server, and the room that both are in."""
    alice, bob = await pair.near.register("alice"), await pair.far.register("bob")
    room_id = (await bob.ok("POST", "/v3/createRoom", {"preset": "public_chat"}))["room_id"]
    await alice.ok("POST", f"/v3/join/{quote(room_id)}", {}, params={"server_name": pair.far.name})
    return alice, bob, room_id


async def sync(client: Client, since: str | None = None) -> str:
    """A token of now."""
    params = {"timeout": 0} if since is None else {"timeout": 0, "since": since}
    return str((await client.ok("GET", "/v3/sync", params=params))["next_batch"])


async def until_changed(client: Client, since: str, user_id: str) -> str:
    """Sync until somebody's devices changed; the token of then."""
    for _ in range(20):
        answer = await client.ok("GET", "/v3/sync", params={"timeout": 2000, "since": since})
        since = answer["next_batch"]
        if user_id in answer.get("device_lists", {}).get("changed", []):
            return since
    raise AssertionError(f"no change of {user_id}")


async def settled(client: Client) -> str:
    """A token after which nothing is new of the user's joining."""
    since = await sync(client)
    for _ in range(3):
        answer = await client.ok("GET", "/v3/sync", params={"timeout": 300, "since": since})
        since = answer["next_batch"]
    return since


async def test_clients_hear_of_new_renamed_and_deleted_devices(pair: Pair) -> None:
    alice, bob, _ = await people_in_a_room(pair)
    await a_device(bob)
    since = await settled(alice)

    second = await a_device(await bob.login())
    after = await until_changed(alice, since, bob.user_id)
    known = (await query(alice, bob))["device_keys"][bob.user_id]
    assert set(known) == {bob.device_id, second.client.device_id}

    await second.client.ok("POST", "/v3/logout")
    end = await until_changed(alice, after, bob.user_id)
    assert list((await query(alice, bob))["device_keys"][bob.user_id]) == [bob.device_id]
    changes = await alice.ok("GET", "/v3/keys/changes", params={"from": since, "to": end})
    assert changes["changed"] == [bob.user_id]


async def test_clients_hear_of_new_cross_signing_keys(pair: Pair) -> None:
    alice, bob, _ = await people_in_a_room(pair)
    await a_device(bob)
    since = await settled(alice)

    keys = await cross_signing(bob)

    await until_changed(alice, since, bob.user_id)
    assert (await query(alice, bob))["master_keys"][bob.user_id]["keys"] == keys.key("master")["keys"]
