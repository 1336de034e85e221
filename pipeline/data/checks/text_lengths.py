"""Lengths of texts, in characters and estimated tokens, and the distribution of such numbers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

WORD_TOKENS = 1.3
"""Mean number of tokens that a trained vocabulary makes of a word, roughly."""

_CJK = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]"
_WORD = r"[^\s\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]+"


@dataclass(frozen=True, slots=True)
class Distribution:
    """Percentiles and mean of a quantity."""

    least: float
    median: float
    mean: float
    most_95: float
    """95th percentile."""
    most: float


def estimate_tokens(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Tokens of each text, (rows,) float, without a vocabulary: 1 for a CJK character, 1.3 for any other word."""
    single = pc.count_substring_regex(texts, _CJK)
    words = pc.count_substring_regex(texts, _WORD)
    return pc.add(pc.cast(single, pa.float64()), pc.multiply(pc.cast(words, pa.float64()), WORD_TOKENS))


def distribution(values: Any) -> Distribution | None:
    """The distribution of some numbers; None where there are none."""
    numbers = np.asarray(values, dtype=float)
    if not len(numbers):
        return None
    least, median, most_95, most = np.percentile(numbers, [0, 50, 95, 100])
    return Distribution(*(round(float(value), 2) for value in (least, median, numbers.mean(), most_95, most)))


def distributions(
    texts: Mapping[str, pa.ChunkedArray], measure: Callable[[pa.ChunkedArray], pa.ChunkedArray]
) -> dict[str, Distribution]:
    """The distribution of a measure over each kind of text; empty texts do not count.

    Args:
        texts: kind → its texts.
        measure: texts → a number for each.
    """
    known = {name: distribution(measure(column.filter(pc.not_equal(column, "")))) for name, column in texts.items()}
    return {name: value for name, value in known.items() if value}
