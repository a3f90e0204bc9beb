"""Which worker runs which test: those that share what is dear run in one, all others where there is room."""

from xdist.scheduler import LoadScopeScheduling

TOGETHER = ("tests/interop/", "tests/clients/", "tests/federation/test_hostile_server.py")
"""Folders and modules whose tests share servers that are started once a worker."""


class Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist publishes no types
    """What is in TOGETHER is one piece of work, and so is each test function elsewhere; large pieces come first."""

    def _split_scope(self, nodeid: str) -> str:
        function = nodeid.partition("[")[0]
        return next((folder for folder in TOGETHER if nodeid.startswith(folder)), function)
