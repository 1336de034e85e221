"""Short natural texts that a page offers as queries to try: judged queries that are answered well, or titles."""

import hashlib
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pipeline.artifacts import Artifact

if TYPE_CHECKING:
    import pandas as pd

COUNT = 6
"""Number of texts that are offered."""
MAX_CHARS = 45
"""Greatest number of characters of an offered text."""
_WORDS = range(2, 8)
_IDEOGRAPHS = range(3, 16)
_IDEOGRAPH = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_NATURAL = re.compile(r"[^\W\d_][\w'’-]*")


def is_natural(text: str) -> bool:
    """Whether a text reads like a query that a person types: two to seven words, or three to fifteen ideographs."""
    if len(text) > MAX_CHARS or "\n" in text:
        return False
    ideographs = len(_IDEOGRAPH.findall(text))
    if ideographs:
        return ideographs in _IDEOGRAPHS
    words = text.rstrip(".?!").replace(",", " ").split()
    return len(words) in _WORDS and all(_NATURAL.fullmatch(word) for word in words)


def chosen(texts: Iterable[str], count: int = COUNT) -> list[str]:
    """The first natural texts in the order of their hashes, `count` at most; a repeated one counts once."""
    natural = {" ".join(text.split()) for text in texts}
    fitting = [text for text in natural if is_natural(text)]
    return sorted(fitting, key=lambda text: hashlib.sha256(text.encode()).digest())[:count]


def of_report(data: Artifact, values: "pd.Series") -> list[str]:
    """Judged queries to try, from the half that a system answers best.

    Args:
        data: artifact with the texts of the queries.
        values: the system's headline measure of each query, indexed by query_id.
    """
    from pipeline import schema

    answered = values[(values > 0) & (values >= values.median())]
    table = schema.read(data.file("queries.parquet"), "queries")
    rows = zip(table["query_id"].to_pylist(), table["text"].to_pylist(), strict=True)
    return chosen(text for query_id, text in rows if query_id in answered.index)
