"""The flow that keeps an index current: the models of a release stay, its documents are replaced.

Only new and changed documents are embedded. The release that comes out differs from the old one in its
lexical index, document store and semantic index, and is made live only if the old one still is.
"""

import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows import indexing, judging, runner
from pipeline import recipe as recipes
from pipeline import releases
from pipeline.config import Recipe, SourceConfig

if TYPE_CHECKING:
    from rich.table import Table

log = logging.getLogger(__name__)


def reindex(
    documents: Sequence[str],
    workspace: Path,
    *,
    format: str = "auto",
    release: str = "live",
    full: bool = False,
    promote: bool = True,
    run: runner.Runner = runner.directly,
) -> dict[str, Any]:
    """Indexes the documents of these sources with the models of a release; what was done, as plain values.

    Args:
        documents, format: folders, files or SQLAlchemy URLs, and how they are written; see `SourceConfig`.
        full: embed every document, though its vector is known.

    Raises:
        MissingError: no such release or source.
        ConflictError: another publisher made a release live meanwhile; the new one is published, not live.
    """
    from pipeline.data import corpus

    began = time.monotonic()
    registry = releases.Releases(workspace)
    live = registry.live()
    old = registry.open(release)
    recipe = recipes.parse(Recipe, old.manifest.config)
    chosen = [SourceConfig(path=path, format=format) for path in documents]
    data = run("documents", lambda: corpus.make(workspace, chosen, Path(), recipe.data.faulty_rows))
    parts = {name: releases.part(old, name) for name in judging.PARTS}
    if full:
        _forget_vectors(workspace)
    made = indexing.make_searchable(workspace, recipe.index, parts["encoder"], data, run=run)
    parts |= {"lexical": made.lexical, "documents": made.documents, "index": made.index}
    new = registry.publish(parts, metrics=dict(old.metrics), config=old.manifest.config)
    was_live = live is not None and live.release == old.fingerprint
    if promote and was_live and live is not None and new.fingerprint != old.fingerprint:
        registry.promote(new.fingerprint, reason=f"re-indexed {', '.join(documents)}", expected=live.generation)
    pointer = registry.live()
    return {
        "release": new.fingerprint,
        "live": pointer is not None and pointer.release == new.fingerprint,
        "documents": made.vectors.metrics["documents"],
        "embedded": made.vectors.metrics["embedded"],
        "reused": made.vectors.metrics["reused"],
        "bytes_per_document": made.index.metrics["bytes_per_document"],
        "seconds": round(time.monotonic() - began, 1),
    }


def _forget_vectors(workspace: Path) -> None:
    """Removes all vectors, which are only ever kept to save work; releases hold their own indexes."""
    folder = workspace / "artifacts" / "vectors"
    if folder.is_dir():
        shutil.rmtree(folder)
        log.info("%s: removed, every document is embedded anew", folder)


def render(made: dict[str, Any]) -> "Table":
    """A two-column table of `reindex`'s answer."""
    from rich.table import Table

    table = Table(show_header=False, title="re-index", title_justify="left")
    for name, value in made.items():
        shown = (
            ("yes" if value else "no") if isinstance(value, bool) else f"{value:,}" if isinstance(value, int) else value
        )
        table.add_row(name.replace("_", " "), str(shown))
    return table
