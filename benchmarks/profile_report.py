"""Print what a profiled server found: the hottest functions, by their own time and with what they call."""

import io
import marshal
import pstats
from collections import Counter
from pathlib import Path

from benchmarks.profiled_server import Place

_ROOT = str(Path(__file__).resolve().parent.parent)


def render(kind: str, file: Path, rows: int) -> str:
    """The profile as text."""
    if kind == "calls":
        out = io.StringIO()
        stats = pstats.Stats(str(file), stream=out)
        stats.sort_stats("tottime").print_stats(rows)
        stats.sort_stats("cumtime").print_stats(rows)
        return out.getvalue().replace(_ROOT + "/", "")
    return _render_samples(marshal.loads(file.read_bytes()), rows)  # noqa: S302  # a file of our own


def _render_samples(stacks: list[tuple[tuple[tuple[Place, int], ...], int]], rows: int) -> str:
    own: Counter[Place] = Counter()
    lines: Counter[tuple[str, int, str]] = Counter()
    with_calls: Counter[Place] = Counter()
    total = 0
    for stack, count in stacks:
        if not stack:
            continue
        total += count
        own[stack[0][0]] += count
        lines[stack[0][0][0], stack[0][1], stack[0][0][2]] += count
        for place in {place for place, _ in stack}:
            with_calls[place] += count
    parts = [f"{total} samples"]
    titles = ("own time, by function", own), ("own time, by line", lines), ("with all that it calls", with_calls)
    for title, counts in titles:
        parts.append(f"\n{title}")
        for (name, line, function), count in counts.most_common(rows):
            parts.append(f"{100 * count / max(1, total):6.1f} %  {_short(name)}:{line} {function}")
    return "\n".join(parts)


def _short(file: str) -> str:
    return file.removeprefix(_ROOT + "/").rpartition("site-packages/")[2]
