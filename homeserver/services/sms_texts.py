"""What SMS to users say. Pure, and of letters that each fit into seven bits, so that most fit into one SMS."""

from storage.identifier_validations import Purpose

_PURPOSES = {
    Purpose.REGISTER: "registers an account at {server} with this number",
    Purpose.ADD: "adds this number to an account at {server}",
    Purpose.RESET_PASSWORD: "sets a new password at {server}",
}
_IN_USE = "You already have an account at {server} with this number: log in with it, or reset its password."
_NO_ACCOUNT = "There is no account at {server} with this number, so there is no password to reset."


def code(purpose: Purpose, digits: str, *, server: str, lifetime_ms: int) -> str:
    """A code that proves that whoever enters it reads this."""
    minutes = max(1, lifetime_ms // 60_000)
    return f"{digits} {_PURPOSES[purpose].format(server=server)}. Good for {minutes} minutes. Tell it to nobody."


def in_use(*, server: str) -> str:
    """The number cannot be given to another account: told to its owner, and not to who asked."""
    return _IN_USE.format(server=server)


def no_account(*, server: str) -> str:
    """There is no password to reset."""
    return _NO_ACCOUNT.format(server=server)
