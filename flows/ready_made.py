"""Imports and exports ready-made models for the service; unchanged files are not imported twice.

    folder ─► checks ─► ranker / encoder artifact ─► bundle ─► release        the first start, in a process of its own
    folder ─► digest ─► ready_made.json ─► release                            every later one, without torch

`ready_made.json` in the workspace maps a request to the release that it led to. It may be lost: then the models are
imported again.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flows import own_process
from pipeline import artifacts, disk, regular_files, releases
from pipeline.artifacts import Artifact
from pipeline.config import ExportConfig, Precision
from pipeline.errors import ConfigError
from pipeline.models import model_folders
from pipeline.models.ready_made_files import ReadyMadeOptions, at
from pipeline.temporary import temporary_folder

MEMORY = "ready_made.json"
"""The file of a workspace that remembers imported models and their releases."""
VERSION = 3
"""Version of the import, part of every request's key; raise it when the same folder comes to give another release."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadyMadeModels:
    """A request: the models that a person names, and the options that their folders do not decide."""

    ranker: str = ""
    """A folder, `package:NAME` or a hub name; empty for none."""
    encoder: str = ""
    options: ReadyMadeOptions = field(default_factory=ReadyMadeOptions)
    precision: Precision = "fp32"
    judgments: str = ""
    """Judged queries on which a lower precision is measured; sample texts without."""

    @property
    def named(self) -> dict[str, str]:
        """Role → what was named."""
        return {role: name for role, name in (("ranker", self.ranker), ("encoder", self.encoder)) if name}

    def key(self) -> str:
        """A digest of the request, by which it is remembered; of the models' files it says nothing."""
        request = asdict(self)
        if not self.options.passages:
            del request["options"]["passages"]  # As in what was remembered before there were passages.
        text = json.dumps([VERSION, request, {role: _absolute(name) for role, name in self.named.items()}])
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def release(models: ReadyMadeModels, workspace: Path) -> str:
    """The fingerprint of a release of these models alone, made now or at an earlier start.

    Raises:
        ConfigError, MissingError: see `bundles`.
        ConfigError: the encoder's vectors have another width than at the last start; models that are new here and a
            workspace that cannot be written.
    """
    if not models.named:
        raise ConfigError("name a ranker or an encoder to serve")
    known = _remembered(models, workspace)
    if known:
        return known
    disk.check_writable(workspace)
    check_files(models)  # Half a model is answered before torch is loaded.
    return own_process.run(_published, models, workspace)


def bundles(
    models: ReadyMadeModels, workspace: Path, documents: Artifact | None = None, *, same_width: bool = False
) -> dict[str, Artifact]:
    """Role → exported model. All models are loaded and checked before anything is written.

    Args:
        documents: texts on which a lower precision is measured, where no judgments are given.
        same_width: the encoder must give vectors as wide as at its last start in this workspace.

    Raises:
        ConfigError, MissingError: a folder that cannot be served as it is; see `pipeline.models.ready_made`.
        ConfigError: two models of different languages; an encoder that cannot read the documents.
        ArtifactError: ONNX gives other scores than PyTorch.
    """
    # A name of nothing is answered before torch is loaded.
    sources = {role: at(root) for role, root in _roots(models).items()}

    from pipeline.export import bundle, sample
    from pipeline.models import import_stage, ready_made, writing_systems

    workspace.mkdir(parents=True, exist_ok=True)
    loaded: dict[str, Any] = {}
    with temporary_folder(workspace / "ready-made") as copies:
        for role, source in sources.items():
            # The weights stay mapped into memory after their copy has no name any more.
            with source.copied(copies / role) as copy:
                loaded[role] = getattr(ready_made, role)(copy, models.options)
    for model in loaded.values():
        bundle.check_exportable(model)
    readable = {
        role: writing_systems.Readable(sources[role].path, model.tokenizer.to_str()) for role, model in loaded.items()
    }
    if len(readable) > 1:
        writing_systems.check_one_language(readable["ranker"], readable["encoder"])
    if documents is not None and "encoder" in readable:
        writing_systems.check_reads(readable["encoder"], sample.document_texts(documents))
    if same_width and "encoder" in loaded:
        _check_width(models, workspace, int(loaded["encoder"].dense.out_features))
    exported = {}
    for role, model in loaded.items():
        make = import_stage.ranker if role == "ranker" else import_stage.encoder
        read = import_stage.LoadedModel(model, sources[role])
        imported = make(workspace, models.named[role], models.options, read)
        exported[role] = _exported(models, workspace, imported, documents)
    return exported


def check_present(models: ReadyMadeModels) -> None:
    """Checks that the models' folders are there, before torch is loaded and documents are read for them.

    Raises:
        MissingError: there is no such folder, package or hub name.
    """
    _roots(models)


def _roots(models: ReadyMadeModels) -> dict[str, Path]:
    """Role → the model's folder; raises MissingError as `check_present`."""
    return {role: model_folders.root_of(name) for role, name in models.named.items()}


def check_files(models: ReadyMadeModels) -> None:
    """Checks that the models' files are whole, as far as their heads tell, before documents are read for them.

    Raises:
        ConfigError, MissingError: see `pipeline.models.model_files.check_files`.
    """
    roots = _roots(models)  # A name of nothing is answered before torch is loaded.

    from pipeline.models import model_files

    for role, root in roots.items():
        folder = root
        if role == "encoder" and (root / "modules.json").is_file():
            from pipeline.models import sentence_transformers_format as folder_format

            folder = root / folder_format.read_modules(root).transformer
        model_files.check_files(folder)


