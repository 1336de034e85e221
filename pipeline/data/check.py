"""A description of judged data before training: its size, its distributions, and the rows that cannot be used."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import DataConfig, GateConfig, SourceConfig
from pipeline.data import judgments, sources, splits, validation
from pipeline.data.formats.text_files import STRING
from pipeline.data.sources import Source
from pipeline.data.validation import ValidatedTables
from pipeline.schema import SPLITS, InvalidRow
from pipeline.secrets import hide_passwords
from pipeline.text import counted, normalise

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

EXAMPLES = 3
"""Examples shown of each notice."""

SHOWN_FAULTS = 20
"""Unusable rows that `render` lists; `to_dict` has all."""

LONG_QUERY_TOKENS = 64

WORD_TOKENS = 1.3
"""Mean number of tokens that a trained vocabulary makes of a word, roughly."""

_CJK = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]"
_WORD = r"[^\s\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]+"
_SUSPICIOUS = {
    "no letters": r"^[^\p{L}]*$",
    "markup": r"<[A-Za-z/!][^>]*>|&(?:[A-Za-z]+|#[0-9]+);",
    "a web address": r"(?i)^\s*(?:https?://|www\.)",
    "control characters": r"[\x01-\x08\x0b\x0c\x0e-\x1f\x7f]",
    "characters lost in a conversion": "\N{REPLACEMENT CHARACTER}",
}


@dataclass(frozen=True, slots=True)
class Distribution:
    """Percentiles and mean of a quantity."""

    least: float
    median: float
    mean: float
    most_95: float
    """95th percentile."""
    most: float


@dataclass(frozen=True, slots=True)
class Notice:
    """An oddity that does not prevent training: how often it occurs, and examples."""

    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class DataReport:
    """A description of judged data."""

    path: str
    format: str
    documents: int
    queries: int
    judged_queries: int
    judgments: int
    """Judgments as read; `faults` has those that cannot be used, and all figures below are without them."""
    grades: Mapping[str, int]
    """Grade → judgments."""
    splits: Mapping[str, Mapping[str, int]]
    """Published split (none if there is none) → queries and judgments."""
    list_lengths: Distribution | None
    """Number of judged documents of a judged query."""
    one_grade_queries: int
    """Queries all of whose documents have the same grade: no order of them is better than another."""
    characters: Mapping[str, Distribution]
    """Characters of the queries, titles and texts that are not empty."""
    tokens: Mapping[str, Distribution]
    """Tokens of the same texts, estimated: a Chinese, Japanese or Korean character is 1, any other word 1.3."""
    noticed: Mapping[str, Notice]
    """Oddity → how often it occurs, and examples."""
    dropped: Mapping[str, Mapping[str, int]]
    """Table → kind of fault → rows."""
    faults: tuple[InvalidRow, ...]
    """Rows that cannot be used, each with its reason."""
    conflicts: int = 0
    """Number of rows in `faults` that are there for another grade of their pair, which a recipe may merge."""
    advice: str = ""
    """Advice on mending the rows in `faults`; empty where their reasons say all."""
    clicks: tuple[Mapping[str, Any], ...] = ()
    """Figures that the judgments of each click log rest on; see `weak_judgments.ClickJudgments`."""

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return asdict(self) | {"faults": [fault.to_dict() for fault in self.faults]}


def examine(path: Path | str, format: str = "auto", columns: Mapping[str, str] | None = None) -> DataReport:
    """Reads one source and describes it; see `examine_all`.

    Args:
        columns: the map of a table's columns; see `SourceConfig.columns`.
    """
    return examine_all([SourceConfig(path=str(path), format=format, columns=columns or {})], Path())[0]


def examine_all(
    configs: Sequence[SourceConfig], root: Path, read: Callable[[SourceConfig, Path], Source] = sources.read
) -> list[DataReport]:
    """Reads sources and describes each collection; sources of one name are one collection, as in a recipe.

    Args:
        configs: the sources.
        root: the folder that their paths are relative to.
        read: reads one of them; see `short_logs.read` for one that takes short click logs.

    Raises:
        MissingError: nothing of that format at a path.
        SchemaError: a file that cannot be read at all; see `sources.read`.
    """
    collections = [read(config, root) for config in configs]
    paths: dict[str, list[str]] = {}
    for config, source in zip(configs, collections, strict=True):
        paths.setdefault(source.name, []).append(config.path)
    return [describe(source, " + ".join(paths[source.name])) for source in judgments.by_name(collections)]


def describe(source: Source, path: str) -> DataReport:
    """The description of a source as read; grades in conflict are faults too."""
    sifted = validation.sift(source)
    conflicts = validation.conflicts(source, sifted.findings)
    usable = ValidatedTables(
        sifted.documents, sifted.queries, sifted.judgments, (*sifted.findings, *conflicts), sifted.repeated
    )
    rows = usable.judgments.select(["query_id", "doc_id", "grade"]).to_pandas()
    published = pd.Series(judgments.published(usable.judgments), dtype=object).fillna("none")
    by_query = rows.groupby("query_id")["grade"]
    texts = {
        "query": usable.queries["text"],
        "title": usable.documents["title"],
        "text": usable.documents["text"],
    }
    return DataReport(
        path=hide_passwords(path),
        format=source.format,
        documents=source.documents.num_rows,
        queries=source.queries.num_rows,
        judged_queries=int(rows["query_id"].nunique()),
        judgments=source.judgments.num_rows,
        grades={str(grade): int(count) for grade, count in rows["grade"].value_counts().sort_index().items()},
        splits={
            split: {"queries": int(part["query_id"].nunique()), "judgments": len(part)}
            for split in (*SPLITS, "none")
            if len(part := rows[(published == split).to_numpy()])
        },
        list_lengths=distribution(by_query.size().to_numpy()),
        one_grade_queries=int((by_query.nunique() == 1).sum()),
        characters=_distributions(texts, pc.utf8_length),
        tokens=_distributions(texts, estimate_tokens),
        noticed=_notice(usable, rows),
        dropped=usable.counts(),
        faults=tuple(finding.fault for finding in usable.findings),
        conflicts=len(conflicts),
        advice=source.advice,
        clicks=source.clicks,
    )


def hint(reports: Sequence[DataReport]) -> str:
    """Advice on words without a grade, or on judgments whose documents lie elsewhere; empty for others."""
    known = "".join(f"; {report.advice}" for report in reports if report.advice)
    if known:
        return known
    if any(report.documents for report in reports) or not any(report.judgments for report in reports):
        return ""
    return "; where the documents lie elsewhere, check the recipe that names both: `relevance data check RECIPE`"


def on_conflicts(reports: Sequence[DataReport]) -> str:
    """Advice on rows that grade a pair again and otherwise, which need not be mended; empty where there are none."""
    count = sum(report.conflicts for report in reports)
    if not count:
        return ""
    rows = "1 of these rows grades" if count == 1 else f"{count:,} of these rows grade"
    return f'; {rows} a pair again: a recipe with data.conflicts = "mean", as `init` writes it, averages them'


def test_queries(reports: Sequence[DataReport], data: DataConfig, gate: GateConfig) -> str:
    """A sentence on judged queries that are too few for the gate to replace a live release; empty where they suffice.

    Args:
        data: says which share of the queries without a published split judges.
    """
    published = (
        0 if data.splits == "hash" else sum(report.splits.get("test", {}).get("queries", 0) for report in reports)
    )
    judged = sum(report.judged_queries for report in reports)
    count = published or round(data.test_share * judged)
    if not judged or count >= gate.min_queries:
        return ""
    return few_test_queries(count, gate, about="" if published else "about ")


def few_test_queries(count: int, gate: GateConfig, about: str = "") -> str:
    """The warning that the gate replaces no live release on so few test queries, whatever the models are worth."""
    return (
        f"warning: {about}{counted(count, 'test query', 'are')} too few to replace a live release, which takes "
        f"{gate.min_queries} (gate.min_queries); judge more, raise data.test_share, or promote by hand. Where none is "
        "live, the gate holds none back for that"
    )


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


def render(report: DataReport) -> "RenderableType":
    """The report as tables for a terminal."""
    from rich.console import Group
    from rich.text import Text

    heading = Text(f"{report.path} ({report.format})", style="bold")
    counts = _grid("counts", "rows")
    for name, value in _counts(report):
        counts.add_row(name, value)
    grades = _grid("grade", "judgments", "share")
    for grade, count in report.grades.items():
        grades.add_row(grade, f"{count:,}", f"{count / max(sum(report.grades.values()), 1):.1%}")
    published = _grid("published split", "queries", "judgments")
    for split, of in report.splits.items():
        published.add_row(split, f"{of['queries']:,}", f"{of['judgments']:,}")
    parts: list[RenderableType] = [heading, counts, grades, published, _lengths(report), *_oddities(report)]
    spaced: list[RenderableType] = []
    for part in parts:
        spaced += [part, Text("")]
    return Group(*spaced[:-1])


def _grid(title: str, *columns: str) -> "Table":
    """A table without lines whose first column has the title as its heading."""
    from rich.table import Table

    grid = Table(box=None, padding=(0, 2, 0, 0))
    for number, column in enumerate((title, *columns)):
        grid.add_column(column, justify="right" if number else "left", overflow="fold")
    return grid


def _lengths(report: DataReport) -> "Table":
    """The table of lengths: documents of a query, and characters and tokens of each kind of text."""
    lengths = _grid("lengths (tokens are estimated)", "least", "median", "mean", "95 %", "most")
    distributions = {"documents of a query": report.list_lengths}
    for name in report.characters:
        distributions |= {f"{name}, characters": report.characters[name], f"{name}, tokens": report.tokens[name]}
    for name, lengths_of in distributions.items():
        if lengths_of:
            numbers = (lengths_of.least, lengths_of.median, lengths_of.mean, lengths_of.most_95, lengths_of.most)
            lengths.add_row(name, *(f"{number:,.1f}".removesuffix(".0") for number in numbers))
    return lengths


def _oddities(report: DataReport) -> Iterator["RenderableType"]:
    """Yields a table of what is worth a look and one of the rows that cannot be used, where there are any."""
    from rich.text import Text

    if report.noticed:
        odd = _grid("worth a look", "how often", "for example")
        odd.columns[2].justify = "left"
        for name, notice in report.noticed.items():
            odd.add_row(name, f"{notice.count:,}", Text("; ".join(notice.examples)))
        yield odd
    if report.faults:
        wrong = _grid("cannot be used", "where", "reason")
        wrong.columns[2].justify = "left"
        for fault in report.faults[:SHOWN_FAULTS]:
            wrong.add_row(fault.table, fault.where, Text(fault.reason))
        yield wrong
        if len(report.faults) > SHOWN_FAULTS:
            yield Text(f"… and {counted(len(report.faults) - SHOWN_FAULTS, 'more row')}; --json lists all")


def _counts(report: DataReport) -> Iterator[tuple[str, str]]:
    """The names and the values of a report's counts, those of its click logs after those of its tables."""
    for name in ("documents", "queries", "judged_queries", "judgments", "one_grade_queries"):
        yield name.replace("_", " "), f"{getattr(report, name):,}"
    for log in report.clicks:
        yield "rows of the log", f"{log['rows']:,}"
        for name in (
            "impressions",
            "impressions_at_positions_alone",
            "clicks",
            "pairs",
            "pairs_of_too_few_impressions",
        ):
            yield name.replace("_", " "), f"{log[name]:,}"
        yield "examined impressions that a judged pair needs", f"{log['min_examined']:g}"


