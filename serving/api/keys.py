"""API keys: the service knows their hashes only, so whoever reads its settings cannot call it.

A key is 256 random bits, which nobody can try out; one SHA-256 without salt is enough for it, unlike for a password.
"""

import hashlib
import hmac
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.errors import ConfigError, MissingError
from pipeline.text import read_text, split_lines
from serving.settings import HASH, Settings


def make() -> tuple[str, str]:
    """A new key for a client, and its hash for the settings."""
    key = secrets.token_urlsafe(32)
    return key, digest(key).hex()


def digest(key: str) -> bytes:
    """The SHA-256 of a key, 32 bytes."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def hashes(settings: Settings) -> list[bytes]:
    """The hashes of all keys that open the service; empty when it is open to all.

    Raises:
        MissingError: the settings name a file that cannot be read.
        ConfigError: a line of it does not begin with a hash, or none does.
    """
    found = [bytes.fromhex(key) for key in settings.api_keys]
    if not settings.api_keys_file:
        return found
    path = Path(settings.api_keys_file)
    try:
        lines = split_lines(read_text(path))
    except (OSError, UnicodeDecodeError) as error:
        raise MissingError(f"{path}: the hashes of API keys cannot be read ({error}); look at api_keys_file") from error
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if not HASH.fullmatch(words[0]):
            raise ConfigError(f"{path}, line {number}: does not begin with a SHA-256 in hex; `relevance key` makes one")
        found.append(bytes.fromhex(words[0]))
    if not found:
        raise ConfigError(f"{path}: holds no hash, which would leave the service open; add one, or drop api_keys_file")
    return found


def sent(headers: Mapping[str, str], *others: str) -> str:
    """The key that came with a request: as a bearer, bare, or in one of these other headers; empty without one."""
    found = next((value for name in ("authorization", *others) if (value := headers.get(name, ""))), "")
    return found.removeprefix("Bearer ").removeprefix("bearer ").strip()


def matches(sent: str, known: Sequence[bytes]) -> bool:
    """Whether this is one of the keys; compares with each, so that the time does not tell which one was near."""
    mine = digest(sent)
    return sum(hmac.compare_digest(mine, key) for key in known) > 0
