"""The table of a run."""

from typing import Any

from benchmarks.table import render


def a_load(name: str, server_ms: float, postgres_ms: float) -> dict[str, Any]:
    return {"name": name, "server_ms": server_ms, "postgres_ms": postgres_ms}


def test_both_servers_stand_beside_each_other() -> None:
    first_sync = "first sync, lazy members, cold"
    servers = {
        "hearth": {
            "figures": {
                "joins": [a_load("local join", 1.5, 0.5), {"name": "memory after joins", "value": 1, "unit": "MB"}],
                "first-sync": [a_load(first_sync, 200, 40)],
                "idle-syncs": [{"name": "memory per idle sync", "value": 12.31, "unit": "kB"}],
                "paging": [a_load("only here", 1, 1)],
            }
        },
        "synapse": {"figures": {"joins": [a_load("local join", 30, 10)], "first-sync": [a_load(first_sync, 300, 180)]}},
    }

    assert list(render(servers))[2:] == [
        "| local join | 1.5 + 0.5 ms | 30 + 10 ms | 20.0 | 10 |",
        f"| {first_sync} | 200 + 40 ms | 300 + 180 ms (a tenth of the rooms: times 10) | 20.0 | 10 |",
        "| memory per idle sync | 12.31 kB |  |  |  |",
    ]
