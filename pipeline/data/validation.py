"""Separates the rows of a source that cannot be used from the others, for `judgments`, `check` and `convert`."""

import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.command_line import typed
from pipeline.config import SourceConfig
from pipeline.data.formats import option_text, tables
from pipeline.data.sources import Source
from pipeline.errors import SchemaError
from pipeline.schema import InvalidRow
from pipeline.secrets import hide_passwords
from pipeline.text import counted, printable

Purpose = Literal["training", "judging"]

MEND = 'mend them or leave them out; a recipe leaves them out by data.faulty_rows = "drop"'
"""Advice on rows that cannot be used, for commands with a recipe and without one."""

SHOWN = 5
"""Number of reasons that an error message names."""

SHOWN_TEXT = 40
"""Most characters of a text in a reason."""

_IDS = {"documents": ("doc_id", "document", ("title", "text")), "queries": ("query_id", "query", ("text",))}
"""Table → its column of ids, the word for a row, and the columns of its texts."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A row that cannot be used."""

    kind: str
    """The reason in a word or two, to count by: unreadable, text, empty query, empty id, repeated id, grade, split,
    unknown query_id or doc_id, unusable query_id or doc_id (its own row cannot be used), conflict."""
    fault: InvalidRow

    @property
    def likeness(self) -> tuple[str, str]:
        """The table and what rows alike share: their kind, or for values that could not be read the reason itself."""
        return self.fault.table, self.fault.reason if self.kind == "unreadable" else self.kind


@dataclass(frozen=True, slots=True)
class ValidatedTables:
    """A source without the rows that cannot be used."""

    documents: pa.Table
    queries: pa.Table
    judgments: pa.Table
    findings: tuple[Finding, ...]
    repeated: int
    """Number of documents and queries that equal an earlier one and are left out."""

    def counts(self) -> dict[str, dict[str, int]]:
        """Table → kind → rows left out."""
        kinds: dict[str, Counter[str]] = {}
        for finding in self.findings:
            kinds.setdefault(finding.fault.table, Counter())[finding.kind] += 1
        return {table: dict(counter) for table, counter in kinds.items()}


def sift(source: Source, purpose: Purpose = "training") -> ValidatedTables:
    """The source without the rows that cannot be used, with a finding for each of them.

    Conflicting grades are left in, see `conflicts`.

    Args:
        purpose: the use of the data. With judging the rules are trec_eval's: a negative grade counts as 0, and a judged
            document that the documents lack stays in the ideal list.
    """
    if purpose == "judging":
        grades = pc.max_element_wise(source.judgments["grade"], pa.scalar(0, pa.int64()))
        column = source.judgments.column_names.index("grade")
        source = replace(source, judgments=source.judgments.set_column(column, "grade", grades))
    unreadable = [Finding("unreadable", fault) for fault in source.faults]
    documents, found_documents, same_documents = _sift_texts(source.documents, "documents", unreadable)
    queries, found_queries, same_queries = _sift_texts(source.queries, "queries", unreadable)
    findings = [finding for finding in unreadable if finding.fault.table == "judgments"]
    found_judgments = _judgment_findings(source, documents, queries, {finding.fault.row for finding in findings})
    kept = ("unknown doc_id", "unusable doc_id") if purpose == "judging" else ()
    findings += [finding for finding in found_judgments if finding.kind not in kept]
    return ValidatedTables(
        documents,
        queries,
        _without(source.judgments, findings),
        tuple(located((*found_documents, *found_queries, *findings), source)),
        same_documents + same_queries,
    )


def purpose_of(source: Source) -> Purpose:
    """The use that data can have: judgments without any document can judge what has them, and nothing learns there."""
    return "judging" if source.judgments.num_rows and not source.documents.num_rows else "training"


def located(findings: Sequence[Finding], source: Source) -> list[Finding]:
    """The findings with the locations of their rows in the source's files, where those are known."""
    rows: dict[str, list[int]] = {}
    names: dict[tuple[str, int | None], str] = {}
    for finding in findings:
        if finding.fault.row is not None and finding.fault.table in source.locations:
            rows.setdefault(finding.fault.table, []).append(finding.fault.row)
    for table, of in rows.items():
        names |= {(table, row): name for row, name in zip(of, source.locations[table](of), strict=True)}
    return [
        replace(finding, fault=replace(finding.fault, location=names.get((finding.fault.table, finding.fault.row), "")))
        for finding in findings
    ]


