"""Media that administrators take from everybody's sight."""

import dataclasses
import io

import pytest
from PIL import Image

from tests.client import Client, Server, quote, unique
from tests.federation.peer import Peer
from tests.homeserver.test_content_repository import UPLOAD, download, upload
from tests.rooms import create_room

BASE = "/_synapse/admin/v1"


def an_image() -> bytes:
    """Of other bytes than any other."""
    file = io.BytesIO()
    Image.new("RGB", (60, 40), "red").save(file, "PNG")
    return file.getvalue() + unique().encode()


async def is_shown(client: Client, place: str) -> bool:
    """Whether media can be downloaded, which has to be answered the same way for thumbnails."""
    whole = await download(client, place)
    free = dataclasses.replace(client, is_held_to_specification=False)
    small = await free.get(f"/v1/media/thumbnail/{place}", width=32, height=32)
    assert (whole.status, small.status) in ((200, 200), (404, 404)), (whole, small)
    if whole.status == 404:
        assert whole.body["errcode"] == small.body["errcode"] == "M_NOT_FOUND"
    return whole.status == 200


async def test_what_is_in_quarantine_is_shown_to_nobody(server: Server, admin: Client, alice: Client) -> None:
    place = await upload(alice, an_image())
    peer = await Peer(server).trust()
    inbound = f"/v1/media/download/{place.partition('/')[2]}"
    assert await is_shown(alice, place)

    assert (await admin.post(f"{BASE}/media/quarantine/{place}")).status == 200

    for client in (alice, admin):
        assert not await is_shown(client, place)
    assert (await peer.request("GET", inbound)).status == 404
    assert (await peer.request("GET", inbound.replace("download", "thumbnail"), width="32", height="32")).status == 404
    assert (await admin.post(f"{BASE}/media/unquarantine/{place}")).status == 200
    assert await is_shown(alice, place)
    assert (await peer.request("GET", inbound)).status == 200


async def test_the_same_bytes_stay_in_quarantine(admin: Client, alice: Client, bob: Client) -> None:
    content = an_image()
    first, before = await upload(alice, content), await upload(bob, content)
    await admin.ok("POST", f"{BASE}/media/quarantine/{first}", {})

    after = await upload(bob, content)

    assert [await is_shown(bob, place) for place in (before, after)] == [False, False]
    assert await is_shown(bob, await upload(bob, content + b"."))
    await admin.ok("POST", f"{BASE}/media/quarantine/{after}", {})
    await admin.ok("POST", f"{BASE}/media/unquarantine/{first}", {})
    assert [await is_shown(bob, place) for place in (first, before, after)] == [True, True, False]


async def test_all_of_a_user(server: Server, admin: Client, alice: Client, bob: Client) -> None:
    mine, theirs = [await upload(alice, an_image()) for _ in range(2)], await upload(bob, an_image())
    created = (await alice.ok("POST", "/_matrix/media/v1/create", {}))["content_uri"].removeprefix("mxc://")
    path = f"{BASE}/user/{quote(alice.user_id)}/media/quarantine"

    assert (await admin.post(path)).body == {"num_quarantined": 3}
    assert (await admin.post(path)).body == {"num_quarantined": 0}

    await alice.ok("PUT", f"{UPLOAD}/{created}", an_image())
    assert not any([await is_shown(bob, place) for place in (*mine, created)])
    assert await is_shown(alice, theirs)
    assert (await admin.post(f"{BASE}/user/{quote('@x:elsewhere.test')}/media/quarantine")).status == 400


async def test_all_that_a_room_shows(server: Server, admin: Client, alice: Client) -> None:
    room_id = await create_room(alice)
    places = [await upload(alice, an_image()) for _ in range(6)]
    uris = [f"mxc://{place}" for place in places]
    encrypted = {
        "msgtype": "m.image",
        "body": "x",
        "file": {"url": uris[1]},
        "info": {"thumbnail_file": {"url": uris[2]}},
    }
    edit = {"msgtype": "m.text", "body": "y", "m.new_content": {"msgtype": "m.image", "url": uris[3]}}
    contents = [
        {"msgtype": "m.image", "body": "x", "url": uris[0], "info": {"thumbnail_url": "mxc://elsewhere.test/abc"}},
        encrypted,
        edit,
        {"msgtype": "m.text", "body": uris[5]},
        {"msgtype": "m.image", "body": "x", "url": 5, "file": [], "info": "mxc://x/y", "m.new_content": []},
        {"msgtype": "m.image", "body": "x", "url": "mxc://../../a"},
    ]
    for content in contents:
        await alice.ok("PUT", f"/v3/rooms/{quote(room_id)}/send/m.room.message/{unique()}", content)
    await alice.ok("PUT", f"/v3/rooms/{quote(room_id)}/state/m.room.avatar/", {"url": uris[4]})
    path = f"{BASE}/room/{quote(room_id)}/media"

    listed = await admin.ok("GET", path)
    assert (listed["local"], listed["remote"]) == (sorted(uris[:5]), ["mxc://elsewhere.test/abc"])
    assert (await admin.post(f"{path}/quarantine")).body == {"num_quarantined": 6}
    assert (await admin.post(f"{BASE}/quarantine_media/{quote(room_id)}")).body == {"num_quarantined": 0}

    assert [await is_shown(alice, place) for place in places] == [False] * 5 + [True]
    assert not await is_shown(alice, "elsewhere.test/abc")  # and its server was not asked


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("media/quarantine/hearth.test/unknown", 404),
        ("media/unquarantine/hearth.test/unknown", 404),
        ("media/quarantine/..%2f/abc", 400),
        ("media/quarantine/elsewhere.test/a.b", 400),
        ("room/nonsense/media/quarantine", 400),
    ],
)
async def test_what_cannot_be_put_into_quarantine(admin: Client, alice: Client, path: str, status: int) -> None:
    assert (await alice.post(f"{BASE}/{path}")).status == 403
    assert (await admin.post(f"{BASE}/{path}")).status == status
