"""Passwords: hashed with Argon2id beside the event loop, a few at a time."""

import asyncio

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from federation.protocol.errors import InvalidInput
from storage.places import Places

MAX_LENGTH = 512
"""Longer ones are refused: hashing must not be a way to keep the server busy."""


class Passwords:
    """Hashes and verifies; what it costs does not tell whether an account exists."""

    def __init__(self, *, minimum_length: int, hash_kib: int, hash_passes: int, at_once: int = 2) -> None:
        self._hasher = PasswordHasher(time_cost=hash_passes, memory_cost=hash_kib, parallelism=1)
        self._minimum_length = minimum_length
        self.places = Places("passwords", at_once)
        self._nobodys_hash: str | None = None

    def check_new(self, password: object) -> str:
        """The password, if it may be one; raises M_WEAK_PASSWORD, M_INVALID_PARAM or M_MISSING_PARAM."""
        if password is None:
            raise InvalidInput("A password is required", "M_MISSING_PARAM")
        if not isinstance(password, str):
            raise InvalidInput("The password must be a string")
        if len(password) > MAX_LENGTH:
            raise InvalidInput(f"The password is longer than {MAX_LENGTH} characters")
        if len(password) < self._minimum_length:
            raise InvalidInput(f"The password needs at least {self._minimum_length} characters", "M_WEAK_PASSWORD")
        return password

    async def hash(self, password: str) -> str:
        """The form in which a password is stored."""
        async with self.places:
            return await asyncio.to_thread(self._hasher.hash, password)

    def is_outdated(self, password_hash: str) -> bool:
        """Whether a new hash of the same password would cost something else to guess."""
        return self._hasher.check_needs_rehash(password_hash)

    async def verify(self, password_hash: str | None, password: str) -> bool:
        """Whether the password is the right one; takes its time also where there is none to compare with."""
        if len(password) > MAX_LENGTH:
            return False
        if password_hash is None:
            if self._nobodys_hash is None:
                self._nobodys_hash = await self.hash("nobody's password")
            await self._verify(self._nobodys_hash, password)
            return False
        return await self._verify(password_hash, password)

    async def _verify(self, password_hash: str, password: str) -> bool:
        async with self.places:
            try:
                return await asyncio.to_thread(self._hasher.verify, password_hash, password)
            except (VerificationError, InvalidHashError):
                return False
