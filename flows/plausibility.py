"""Limits on the change from one release's documents to the next; beyond them an operator must confirm with --force.

A source fails in known ways: it gives fewer documents, other ids, empty texts, or the same error page for all. The
limits let through what a source does in good order: every text edited, the corpus doubled, a fifth of it gone.
"""

import logging
from collections.abc import Collection
from dataclasses import dataclass

from index.corpus_change import CorpusChange, compare
from index.document_store import CorpusStats, DocumentStore
from pipeline import artifacts, release_parts
from pipeline.artifacts import Artifact
from pipeline.command_line import workspace_of
from pipeline.errors import ImplausibleError
from pipeline.text import counted

MAX_SHRINK = 0.2
"""Share of the documents that may vanish from one release to the next without --force."""
MIN_IDS_KEPT = 0.5
"""Share of the earlier ids that must be there still. Ids are what judgments, thumbs and callers refer to."""
MAX_EMPTY_GROWTH = 0.05
"""Growth of the share of empty documents that needs no --force."""
MAX_DUPLICATE_GROWTH = 0.1
"""Growth of the share of repeated documents that needs no --force."""
MAX_ALIKE_GROWTH = 0.2
"""Growth of the share of near-duplicate texts (`index.corpus_change`) that needs no --force."""
MAX_SHORTENED = 0.2
"""Share of the documents in both releases that may lose two thirds of their text or more without --force."""

log = logging.getLogger(__name__)


def stats(documents: Artifact) -> CorpusStats:
    """Counts of the documents in a document store."""
    store = DocumentStore.load(documents.path, verify=False)
    try:
        return store.stats()
    finally:
        store.close()


@dataclass(frozen=True, slots=True)
class Replacement:
    """Figures of documents that are to take the place of others."""

    before: CorpusStats
    """Counts of the documents that are replaced."""
    after: CorpusStats
    """Counts of the new documents."""
    change: CorpusChange

    @classmethod
    def of(cls, old: Artifact, new: Artifact) -> "Replacement":
        """Compares the document store that is replaced with the new one."""
        stores = [DocumentStore.load(item.path, verify=False) for item in (old, new)]
        try:
            return cls(stores[0].stats(), stores[1].stats(), compare(*stores))
        finally:
            for store in stores:
                store.close()

    def reasons(self) -> list[str]:
        """A sentence with the figures for each limit of this module that is passed; empty for none."""
        before, after, change = self.before, self.after, self.change
        reasons = []
        if after.documents < (1 - MAX_SHRINK) * before.documents:
            reasons.append(
                f"{counted(after.documents, 'document')} in place of {before.documents:,} (at most {MAX_SHRINK:.0%} "
                "may vanish)"
            )
        if change.ids_kept < MIN_IDS_KEPT:
            reasons.append(
                f"{change.ids_kept:.0%} of the ids of before are there still (at least {MIN_IDS_KEPT:.0%} must be)"
            )
        counts = (
            ("empty documents", before.empty, after.empty, MAX_EMPTY_GROWTH),
            ("repeated documents", before.duplicates, after.duplicates, MAX_DUPLICATE_GROWTH),
        )
        for what, earlier, later, limit in counts:
            shares = earlier / max(before.documents, 1), later / max(after.documents, 1)
            if shares[1] > shares[0] + limit:
                reasons.append(
                    f"{later:,} {what} ({shares[1]:.0%}) in place of {earlier:,} ({shares[0]:.0%}; at most "
                    f"{100 * limit:.0f} points more)"
                )
        if change.alike[1] > change.alike[0] + MAX_ALIKE_GROWTH:
            reasons.append(
                f"{change.alike[1]:.0%} of the texts are nearly the same as many others, as error pages are, in place "
                f"of {change.alike[0]:.0%} (at most {100 * MAX_ALIKE_GROWTH:.0f} points more)"
            )
        if change.shortened > MAX_SHORTENED:
            reasons.append(
                f"{change.shortened:.0%} of the documents that stay lost two thirds of their text or more (at most "
                f"{MAX_SHORTENED:.0%} may)"
            )
        return reasons


def _document_store(release: Artifact) -> Artifact | None:
    """The document store of a release; None if it has none.

    A release whose documents are spread over shards has no store: one is built from its `data` artifact, the table of
    all documents. The result is None, with a warning, if `gc` removed that artifact.
    """
    if release_parts.has_part(release, "documents"):
        return release_parts.part(release, "documents")
    collection = release.metrics.get("collection")
    if collection is None:
        return None
    from index import documents

    workspace = workspace_of(release.path)
    folder = artifacts.folder_of(workspace, collection["data"])
    if folder is None:
        log.warning(
            "documents: not judged beside those of release %s, whose table %s was removed by gc",
            *(release.fingerprint[:12], collection["data"][:12]),
        )
        return None
    return documents.make(workspace, data=artifacts.load(folder))


def implausible(old: Artifact, documents: Artifact, *, left_out: Collection[str] = ()) -> list[str]:
    """Reasons why these documents may not replace those of a release without --force; empty for none.

    A column that no document has any more is no reason, only a warning in the log.

    Args:
        old: the release whose documents are replaced.
        documents: the document store of the new release.
        left_out: columns that the new documents lack on purpose, which nobody is warned of.
    """
    before = _document_store(old)
    if before is None:
        return []
    replacement = Replacement.of(before, documents)
    if gone := [name for name in replacement.change.fields_gone if name not in left_out]:
        log.warning("documents: none has a column %s any more; filters by it will be refused", ", ".join(gone))
    return replacement.reasons()


def check(
    old: Artifact, documents: Artifact, *, shown: str, force: bool = False, left_out: Collection[str] = ()
) -> None:
    """Refuses documents that look wrong beside those of the release that they are to replace, unless `force` is set.

    Args:
        old: the release whose documents are replaced.
        documents: the document store of the new release.
        shown: what the message calls the source.
        force: whether an operator confirmed the documents, so that nothing is refused.
        left_out: see `implausible`.

    Raises:
        ImplausibleError: they look wrong and nobody said --force; the message has figures and limits.
    """
    reasons = implausible(old, documents, left_out=left_out)
    if reasons and not force:
        raise ImplausibleError(
            f"{shown}: {'; '.join(reasons)}. Nothing is published; look at the source, or say --force"
        )
