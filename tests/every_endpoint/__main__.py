"""`python -m tests.every_endpoint`: a long campaign of random requests, for `make fuzz`."""

import argparse
import asyncio
import os
import sys
import time
from dataclasses import dataclass

from tests.clusters import TEMPLATE, RunCluster, create_database
from tests.every_endpoint.campaign import Campaign
from tests.servers import running


@dataclass(slots=True)
class Watched(Campaign):
    """A campaign that says how far it is, and what went wrong since it last did."""

    shown: int = 0

    def progress(self, done: int, of: int) -> None:
        """One line, and the wrong answers."""
        for text in self.wrong[self.shown :]:
            _say(f"\nWRONG: {text}")
        self.shown = len(self.wrong)
        _say(f"{time.strftime('%H:%M:%S')}  {done:,} of {of:,} requests, {len(self.wrong)} wrong answers")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def _run(conninfo: str, options: argparse.Namespace) -> Watched:
    async with running(conninfo) as server:
        campaign = Watched(server, options.seed, options.at_once)
        await campaign.run(options.requests)
        return campaign


def main() -> int:
    """Run, show the table, and the mistakes; 1 if there were any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=int(os.environ.get("REQUESTS", "1000")), help="per endpoint")
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SEED", "1")))
    parser.add_argument("--at-once", type=int, default=int(os.environ.get("AT_ONCE", "4")), help="1 repeats itself")
    options = parser.parse_args()
    cluster = RunCluster()
    try:
        create_database(cluster.conninfo("postgres"), "hearth_every_endpoint", TEMPLATE)
        started = time.monotonic()
        campaign = asyncio.run(_run(cluster.conninfo("hearth_every_endpoint"), options))
    finally:
        cluster.close()
    _say(f"\n{'endpoint':40} requests  slowest, CPU  statuses")
    for line in campaign.table():
        _say(line)
    _say("\nSlowest:")
    for line in campaign.slowest():
        _say(line)
    _say("\nNot served, 404 M_UNRECOGNIZED:")
    for name in campaign.unserved:
        _say(f"  {name}")
    for text in campaign.wrong[campaign.shown :]:
        _say(f"\nWRONG: {text}")
    count = sum(figures.statuses.total() for figures in campaign.figures.values())
    took = time.monotonic() - started
    _say(f"\n{count:,} requests to {len(campaign.figures)} endpoints in {took:.0f} s, {len(campaign.wrong)} wrong")
    return 1 if campaign.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
