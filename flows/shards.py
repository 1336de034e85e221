"""The flow that divides documents into shards: a release for each shard, and one of the models that asks them all."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows import indexing, judging, plausibility, publishing, runner
from pipeline import disk, release_parts, releases
from pipeline import recipe as recipes
from pipeline.artifacts import Artifact
from pipeline.command_line import typed
from pipeline.compute import engine_of
from pipeline.config import ComputeConfig, Recipe, SourceConfig
from pipeline.errors import ConfigError
from pipeline.secrets import hide_passwords
from pipeline.text import counted

if TYPE_CHECKING:
    from rich.table import Table

OVER_DOCUMENTS = ("lexical", "documents", "index")
"""The parts of a release that are made from documents, without those of single fields."""


@disk.digests_remembered()
def reindex(
    documents: Sequence[SourceConfig],
    workspace: Path,
    shards: int,
    *,
    release: str = "live",
    force: bool = False,
    compute: ComputeConfig | None = None,
) -> dict[str, Any]:
    """Publishes the documents divided among shards, with the models of a release; no shard goes live.

    Each shard is a release that `relevance serve --release` serves. The one without documents is served with
    `--shards` and the addresses of the others. Vectors are reused by the digest of a text, as in any re-index.

    Args:
        documents: where the documents are.
        shards: number of shards, at least 2.
        release: the release whose models are kept. The documents are judged beside its own or, where shards hold them,
            beside those.
        force: publish documents that look wrong; see `flows.plausibility`.
        compute: where documents are embedded; this process where None.

    Raises:
        ConfigError: fewer than two shards.
        MissingError: no such release or source, or the release has no encoder.
        SchemaError: a shard would have no document.
        ImplausibleError: the documents look wrong beside those of the release; nothing is embedded or published.
    """
    from pipeline.data import corpus

    began = time.monotonic()
    if shards < 2:
        raise ConfigError(f"--shards {shards}: give 2 or more; without it all documents stay in one release")
    run = runner.Runner(workspace, engine=engine_of(compute or ComputeConfig()))
    registry = releases.Releases(workspace)
    old = registry.open(release)
    recipe = recipes.parse(Recipe, old.manifest.config)
    release_parts.part(old, "encoder")  # Raises before the documents are read.
    data = run(corpus.make, documents, Path(), recipe.data.faulty_rows)
    own = {name: release_parts.part(old, name) for name in OVER_DOCUMENTS if release_parts.has_part(old, name)}
    shown = ", ".join(hide_passwords(source.path) for source in documents)
    whole_parts = indexing.index_whole(
        recipe.index,
        run,
        data=data,
        previous=own | release_parts.field_parts(old),
        check=partial(plausibility.check, old, shown=shown, force=force),
    )
    published, front = divide(run, old, data, shards, whole_parts)
    return {
        "release": front.fingerprint,
        "shards": [
            {"release": shard.fingerprint, "documents": shard.metrics["documents"]["documents"]} for shard in published
        ],
        "documents": data.metrics["documents"],
        "seconds": round(time.monotonic() - began, 1),
    }


def divide(
    run: runner.Runner, old: Artifact, data: Artifact, shards: int, whole_parts: Mapping[str, Artifact]
) -> tuple[list[Artifact], Artifact]:
    """Publishes a release for each shard of these documents, and one of the models alone that asks them.

    Args:
        run: runs each stage.
        old: the release whose models are kept.
        data: all documents.
        shards: number of shards.
        whole_parts: the result of `flows.indexing.index_whole` for all documents.

    Raises:
        MissingError: the release has no encoder.
        SchemaError: a shard would have no document.
    """
    from index import shards as index_shards
    from serving.runtime import offline

    registry, recipe = releases.Releases(run.workspace), recipes.parse(Recipe, old.manifest.config)
    kept = {name: release_parts.part(old, name) for name in judging.PARTS if release_parts.has_part(old, name)}
    models = {name: part for name, part in kept.items() if name not in OVER_DOCUMENTS}
    encoder = release_parts.part(old, "encoder")
    passages = recipe.index.passages.passages(None)
    collection = run(
        index_shards.collection,
        shards,
        passages.to_dict() if passages else None,
        encoder=offline.digest(encoder),
        index=recipes.to_dict(recipe.index),
        data=data,
        whole_parts=whole_parts,
    )
    models["collection"] = collection
    published = []
    for number in range(shards):
        named = run.labelled(f"shard {number + 1} of {shards}")
        cut = named(index_shards.documents, number, shards, data=data)
        searchable = indexing.make_searchable(
            recipe.index, named, encoder=encoder, data=cut, queries=kept.get("index"), whole_parts=whole_parts
        )
        metrics = publishing.metrics(old, searchable.documents, "corpus")
        published.append(registry.publish(models | searchable.parts, metrics=metrics, config=old.manifest.config))
    figures = {name: value for name, value in old.metrics.items() if name not in ("documents", "figures")}
    front = registry.publish(models, metrics={**figures, **collection.metrics}, config=old.manifest.config)
    return published, front


def render(figures: dict[str, Any], workspace: Path) -> "Table":
    """A table of the shards, and the commands that serve them."""
    from rich.table import Table

    count = len(figures["shards"])
    urls = ",".join(f"http://HOST{number + 1}:8080" for number in range(count))
    table = Table(
        title=f"{counted(figures['documents'], 'document')} in {counted(count, 'shard')}",
        title_justify="left",
        caption=typed(f"serve --release {figures['release'][:12]} --shards {urls}", workspace),
        caption_justify="left",
    )
    for column in ("shard", "documents", "serve it with"):
        table.add_column(column)
    for number, shard in enumerate(figures["shards"], start=1):
        command = typed(f"serve --release {shard['release'][:12]}", workspace)
        table.add_row(str(number), f"{shard['documents']:,}", command)
    return table
