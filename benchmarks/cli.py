"""`make bench`: the same load on Hearth and on Synapse, in turn; the figures side by side and against the budgets."""

import argparse
import asyncio
import resource
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import uvloop

from benchmarks import processes, profile_report, profiled_server, report, sizes, synapse
from benchmarks.cluster import Cluster
from benchmarks.figures import Figure, Quantity
from benchmarks.hearth import Hearth
from benchmarks.measuring import machine_ms
from benchmarks.report import Results
from benchmarks.scenarios.catalogue import SCENARIOS
from benchmarks.server import PREPARED, Server
from benchmarks.sizes import Sizes

_SCENARIO_SECONDS = 600.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; returns 1 if a scenario failed."""
    options = _parser().parse_args(arguments)
    names = options.scenario or list(SCENARIOS)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # one for each client that waits
    products: dict[str, Callable[[Cluster], Server]] = {}
    if options.only != "synapse":
        products["hearth"] = lambda cluster: Hearth(cluster, profiler=options.profile)
    if options.only != "hearth" and options.profile is None:
        python = synapse.install()
        products["synapse"] = lambda cluster: synapse.Synapse(cluster, python)
    with ExitStack() as stack:
        # The load's loop must end before the clusters do.
        servers = [make(stack.enter_context(Cluster())) for make in products.values()]
        runner = stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
        try:
            results = runner.run(_run_all(servers, names, options))
        except asyncio.CancelledError:
            return 143
    _conclude(results, options)
    return 1 if any(result.failures for result in results) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure Hearth beside Synapse.")
    parser.add_argument("scenario", nargs="*", choices=[[], *SCENARIOS], metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--only", choices=["hearth", "synapse"], help="measure one server alone")
    parser.add_argument("--quick", action="store_true", help="small loads: a look within two or three minutes")
    parser.add_argument("--scale", type=float, default=1.0, metavar="FACTOR", help="more or fewer operations")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    parser.add_argument(
        "--profile",
        nargs="?",
        const="sampling",
        choices=list(profiled_server.KINDS),
        help="run Hearth alone under a profiler and print its hottest functions",
    )
    parser.add_argument("--rows", type=int, default=30, help="of the profile's tables")
    return parser


def _sizes(product: str, options: argparse.Namespace) -> Sizes:
    by_product = {
        ("hearth", False): sizes.HEARTH,
        ("hearth", True): sizes.HEARTH_QUICK,
        ("synapse", False): sizes.SYNAPSE,
        ("synapse", True): sizes.SYNAPSE_QUICK,
    }
    return by_product[product, options.quick].scaled(options.scale)


async def _run_all(servers: Sequence[Server], names: Sequence[str], options: argparse.Namespace) -> list[Results]:
    """Every scenario on each server in turn, so that both have the same of the machine's moods."""
    began = time.monotonic()
    whole = asyncio.current_task()
    assert whole is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, whole.cancel)  # the servers are stopped then
    results = [Results(server.name) for server in servers]
    for server in servers:
        server.cluster.create_database(PREPARED)
        first = await server.start()
        await server.stop()
        print(f"{server.name}: its first start, which makes the schema, took {first.seconds:.1f} s", flush=True)
    for name in names:
        for server, result in zip(servers, results, strict=True):
            print(report.head(f"{name}: {server.name}"), flush=True)
            await _note_one(server, name, result, options)
    print(f"\n{time.monotonic() - began:.0f} s in all", flush=True)
    return results


async def _note_one(server: Server, name: str, result: Results, options: argparse.Namespace) -> None:
    """Run a scenario and print what it shows, or why it failed: the others still run."""
    try:
        figures = await _run_one(server, name, _sizes(server.name, options))
    except Exception as error:
        traceback.print_exception(error, limit=-3)
        print("\n".join([f"{server.name} said:", *server.last_words()]), flush=True)
        result.failures[name] = "".join(traceback.format_exception_only(error)).strip()
        return
    result.figures[name] = figures
    for line in report.render_figures(figures):
        print(line, flush=True)
    if isinstance(server, Hearth) and options.profile is not None:
        print(profile_report.render(options.profile, server.profile_file, options.rows), flush=True)


async def _run_one(server: Server, name: str, load: Sizes) -> list[Figure]:
    """On a server of its own, started on a copy of the prepared database."""
    server.database = f"scenario_{name.replace('-', '_')}"
    server.cluster.create_database(server.database, PREPARED)
    speed = machine_ms()
    try:
        await server.start()
        async with asyncio.timeout(_SCENARIO_SECONDS):
            figures = list(await SCENARIOS[name](server, load))
        memory = processes.resident_megabytes(server.pid)
        figures.append(Quantity(name=f"memory after {name}", value=memory, unit="MB"))
        speed = (speed + machine_ms()) / 2
        figures.append(Quantity(name=f"a million steps of Python beside {name}", value=speed, unit="ms"))
    finally:
        await server.stop()
        server.cluster.drop_database(server.database)
    return figures


def _conclude(results: Sequence[Results], options: argparse.Namespace) -> None:
    for line in report.render_comparison(results):
        print(line)
    for line in report.render_verdicts(results):
        print(line)
    for line in report.render_factors(results, is_quick=options.quick):
        print(line)
    for result in results:
        for name, failure in result.failures.items():
            print(f"{result.server} {name} FAILED: {failure}")
    if options.profile is None:
        print(f"\nAll figures: {report.write_json(results, options.json)}")
