"""Imports a ready-made model from a folder as a `ranker` or `encoder` artifact, like one that was trained here.

The weights are copied, so a release no longer needs the folder. The artifact records a digest of the folder's files,
and the same folder is imported once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pipeline.artifacts import Artifact, Staging
from pipeline.models import model_folders, ready_made
from pipeline.models.bi_encoder import BiEncoder
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.models.ready_made_files import ReadyMadeOptions, at
from pipeline.outside import OutsideFolder
from pipeline.stage import Stage

M = TypeVar("M", CrossEncoder, BiEncoder)

RANKER = Stage("ranker", version=2, title="ready-made ranker")
ENCODER = Stage("encoder", version=1, title="ready-made encoder")


@dataclass(frozen=True, slots=True)
class LoadedModel(Generic[M]):
    """A ready-made model in memory, and the folder as it was when it was read."""

    model: M
    source: OutsideFolder


@RANKER
def ranker(
    workspace: Path, folder: str, options: ReadyMadeOptions, loaded: LoadedModel[CrossEncoder] | None = None
) -> Artifact:
    """The `ranker` artifact of a ready-made cross-encoder: `model/` and `head.json`.

    Args:
        workspace: the folder that holds `artifacts/`.
        folder: a folder, `package:NAME` or a hub name.
        options: settings that the folder's files do not give.
        loaded: the model in the folder, if it is in memory already.

    Raises:
        ConfigError: no head or label of relevance, an unknown model, weights as .bin, or code in the folder.
        MissingError: half a model; names the file.
    """
    return _imported(RANKER, workspace, folder, options, ready_made.ranker, loaded)


@ENCODER
def encoder(
    workspace: Path, folder: str, options: ReadyMadeOptions, loaded: LoadedModel[BiEncoder] | None = None
) -> Artifact:
    """The `encoder` artifact of a ready-made bi-encoder: `model/` and `head.json`.

    Args:
        workspace: the folder that holds `artifacts/`.
        folder: a folder, `package:NAME` or a hub name.
        options: settings that the folder's files do not give.
        loaded: the model in the folder, if it is in memory already.

    Raises:
        ConfigError: an unknown module, pooling or model, weights as .bin, or code in the folder.
        MissingError: half a model; names the file.
    """
    return _imported(ENCODER, workspace, folder, options, ready_made.encoder, loaded)


def _imported(
    stage: Stage,
    workspace: Path,
    folder: str,
    options: ReadyMadeOptions,
    load: Callable[[Path, ReadyMadeOptions], M],
    loaded: LoadedModel[M] | None,
) -> Artifact:
    """The artifact of a model that is loaded already, or that `load` reads from the folder."""
    source = loaded.source if loaded else at(model_folders.root_of(folder))

    def build(staging: Staging) -> Mapping[str, Any]:
        if loaded:
            loaded.model.save(staging.folder)
        else:
            with source.copied(staging.folder / "source") as copy:
                load(copy, options).save(staging.folder)
        return {"source": str(folder)}

    return stage.make(workspace, config=options.to_dict(), inputs={"folder": source}, build=build)
