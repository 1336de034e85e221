"""Random draws that decide which requests a trial gets, and that no client can steer.

A client chooses its request id. If it could tell which ids reach a canary, it could send that one what makes it fail,
and so decide about a release. The draws depend on a secret of the process, and each id counts only once.
"""

import hashlib
import secrets
import threading

from cachetools import LRUCache

from serving.rollout.trials import Trial

DECIDED_IDS = 100_000
"""Request ids that are remembered, so that each counts once."""


class Lottery:
    """The draws of one process; safe to use from many threads."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(16)
        self._lock = threading.Lock()
        self._decided: LRUCache[str, None] = LRUCache(DECIDED_IDS)

    def draw(self, trial: Trial, request_id: str, *purpose: str) -> float:
        """A number in [0, 1) that depends on nothing but this process, the trial and the request's id."""
        words = "\0".join((trial.release, str(trial.number), request_id, *purpose))
        digest = hashlib.blake2b(words.encode(), digest_size=8, key=self._secret).digest()
        return int.from_bytes(digest, "big") / 2**64

    def first(self, request_id: str) -> bool:
        """Whether no request of this id has counted for a decision yet; counts it.

        Whoever sends an id again knows from the first answer which release it reaches.
        """
        with self._lock:
            first = request_id not in self._decided
            self._decided[request_id] = None
        return first