def mend_first(config: SourceConfig) -> str:
    """Advice on rows that cannot be used, for commands that leave none out: with the command that lists all of them."""
    options = [f"--format {shlex.quote(config.format)}"] if config.format != "auto" else []
    for name, values in (("columns", config.columns), ("labels", config.labels)):
        if values:
            options.append(f"--{name} {shlex.quote(option_text.option(values))}")
    command = typed(" ".join(["data check", shlex.quote(hide_passwords(config.path)), *options]))
    return f"mend them first; `{command}` lists them all"


def refuse(findings: Sequence[Finding], where: str, advice: str) -> None:
    """Raises one error for all findings, if there are any.

    Raises:
        SchemaError: says how many there are, names the first of each kind, and gives the advice.
    """
    if findings:
        rows = counted(len(findings), "row")
        raise SchemaError(f"{where}: {rows} cannot be used ({summary(findings)}); {advice}")


def summary(findings: Sequence[Finding]) -> str:
    """The kinds of findings: the first row of each, how many rows are alike, and how many rows are of other kinds."""
    alike: dict[tuple[str, str], list[InvalidRow]] = {}
    for finding in findings:
        alike.setdefault(finding.likeness, []).append(finding.fault)
    named = sorted(alike.values(), key=len, reverse=True)[:SHOWN]
    shown = [f"{rows[0]}{_more_alike(len(rows) - 1)}" for rows in named]
    left = len(findings) - sum(map(len, named))
    return "; ".join(shown) + (f"; and {left:,} more" if left else "")


def _more_alike(rows: int) -> str:
    return f", and {counted(rows, 'more row')} alike" if rows else ""


def conflicts(source: Source, known: Iterable[Finding] = ()) -> list[Finding]:
    """A finding for each of a source's judgments whose pair has another grade before; see `conflicting`."""
    rows = conflicting(source.judgments, known)
    queries = names(source.queries, "queries", set(rows["query_id"]))
    documents = names(source.documents, "documents", set(rows["doc_id"]))
    findings = []
    columns = (rows["query_id"], rows["doc_id"], rows["grade"], rows["before"])
    for row, query, document, grade, before in zip(rows.index, *columns, strict=True):
        reason = f"{queries[query]}, {documents[document]} has grade {grade} here and {before} before"
        findings.append(Finding("conflict", InvalidRow("judgments", int(row), reason)))
    return located(findings, source)


def conflicting(judgments: pa.Table, known: Iterable[Finding] = ()) -> pd.DataFrame:
    """The rows whose pair has another grade, `before`, earlier in the table, from the same kind of source.

    Args:
        known: findings whose rows are not looked at.
    """
    frame = keys(judgments)
    pair = list(frame.columns)
    frame["grade"] = judgments["grade"].to_pandas()
    frame = frame[~frame.index.isin([finding.fault.row for finding in known if finding.fault.table == "judgments"])]
    again = frame[frame.duplicated(pair, keep=False)]
    again = again.assign(before=again.groupby(pair, sort=False, dropna=False)["grade"].transform("first"))
    return again[again["grade"] != again["before"]]


def names(table: pa.Table, kind: str, ids: Collection[str]) -> dict[str, str]:
    """The names of documents or queries in messages, by their ids: `doc_id '7'`, or `document 'red knife'`.

    The start of the text stands in place of an id that the source does not have: one that was made from the text.

    Args:
        table: documents or queries as they were read.
        kind: its name.
        ids: the ids to be named, also such as the table lacks.
    """
    column, word, columns = _IDS[kind]
    named = {name: f"{column} '{name}'" for name in ids}
    rows = table.filter(pc.is_in(table[column], value_set=pa.array(list(ids), table[column].type)))
    texts = [rows[name] for name in columns]
    hashes = tables.ids(word[0], *texts).to_pylist()
    for name, hashed, *parts in zip(
        rows[column].to_pylist(), hashes, *(part.to_pylist() for part in texts), strict=True
    ):
        if name == hashed:
            text = printable(next(filter(None, parts), ""))
            named[name] = f"{word} '{text[:SHOWN_TEXT]}{'…' * (len(text) > SHOWN_TEXT)}'"
    return named


