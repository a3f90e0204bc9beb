"""E-mail addresses as they are compared and written to (Matrix appendices, "3PID Types"; HTML, "valid e-mail
address")."""

import re

from federation.protocol.errors import InvalidInput

MAX_ADDRESS = 254
"""RFC 5321, "Path"."""
MAX_LOCAL_PART = 64

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_ADDRESS = re.compile(rf"([a-z0-9.!#$%&'*+/=?^_`{{|}}~-]+)@{_LABEL}(?:\.{_LABEL})*", re.ASCII)


def canonical_email(text: str) -> str:
    """The address in the form in which it is kept and compared; raises M_INVALID_PARAM for what is none.

    Only ASCII, as every mail server can take it; a domain of other letters is written as its own DNS does (`xn--`).
    """
    address = text.strip().casefold()
    match = _ADDRESS.fullmatch(address) if len(address) <= MAX_ADDRESS else None
    if match is None or len(match[1]) > MAX_LOCAL_PART:
        raise InvalidInput("This is not an e-mail address")
    return address
