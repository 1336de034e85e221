"""Augmented pairs: labelled training pairs whose texts were changed, without a grade, for the teacher to score.

    replace   words give way to others that may stand there       (TinyBERT, arXiv:1909.10351)
    drop      words are left out                                  (Tang et al. 2019, arXiv:1903.12136, who mask them)
    ngram     a part of the text stays                            (the same)

Every copy of a query's list has one changed query and its documents, each changed by one of these, drawn at random.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline import schema, text
from pipeline.artifacts import Artifact, Staging
from pipeline.config import CandidatesConfig
from pipeline.data import splits, unlabelled
from pipeline.errors import ConfigError
from pipeline.models import base_models, tokenizers
from pipeline.stage import Stage
from pipeline.training.tasks import word_replacement
from pipeline.training.tasks.word_replacement import WordReplacer, Words

STAGE = Stage(
    "pairs",
    version=1,
    inputs={"data": "data", "labelled": "pairs", "base": "pretrained"},
    section="candidates",
    title="augmented pairs",
)

SOURCE = "augmented"
"""Value of the column `source` in the added pairs."""

REPLACED, DROPPED = 0.4, 0.1
"""Share of a text's words that are replaced or dropped; at least one is. The papers' values."""

LEAST_PART = 0.25
"""The smallest part of a text that `ngram` leaves, in words. The paper leaves one to five words of a sentence; a
document of so few would be no document."""


@STAGE
def pairs(
    workspace: Path,
    config: CandidatesConfig,
    *,
    data: Artifact,
    labelled: Artifact,
    base: Artifact | str,
    max_query_tokens: int,
    max_tokens: int,
) -> Artifact:
    """A `pairs` artifact: the rows of `labelled` unchanged, then changed copies of its training pairs.

    pairs.parquet       the copies have the split "unlabelled", the grade -1 and the source "augmented"
    queries.parquet     query_id, text, asked: changed queries, and those that `labelled` has beside it
    documents.parquet   doc_id, title, text: changed documents

    There are `config.augmented` copies for each training pair: all lists once, in an order by hash, then a second time
    with other changes, and so on. A pair in which nothing could be changed is left out and counted in the metrics.

    Args:
        workspace: the folder that holds `artifacts/`.
        config: its `augmented`, `augmentation`, `max_list` and `seed` are used.
        data: documents and queries.
        labelled: graded pairs, perhaps with unlabelled ones.
        base: the model whose tokenizer splits words, and that knows what may take their place.
        max_query_tokens: number of a query's first tokens that are kept, as models read no more.
        max_tokens: number of a document's first tokens that are kept.

    Raises:
        MissingError: the base model cannot be had.
        ConfigError: no text could be changed.
    """
    start = base_models.StartingModel.of(base)
    settings = {name: getattr(config, name) for name in ("augmented", "augmentation", "max_list", "seed")}
    settings |= {"augmentation": list(config.augmentation)}
    settings |= {"max_query_tokens": max_query_tokens, "max_tokens": max_tokens}

    def build(staging: Staging) -> Mapping[str, Any]:
        table = schema.read(labelled.file("pairs.parquet"), "pairs")
        given = table.to_pandas()
        copies, wanted = _copies(config, given[given["split"] == "train"])
        with start.opened(staging) as folder:
            replacer = WordReplacer(folder)
        change = _Changes(config, replacer)
        queries = schema.read(data.file("queries.parquet"), "queries").to_pandas().set_index("query_id")["text"]
        documents = _document_texts(data)
        queries_of = change.texts(copies, "query_id", queries, min(max_query_tokens, replacer.room))
        documents_of = change.texts(copies, "doc_id", documents, min(max_tokens, replacer.room))
        same = (copies["query"].map(queries_of) == copies["query_id"].map(queries)) & (
            copies["document"].map(documents_of) == copies["doc_id"].map(documents)
        )
        copies = copies[~same]
        if wanted and copies.empty:
            raise ConfigError(
                f"candidates.augmented {config.augmented:g}: no training text has words that "
                f"{', '.join(config.augmentation)} could change; set it to 0"
            )
        _write(staging, table, labelled, copies, queries_of, documents_of)
        kinds = {f"texts by {name}": count for name, count in sorted(change.counts.items())}
        return {
            "labelled": len(table),
            "augmented": len(copies),
            "unchanged": int(same.sum()),
            "masked_lm": replacer.has_masked_head,
            **kinds,
        }

    inputs = {"data": data, "labelled": labelled, "base": start.input}
    return STAGE.make(workspace, config=settings, inputs=inputs, build=build)


def check(config: CandidatesConfig, tokenizer: Any) -> None:
    """Checks that a tokenizer tells the words of a text apart.

    Raises:
        ConfigError: it does not.
    """
    words = word_replacement.split(tokenizers.plain_tokenizer(tokenizer), ["one two three"], 64)[0]
    if config.augmented and len(words) != 3:
        raise ConfigError(
            f"candidates.augmented is {config.augmented:g}: the tokenizer of teacher.base does not split texts at "
            "spaces, so no word can be changed alone; set it to 0"
        )


def _copies(config: CandidatesConfig, train: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """The pairs to make and their wanted number; query_id and doc_id are the originals, query and document new ids."""
    wanted = round(config.augmented * len(train))
    order = {name: splits.share(config.seed, name, "augmented") for name in train["query_id"].unique()}
    lists = train[["query_id", "doc_id"]].assign(order=train["query_id"].map(order))
    lists = lists.sort_values(["order", "query_id"], kind="stable").drop(columns="order")
    part = (lists.groupby("query_id").cumcount() // config.max_list).astype(str)
    rounds = [
        lists.assign(
            round=number,
            query=f"{SOURCE}:{number}." + part + ":" + lists["query_id"],
            document=f"{SOURCE}:{number}:" + lists["doc_id"],
        )
        for number in range(math.ceil(config.augmented))
    ]
    return pd.concat(rounds).head(wanted).reset_index(drop=True), wanted


def _document_texts(data: Artifact) -> "pd.Series[str]":
    """The documents as models read them, by id."""
    table = schema.read(data.file("documents.parquet"), "documents").to_pandas().set_index("doc_id")
    joined = [text.document_text(title, body) for title, body in zip(table["title"], table["text"], strict=True)]
    return pd.Series(joined, index=table.index)


class _Changes:
    """Changes texts, each by a generator of its own, so that no text's change depends on the others."""

    def __init__(self, config: CandidatesConfig, replacer: WordReplacer) -> None:
        self._config, self._replacer = config, replacer
        self.counts: Counter[str] = Counter()
        """Kind of change → number of texts for which it was drawn."""

    def texts(self, copies: pd.DataFrame, key: str, known: "pd.Series[str]", max_tokens: int) -> dict[str, str]:
        """New id → changed text, of all queries or documents.

        Args:
            copies: the pairs to make.
            key: query_id or doc_id.
            known: id → text.
            max_tokens: the part of a text that is kept.
        """
        new = {"query_id": "query", "doc_id": "document"}[key]
        rows = copies.drop_duplicates(new)
        words = word_replacement.split(self._replacer.tokenizer, rows[key].map(known).tolist(), max_tokens)
        names = rows[new].tolist()
        generators = [_generator(self._config.seed, name) for name in names]
        kinds = [rng.choice(self._config.augmentation) for rng in generators]
        self.counts.update(kinds)
        choices = [
            _chosen(rng, each, REPLACED) if kind == "replace" else []
            for rng, each, kind in zip(generators, words, kinds, strict=True)
        ]
        options = self._replacer.alternatives(words, choices)
        changed = {}
        for name, rng, each, kind, choice, lists in zip(names, generators, words, kinds, choices, options, strict=True):
            if kind == "replace":
                changed[name] = _replaced(rng, each, choice, lists)
            else:
                changed[name] = {"drop": _dropped, "ngram": _part}[kind](rng, each)
        return changed


