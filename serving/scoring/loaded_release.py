"""A loaded release: its models, its indexes and documents, and how texts are scored with them."""

import logging
import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from index.document_store import DocumentStore
from index.lexical import LexicalIndex
from index.semantic import SemanticIndex
from index.store_file import UseLock
from pipeline import artifacts, release_parts
from pipeline.artifacts import Artifact
from pipeline.command_line import workspace_of
from pipeline.errors import MissingError
from pipeline.features import Fusion
from pipeline.release_parts import part
from serving.errors import NotServedError
from serving.runtime.deadline import Deadline
from serving.runtime.engine import Engine
from serving.runtime.items import Priority
from serving.runtime.scheduler import Scheduler
from serving.scoring import contents
from serving.scoring.answers import Missing
from serving.scoring.contents import SearchableContents
from serving.scoring.document_scores import DocumentLimits
from serving.scoring.embedder import Embedder
from serving.scoring.process_caches import Caches
from serving.scoring.report_excerpt import ReportExcerpt
from serving.scoring.reranker import Reranker

PING_S = 5.0
"""Seconds that a probe waits for each model."""

MAX_FIELDS = 100
"""Fields of documents that are listed; a store with more has data in its field names."""

log = logging.getLogger(__name__)


class LoadedRelease:
    """The models, indexes and documents of one release; safe to use from many threads.

    While it is loaded, `relevance releases gc` keeps the release.
    """

    def __init__(
        self,
        release_path: Path,
        *,
        precision: str = "auto",
        threads: int | None = None,
        caches: Caches | None = None,
        scheduler: Scheduler | None = None,
        verify: bool = True,
    ) -> None:
        """Loads a release.

        Args:
            release_path: the release artifact's folder.
            precision: one that the bundles hold; auto is the one that their own measurements chose for the device.
            threads: threads that run each model; one a core, or two with CUDA, when None or 0.
            caches: shared with other releases; its own of 64 MiB when not given.
            scheduler: runs both models, and those of other releases; each model has its own when not given.
            verify: check the release as promotion does, and compare the models' outputs for the golden inputs with
                those that their exporter saw.

        Raises:
            MissingError: no such folder.
            ArtifactError: the release does not pass `pipeline.release_parts.verify`, or a model does not give its
                golden outputs.
            ConfigError: a bundle has no such precision.
        """
        began = time.monotonic()
        self._use = UseLock(release_path)  # First, so that gc removes nothing while the files are read.
        release = (
            release_parts.verify(release_path) if verify else artifacts.load(release_path, "release", verify=False)
        )
        caches = caches or Caches.of(64 * 2**20)
        self.release = release.fingerprint
        self.workspace = workspace_of(release_path)
        """The workspace that holds the release, for commands in messages."""
        self.created = release.manifest.created
        self.surfaces: dict[str, Any] = release.manifest.metrics.get("surfaces", {})
        """Path → its worth by the release's report, see `pipeline.evaluation.surfaces`; empty in old releases."""
        self.models = {
            role: Engine(
                part(release, role).path,
                precision=precision,
                threads=threads,
                verify="golden" if verify else False,
                scheduler=scheduler,
                token_bytes=caches.token_bytes,
            )
            for role in release_parts.MODELS
            if release_parts.has_part(release, role)
        }
        """Role → model; a release of ready-made models may have one alone."""
        self.collection: Mapping[str, Any] | None = release.manifest.metrics.get("collection")
        """The documents that shards hold for a release of models alone, see `flows.shards`; None for other releases."""
        self.collection_id = release.manifest.inputs.get("collection", "")
        """Fingerprint of the collection that the release asks shards for, or holds a shard of; empty for others."""
        self._fusion = fusion_of(release)
        """The weights of the final order; None where it is that of BM25 and encoder, or there are no documents."""
        self._contents = SearchableContents.load(release)
        excerpt = ReportExcerpt.read(release.path / "report" / "report.json", release.manifest.metrics)
        self.examples, self.thresholds = excerpt.examples, excerpt.thresholds
        self.fields = _fields(self._contents)
        """The names of the fields by which documents can be filtered and counted."""
        self._caches = caches
        models = "".join(f"; {role} {model.precision} on {model.device}" for role, model in self.models.items())
        log.info("release %s: loaded in %.1f s%s", self.release[:12], time.monotonic() - began, models)

    @property
    def ranker(self) -> Engine:
        """The ranker's engine; raises NotServedError where the release has none."""
        return self._model("ranker")

    @property
    def encoder(self) -> Engine:
        """The encoder's engine; raises NotServedError where the release has none."""
        return self._model("encoder")

    @property
    def reranker(self) -> Reranker:
        """Scores of pairs through the caches; raises NotServedError where the release has no ranker."""
        return Reranker(self.ranker, self._caches.scores, self.ranker.passages)

    def reranker_within(self, limits: DocumentLimits, max_passages: int = 0) -> Reranker:
        """The reranker for a request that bounds how much of each document is read; see `Reranker.max_passages`."""
        ranker = self.ranker
        return Reranker(ranker, self._caches.scores, limits.passages(ranker.passages), max_passages)

    @property
    def embedder(self) -> Embedder:
        """Vectors of texts through the caches; raises NotServedError where the release has no encoder."""
        return Embedder(self.encoder, self._caches.vectors)

    @property
    def unanswered(self) -> dict[str, str]:
        """Path → the reason why this release cannot answer it; empty for a whole release."""
        return contents.unanswered([*self.models, *(["documents"] if self._contents else [])], self.workspace)

    @property
    def lexical(self) -> LexicalIndex:
        """The BM25 index; raises NotServedError where the release has no documents."""
        return self._searchable.lexical

    @property
    def semantic(self) -> SemanticIndex:
        """The index of vectors; raises NotServedError where the release has no documents."""
        return self._searchable.semantic

    @property
    def documents(self) -> DocumentStore:
        """The texts and fields of the documents; raises NotServedError where the release has none."""
        return self._searchable.documents

    @property
    def fusion(self) -> Fusion:
        """The weights of the final order; raises NotServedError where the release has none."""
        if self._fusion is None:
            raise NotServedError(contents.lacks("fusion", self.workspace))
        return self._fusion

    @property
    def _searchable(self) -> SearchableContents:
        if self._contents is None:
            raise NotServedError(contents.lacks("documents", self.workspace))
        return self._contents

    def _model(self, role: Missing) -> Engine:
        if role not in self.models:
            raise NotServedError(contents.lacks(role, self.workspace))
        return self.models[role]

    def ping(self) -> None:
        """A real inference of each model, past the caches and before all that waits.

        Raises:
            Exception: whatever a model that does not work raises.
            DeadlineError: no answer in PING_S.
        """
        deadline = Deadline.after(PING_S)
        for role, engine in self.models.items():
            if role == "ranker":
                engine.scores("ready", ["ready"], deadline, Priority.PROBE)
            else:
                engine.embed(["ready"], "query", deadline, Priority.PROBE)


def fusion_of(release: Artifact) -> Fusion | None:
    """The fusion of a release; None where it has none."""
    if not release_parts.has_part(release, "fusion"):
        return None
    return Fusion.from_json(part(release, "fusion").file("fusion.json").read_text(encoding="utf-8"))


def _fields(searchable: SearchableContents | None) -> list[str]:
    """The fields of the documents; none where the store is older than fields, or there are no documents."""
    if searchable is None:
        return []
    try:
        return list(islice(searchable.documents.each_field(), MAX_FIELDS))
    except MissingError:
        return []
