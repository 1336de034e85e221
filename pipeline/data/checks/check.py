"""A description of judged data before training: its size, its distributions, and the rows that cannot be used."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.compute as pc

from pipeline.config import DataConfig, GateConfig, SourceConfig
from pipeline.data import judgments, sources, validation
from pipeline.data.checks.oddities import Notice, notices
from pipeline.data.checks.text_lengths import Distribution, distribution, distributions, estimate_tokens
from pipeline.data.sources import Source
from pipeline.schema import SPLITS, InvalidRow
from pipeline.secrets import hide_passwords
from pipeline.text import counted


@dataclass(frozen=True, kw_only=True, slots=True)
class DataReport:
    """A description of judged data."""

    path: str
    format: str
    documents: int
    """Different ids: a document that stands in two tables of a collection counts once."""
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


def examine(
    configs: Sequence[SourceConfig],
    root: Path,
    read: Callable[[SourceConfig, Path], Source] = sources.read,
    *,
    to_train: bool = True,
) -> list[DataReport]:
    """Reads sources and describes each collection; sources of one name are one collection, as in a recipe.

    Args:
        configs: the sources.
        root: the folder that their paths are relative to.
        read: reads one of them; see `short_logs.read` for one that takes short click logs.
        to_train: whether something is to learn from them, so that judgments without any document cannot be used.

    Raises:
        MissingError: nothing of that format at a path.
        SchemaError: a file that cannot be read at all; see `sources.read`.
    """
    collections = [read(config, root) for config in configs]
    paths: dict[str, list[str]] = {}
    for config, source in zip(configs, collections, strict=True):
        paths.setdefault(source.name, []).append(config.path)
    return [
        describe(source, " + ".join(paths[source.name]), "training" if to_train else validation.purpose_of(source))
        for source in judgments.by_name(collections)
    ]


def describe(source: Source, path: str, purpose: validation.Purpose = "training") -> DataReport:
    """The description of a source as read; grades in conflict are faults too.

    Args:
        purpose: decides which rows cannot be used, see `validation.sift`.
    """
    sifted = validation.sift(source, purpose)
    conflicts = validation.conflicts(source, sifted.findings)
    usable = replace(sifted, findings=(*sifted.findings, *conflicts))
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
        documents=pc.count_distinct(source.documents["doc_id"], mode="all").as_py(),
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
        characters=distributions(texts, pc.utf8_length),
        tokens=distributions(texts, estimate_tokens),
        noticed=notices(usable, rows),
        dropped=usable.counts(),
        faults=tuple(finding.fault for finding in usable.findings),
        conflicts=len(conflicts),
        advice=source.advice,
        clicks=source.clicks,
    )


def hint(reports: Sequence[DataReport]) -> str:
    """Advice on words without a grade; empty where there are none."""
    return "".join(f"; {report.advice}" for report in reports if report.advice)


def without_documents(reports: Sequence[DataReport]) -> str:
    """A sentence on judgments without any document, which can judge but not teach; empty for other data."""
    if any(report.documents for report in reports) or not any(report.judgments for report in reports):
        return ""
    return (
        "there are no documents here: a report takes those of the release; to train, name both "
        "in a recipe, and check that: `relevance data check RECIPE`"
    )


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
