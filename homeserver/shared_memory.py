"""What the processes of one server share on one machine: budgets of requests, and how far the log is."""

from dataclasses import dataclass, field

from homeserver.services import budget_table
from homeserver.services.budget_table import BudgetTable
from storage import newest
from storage.newest import Newest


@dataclass(frozen=True, slots=True)
class Shared:
    """As one process has it; alone if nothing else is given."""

    budgets: BudgetTable = field(default_factory=BudgetTable)
    newest: Newest = field(default_factory=Newest)
    is_with_others: bool = False


class SharedMemory:
    """The memory itself, by file descriptors that are handed from process to process."""

    def __init__(self, count: int) -> None:
        """For so many places, in each of which one process follows another, maybe before that has ended."""
        self._budgets = budget_table.shared_memory()
        self._newest = newest.shared_memory()
        self._places = 2 * count

    @property
    def descriptors(self) -> list[int]:
        """What a process has to inherit."""
        return [self._budgets, self._newest]

    def given(self, number: int, generation: int) -> list[int]:
        """What `attach` needs in a process, at one of the places from 1 on, after so many others."""
        return [*self.descriptors, 2 * (number - 1) + generation % 2, self._places]


def attach(given: list[int]) -> Shared:
    """The memory in a process that inherited it."""
    budgets, newest_positions, place, places = given
    return Shared(BudgetTable(budgets), Newest(newest_positions, place, places), is_with_others=True)
