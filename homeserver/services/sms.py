"""SMS to users, handed to the operator's gateway (`outgoing_messages.py` says when): a POST of
`{"to": "+4915112345678", "text": "..."}` each. What a gateway answers is judged by its status alone.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import orjson

from federation.outbound.egress import Egress, EgressError, EgressRequest
from homeserver.services.outgoing_messages import Done, Outcome, OutgoingMessages
from storage.database import Database, Tx
from storage.figures import Figures
from storage.outgoing_messages import Channel, WaitingMessage

logger = logging.getLogger(__name__)

SECONDS = 10.0
"""For each; a turn has time for as many as are taken at once."""
_LATER = frozenset((408, 429))
"""Statuses of 400 to 499 that say nothing of the message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SMSGateway:
    """Who takes our SMS."""

    url: str
    token: str | None = field(repr=False)
    allowed_countries: frozenset[str]
    """To whose numbers any are sent; empty: to all."""


class SMSSender:
    """Takes SMS, and sends them; `egress` goes to any address, since the operator names the gateway."""

    def __init__(self, database: Database, egress: Egress, gateway: SMSGateway | None) -> None:
        self._egress = egress
        self._gateway = gateway
        self._queue = OutgoingMessages(database, Channel.SMS, self._send)

    @property
    def is_enabled(self) -> bool:
        """Whether there is a gateway."""
        return self._gateway is not None

    def reaches(self, country: str | None) -> bool:
        """Whether the operator lets SMS be sent to this country's numbers."""
        allowed = self._known_gateway().allowed_countries
        return not allowed or country in allowed

    def figures(self) -> Figures:
        """For `homeserver.metrics`."""
        return self._queue.figures()

    async def put(self, tx: Tx, number: str, text: str, *, lifetime_ms: int) -> None:
        """Have it sent once the transaction is committed; `wake` after that, so that it is sent at once."""
        await self._queue.put(tx, number, text.encode(), lifetime_ms=lifetime_ms)

    def wake(self) -> None:
        """Send what is due."""
        self._queue.wake()

    async def run(self) -> None:
        """Send what is due until cancelled."""
        await self._queue.run()

    def _known_gateway(self) -> SMSGateway:
        if self._gateway is None:
            raise RuntimeError("there is no SMS gateway")
        return self._gateway

    async def _send(self, due: Sequence[WaitingMessage], done: Done) -> None:
        gateway = self._known_gateway()
        for each in due:
            try:
                status = await self._post(gateway, each)
            except EgressError as error:
                logger.warning("the SMS gateway takes no SMS: %s", error)
                return  # nor would it take the others now
            if 200 <= status < 300:
                done[each.message] = Outcome.SENT
                continue
            logger.warning("SMS %s was refused: the gateway answered %s", each.message, status)
            if 400 <= status < 500 and status not in _LATER:
                done[each.message] = Outcome.REFUSED

    async def _post(self, gateway: SMSGateway, each: WaitingMessage) -> int:
        headers = {"Content-Type": "application/json"}
        if gateway.token is not None:
            headers["Authorization"] = f"Bearer {gateway.token}"
        request = EgressRequest(
            method="POST",
            url=gateway.url,
            headers=headers,
            body=orjson.dumps({"to": f"+{each.recipient}", "text": each.content.decode()}),
            max_bytes=0,  # its body is not read
            timeout=SECONDS,
            allows_http=True,  # to this machine alone, as `config.py` sees to
        )
        async with self._egress.stream(request) as answer:
            return answer.status
