"""Builds the lexical index: the postings of new documents, beside segments that are shared with an earlier index."""

import logging
from collections.abc import Callable, Iterator, Mapping
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from index import analyzer, document_reader, postings, segments
from index.analyzer import analyser
from index.hits import write_ids
from index.lexical import IDS, KIND
from index.postings import Postings
from index.segments import SegmentPlan
from index.term_weights import HOLDERS
from pipeline import progress
from pipeline.artifacts import Artifact, Staging
from pipeline.errors import SchemaError
from pipeline.stage import Stage
from pipeline.text import counted

if TYPE_CHECKING:
    from pipeline.config import IndexConfig

STAGE = Stage(
    KIND, version=1, inputs={"data": ("data", "corpus"), "previous": KIND}, section="index", title="lexical index"
)

log = logging.getLogger(__name__)


@STAGE
def make(
    workspace: Path, config: "IndexConfig", *, data: Artifact, field: str = "", previous: Artifact | None = None
) -> Artifact:
    """The `lexical` artifact: BM25 (the Lucene variant) of all documents of this data.

    Args:
        field: the column that is indexed alone, see `index.fields`; title and text together where empty.
        previous: an earlier artifact, whose segments are shared where their documents are unchanged. It is not part of
            the fingerprint, as it changes only how long the work takes and which files hold the postings.

    Raises:
        ConfigError: no stemmer for `index.language`.
        SchemaError: there are no documents, no such column, or no term in any document.
    """
    settings = {"language": config.language, "k1": config.k1, "b": config.b, "analysis": analyzer.VERSION}
    settings |= {"field": field} if field else {}
    analyse = analyser(config.language, analyzer.VERSION)

    def build(staging: Staging) -> Mapping[str, Any]:
        digests = document_reader.digests(data)
        contents = document_reader.field_digests(data, field) if field else digests.texts
        plan = segments.plan(_of_same_terms(previous, settings), postings.FILES, contents)
        plan.write(staging)
        written = _written_postings(data, field, plan, analyse) if len(plan.written) else None
        if written is not None:
            written.write(staging.folder / plan.folder)
        terms, holders = _living_terms(plan, written)
        if not terms:
            columns = f"column {field}, which index.fields names" if field else "title and text columns"
            raise SchemaError(
                f"{data.path}: not one word in {counted(digests.stats.documents, 'document')}; look at their {columns}"
            )
        if plan.kept:
            np.save(staging.folder / HOLDERS, holders)
        write_ids(staging.folder / IDS, digests.doc_ids)
        total = digests.stats.documents
        size = sum(path.stat().st_size for path in staging.folder.rglob("*") if path.is_file())
        return {
            "documents": total,
            "terms": len(terms),
            "bytes_per_document": round(size / total, 1),
            **plan.figures(),
        }

    return STAGE.make(workspace, config=settings, inputs={"data": data}, build=build)


def _of_same_terms(previous: Artifact | None, settings: Mapping[str, Any]) -> Artifact | None:
    """An earlier index, if its postings are those that these settings give; k1 and b count when a query is asked."""
    if previous is None or previous.manifest.version != STAGE.version:
        return None
    analysis = previous.manifest.config.get("analysis", 1)
    if analysis != settings["analysis"]:
        log.info(
            "lexical: the earlier index holds words of analysis %s, this program writes %s; it is built anew",
            analysis,
            settings["analysis"],
        )
    same = all(previous.manifest.config.get(name) == settings.get(name) for name in ("language", "analysis", "field"))
    return previous if same else None


def _living_terms(plan: SegmentPlan, written: Postings | None) -> tuple[set[str], npt.NDArray[np.int32]]:
    """The terms of all documents, and for each term of each segment the number of living documents that hold it.

    Args:
        written: the postings of the new segment, which is the last; None where there is none.
    """
    terms = set[str]()
    holders = [np.zeros(0, np.int32)]
    for use in plan.kept:
        kept = Postings.read(use.path)
        holders.append(kept.living(use.rows >= 0))
        terms.update(compress(kept.terms, (holders[-1] > 0).tolist()))
    if written is not None:
        holders.append(np.diff(written.starts).astype(np.int32))
        terms.update(written.terms)
    return terms, np.concatenate(holders)


def _written_postings(data: Artifact, field: str, plan: SegmentPlan, analyse: Callable[[str], list[str]]) -> Postings:
    """The postings of the new segment."""
    with progress.bar("Indexing terms", len(plan.fresh), "documents") as advance:

        def analysed() -> Iterator[list[str]]:
            for _, text in document_reader.texts(data, field, plan.fresh):
                yield analyse(text)
                advance(1)

        fresh = Postings.of(analysed())
    if not plan.merged:
        return fresh
    parts = [(Postings.read(use.path), plan.numbers(use.rows)) for use in plan.merged]
    return Postings.merged([*parts, (fresh, plan.numbers(plan.fresh))], len(plan.written))
