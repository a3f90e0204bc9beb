"""What it costs that processes hear of each other: `python -m benchmarks.buses`, by each bus.

One user sends, one message after the other, to a server with so many workers, all of which follow the log. Then the
bare database: what a commit that notifies costs more than one that does not, with so many connections that listen.
"""

import argparse
import asyncio
import contextlib
import time
from collections.abc import Iterator

import psycopg

from benchmarks import processes
from benchmarks.cluster import Cluster
from benchmarks.hearth import Hearth
from benchmarks.matrix import room_with
from benchmarks.measuring import Meter, quiet
from benchmarks.server import PREPARED
from tests import nats_server
from tests.nats_server import NatsServer

_WARM_UP = 100
_PAYLOAD = "x" * 600
"""About what an announcement has that brings a message along."""


async def _send(server: Hearth, messages: int) -> str:
    await server.start()
    try:
        (user,) = await server.add_users(1)
        room_id = await room_with(user, [])
        for _ in range(_WARM_UP):
            await user.send(room_id)
        await quiet(server)
        meter = Meter(server)
        timed = meter.timed(user.send)
        async with meter.running():
            for _ in range(messages):
                await timed(room_id)
    finally:
        await server.stop()
    load = meter.load("")
    costs = f"server {load.server_ms:6.3f} ms  PostgreSQL {load.postgres_ms:6.3f} ms a message"
    return f"{costs}, p50 {load.latency.p50:5.2f} ms"


@contextlib.contextmanager
def _listening(cluster: Cluster, count: int) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            connection = psycopg.connect(cluster.conninfo(PREPARED), autocommit=True)
            stack.enter_context(connection).execute("listen bench")
        yield


def _commit(cluster: Cluster, listeners: int, statement: str, count: int) -> str:
    with _listening(cluster, listeners), psycopg.connect(cluster.conninfo(PREPARED), autocommit=True) as connection:

        def commit(times: int) -> None:
            for _ in range(times):
                connection.execute("begin")
                connection.execute("update log_head set position = position + 1")
                if statement:
                    connection.execute(statement)
                connection.execute("commit")

        commit(_WARM_UP)
        before, began = processes.cpu_seconds(cluster.pid), time.perf_counter()
        commit(count)
        seconds = time.perf_counter() - began
        cpu = processes.cpu_seconds(cluster.pid) - before
    return f"PostgreSQL {1000 * cpu / count:6.3f} ms, {1000 * seconds / count:6.3f} ms until it is answered"


async def _run(options: argparse.Namespace) -> None:
    nats_server.install()
    with Cluster() as cluster, contextlib.ExitStack() as stack:
        nats = NatsServer()
        stack.callback(nats.kill)
        server = Hearth(cluster)
        cluster.create_database(PREPARED)
        for workers in options.workers:
            for bus in ("postgres", "nats"):
                server.workers, server.nats = workers, nats.url if bus == "nats" else None
                print(f"{workers:2} workers, {bus:8}  {await _send(server, options.messages)}", flush=True)
        for listeners in options.listeners:
            for name, statement in (("alone", ""), ("notifies", f"notify bench, '{_PAYLOAD}'")):
                said = await asyncio.to_thread(_commit, cluster, listeners, statement, options.messages)
                print(f"{listeners:2} listen, a commit that {name:8}  {said}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.buses", description="What each bus costs.")
    parser.add_argument("--workers", nargs="*", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--listeners", nargs="*", type=int, default=[0, 1, 8, 64])
    parser.add_argument("--messages", type=int, default=2000)
    asyncio.run(_run(parser.parse_args()))
