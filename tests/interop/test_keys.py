"""Devices and their keys, over the border."""

from tests.devices import CrossSigning, a_device, claim, cross_signing, query
from tests.interop.border import Border
from tests.interop.people import Person
from tests.interop.test_membership import a_shared_room


async def test_one_time_keys_are_handed_out_once_then_the_fallback_key(host: Person, guest: Person) -> None:
    await a_shared_room(host, guest)
    device = await a_device(host.client, 2)
    await device.upload(fallback_keys=device.fallback_key())

    claimed = [await claim(guest.client, host.client) for _ in range(4)]

    assert all(key is not None for key in claimed)
    assert len({key_id for key_id, _ in claimed}) == 3
    assert claimed[2] == claimed[3]
    assert claimed[2][1]["fallback"] is True


async def test_device_keys_are_told(host: Person, guest: Person) -> None:
    await a_shared_room(host, guest)
    device = await a_device(host.client)

    body = await query(guest.client, host.client)
    if body.get("failures"):  # Synapse stumbles over a device list that comes by itself while it asks for it
        body = await query(guest.client, host.client)

    told = body["device_keys"][host.user_id][host.client.device_id]
    told.pop("unsigned", None)
    assert told == device.identity()
    assert not body.get("failures")


async def test_a_new_device_and_its_end_are_heard_of(host: Person, guest: Person) -> None:
    await a_shared_room(host, guest)
    await a_device(host.client)
    await guest.until(lambda seen: host.user_id in seen.devices_changed)
    assert set((await query(guest.client, host.client))["device_keys"][host.user_id]) == {host.client.device_id}

    guest.seen.devices_changed.clear()
    second = await host.client.login()
    await a_device(second)
    await guest.until(lambda seen: host.user_id in seen.devices_changed)
    devices = {host.client.device_id, second.device_id}
    await has_devices(guest, host, devices)

    guest.seen.devices_changed.clear()
    await second.ok("POST", "/v3/logout")
    await guest.until(lambda seen: host.user_id in seen.devices_changed)
    await has_devices(guest, host, {host.client.device_id})


async def has_devices(asker: Person, person: Person, devices: set[str]) -> None:
    """Wait until somebody's devices are these."""

    async def so() -> bool:
        return set((await query(asker.client, person.client))["device_keys"][person.user_id]) == devices

    await Border.eventually(so)


async def test_cross_signing_keys_and_signatures_are_told(host: Person, guest: Person) -> None:
    await a_shared_room(host, guest)
    device = await a_device(host.client)
    await guest.until(lambda seen: host.user_id in seen.devices_changed)
    guest.seen.devices_changed.clear()

    keys = await cross_signing(host.client)
    signed = keys.sign("self_signing", device.identity())
    upload = {host.user_id: {host.client.device_id: signed}}
    assert (await host.ok("POST", "/keys/signatures/upload", upload))["failures"] == {}

    await guest.until(lambda seen: host.user_id in seen.devices_changed)

    async def so() -> bool:
        body = await query(guest.client, host.client)
        told = body["device_keys"][host.user_id][host.client.device_id]["signatures"][host.user_id]
        return (
            body.get("master_keys", {}).get(host.user_id, {}).get("keys") == keys.key("master")["keys"]
            and body.get("self_signing_keys", {}).get(host.user_id, {}).get("keys") == keys.key("self_signing")["keys"]
            and f"ed25519:{keys.public_key('self_signing')}" in told
            and host.user_id not in body.get("user_signing_keys", {})
        )

    await Border.eventually(so)


async def test_who_begins_anew_with_cross_signing_is_heard_of(host: Person, guest: Person) -> None:
    await a_shared_room(host, guest)
    await a_device(host.client)
    old = await cross_signing(host.client)
    await has_master_key(guest, host, old.public_key("master"))
    guest.seen.devices_changed.clear()

    new = CrossSigning(host.client)
    password = {"type": "m.id.user", "user": host.user_id}
    auth = {"type": "m.login.password", "identifier": password, "password": host.client.password}
    asked = await host.client.post("/v3/keys/device_signing/upload", new.body())
    assert asked.status == 401, asked
    body = {**new.body(), "auth": {**auth, "session": asked.body["session"]}}
    await host.ok("POST", "/keys/device_signing/upload", body)

    await guest.until(lambda seen: host.user_id in seen.devices_changed)
    await has_master_key(guest, host, new.public_key("master"))


async def has_master_key(asker: Person, person: Person, public_key: str) -> None:
    """Wait until somebody's master key is this."""

    async def so() -> bool:
        told = (await query(asker.client, person.client)).get("master_keys", {}).get(person.user_id, {})
        return set(told.get("keys", {})) == {f"ed25519:{public_key}"}

    await Border.eventually(so)


async def test_who_shares_no_room_any_more_is_told_so(host: Person, guest: Person) -> None:
    room_id = await a_shared_room(host, guest)
    await a_device(host.client)
    await guest.until(lambda seen: host.user_id in seen.devices_changed)

    await host.leave(room_id)

    await guest.until(lambda seen: host.user_id in seen.devices_left)
