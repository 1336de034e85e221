"""API keys: the service knows their hashes only, so whoever reads its settings cannot call it.

A key is 256 random bits, which nobody can guess; one SHA-256 without salt is enough for it, unlike for a password.
"""

import hashlib
import hmac
import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import regular_files
from pipeline.errors import ConfigError, MissingError
from serving.settings import HASH, Settings

if TYPE_CHECKING:
    from starlette.datastructures import Headers

CHECK_S = 1.0
"""Seconds between two looks at the file of keys."""

log = logging.getLogger(__name__)


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
    known = [bytes.fromhex(key) for key in settings.api_keys]
    return known + (_read(Path(settings.api_keys_file)) if settings.api_keys_file else [])


def _read(path: Path) -> list[bytes]:
    try:
        lines = regular_files.read(path).decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise MissingError(f"{path}: the hashes of API keys cannot be read ({error}); look at api_keys_file") from error
    known = []
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if not HASH.fullmatch(words[0]):
            raise ConfigError(f"{path}, line {number}: does not begin with a SHA-256 in hex; `relevance key` makes one")
        known.append(bytes.fromhex(words[0]))
    if not known:
        raise ConfigError(f"{path}: holds no hash, which would leave the service open; add one, or drop api_keys_file")
    return known


class KeyRing:
    """The hashes of the API keys; read again when the file of keys changes."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises MissingError or ConfigError, as `hashes` does."""
        self._settings, self._clock = settings, clock
        self._path = Path(settings.api_keys_file) if settings.api_keys_file else None
        self._lock = threading.Lock()
        self._version = self._stat()
        self._known = hashes(settings)
        self._fault = ""
        """Why the file could not be read at the last look."""
        self._next_check = clock() + CHECK_S

    def known(self) -> Sequence[bytes]:
        """The hashes of now. A file that became unreadable is logged, and the hashes of before stay valid."""
        if self._path is None or self._clock() < self._next_check:
            return self._known
        with self._lock:
            self._next_check = self._clock() + CHECK_S
            version = self._stat()
            if version != self._version or self._fault:
                self._version = version
                self._read_again()
        return self._known

    def _read_again(self) -> None:
        """Reads the keys; logs a fault once, and the next look tries again, as what was short may be there then."""
        try:
            self._known = hashes(self._settings)
        except (ConfigError, MissingError) as error:
            if str(error) != self._fault:
                log.error("%s; the API keys of before stay valid", error)
            self._fault = str(error)
        else:
            self._fault = ""
            log.info("%s: read again; %d API keys are valid", self._path, len(self._known))

    def _stat(self) -> tuple[int, int, int] | None:
        try:
            stat = self._path.stat() if self._path is not None else None
        except OSError:
            return None
        return (stat.st_mtime_ns, stat.st_size, stat.st_ino) if stat is not None else None


def candidates(headers: "Headers", *names: str) -> list[str]:
    """Every key that came with a request: as a bearer token, as the bare value of Authorization, or in a header of
    these names. Credentials of another scheme, such as Basic from a proxy, are no key and hide none."""
    keys = []
    for value in headers.getlist("authorization"):
        words = value.split()
        if len(words) == 1 and words[0].lower() != "bearer":
            keys.append(words[0])
        elif len(words) == 2 and words[0].lower() == "bearer":
            keys.append(words[1])
    keys += [value.strip() for name in names for value in headers.getlist(name)]
    return [key for key in keys if key]


def matches(key: str, known: Sequence[bytes]) -> bool:
    """Whether this is one of the keys; compares with each, so that the time does not tell which one was near."""
    mine = digest(key)
    return sum(hmac.compare_digest(mine, other) for other in known) > 0