def _distributions(texts: Mapping[str, pa.ChunkedArray], measure: Any) -> dict[str, Distribution]:
    known = {name: distribution(measure(column.filter(pc.not_equal(column, "")))) for name, column in texts.items()}
    return {name: value for name, value in known.items() if value}


def _notice(sifted: ValidatedTables, rows: pd.DataFrame) -> dict[str, Notice]:
    documents, queries = sifted.documents, sifted.queries
    tables = {"documents": documents, "queries": queries, "judgments": sifted.judgments}
    notices: dict[str, Sequence[str]] = {"tables without rows": [name for name in tables if not tables[name].num_rows]}
    text = queries["text"]
    trimmed = pc.utf8_trim_whitespace(text)
    notices["queries of one character"] = _where(text, pc.equal(pc.utf8_length(trimmed), 1))
    long = pc.greater(estimate_tokens(text), LONG_QUERY_TOKENS)
    notices[f"queries of more than {LONG_QUERY_TOKENS} tokens"] = _where(text, long)
    for name, pattern in _SUSPICIOUS.items():
        odd = pc.match_substring_regex(text, pattern)
        notices[f"queries with {name}"] = _where(text, odd)
    judged = pc.is_in(queries["query_id"], value_set=pa.array(rows["query_id"].unique(), text.type))
    notices["queries without judgments"] = _where(text, pc.invert(judged))
    normal = pd.Series([normalise(value) for value in text.to_pylist()], dtype=object)
    notices["queries that are the same when normalised"] = normal[normal.duplicated()].tolist()
    across = splits.shared(judgments.texts_of(queries, sifted.judgments), judgments.published(sifted.judgments))
    notices["queries in more than one published split"] = [f"{query} ({', '.join(names)})" for query, names in across]
    content = documents.select(["title", "text"]).to_pandas()
    ids = documents["doc_id"].to_pandas()
    empty = (content == "").all(axis=1)
    notices["documents without title and text"] = ids[empty].tolist()
    notices["documents of the same title and text"] = ids[content.duplicated() & ~empty].tolist()
    again = rows[validation.equal_judgments(sifted.judgments)]
    notices["equal judgments of one pair, which are merged"] = _pairs(sifted, again)
    return {
        name: Notice(len(values), tuple(value[:60] for value in values[:EXAMPLES]))
        for name, values in notices.items()
        if len(values)
    }


def _pairs(sifted: ValidatedTables, rows: pd.DataFrame) -> list[str]:
    """The pairs of some judgments as texts: the query, and the title of the document or its text."""
    documents = sifted.documents.filter(pc.is_in(sifted.documents["doc_id"], pa.array(rows["doc_id"], STRING)))
    texts = documents.select(["doc_id", "title", "text"]).to_pylist()
    titles = {row["doc_id"]: row["title"] or row["text"] for row in texts}
    queries = dict(zip(*sifted.queries.select(["query_id", "text"]).to_pydict().values(), strict=True))
    return [
        f"{queries.get(row.query_id, row.query_id)[:28]}: {titles.get(row.doc_id, row.doc_id)[:28]}"
        for row in rows.itertuples()
    ]


def _where(texts: pa.ChunkedArray, mask: pa.ChunkedArray) -> list[str]:
    chosen: list[str] = texts.filter(mask).to_pylist()
    return chosen