def _generator(seed: int, name: str) -> np.random.Generator:
    digest = hashlib.blake2b(f"{seed}\x00{name}".encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest))


def _chosen(rng: np.random.Generator, words: Words, share: float) -> list[int]:
    """Draws each word with probability `share`, and at least one where there is any; returns their numbers."""
    able = [number for number in range(len(words)) if words.is_word(number)]
    if not able:
        return []
    drawn = [number for number, fate in zip(able, rng.random(len(able)), strict=True) if fate < share]
    return drawn or [int(rng.choice(able))]


def _replaced(rng: np.random.Generator, words: Words, choice: Sequence[int], options: Sequence[Sequence[str]]) -> str:
    """The text with one of its alternatives in place of each chosen word."""
    new: list[str | None] = [None] * len(words)
    for number, listed in zip(choice, options, strict=True):
        if listed:
            new[number] = listed[int(rng.integers(len(listed)))]
    return words.with_words(new) if len(words) else words.text


def _dropped(rng: np.random.Generator, words: Words) -> str:
    """The text without some of its words; at least one word is kept."""
    chosen = _chosen(rng, words, DROPPED)
    able = sum(words.is_word(number) for number in range(len(words)))
    gone = set(chosen[: able - 1])
    return words.with_words(["" if number in gone else None for number in range(len(words))]) if gone else words.text


def _part(rng: np.random.Generator, words: Words) -> str:
    """Some words in a row: from a quarter of the text to all but one."""
    if len(words) < 2:
        return words.text
    count = int(rng.integers(max(1, math.ceil(LEAST_PART * len(words))), len(words)))
    begin = int(rng.integers(len(words) - count + 1))
    part = words.part(begin, count)
    return part if any(letter.isalnum() for letter in part) else words.text


def _write(
    staging: Staging,
    table: pa.Table,
    labelled: Artifact,
    copies: pd.DataFrame,
    queries_of: Mapping[str, str],
    documents_of: Mapping[str, str],
) -> None:
    """Writes the three tables."""
    extended = unlabelled.with_ungraded(table, copies["query"].tolist(), copies["document"].tolist(), SOURCE)
    schema.write(extended, staging.folder / "pairs.parquet", "pairs")
    lists = copies[["query", "query_id"]].drop_duplicates("query")
    columns: dict[str, list[str]] = {
        "query_id": lists["query"].tolist(),
        "text": [queries_of[name] for name in lists["query"]],
        "asked": lists["query_id"].tolist(),
    }
    queries = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    if "queries.parquet" in labelled.manifest.files:
        before = schema.read(labelled.file("queries.parquet"), "queries").select(queries.column_names)
        queries = pa.concat_tables([before.cast(queries.schema), queries])
    schema.write(queries, staging.folder / "queries.parquet", "queries")
    names = copies["document"].drop_duplicates().tolist()
    documents = pa.table(
        {
            "doc_id": pa.array(names, pa.string()),
            "title": pa.array([""] * len(names), pa.string()),
            "text": pa.array([documents_of[name] for name in names], pa.string()),
        }
    )
    schema.write(documents, staging.folder / "documents.parquet", "documents")
