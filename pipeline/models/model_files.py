"""Checks of a model's folder before it is loaded: its config, its weights, its tokenizer, its head.

They read files only; `base_models.check_loads` also loads the weights.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from pipeline.errors import ConfigError, MissingError
from pipeline.models import model_sizes
from pipeline.text import GIT_LFS, counted, read_text

V = TypeVar("V")

FLOATS = ("F64", "F32", "F16", "BF16")
"""Types of numbers, as safetensors names them, that weights may have."""


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no such file.

    Raises:
        ConfigError: not a JSON object.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not readable ({error})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: not a JSON object")
    return content


def value_of(content: Mapping[str, Any], key: str, kind: type[V], path: Path) -> V | None:
    """A setting in the object of a JSON file; None where it is missing or null.

    Raises:
        ConfigError: a value of another type; names the file and the key.
    """
    value = content.get(key)
    if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
        raise ConfigError(f"{path}: {key} is {str(value)[:60]!r}, and must be {kind.__name__}")
    return value


def check_files(root: Path) -> None:
    """Refuses a folder whose model cannot be read without running its code, or whose tokenizer does not fit.

    Raises:
        ConfigError: code in the folder, weights as .bin only, sizes that the weights cannot have, or a tokenizer with
            more tokens than embeddings.
        MissingError: no weights.
    """
    config = read_object(root / "config.json")
    if "auto_map" in config:
        raise ConfigError(
            f"{root / 'config.json'}: auto_map names code that comes with the model, which is not run here; take a "
            "model of a family that transformers knows"
        )
    check_weights(root)
    size = sum(path.stat().st_size for path in root.glob("*.safetensors"))
    model_sizes.check_sizes(root / "config.json", config, size)
    path = root / "tokenizer.json"
    if path.is_file() and "vocab_size" in config:
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # The library has no class of its own for this.
            raise _damaged(path, error) from error
        tokens = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        if tokens > config["vocab_size"]:
            raise ConfigError(
                f"{path}: has {tokens} tokens, and config.json {config['vocab_size']} embeddings; save the tokenizer "
                "that the model was trained with, or enlarge the model with resize_token_embeddings"
            )


def check_weights(root: Path, name: str = "model.safetensors") -> None:
    """Refuses a folder without weights that can be read safely.

    Raises:
        ConfigError: weights in pickle files only, or a file that was cut off.
        MissingError: no weights, or not all files of several.
    """
    index = root / f"{name}.index.json"
    if (root / name).is_file() or index.is_file():
        parts = [name] if (root / name).is_file() else _listed_parts(index)
        for part in parts:
            _check_whole(root / part)
        return
    pickles = sorted(path.name for path in root.glob("*.bin"))
    if pickles:
        raise ConfigError(
            f"{root}: its weights are {', '.join(pickles[:3])}, a format that can run code when it is read; where you "
            f"trust it, {_conversion(root)} writes safetensors"
        )
    gone = next((path for path in (root / name, index) if path.is_symlink()), None)
    if gone is not None:
        raise MissingError(f"{gone}: is a link to {gone.readlink()}, which is not there; fetch the model again")
    has_onnx = next((path for pattern in ("*.onnx", "onnx/*.onnx") for path in root.glob(pattern)), None)
    if has_onnx is not None:
        raise MissingError(f"{root}: holds no {name}, only {has_onnx.name}; give the model as PyTorch's safetensors")
    raise MissingError(f"{root}: holds no {name}; give the whole model")


def _conversion(root: Path) -> str:
    """The Python expression that writes pickled weights as safetensors with all their heads.

    AutoModel would leave out the head of a cross-encoder. Of a module of sentence-transformers, which is no model of
    transformers, the expression writes all modules into a new folder.
    """
    architecture = next(iter(value_of(read_object(root / "config.json"), "architectures", list, root) or ()), "")
    if isinstance(architecture, str) and architecture.isidentifier():
        folder = json.dumps(str(root.resolve()))
        return f"transformers.{architecture}.from_pretrained({folder}).save_pretrained({folder})"
    return 'SentenceTransformer(FOLDER).save("NEW")'


def _listed_parts(index: Path) -> list[str]:
    """The files of weights that the index of several names.

    Raises:
        ConfigError: it names none, or something that is no name of a file.
    """
    parts = set((value_of(read_object(index), "weight_map", dict, index) or {}).values())
    if not parts or not all(isinstance(part, str) and Path(part).name == part for part in parts):
        raise ConfigError(f"{index}: weight_map names no files of weights beside it; fetch or save the model again")
    return sorted(parts)


def _check_whole(file: Path) -> None:
    """Refuses a safetensors file whose head does not fit its length, as a download that broke off leaves it.

    Weights that are no floating-point numbers are refused too: without their scales they mean something else.
    """
    if not file.is_file():
        raise MissingError(f"{file}: no such file, and the index of the weights names it; give the whole model")
    try:
        with safe_open(file, framework="numpy") as content:
            kinds = {name: content.get_slice(name).get_dtype() for name in content.keys()}  # noqa: SIM118  No mapping.
    except (SafetensorError, OSError) as error:
        raise _damaged(file, error) from error
    wrong = [name for name, kind in kinds.items() if name.endswith("weight") and kind not in FLOATS]
    if wrong:
        raise ConfigError(
            f"{file}: {wrong[0]} is of type {kinds[wrong[0]]}, and weights are read as {', '.join(FLOATS)}; give the "
            "model as it was before it was quantised"
        )


def _damaged(file: Path, error: Exception) -> ConfigError:
    """The error for a file that is not what its name says: one of a download that broke off, or a pointer of Git's."""
    with file.open("rb") as opened:
        is_pointer = opened.read(len(GIT_LFS)) == GIT_LFS
    if is_pointer:
        return ConfigError(
            f"{file}: is a pointer of Git LFS in place of the file; fetch it with `git lfs pull` in this folder"
        )
    return ConfigError(f"{file}: cut off or damaged ({error}); fetch or save the model again")


def check_head(path: Path) -> None:
    """Refuses a model whose classification head gives several labels, from its config.json alone.

    Raises:
        ConfigError: a head of several labels; says which, and how to take the model without its head.
    """
    try:
        config = json.loads(read_text(path / "config.json"))
        classifies = any("ForSequenceClassification" in name for name in config.get("architectures") or ())
        labels = list((config.get("id2label") or {"0": "", "1": ""}).values())
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{path / 'config.json'}: not a model's config ({error!r}); give the folder that transformers saved"
        ) from error
    if classifies and len(labels) != 1:
        raise ConfigError(
            f"{path}: its head gives {counted(len(labels), 'label')} ({', '.join(map(str, labels))}), a relevance "
            "model one score; save it without its head, AutoModel.from_pretrained(…).save_pretrained(FOLDER), with its "
            "tokenizer beside it, and give that folder"
        )
