"""The two servers that tests of federation speak to: each is whole, has its own database, and shows its certificate."""

import ssl

from tests.federation.servers import Pair


async def test_each_server_has_users_of_its_own(pair: Pair) -> None:
    near, far = await pair.near.register("alice"), await pair.far.register("alice")

    assert near.user_id.endswith(f":{pair.near.name}")
    assert far.user_id.endswith(f":{pair.far.name}")
    assert (await near.get("/v3/account/whoami")).body["user_id"] == near.user_id
    assert (await near.anonymous().logged_in({**_login(far)}).get("/v3/account/whoami")).status == 401


async def test_a_server_is_reached_by_its_name_with_tls(pair: Pair) -> None:
    context = ssl.create_default_context(cafile=pair.authority.certificate)
    session = pair.near.anonymous.session

    url = f"https://{pair.far.name}/_matrix/client/versions"
    async with session.get(url, ssl=context) as response:
        assert response.status == 200


def _login(client: object) -> dict[str, str]:
    return {name: getattr(client, name) for name in ("user_id", "device_id", "access_token")}
