"""`relevance releases export`: the models of a release in a folder of their own, as other tools open them.

FOLDER/ranker/        config.json, model.safetensors, tokenizer.json, README.md    opens with CrossEncoder
       ranker/onnx/   model.onnx, model_int8.onnx, …                               opens with onnxruntime
       encoder/       as ranker/, with modules.json                                opens with SentenceTransformer
       encoder/onnx/  as ranker/onnx/                                              opens with onnxruntime
"""

import json
import shutil
from pathlib import Path
from typing import Any

from index.store_file import UseLock
from pipeline import artifacts, disk, release_parts
from pipeline.artifacts import Artifact
from pipeline.errors import MissingError
from pipeline.outside import with_targets
from pipeline.releases import Releases


def export(workspace: Path, release: str, to: Path) -> dict[str, Any]:
    """Copies the PyTorch and ONNX models of a release, with their cards, into a new folder; returns what was written.

    Args:
        workspace: the folder of artifacts and releases.
        release: live, previous, or the first digits of a release.
        to: the folder to make, which has this name only once all is in it; one that is there must be empty.

    Raises:
        ConfigError: the folder holds something, cannot be replaced or cannot be written.
        ArtifactError: the disk is full.
        MissingError: no such release, or the workspace no longer holds a model that it was made from.
    """
    disk.check_new_folder(to)
    registry = Releases(workspace)
    with UseLock(registry.path(registry.resolve(release))):  # gc keeps the release, and what it was made from.
        opened = registry.open(release)
        pairs = {
            role: (part, _model(workspace, part))
            for role in release_parts.MODELS
            if release_parts.has_part(opened, role)
            for part in [release_parts.part(opened, role)]
        }
        sources = opened.metrics.get("ready_made", {})
        with disk.readable_errors(to), disk.new_folder(to) as staging:
            for role, (bundle, model) in pairs.items():
                _copy(staging / role, role, bundle, model, str(sources.get(role, "")))
    files = {str(path.relative_to(to)): path.stat().st_size for path in sorted(to.rglob("*")) if path.is_file()}
    return {"release": opened.fingerprint, "folder": str(to), "models": list(pairs), "files": files}


def render(result: dict[str, Any]) -> str:
    """A line with the release and the folder, then one with size and name of each file."""
    lines = [f"{size:>13,}  {name}" for name, size in result["files"].items()]
    return "\n".join([f"release {result['release'][:12]} → {result['folder']}", *lines])


def _model(workspace: Path, bundle: Artifact) -> Artifact:
    model = artifacts.input_of(workspace, bundle, "model")
    if model is None:
        raise MissingError(
            f"{workspace}: no longer holds the model {bundle.manifest.inputs.get('model', '')[:12]} that the "
            f"{bundle.path.name} was exported from; take the workspace in which the release was made"
        )
    return model


def _copy(folder: Path, role: str, bundle: Artifact, model: Artifact, source: str) -> None:
    from pipeline.export import exported_card
    from pipeline.models import sentence_transformers_format

    for file, target in with_targets(model.path / "model", folder):
        shutil.copyfile(file, target)  # Without the modes, as others may read the copies.
    if role == "encoder":
        sentence_transformers_format.leave_out_pooler(folder)
    description = json.loads(bundle.file("bundle.json").read_text(encoding="utf-8"))
    (folder / "onnx").mkdir()
    for precision, figures in description["precisions"].items():
        shutil.copyfile(bundle.file(figures["file"]), folder / "onnx" / exported_card.onnx_name(precision))
    exported_card.write(folder, role, description, source)
