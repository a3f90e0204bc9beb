"""A captcha, as Google's reCAPTCHA 2 and what is made like it check it (Client-Server API, "Google ReCaptcha")."""

import logging
from dataclasses import dataclass, field
from urllib.parse import urlencode

from federation.outbound.egress import Egress, EgressError, EgressRequest
from federation.protocol import canonical_json
from federation.protocol.errors import InvalidInput, MatrixError, Unavailable

logger = logging.getLogger(__name__)

MAX_RESPONSE = 8192
MAX_BYTES = 64 * 1024
SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptchaKeys:
    """Of the operator with who makes the captcha."""

    site_key: str
    secret: str = field(repr=False)
    verify_url: str


class Captcha:
    """Asks whether somebody has solved it."""

    def __init__(self, egress: Egress, keys: CaptchaKeys) -> None:
        self._egress = egress
        self._keys = keys

    @property
    def site_key(self) -> str:
        """What a client needs to show it."""
        return self._keys.site_key

    async def check(self, response: str, address: str) -> None:
        """Raise M_CAPTCHA_NEEDED without a response, M_CAPTCHA_INVALID for a wrong one."""
        if not response:
            raise InvalidInput("The captcha is yet to be solved", "M_CAPTCHA_NEEDED")
        if len(response) > MAX_RESPONSE:
            raise _wrong()
        form = {"secret": self._keys.secret, "response": response, "remoteip": address}
        request = EgressRequest(
            method="POST",
            url=self._keys.verify_url,
            headers={"Content-Type": "application/x-www-form-urlencoded"},
            body=urlencode(form, errors="replace").encode(),
            max_bytes=MAX_BYTES,
            timeout=SECONDS,
        )
        try:
            answer = await self._egress.fetch(request)
            found = canonical_json.loads(answer.body)
        except (EgressError, InvalidInput) as error:
            logger.warning("the captcha cannot be checked: %s", error)
            raise Unavailable("The captcha cannot be checked now") from None
        if not isinstance(found, dict) or found.get("success") is not True:
            raise _wrong()


def _wrong() -> MatrixError:
    return MatrixError("M_CAPTCHA_INVALID", "The captcha was not solved", 401)
