"""Run `hearth` under a profiler: `python -m benchmarks.profiled_server KIND FILE serve ...`.

KIND is `sampling` (where the process spends CPU time, sampled some hundred times a second of it, little distortion) or
`calls` (cProfile: every call counted, small functions look dearer than they are). SIGUSR1 begins, SIGUSR2 pauses; what
was found is written to FILE when the server ends.
"""

import cProfile
import marshal
import signal
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Protocol

from homeserver import cli

_INTERVAL_SECONDS = 0.001

Place = tuple[str, int, str]
"""File, line and name of a function."""


class _Profiler(Protocol):
    def begin(self) -> None: ...
    def pause(self) -> None: ...
    def write(self, file: Path) -> None: ...


class _Sampling:
    """Stacks at moments of CPU time. C code counts for the Python function that called it."""

    def __init__(self) -> None:
        self.stacks: Counter[tuple[tuple[Place, int], ...]] = Counter()
        signal.signal(signal.SIGPROF, self._sample)

    def begin(self) -> None:
        signal.setitimer(signal.ITIMER_PROF, _INTERVAL_SECONDS, _INTERVAL_SECONDS)

    def pause(self) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)

    def write(self, file: Path) -> None:
        file.write_bytes(marshal.dumps(list(self.stacks.items())))

    def _sample(self, _number: int, frame: FrameType | None) -> None:
        stack = []
        while frame is not None:
            code = frame.f_code
            stack.append(((code.co_filename, code.co_firstlineno, code.co_qualname), frame.f_lineno))
            frame = frame.f_back
        self.stacks[tuple(stack)] += 1


class _Calls:
    """cProfile."""

    def __init__(self) -> None:
        self._profile = cProfile.Profile()

    def begin(self) -> None:
        self._profile.enable()

    def pause(self) -> None:
        self._profile.disable()

    def write(self, file: Path) -> None:
        self._profile.dump_stats(str(file))


KINDS: dict[str, type[_Sampling] | type[_Calls]] = {"sampling": _Sampling, "calls": _Calls}


def main(kind: str, file: Path, arguments: list[str]) -> int:
    """Run the server; returns its exit code."""
    profiler: _Profiler = KINDS[kind]()
    signal.signal(signal.SIGUSR1, lambda *_: profiler.begin())
    signal.signal(signal.SIGUSR2, lambda *_: profiler.pause())
    try:
        return cli.main(arguments)
    finally:
        profiler.pause()
        profiler.write(file)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
