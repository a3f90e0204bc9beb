"""Which release of this software runs."""

from importlib.metadata import PackageNotFoundError, version


def number() -> str:
    """As it was installed."""
    try:
        return version("hearth")
    except PackageNotFoundError:
        return "not installed"
