"""The flow that divides documents into shards: a release for each shard, and one of the models that asks them all."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows import indexing, judging, publishing, runner
from pipeline import disk, release_parts, releases
from pipeline import recipe as recipes
from pipeline.compute import engine_of
from pipeline.config import ComputeConfig, Recipe, SourceConfig
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table


@disk.digests_remembered()
def reindex(
    documents: Sequence[SourceConfig],
    workspace: Path,
    shards: int,
    *,
    release: str = "live",
    compute: ComputeConfig | None = None,
) -> dict[str, Any]:
    """Publishes the documents divided among shards, with the models of a release; no shard goes live.

    Each shard is a release that `relevance serve --release` serves. The one without documents is served with
    `--shards` and the addresses of the others. Vectors are reused by the digest of a text, as in any re-index.

    Args:
        documents: where the documents are.
        shards: number of shards, at least 2.
        release: the release whose models are kept.
        compute: where documents are embedded; this process where None.

    Raises:
        ConfigError: fewer than two shards, or a recipe with index.fields or index.passages.
        MissingError: no such release or source, or the release has no encoder.
        SchemaError: a shard would have no document.
    """
    from index import lexical
    from index import shards as index_shards
    from pipeline.data import corpus

    began = time.monotonic()
    if shards < 2:
        raise ConfigError(f"--shards {shards}: give 2 or more; without it all documents stay in one release")
    run = runner.Runner(workspace, engine=engine_of(compute or ComputeConfig()))
    registry = releases.Releases(workspace)
    old = registry.open(release)
    recipe = recipes.parse(Recipe, old.manifest.config)
    for key, is_set in (("fields", recipe.index.fields), ("passages", recipe.index.passages.passages(None))):
        if is_set:
            raise ConfigError(f"--shards: the release's recipe sets index.{key}, which shards cannot do yet")
    kept = {name: release_parts.part(old, name) for name in judging.PARTS if release_parts.has_part(old, name)}
    models = {name: part for name, part in kept.items() if name not in ("lexical", "documents", "index")}
    encoder = release_parts.part(old, "encoder")
    data = run(corpus.make, documents, Path(), recipe.data.faulty_rows)
    full = run(lexical.make, recipe.index, data=data)
    published = []
    for number in range(shards):
        named = run.labelled(f"shard {number + 1} of {shards}")
        cut = named(index_shards.documents, number, shards, data=data)
        searchable = indexing.make_searchable(
            recipe.index, named, encoder=encoder, data=cut, queries=kept.get("index"), full_lexical=full
        )
        metrics = publishing.metrics(old, searchable.documents, "corpus")
        shard = registry.publish(models | searchable.parts, metrics=metrics, config=old.manifest.config)
        published.append({"release": shard.fingerprint, "documents": searchable.documents.metrics["documents"]})
    figures = {name: value for name, value in old.metrics.items() if name not in ("documents", "figures")}
    collection = {"data": data.fingerprint, "shards": shards}
    front = registry.publish(models, metrics={**figures, "collection": collection}, config=old.manifest.config)
    return {
        "release": front.fingerprint,
        "shards": published,
        "documents": data.metrics["documents"],
        "seconds": round(time.monotonic() - began, 1),
    }


def render(figures: dict[str, Any]) -> "Table":
    """A table of the shards, and the commands that serve them."""
    from rich.table import Table

    count = len(figures["shards"])
    urls = ",".join(f"http://HOST{number + 1}:8080" for number in range(count))
    table = Table(
        title=f"{figures['documents']:,} documents in {count} shards",
        title_justify="left",
        caption=f"relevance serve --release {figures['release'][:12]} --shards {urls}",
        caption_justify="left",
    )
    for column in ("shard", "documents", "serve it with"):
        table.add_column(column)
    for number, shard in enumerate(figures["shards"], start=1):
        table.add_row(str(number), f"{shard['documents']:,}", f"relevance serve --release {shard['release'][:12]}")
    return table
