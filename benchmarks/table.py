"""The figures of a run as the table of `docs/performance.md`: `python -m benchmarks.table results/....json`."""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import budgets

_HEAD = ("| | Hearth | Synapse | times less | at least |", "|---|---|---|---|---|")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description=__doc__)
    parser.add_argument("file", type=Path)
    content = json.loads(parser.parse_args(arguments).file.read_text(encoding="utf-8"))
    for line in render(content["servers"]):
        print(line)


def render(servers: dict[str, Any]) -> Iterator[str]:
    """A row for each figure that both servers have, and for those of Hearth's alone that have a budget."""
    ours, theirs = (_by_name(servers.get(name, {})) for name in ("hearth", "synapse"))
    yield from _HEAD
    for name, figure in ours.items():
        if name.startswith(("memory after", "a million")):
            continue
        other = theirs.get(name)
        if other is None and name not in budgets.LIMITS:
            continue
        wanted = budgets.FACTORS.get(name)
        scale = budgets.SMALLER_WORLDS.get(name, 1)
        factor = "" if other is None else f"{scale * _amount(other) / max(1e-9, _amount(figure)):.1f}"
        told = (
            "" if other is None else _text(other) + (f" (a tenth of the rooms: times {scale:g})" if scale > 1 else "")
        )
        yield f"| {name} | {_text(figure)} | {told} | {factor} | {'' if wanted is None else f'{wanted:g}'} |"


def _by_name(server: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {figure["name"]: figure for figures in server.get("figures", {}).values() for figure in figures}


def _amount(figure: dict[str, Any]) -> float:
    if "server_ms" in figure:
        return float(figure["server_ms"] + figure["postgres_ms"])
    return float(figure["value"])


def _text(figure: dict[str, Any]) -> str:
    if "server_ms" in figure:
        return f"{figure['server_ms']:.3g} + {figure['postgres_ms']:.3g} ms"
    return f"{figure['value']:.4g} {figure['unit']}"


if __name__ == "__main__":
    main()
