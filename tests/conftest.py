"""What every test may use: databases of its own. No test reaches beyond this machine."""

import os
from collections.abc import Callable, Iterator

import psycopg
import pytest
from hypothesis import settings as hypothesis_settings
from psycopg.conninfo import make_conninfo
from xdist.remote import Producer

from tests import fellows, late_connections, loopback, nats_server
from tests.clusters import TEMPLATE, RunCluster, create_database, drop_database
from tests.nats_server import NatsServer
from tests.scheduling import Scheduling

CLUSTER = "HEARTH_TEST_CLUSTER"

# The same examples in each run: a red build means a change, not luck.
hypothesis_settings.register_profile("ci", derandomize=True, deadline=None, database=None, print_blob=True)
hypothesis_settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

_run_cluster = pytest.StashKey[RunCluster]()
_run_nats = pytest.StashKey[NatsServer]()


def pytest_configure(config: pytest.Config) -> None:
    """Refuse the network; with several workers, start their cluster before them."""
    loopback.stay()
    late_connections.close()
    is_worker = hasattr(config, "workerinput")
    if not is_worker and os.environ.get("HEARTH_TEST_BUS") == "nats":
        config.stash[_run_nats] = nats = NatsServer()
        os.environ[nats_server.ADDRESS] = nats.url
    if not is_worker and config.getoption("numprocesses", None):
        config.stash[_run_cluster] = cluster = RunCluster()
        os.environ[CLUSTER] = cluster.conninfo("postgres")  # workers inherit it


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    """Tests that share what is dear run in one worker."""
    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where each server is several processes, leave out what is about the one that the test is in."""
    if fellows.COUNT == 1:
        return
    for item in items:
        marker = item.get_closest_marker("one_process")
        if marker is not None:
            item.add_marker(pytest.mark.skip(reason=f"one process: {marker.args[0]}"))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the cluster that the workers shared."""
    cluster = config.stash.get(_run_cluster, None)
    if cluster is not None:
        cluster.close()
    nats = config.stash.get(_run_nats, None)
    if nats is not None:
        nats.kill()


@pytest.fixture(scope="session")
def maintenance_conninfo() -> Iterator[str]:
    """The run's cluster, connected to its database `postgres`, which holds nothing."""
    shared = os.environ.get(CLUSTER)
    if shared is not None:
        yield shared
        return
    cluster = RunCluster()
    try:
        yield cluster.conninfo("postgres")
    finally:
        cluster.close()


@pytest.fixture(scope="session")
def worker_conninfo(maintenance_conninfo: str, worker_id: str) -> Iterator[str]:
    """A migrated database that all tests of a worker share; for tests that roll back what they do."""
    name = f"hearth_{worker_id}"
    create_database(maintenance_conninfo, name, TEMPLATE)
    yield make_conninfo(maintenance_conninfo, dbname=name)
    drop_database(maintenance_conninfo, name)


@pytest.fixture(scope="session")
def databases(maintenance_conninfo: str, worker_id: str) -> Iterator[Callable[[str], str]]:
    """Makes migrated databases by name, each for a server with settings of its own that lasts as long as the worker.

    Processes on one database are the same server, and share its work: those with other settings need another database.
    """
    made: list[str] = []

    def make(name: str) -> str:
        made.append(f"hearth_{worker_id}_{name}")
        create_database(maintenance_conninfo, made[-1], TEMPLATE)
        return make_conninfo(maintenance_conninfo, dbname=made[-1])

    yield make
    for each in made:
        drop_database(maintenance_conninfo, each)


@pytest.fixture
def conninfo(maintenance_conninfo: str, worker_id: str) -> Iterator[str]:
    """A migrated, empty database of the test's own, as libpq's connection string (about 40 ms)."""
    name = f"hearth_{worker_id}_one_test"
    create_database(maintenance_conninfo, name, TEMPLATE)
    yield make_conninfo(maintenance_conninfo, dbname=name)
    drop_database(maintenance_conninfo, name)


@pytest.fixture
def empty_conninfo(maintenance_conninfo: str, worker_id: str) -> Iterator[str]:
    """A database without any table, for migrations."""
    name = f"hearth_{worker_id}_empty"
    create_database(maintenance_conninfo, name, "template0")
    yield make_conninfo(maintenance_conninfo, dbname=name)
    drop_database(maintenance_conninfo, name)


@pytest.fixture
def connection(conninfo: str) -> Iterator[psycopg.Connection]:
    """A connection to the test's own database that commits every statement."""
    with psycopg.connect(conninfo, autocommit=True) as connection:
        yield connection
