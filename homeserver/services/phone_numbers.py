"""Phone numbers as they are compared and sent to (Matrix appendices, "3PID Types")."""

import importlib
import re

from msgspec import Struct

from federation.protocol.errors import InvalidInput

MAX_LENGTH = 40
"""As people write them, with spaces and the like."""
_KINDS = frozenset(("FIXED_LINE", "MOBILE", "FIXED_LINE_OR_MOBILE", "VOIP"))
"""No others: what is sent to a number that costs extra earns money for who asked for it."""


class PhoneNumber(Struct, frozen=True):
    """One that there may be."""

    msisdn: str
    """Digits, beginning with the country's calling code."""
    country: str | None
    """Whose it is (ISO 3166-1), if one country's."""


def parse_phone(country: str | None, text: str) -> PhoneNumber:
    """The number that is reached by dialling `text` in a country, or anywhere if it begins with a plus.

    Raises M_INVALID_PARAM for what is none that a person can have.
    """
    library = importlib.import_module("phonenumbers")  # only where it is used: it takes 30 ms
    if country is not None and (not re.fullmatch(r"[A-Z]{2}", country) or country not in library.SUPPORTED_REGIONS):
        raise InvalidInput("country must be the two capital letters of a country")
    if len(text) > MAX_LENGTH:
        raise _wrong()
    try:
        number = library.parse(text, country)
    except library.NumberParseException:
        raise _wrong() from None
    kind = library.PhoneNumberType.to_string(library.number_type(number))
    if not library.is_valid_number(number) or number.extension or kind not in _KINDS:
        raise _wrong()
    msisdn = library.format_number(number, library.PhoneNumberFormat.E164).removeprefix("+")
    return PhoneNumber(msisdn, library.region_code_for_number(number))


def _wrong() -> InvalidInput:
    return InvalidInput("This is not a phone number")
