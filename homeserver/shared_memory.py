"""What the processes of one server share on one machine: budgets of requests, how far the log is, what is new in it."""

from msgspec import Struct, field

from homeserver.services import budget_table
from homeserver.services.budget_table import BudgetTable
from storage import newest, shelf
from storage.newest import Newest
from storage.shelf import Shelf, ShelfCarrier

_PLACES_EACH = 2
"""A process and the one that follows it may be there at the same time."""


class Shared(Struct, frozen=True):
    """As one process has it; alone if nothing else is given."""

    budgets: BudgetTable = field(default_factory=BudgetTable)
    newest: Newest = field(default_factory=Newest)
    carrier: ShelfCarrier = field(default_factory=ShelfCarrier)
    is_with_others: bool = False


class SharedMemory:
    """The memory itself, by file descriptors that are handed from process to process."""

    def __init__(self, count: int) -> None:
        """For so many places, in each of which one process follows another, maybe before that has ended."""
        self._budgets = budget_table.shared_memory()
        self._newest = newest.shared_memory()
        self._places = _PLACES_EACH * count
        self._shelf = shelf.shared_memory(self._places)

    @property
    def descriptors(self) -> list[int]:
        """What a process has to inherit."""
        return [self._budgets, self._newest, self._shelf]

    def given(self, number: int, generation: int) -> list[int]:
        """What `attach` needs in a process, at one of the places from 1 on, after so many others."""
        return [*self.descriptors, _PLACES_EACH * (number - 1) + generation % _PLACES_EACH, self._places]


def attach(given: list[int]) -> Shared:
    """The memory in a process that inherited it."""
    budgets, positions, entries, place, places = given
    has_neighbours = places > _PLACES_EACH  # more than who comes before or after it
    carrier = ShelfCarrier(Shelf(entries, place, places) if has_neighbours else None)
    return Shared(BudgetTable(budgets), Newest(positions, place, places), carrier, is_with_others=True)
