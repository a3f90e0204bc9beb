"""What mail to users says, as text and as HTML. Pure."""

import html

from msgspec import Struct

from homeserver.services.mail import Mail
from storage.identifier_validations import Purpose


class _Words(Struct, frozen=True, kw_only=True):
    subject: str
    lines: tuple[str, ...]
    button: str = ""


_PROOFS = {
    Purpose.REGISTER: _Words(
        subject="Confirm your e-mail address for {server}",
        lines=("Somebody, probably you, registers an account at {server} with this e-mail address.",),
        button="Confirm the address",
    ),
    Purpose.ADD: _Words(
        subject="Confirm your e-mail address for {server}",
        lines=("Somebody, probably you, adds this e-mail address to an account at {server}.",),
        button="Confirm the address",
    ),
    Purpose.RESET_PASSWORD: _Words(
        subject="Reset your password at {server}",
        lines=("Somebody, probably you, wants to set a new password for your account at {server}.",),
        button="Allow a new password",
    ),
}
_IGNORE = "If it was not you, ignore this message: nothing happens then."

_IN_USE = _Words(
    subject="You already have an account at {server}",
    lines=(
        "Somebody, probably you, wanted to use this e-mail address for an account at {server}.",
        "There is an account with this address already: log in with it, or reset its password.",
    ),
)
_NO_ACCOUNT = _Words(
    subject="No account at {server}",
    lines=(
        "Somebody, probably you, wanted to set a new password at {server}.",
        "There is no account with this e-mail address. Perhaps you used another one.",
    ),
)


def proof(purpose: Purpose, recipient: str, *, server: str, link: str, lifetime_ms: int) -> Mail:
    """A link that proves that whoever follows it reads this mail."""
    words = _PROOFS[purpose]
    minutes = max(1, lifetime_ms // 60_000)
    lines = (*words.lines, f"The link is good for {minutes} minutes. {_IGNORE}")
    return _mail(recipient, words.subject, lines, server=server, link=(words.button, link), lifetime_ms=lifetime_ms)


def in_use(recipient: str, *, server: str, lifetime_ms: int) -> Mail:
    """The address cannot be given to another account: told to its owner, and not to who asked."""
    return _mail(recipient, _IN_USE.subject, (*_IN_USE.lines, _IGNORE), server=server, lifetime_ms=lifetime_ms)


def no_account(recipient: str, *, server: str, lifetime_ms: int) -> Mail:
    """There is no password to reset."""
    return _mail(recipient, _NO_ACCOUNT.subject, (*_NO_ACCOUNT.lines, _IGNORE), server=server, lifetime_ms=lifetime_ms)


def _mail(
    recipient: str,
    subject: str,
    lines: tuple[str, ...],
    *,
    server: str,
    lifetime_ms: int,
    link: tuple[str, str] | None = None,
) -> Mail:
    said = [line.format(server=server) for line in lines]
    paragraphs = [f"<p>{html.escape(line)}</p>" for line in said]
    if link is not None:
        button, url = link
        said.insert(1, f"{button}: {url}")
        paragraphs.insert(1, f'<p><a href="{html.escape(url)}">{html.escape(button)}</a></p>')
    title = html.escape(subject.format(server=server))
    return Mail(
        recipient=recipient,
        subject=subject.format(server=server),
        text="\n\n".join(said) + "\n",
        html=f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>'
        f'<body style="font:16px/1.5 sans-serif">{"".join(paragraphs)}</body></html>',
        lifetime_ms=lifetime_ms,
    )
