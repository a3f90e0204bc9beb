"""Bad input, and good, to every endpoint: those that the specification's OpenAPI files describe, and all others.

`make fuzz` sends 1,000 requests to each; these are as many as fit into every run. The server is their own: they leave
much behind.
"""

import pytest

from tests.every_endpoint.campaign import Campaign
from tests.servers import running


@pytest.mark.timeout(600)
async def test_every_answer_to_random_requests_is_as_specified(conninfo: str) -> None:
    async with running(conninfo) as server:
        campaign = Campaign(server, seed=1)
        await campaign.run(requests=8)

    assert not campaign.wrong, "\n\n".join(campaign.wrong)
    assert {status for figures in campaign.figures.values() for status in figures.statuses} >= {200, 400, 401, 403, 404}
