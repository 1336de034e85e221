"""The split of each query (train, valid or test), cut by a hash of its normalised text.

Equal queries are always in one split, whatever set they come from, and a query keeps its split when others are added.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline import text
from pipeline.config import DataConfig
from pipeline.errors import SchemaError
from pipeline.schema import SPLITS
from pipeline.text import counted

CUT = "cut"
"""The label of a published train query of a set without a valid split: some of these queries become valid ones."""

_EXAMPLES = 3


def share(seed: int, value: str, purpose: str = "") -> float:
    """A number in [0, 1) that depends on these arguments alone, so that it is the same in every run."""
    digest = hashlib.blake2b(f"{seed}\x00{purpose}\x00{value}".encode(), digest_size=8)
    return int.from_bytes(digest.digest()) / 2**64


def hashed(normalised: str, config: DataConfig) -> str:
    """The split of a query whose text is normalised."""
    number = share(config.seed, normalised)
    if number < config.test_share:
        return "test"
    return "valid" if number < config.test_share + config.valid_share else "train"


def labels(published: Sequence[str | None]) -> list[str | None]:
    """The label of each query by one set's published splits: train, valid, test, `CUT`, or None to cut by hash.

    published          train   valid   test
    train valid test   train   valid   test
    train valid        CUT     test
    train test         CUT             test
    valid test                 CUT     test
    valid or test              test    test
    train or nothing   None
    """
    have = {split for split in published if split is not None}
    if not have & {"valid", "test"}:
        return [None] * len(published)
    meaning: dict[str | None, str] = {"train": "train", "valid": "valid", "test": "test"}
    if "test" not in have:
        meaning["valid"] = "test"
    elif "train" not in have:
        meaning["valid"] = CUT
    if "valid" not in {meaning[split] for split in have}:
        meaning["train"] = CUT
    return [meaning.get(split) for split in published]


def guard(texts: Sequence[str], splits: Sequence[str | None], where: str) -> None:
    """Checks that no query, normalised, stands in two splits.

    Args:
        texts: (rows,) the query of each judgment.
        splits: (rows,) the split of each judgment; None counts in no split, and `CUT` as train.

    Raises:
        SchemaError: names examples.
    """
    groups, queries = _groups(texts)
    both = _present(groups, splits, len(queries))
    leaked = np.flatnonzero(both.sum(axis=1) > 1)
    if len(leaked):
        examples = "; ".join(
            f"'{queries[group][:60]}' in {' and '.join(np.array(SPLITS)[both[group]])}" for group in leaked[:_EXAMPLES]
        )
        raise SchemaError(
            f"{where}: {counted(len(leaked), 'query', 'stand')} in more than one split ({examples}); use "
            'data.splits = "hash", which cuts anew by query'
        )


def assign(texts: Sequence[str], published: Sequence[str | None], config: DataConfig) -> list[str]:
    """The split of each judgment, (rows,).

    Args:
        texts: (rows,) the query of each judgment.
        published: (rows,) from `labels`; looked at only when `config.splits` is source.

    Raises:
        SchemaError: a query would stand in two splits.
    """
    if config.splits == "test":
        return ["test"] * len(texts)
    groups, queries = _groups(texts)
    chosen = [hashed(query, config) for query in queries]
    if config.splits == "valid":
        chosen = ["test" if split == "test" else "valid" for split in chosen]
    if config.splits == "source":
        guard(texts, published, "published splits")
        present = _present(groups, published, len(queries))
        to_cut = np.zeros(len(queries), dtype=bool)
        to_cut[groups[np.array([label == CUT for label in published], dtype=bool)]] = True
        for group in np.flatnonzero(present.any(axis=1)):
            chosen[group] = SPLITS[int(present[group].argmax())]
            if to_cut[group] and share(config.seed, queries[group]) < config.valid_share:
                chosen[group] = "valid"
    return [chosen[group] for group in groups]


def sample(texts: Sequence[str], ids: Sequence[str], limit: int, seed: int) -> set[str]:
    """The ids of at most `limit` queries, those of lowest hash, so that added queries change the choice little.

    Args:
        texts: (queries,) in any order.
        ids: (queries,) in the order of `texts`.
        limit: 0 for all.
    """
    if not limit or len(ids) <= limit:
        return set(ids)
    hashes = ((share(seed, text.normalise(query), "limit"), name) for query, name in zip(texts, ids, strict=True))
    return {name for _, name in sorted(hashes)[:limit]}


def shared(texts: Sequence[str], splits: Sequence[str | None]) -> list[tuple[str, tuple[str, ...]]]:
    """(normalised query, its splits) of each query that stands in more than one."""
    groups, queries = _groups(texts)
    present = _present(groups, splits, len(queries))
    names = np.array(SPLITS)
    return [(queries[group], tuple(names[present[group]])) for group in np.flatnonzero(present.sum(axis=1) > 1)]


def _groups(texts: Sequence[str]) -> tuple[npt.NDArray[np.int64], list[str]]:
    """The group of each row (rows,), and each group's normalised query."""
    codes, unique = pd.factorize(np.array(texts, dtype=object))
    folded, queries = pd.factorize(np.array([text.normalise(query) for query in unique], dtype=object))
    return (folded[codes] if len(codes) else np.zeros(0, np.int64)), [str(query) for query in queries]


def _present(groups: npt.NDArray[np.int64], splits: Sequence[str | None], count: int) -> npt.NDArray[np.bool_]:
    """Whether a group of equal queries has rows of a split, (groups, splits)."""
    present = np.zeros((count, len(SPLITS)), dtype=bool)
    column_of = {split: column for column, split in enumerate(SPLITS)} | {CUT: 0, None: -1}
    columns = np.array([column_of[split] for split in splits], dtype=np.int64)
    known = columns >= 0
    present[groups[known], columns[known]] = True
    return present
