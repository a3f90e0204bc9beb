"""The files in which the workers of a server add up what Prometheus is told (`metrics.py`): what becomes of them when a
worker ends.

What it told of its state holds no longer. What it counted stays: Prometheus takes a number that falls for a server that
began anew.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path

_COUNTING = ("counter", "histogram")


def forget_state(directory: Path, pid: int) -> None:
    """A worker has ended."""
    for file in directory.glob(f"gauge_live*_{pid}.db"):
        file.unlink()


def fold(directory: Path, pids: Sequence[int]) -> None:
    """Add up in one file what these workers counted, which have ended: else each scrape reads more and more.

    A scrape at the very moment may count them twice, or miss a file and try again.
    """
    for kind in _COUNTING:
        gone = [file for pid in pids if (file := directory / f"{kind}_{pid}.db").exists()]
        if gone:
            _fold(directory / f"{kind}_ended.db", gone)


def _fold(whole: Path, gone: Sequence[Path]) -> None:
    library = importlib.import_module("prometheus_client.mmap_dict")  # large, and not needed where nobody scrapes
    sums: dict[str, float] = {}
    for file in gone if not whole.exists() else (whole, *gone):
        for key, value, *_ in library.MmapedDict.read_all_values_from_file(str(file)):
            sums[key] = sums.get(key, 0.0) + value
    new = whole.with_suffix(".new")
    new.unlink(missing_ok=True)
    written = library.MmapedDict(str(new))
    for key, total in sums.items():
        written.write_value(key, total, 0.0)
    written.close()
    new.replace(whole)
    for file in gone:
        file.unlink()
