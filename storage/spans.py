"""How the parts of the server say what they are at, for traces (`homeserver/tracing.py`); else nobody listens."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

Attributes = Mapping[str, str | int]


class Spans(Protocol):
    """Parts of traces. What is raised within one is noted in it."""

    def within(self, name: str, attributes: Attributes) -> AbstractContextManager[None]:
        """A part of what this task is at, if that is traced."""

    def begin(self, name: str, attributes: Attributes) -> AbstractContextManager[None]:
        """As `within`; where nothing is traced it may begin a trace, as nobody asked for it by a request."""


class _NoSpans:
    """Nothing is traced."""

    def within(self, _name: str, _attributes: Attributes) -> AbstractContextManager[None]:
        """Nothing."""
        return _NOTHING

    begin = within


_NOTHING: AbstractContextManager[None] = nullcontext()
NO_SPANS: Spans = _NoSpans()
