"""What a server of a given size takes: `python -m benchmarks.simulate_scale --users 100000 --machines 4`.

It plays seconds of the server's life with the costs that `make bench` measured: who is online, what they send into
rooms of which sizes, who hears of it, what goes to other servers. Rooms, senders and rates are drawn from a seeded
generator; what comes out are cores, memory, connections, disk, and how busy the one thing is that cannot be doubled,
the log's lock. `docs/scaling.md` says how to read it.
"""

import argparse
import math
import random
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields

POLL_SECONDS = 30
SECONDS_A_YEAR = 365 * 24 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """CPU milliseconds per operation, of the processes and of PostgreSQL; from `make bench` (docs/performance.md)."""

    send: tuple[float, float] = (0.31, 0.042)
    """A message, with many senders at once."""
    deliver: tuple[float, float] = (0.2, 0.005)
    """To one waiting sync, which then waits again."""
    poll: tuple[float, float] = (0.12, 0)
    """A sync that was answered without news."""
    follow: tuple[float, float] = (0.057, 0.016)
    """An event of another process, in each process."""
    send_to_server: tuple[float, float] = (0.6, 0.17)
    """An event to one other server."""
    receive: tuple[float, float] = (0.45, 0.13)
    """An event from another server."""
    lock_batch_ms: float = 1.2
    """How long a batch holds the log's lock, whatever it holds: round trips and the disk's flush."""
    lock_event_ms: float = 0.35
    """As measured in one process that is busy: what else its loop does meanwhile is in it."""
    process_mb: float = 70
    sync_kb: float = 20
    """A waiting sync, with what is remembered of its user."""
    message_bytes: float = 790


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """An organisation, and what its people do."""

    users: int
    machines: int = 1
    cores: int = 8
    """Of a machine; each has a process for each core."""
    online: float = 0.3
    """The part of the users with a client that syncs."""
    clients: float = 1.3
    """Of a user who is online."""
    sends_an_hour: float = 6
    """Messages by a user who is online."""
    room_members: float = 30
    """Median size of the rooms that messages go to; sizes are log-normal."""
    room_spread: float = 1.2
    """Standard deviation of the sizes' logarithm."""
    federated: float = 0.2
    """The part of the rooms that other servers are in."""
    servers: float = 5
    """Other servers in such a room."""
    received: float = 0.5
    """Events from other servers for each message sent here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What it takes, at the mean over the seconds played, and in the busiest of them."""

    messages: float
    """A second."""
    deliveries: float
    process_cores: float
    postgres_cores: float
    busiest_cores: float
    """Processes and PostgreSQL together, in the busiest second."""
    append_ms: float
    """Until it is a process's turn to append again, in the busiest second: what others wrote meanwhile goes first."""
    log_most: float
    """Events a second that the log's lock lets through, in batches as large as they may be."""
    memory_gb: float
    connections: int
    disk_gb_a_year: float


def simulate(server: Server, costs: Costs = Costs(), *, seconds: int = 600, seed: int = 1) -> Found:
    """Play some seconds."""
    chance = random.Random(seed)
    processes = server.machines * server.cores
    online = server.users * server.online
    clients = online * server.clients
    rate = online * server.sends_an_hour / 3600
    totals = [0.0, 0.0]
    messages = deliveries = 0
    busiest = 0.0
    most_events = 0
    for _ in range(seconds):
        spent = [0.0, 0.0]
        sent = _poisson(chance, rate)
        heard = 0
        to_servers = 0
        for _ in range(sent):
            members = max(2.0, server.room_members * math.exp(chance.gauss(0, server.room_spread)))
            heard += round(min(members, server.users) * server.online * server.clients)
            to_servers += round(server.servers) if chance.random() < server.federated else 0
        received = _poisson(chance, rate * server.received)
        heard += round(received * server.room_members * server.online * server.clients)
        events = sent + received
        for number, cost in (
            (sent, costs.send),
            (heard, costs.deliver),
            (clients / POLL_SECONDS, costs.poll),
            (events * (processes - 1), costs.follow),
            (to_servers, costs.send_to_server),
            (received, costs.receive),
        ):
            spent[0] += number * cost[0] / 1000
            spent[1] += number * cost[1] / 1000
        totals[0] += spent[0]
        totals[1] += spent[1]
        busiest = max(busiest, sum(spent))
        most_events = max(most_events, events)
        messages += sent
        deliveries += heard
    return Found(
        messages=messages / seconds,
        deliveries=deliveries / seconds,
        process_cores=totals[0] / seconds,
        postgres_cores=totals[1] / seconds,
        busiest_cores=busiest,
        append_ms=_turn_ms(most_events, processes, costs),
        log_most=1000 * _MAX_BATCH / (costs.lock_batch_ms + _MAX_BATCH * costs.lock_event_ms),
        memory_gb=(processes * costs.process_mb + clients * costs.sync_kb / 1000) / 1000,
        connections=processes * _CONNECTIONS,
        disk_gb_a_year=(1 + server.received) * rate * costs.message_bytes * SECONDS_A_YEAR / 1e9,
    )


_MAX_BATCH = 256
_CONNECTIONS = 12
"""Of a process: its pool's ten, the appender's, the one that listens."""


def _turn_ms(rate: float, processes: int, costs: Costs) -> float:
    """How long it takes until each process with something to write has had the lock once; events a second."""
    turn = costs.lock_batch_ms
    for _ in range(100):
        events = rate * turn / 1000
        if events > processes * _MAX_BATCH:
            return math.inf
        turn = min(processes, max(1.0, events)) * costs.lock_batch_ms + events * costs.lock_event_ms
    return turn


def _poisson(chance: random.Random, mean: float) -> int:
    if mean > 50:
        return max(0, round(chance.gauss(mean, math.sqrt(mean))))
    limit, product, count = math.exp(-mean), chance.random(), 0
    while product > limit:
        product *= chance.random()
        count += 1
    return count


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what a server takes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulate_scale", description="What a server takes.")
    for field in fields(Server):
        default = 1000 if field.default is MISSING else field.default
        kind = int if field.type is int else float
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=default, help=f"({default})")
    server = Server(**vars(parser.parse_args(arguments)))
    for line in render(server, simulate(server)):
        print(line)


def render(server: Server, found: Found) -> list[str]:
    """As a table."""
    have = server.machines * server.cores
    return [
        f"{server.users:,} users, {server.machines} machines with {server.cores} cores each",
        f"  messages                {found.messages:12,.1f} a second",
        f"  deliveries              {found.deliveries:12,.0f} a second",
        f"  processes               {found.process_cores:12,.2f} of {have} cores",
        f"  PostgreSQL              {found.postgres_cores:12,.2f} cores",
        f"  both, busiest second    {found.busiest_cores:12,.2f} cores",
        f"  memory                  {found.memory_gb:12,.1f} GB for {have} processes and their clients",
        f"  connections             {found.connections:12,} to PostgreSQL",
        f"  disk                    {found.disk_gb_a_year:12,.1f} GB a year of messages",
        f"  the log's lock          {found.append_ms:12,.1f} ms until a turn, busiest second;"
        f" carries {found.log_most:,.0f} events a second",
    ]


if __name__ == "__main__":
    main()