def sources(models: ReadyMadeModels) -> dict[str, str]:
    """Role → name of the model for a release's metrics; a folder is named without its parents."""
    return {role: Path(name).name if Path(name).exists() else name for role, name in models.named.items()}


def remember(models: ReadyMadeModels, workspace: Path, fingerprint: str, parts: Mapping[str, Artifact]) -> None:
    """Notes the release to which a request led, and the digests of the files that were read for it."""
    roots = _roots(models)
    entry: dict[str, Any] = {
        "release": fingerprint,
        "roots": {role: str(root.resolve()) for role, root in roots.items()},
        "digests": {role: _imported_from(workspace, parts[role]) for role in roots},
    }
    memory = _memory(workspace)
    memory["requests"][models.key()] = entry
    if "encoder" in parts:
        memory["widths"][_absolute(models.encoder)] = parts["encoder"].metrics["dimensions"]
    disk.write_atomically(workspace / MEMORY, json.dumps(memory, indent=1, sort_keys=True) + "\n", json.loads)


def _imported_from(workspace: Path, bundle: Artifact) -> str:
    """The digest of the folder from which an exported model was imported."""
    folder = artifacts.folder_of(workspace, bundle.manifest.inputs["model"])
    return artifacts.read_manifest(folder).inputs["folder"] if folder else ""


def _published(models: ReadyMadeModels, workspace: Path) -> str:
    parts = bundles(models, workspace, same_width=True)
    metrics = {"ready_made": sources(models)}
    new_release = releases.Releases(workspace).publish(parts, metrics=metrics, config={"name": "ready-made"})
    remember(models, workspace, new_release.fingerprint, parts)
    return new_release.fingerprint


def _remembered(models: ReadyMadeModels, workspace: Path) -> str:
    """The release that this request led to, if it is there and the models' files are what they were; else empty."""
    entry = _memory(workspace)["requests"].get(models.key())
    if entry is None:
        return ""
    roots = {role: Path(root) for role, root in entry["roots"].items()}
    present = releases.Releases(workspace).path(entry["release"]).is_dir() and all(
        root.is_dir() for root in roots.values()
    )
    if not present or {role: at(root).digest for role, root in roots.items()} != entry["digests"]:
        return ""
    log.info("ready-made models: imported before, release %s", entry["release"][:12])
    return str(entry["release"])


def _memory(workspace: Path) -> dict[str, Any]:
    """The remembered requests and widths; none where the file is missing or damaged, as it can be made again."""
    empty: dict[str, Any] = {"requests": {}, "widths": {}}
    try:
        memory = json.loads(regular_files.read(workspace / MEMORY))
    except FileNotFoundError:
        return empty
    except (OSError, ValueError) as error:
        log.warning("%s: not readable (%s); the models are imported again", workspace / MEMORY, error)
        return empty
    return memory if isinstance(memory, dict) and set(empty) <= set(memory) else empty


def _check_width(models: ReadyMadeModels, workspace: Path, width: int) -> None:
    before = _memory(workspace)["widths"].get(_absolute(models.encoder), width)
    if before != width:
        raise ConfigError(
            f"{models.encoder}: gives vectors of {width} numbers, and gave {before} when {workspace} served it last; "
            "vectors that clients hold do not fit these. Put the former model back, or serve this one from another "
            "--workspace and index anew"
        )


def _exported(models: ReadyMadeModels, workspace: Path, imported: Artifact, documents: Artifact | None) -> Artifact:
    from pipeline.export import bundle

    precisions: tuple[Precision, ...] = ("fp32",) if models.precision == "fp32" else ("fp32", models.precision)
    config = ExportConfig(precisions=precisions)
    if len(precisions) == 1:
        return bundle.make_unjudged(workspace, config, model=imported)
    if models.judgments:
        data, pairs = _judged(models.judgments, workspace)
        exported = bundle.make(workspace, config, model=imported, data=data, pairs=pairs)
    else:
        exported = bundle.make_unjudged(workspace, config, model=imported, documents=documents)
    measured, fp32 = (exported.metrics["precisions"][name] for name in (models.precision, "fp32"))
    ndcg = "" if measured["ndcg"] is None else f"nDCG@10 {measured['ndcg']:.4f} in place of {fp32['ndcg']:.4f}, "
    chosen = exported.metrics["chosen"]
    log.info(
        "%s in %s: %sorder agrees by Kendall's tau %.3f, largest change %.3g, on %d %s lists; chosen: %s",
        *(exported.metrics["role"], models.precision, ndcg, measured["kendall_tau"], measured["max_change"]),
        *(exported.metrics["sample_lists"], "judged" if models.judgments else "unjudged", chosen["cpu"]),
    )
    return exported


def _judged(path: str, workspace: Path) -> tuple[Artifact, Artifact]:
    """Judged data, with 98 of 100 queries in the valid split, and its pairs of the judged documents."""
    from index import lexical, lexical_build
    from pipeline.config import CandidatesConfig, DataConfig, IndexConfig, SourceConfig
    from pipeline.data import candidates, judgments

    source = SourceConfig(path=_absolute(path))
    data = judgments.make(workspace, DataConfig(sources=(source,), valid_share=0.98, test_share=0.01))
    words = lexical_build.make(workspace, IndexConfig(), data=data)
    run = lexical.run(workspace, lexical=words, data=data, depth=20, splits=("train", "valid"))
    config = CandidatesConfig(pool="judged", negatives=0)
    return data, candidates.pairs(workspace, config, data=data, run=run)


def _absolute(name: str) -> str:
    """A name that means the same from any working folder."""
    return str(Path(name).resolve()) if Path(name).exists() else name
