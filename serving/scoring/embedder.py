"""Vectors of texts, through the cache and the encoder's engine."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import text
from serving.runtime.admission import RequestOptions
from serving.runtime.items import Item
from serving.scoring.cache import Cache, Fetched, Key
from serving.scoring.scoring_engine import Encoder, Role, computed

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Embedder:
    """Unit vectors of texts."""

    engine: Encoder
    cache: Cache[Vector]

    def vectors(self, texts: Sequence[str], role: Role, options: RequestOptions) -> Fetched[Vector]:
        """One vector (dimensions,) a text, in their order; shared with the cache, so not writable.

        Raises:
            BusyError: what is not cached cannot be embedded before the deadline.
            InferenceError: the model failed on a text.
            DeadlineError: the deadline has passed.
            ClientGoneError: the client has closed the connection.
        """
        texts = [text.clean(item) for item in texts]
        key = Key("vector", self.engine.identity, role)

        def inputs(numbers: list[int]) -> list[Item]:
            chosen = [texts[number] for number in numbers]
            return self.engine.texts(chosen, role, remember=options.remember, check=options.deadline.check)

        def compute(numbers: list[int]) -> Iterator[tuple[int, Any]]:
            for number, outcome in computed(self.engine, numbers, inputs, (role + " {}").format, options, eager=True):
                if not isinstance(outcome, Exception):
                    outcome.flags.writeable = False
                yield number, outcome

        return self.cache.fetch([key.of(item) for item in texts], compute, options)
