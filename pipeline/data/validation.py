"""Separates the rows of a source that cannot be used from the others, for `judgments`, `check` and `convert`."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.data.sources import Source
from pipeline.errors import SchemaError
from pipeline.schema import InvalidRow

Purpose = Literal["training", "judging"]

MEND = 'mend them or leave them out; a recipe leaves them out by data.faulty_rows = "drop"'
"""Advice on rows that cannot be used, for commands with a recipe and without one."""

SHOWN = 5
"""Number of reasons that an error message names."""


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
        tables: dict[str, Counter[str]] = {}
        for finding in self.findings:
            tables.setdefault(finding.fault.table, Counter())[finding.kind] += 1
        return {table: dict(counter) for table, counter in tables.items()}


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


def refuse(findings: Sequence[Finding], where: str, advice: str) -> None:
    """Raises one error for all findings, if there are any.

    Raises:
        SchemaError: says how many there are, names the first of each kind, and gives the advice.
    """
    if findings:
        rows = f"{len(findings):,} row{'s' * (len(findings) > 1)}"
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
    return f", and {rows:,} more row{'s' * (rows > 1)} alike" if rows else ""


def conflicts(judgments: pa.Table, known: Iterable[Finding] = ()) -> list[Finding]:
    """A finding for each row whose pair has another grade earlier in the table, from the same kind of source.

    Args:
        known: findings whose rows are not looked at.
    """
    frame = keys(judgments)
    frame["grade"] = judgments["grade"].to_pandas()
    frame = frame[~frame.index.isin([finding.fault.row for finding in known if finding.fault.table == "judgments"])]
    again = frame[frame.duplicated(list(frame.columns[:-1]), keep=False)]
    names = list(frame.columns[:-1])
    first = again.groupby(names, sort=False, dropna=False)["grade"].transform("first")
    findings = []
    columns = (again["query_id"], again["doc_id"], again["grade"], first)
    for row, query, document, grade, before in zip(again.index, *columns, strict=True):
        if grade != before:
            reason = f"query_id '{query}', doc_id '{document}' has grade {grade} here and {before} before"
            findings.append(Finding("conflict", InvalidRow("judgments", int(row), reason)))
    return findings


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
        columns = (rows, judgments[column].take(rows), unusable.take(rows))
        for row, value, was_there in zip(*(values.to_pylist() for values in columns), strict=True):
            if row not in seen:
                seen.add(row)
                kind, reason = ("unusable", "cannot be used") if was_there else ("unknown", f"is not among the {table}")
                yield Finding(f"{kind} {column}", InvalidRow("judgments", row, f"{column} '{value}' {reason}"))


def _without(table: pa.Table, findings: Iterable[Finding], also: npt.NDArray[np.bool_] | None = None) -> pa.Table:
    keep = np.ones(table.num_rows, dtype=bool) if also is None else ~also
    rows = [finding.fault.row for finding in findings if finding.fault.row is not None]
    keep[rows] = False
    return table if keep.all() else table.filter(pa.array(keep))