def keys(judgments: pa.Table) -> pd.DataFrame:
    """The columns that identify a judgment, (rows, 4): query, document, kind of source and field."""
    columns = {name: judgments[name].to_pandas() for name in ("query_id", "doc_id")}
    for name, missing in (("source", "human"), ("field", "")):
        known = name in judgments.column_names
        columns[name] = judgments[name].to_pandas().fillna(missing) if known else missing
    return pd.DataFrame(columns, index=pd.RangeIndex(judgments.num_rows))


def equal_judgments(judgments: pa.Table) -> npt.NDArray[np.bool_]:
    """Whether each row, (rows,), repeats an earlier one: its pair, its kind of source and its grade."""
    equal: npt.NDArray[np.bool_] = keys(judgments).assign(grade=judgments["grade"].to_pandas()).duplicated().to_numpy()
    return equal


def _sift_texts(table: pa.Table, kind: str, unreadable: Iterable[Finding]) -> tuple[pa.Table, list[Finding], int]:
    """The documents or queries that can be used, findings about the others, and the number of repeated ones."""
    findings = [finding for finding in unreadable if finding.fault.table == kind]
    known = {finding.fault.row for finding in findings}
    for fault in schema.text_faults(table, kind):
        if fault.row not in known:
            findings.append(Finding("empty query" if "is empty" in fault.reason else "text", fault))
    id_column = "doc_id" if kind == "documents" else "query_id"
    columns = [name for name in (id_column, "title", "text") if name in table.column_names]
    ids = table[id_column].to_pandas()
    for row in np.flatnonzero((ids.str.strip() == "").to_numpy()):
        findings.append(Finding("empty id", InvalidRow(kind, int(row), f"{id_column} is empty")))
    again = ids.duplicated().to_numpy()
    # Only rows that share their id can be equal, so the texts of the others are not compared.
    sharing = np.flatnonzero(ids.duplicated(keep=False).to_numpy())
    frame = pd.DataFrame({name: table[name].take(pa.array(sharing)).to_pandas() for name in columns})
    same = np.zeros(len(ids), bool)
    same[sharing] = frame.duplicated().to_numpy()
    for row in np.flatnonzero(again & ~same):
        reason = f"{id_column} '{ids.iloc[row]}' stands here again with another text"
        findings.append(Finding("repeated id", InvalidRow(kind, int(row), reason)))
    left = _without(table, findings, also=same)
    return left, findings, int(same.sum())


def _judgment_findings(
    source: Source, documents: pa.Table, queries: pa.Table, known: set[int | None]
) -> Iterator[Finding]:
    judgments = source.judgments
    seen = set(known)
    for fault in schema.grade_faults(judgments):
        if fault.row not in seen:
            seen.add(fault.row)
            yield Finding("split" if fault.reason.startswith("split") else "grade", fault)
    for column, kept, there in (("query_id", queries, source.queries), ("doc_id", documents, source.documents)):
        table = "queries" if column == "query_id" else "documents"
        lost = pc.invert(pc.is_in(judgments[column], value_set=kept[column]))
        unusable = pc.is_in(judgments[column], value_set=there[column])
        rows = pc.indices_nonzero(lost)
        named = names(there, table, set(judgments[column].take(rows).to_pylist()))
        columns = (rows, judgments[column].take(rows), unusable.take(rows))
        for row, value, was_there in zip(*(values.to_pylist() for values in columns), strict=True):
            if row not in seen:
                seen.add(row)
                kind, reason = ("unusable", "cannot be used") if was_there else ("unknown", f"is not among the {table}")
                yield Finding(f"{kind} {column}", InvalidRow("judgments", row, f"{named[value]} {reason}"))


def _without(table: pa.Table, findings: Iterable[Finding], also: npt.NDArray[np.bool_] | None = None) -> pa.Table:
    keep = np.ones(table.num_rows, dtype=bool) if also is None else ~also
    rows = [finding.fault.row for finding in findings if finding.fault.row is not None]
    keep[rows] = False
    return table if keep.all() else table.filter(pa.array(keep))
