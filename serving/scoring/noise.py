"""Random letters, which show how near the encoder's nearest document is to a query that means nothing."""

import random
import string
from collections.abc import Sequence

import numpy as np

QUERIES = 32
SHARE = 0.95
"""Share of the queries of random letters whose nearest document lies below the level."""


def queries() -> list[str]:
    """QUERIES texts of one to four words of random letters, the same at each call."""
    rng = random.Random(0)
    return [
        " ".join("".join(rng.choices(string.ascii_lowercase, k=rng.randint(4, 9))) for _ in range(rng.randint(1, 4)))
        for _ in range(QUERIES)
    ]


def level(cosines: Sequence[float]) -> float:
    """The cosine below which SHARE of the nearest documents of random letters lie; 1 where there are none."""
    return float(np.quantile(cosines, SHARE)) if cosines else 1.0
