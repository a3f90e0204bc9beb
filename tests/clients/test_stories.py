"""What people do with clients that they know: matrix-js-sdk with its Rust crypto, and Hydrogen in Chromium."""

import platform
from pathlib import Path

import pytest

from tests.client import Server
from tests.clients.installing import are_installed
from tests.clients.storyteller import Story, Storyteller, stories

SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
"""What the browser showed."""

pytestmark = pytest.mark.skipif(not are_installed(), reason="no clients: `make clients` gets them from npm's registry")


@pytest.mark.parametrize(
    "story", [each for each in stories() if each.file != "bots"], ids=lambda story: f"{story.file}-{story.name}"
)
async def test_story(story: Story, server: Server, storyteller: Storyteller) -> None:
    if story.file == "hydrogen" and platform.machine() != "x86_64":
        pytest.skip("the Chromium from npm is for x86_64")

    world = {"base_url": server.base_url, "server_name": server.name, "screenshots": str(SCREENSHOTS)}
    await storyteller.tell(story, world)
