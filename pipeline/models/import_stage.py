"""Ready-made models as artifacts: what a folder holds becomes a ranker or encoder like one that was trained here.

The weights are copied, so a release needs the folder no more. The artifact records a digest of the folder's files, and
the same folder is imported once.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.artifacts import Artifact, Staging
from pipeline.models import ready_made
from pipeline.models.bi_encoder import BiEncoder
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.models.ready_made_files import ReadyMadeOptions, digest
from pipeline.stage import Stage

RANKER = Stage("ranker", version=2, title="ready-made ranker")
ENCODER = Stage("encoder", version=1, title="ready-made encoder")


@RANKER
def ranker(workspace: Path, folder: str, options: ReadyMadeOptions, model: CrossEncoder | None = None) -> Artifact:
    """The `ranker` artifact of a ready-made cross-encoder: `model/` and `head.json`.

    Args:
        workspace: the folder that holds `artifacts/`.
        folder: a folder, `package:NAME` or a hub name.
        options: what the folder leaves open.
        model: the model in the folder, if it is loaded already.

    Raises:
        ConfigError, MissingError: see `ready_made.ranker`.
    """
    return _imported(RANKER, workspace, folder, options, lambda root: model or ready_made.ranker(root, options))


@ENCODER
def encoder(workspace: Path, folder: str, options: ReadyMadeOptions, model: BiEncoder | None = None) -> Artifact:
    """The `encoder` artifact of a ready-made bi-encoder: `model/` and `head.json`.

    Args:
        workspace: the folder that holds `artifacts/`.
        folder: a folder, `package:NAME` or a hub name.
        options: what the folder leaves open.
        model: the model in the folder, if it is loaded already.

    Raises:
        ConfigError, MissingError: see `ready_made.encoder`.
    """
    return _imported(ENCODER, workspace, folder, options, lambda root: model or ready_made.encoder(root, options))


def _imported(
    stage: Stage,
    workspace: Path,
    folder: str,
    options: ReadyMadeOptions,
    load: Callable[[Path], CrossEncoder | BiEncoder],
) -> Artifact:
    """The artifact of the model that `load` reads from the folder."""
    root = ready_made.root_of(folder)

    def build(staging: Staging) -> Mapping[str, Any]:
        load(root).save(staging.folder)
        return {"source": str(folder)}

    return stage.make(workspace, config=options.to_dict(), inputs={"folder": digest(root)}, build=build)
