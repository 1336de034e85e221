"""The caches of a process, and the bytes that scores and vectors are in a cache which processes share."""

import math
import struct
from dataclasses import dataclass

import numpy as np

from serving.scoring.cache import Cache
from serving.scoring.embedder import Vector
from serving.scoring.redis_cache import SharedCache, Tier


@dataclass(frozen=True, slots=True)
class Caches:
    """The caches of a process; releases share them, as keys name the model."""

    scores: Cache[float]
    vectors: Cache[Vector]
    token_bytes: int
    """Bytes for the token ids of texts that each loaded model keeps."""

    @classmethod
    def of(cls, max_bytes: int, shared: SharedCache | None = None) -> "Caches":
        """Three quarters for scores, which cost most to make again, the rest for vectors; and a sixteenth beside, for
        each model's token ids.

        Args:
            shared: looked at before anything is computed.
        """
        share = max_bytes // 4
        scores = Tier(shared, _packed_score, _unpacked_score) if shared else None
        vectors = Tier(shared, _packed_vector, _unpacked_vector) if shared else None
        return cls(
            Cache(max_bytes - share, lambda _: 24, scores),
            Cache(share, lambda vector: vector.nbytes + 112, vectors),
            max_bytes // 16,
        )


def _packed_score(score: float) -> bytes:
    return struct.pack("<d", score)


def _unpacked_score(held: bytes) -> float | None:
    if len(held) != 8:
        return None
    (score,) = struct.unpack("<d", held)
    return score if math.isfinite(score) else None


def _packed_vector(vector: Vector) -> bytes:
    return vector.astype("<f4").tobytes()


def _unpacked_vector(held: bytes) -> Vector | None:
    if not held or len(held) % 4:
        return None
    vector = np.frombuffer(held, "<f4").astype(np.float32)
    vector.flags.writeable = False
    return vector if np.isfinite(vector).all() else None
