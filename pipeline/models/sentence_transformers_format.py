"""The files of a bi-encoder's folder beside the transformer, by which `SentenceTransformer(folder)` opens it.

`write` makes them for our models, the functions below it read those of ready-made ones.

    modules.json                    the transformer, then the folders below, in this order
    sentence_bert_config.json       where texts are cut
    config_sentence_transformers.json
    1_Pooling/config.json           one vector of the states of all tokens
    2_Dense/                        the projection: config.json, model.safetensors
    3_Normalize/                    nothing to know

Where layers stand ahead of the projection, each has a folder N_Dense in this order, and the later folders move up.
Names and keys are those that the library has read since its third version; newer ones read them as well.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.errors import ConfigError
from pipeline.models import model_files, model_values, module_settings
from pipeline.models.module_settings import LENGTHS, SETTINGS
from pipeline.text import read_text

DENSE = "2_Dense/model.safetensors"
"""Where the weights of the first linear layer are; linear.weight (out, in), linear.bias (out,). It is the projection,
unless others follow."""

Pooling = Literal["mean", "cls", "max", "lasttoken"]
"""The vector that is made of the tokens' last states: their mean, the first, the largest, or the last."""

Activation = Literal["identity", "tanh"]
"""The function after a linear layer."""

LIBRARY = "sentence_transformers"
"""Package whose modules are read; any other is code that comes with a model."""
_KINDS = ("Transformer", "Pooling", "Dense", "Normalize")

_POOLING_KEYS: Mapping[Pooling, str] = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
"""Kind of pooling → its key in 1_Pooling/config.json."""

_ACTIVATIONS: Mapping[Activation, str] = {
    "identity": "torch.nn.modules.linear.Identity",
    "tanh": "torch.nn.modules.activation.Tanh",
}

_PROMPT_NAMES = {"query": ("query",), "document": ("document", "passage", "corpus")}
"""Role → names of prompts in config_sentence_transformers.json, as sentence-transformers looks them up."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DenseLayer:
    """A linear layer and the function after it."""

    linear: nn.Linear
    activation: Activation = "identity"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModuleFolders:
    """The folders of modules.json, relative to it."""

    transformer: str = ""
    pooling: str | None = None
    """None in a folder of transformers."""
    dense: tuple[str, ...] = ()
    """In the order in which they are applied."""
    normalised: bool = False


def dense_folder(number: int) -> str:
    """The folder of the linear layer with this number, from 0, in a folder that `write` made."""
    return f"{number + 2}_Dense"


def write(
    folder: Path,
    layers: Sequence[DenseLayer],
    *,
    max_tokens: int,
    pooling: Pooling = "mean",
    prompts: Mapping[str, str] | None = None,
) -> None:
    """Makes the folder of a saved transformer one of sentence-transformers: pooling, these layers, unit length.

    Args:
        folder: the folder, with config.json, weights and tokenizer in it.
        layers: the linear layers after the pooling, the projection last.
        max_tokens: maximum length of a text, special tokens included; the rest is cut.
        pooling: mean, cls, max or lasttoken.
        prompts: role → the text that stands before each text of that role; empty ones are left out.
    """
    folders = ["", "1_Pooling", *map(dense_folder, range(len(layers))), f"{len(layers) + 2}_Normalize"]
    kinds = ["Transformer", "Pooling", *["Dense"] * len(layers), "Normalize"]
    listed = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(zip(folders, kinds, strict=True))
    ]
    _write_json(folder / "modules.json", listed)
    _write_json(folder / LENGTHS, {"max_seq_length": max_tokens, "do_lower_case": False})
    _write_json(
        folder / "config_sentence_transformers.json",
        {
            "prompts": {role: prompt for role, prompt in (prompts or {}).items() if prompt},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )
    _write_json(
        folder / "1_Pooling" / "config.json",
        {"word_embedding_dimension": layers[0].linear.in_features, **_pooling_modes(pooling)},
    )
    for number, layer in enumerate(layers):
        _write_dense(folder / dense_folder(number), layer)
    _write_json(folder / folders[-1] / "config.json", {})


def _write_dense(folder: Path, layer: DenseLayer) -> None:
    linear = layer.linear
    _write_json(
        folder / "config.json",
        {
            "in_features": linear.in_features,
            "out_features": linear.out_features,
            "bias": True,
            "activation_function": _ACTIVATIONS[layer.activation],
        },
    )
    weights = {f"linear.{name}": value.contiguous() for name, value in linear.state_dict().items()}
    save_file(weights, folder / "model.safetensors")


def leave_out_pooler(folder: Path) -> None:
    """Says in a saved folder that the transformer has no pooler, where its class would add one.

    The weights of a bi-encoder hold none. Without this, sentence-transformers makes one at random, never uses it, and
    reports its weights as MISSING.
    """
    import inspect

    import transformers

    (name,) = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"]
    if "add_pooling_layer" in inspect.signature(getattr(transformers, name)).parameters:
        path = folder / LENGTHS
        content = json.loads(path.read_text(encoding="utf-8"))
        _write_json(path, content | {"model_args": {"add_pooling_layer": False}})


def _pooling_modes(pooling: Pooling) -> dict[str, bool]:
    """The keys of 1_Pooling/config.json; the mean alone stands there as its own key, as it always did."""
    if pooling == "mean":
        return {_POOLING_KEYS["mean"]: True}
    return {key: kind == pooling for kind, key in _POOLING_KEYS.items()}


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def read_modules(root: Path) -> ModuleFolders:
    """The folders of the modules; those of a folder of transformers where there is no modules.json.

    Raises:
        ConfigError: a kind that is not known or of another library, or another order than transformer, pooling, linear
            layers, unit length.
    """
    path = root / "modules.json"
    if not path.is_file():
        log.info("encoder: no modules.json, so the mean of the states is taken, as sentence-transformers does")
        return ModuleFolders()
    entries = _entries(path)
    for kind, folder in entries:
        if kind not in _KINDS:
            raise ConfigError(f"{path}: module {kind} ({folder}) is not known; known are {', '.join(_KINDS)}")
        if Path(folder).is_absolute() or ".." in Path(folder).parts:
            raise ConfigError(f"{path}: module {kind} lies outside the folder ({folder})")
    kinds = [kind for kind, _ in entries]
    dense = tuple(folder for kind, folder in entries if kind == "Dense")
    normalised = "Normalize" in kinds
    if kinds != ["Transformer", "Pooling", *["Dense"] * len(dense), *["Normalize"] * normalised]:
        raise ConfigError(
            f"{path}: modules {', '.join(kinds)}; known is one transformer, one pooling, any number of Dense, and at "
            "most one Normalize, in this order"
        )
    return ModuleFolders(transformer=entries[0][1], pooling=entries[1][1], dense=dense, normalised=normalised)


def kinds_of_modules(root: Path) -> list[str]:
    """The kinds of a folder's modules, in their order; none in a folder of transformers.

    Raises:
        ConfigError: modules.json is no list of modules, or names one of another library.
    """
    path = root / "modules.json"
    return [kind for kind, _ in _entries(path)] if path.is_file() else []


def _entries(path: Path) -> list[tuple[str, str]]:
    """Kind and folder of each module of a modules.json; raises ConfigError as `kinds_of_modules`."""
    try:
        entries = [(str(item["type"]), str(item["path"])) for item in json.loads(read_text(path))]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ConfigError(f"{path}: not a list of modules ({error!r})") from error
    own = next((kind for kind, _ in entries if kind.partition(".")[0] != LIBRARY), "")
    if own:
        raise ConfigError(
            f"{path}: module {own} is code that comes with the model, which is not run here; take a model whose "
            f"modules are all of {LIBRARY}"
        )
    return [(_last(kind), folder) for kind, folder in entries]


def read_pooling(root: Path, modules: ModuleFolders) -> Pooling:
    """The kind of pooling; the mean for a folder of transformers.

    Raises:
        ConfigError: no kind of pooling, several, or one that is not known.
    """
    if modules.pooling is None:
        return "mean"
    path = root / modules.pooling / "config.json"
    config = model_files.read_object(path)
    if config.get("include_prompt", True) is not True:
        raise ConfigError(f"{path}: include_prompt is false, and prompts are always pooled here; take another model")
    modes = {key for key, value in config.items() if key.startswith("pooling_mode_") and value is True}
    if isinstance(mode := config.get("pooling_mode"), str):  # So it stands there since version 6 of the library.
        modes = {_POOLING_KEYS.get(mode, mode)}  # type: ignore[call-overload]
    known = {key: kind for kind, key in _POOLING_KEYS.items()}
    if len(modes) != 1 or not modes <= set(known):
        raise ConfigError(
            f"{path}: pooling is {', '.join(sorted(modes)) or 'not stated'}; known is one of {', '.join(known)}"
        )
    return known[modes.pop()]


def read_layers(root: Path, modules: ModuleFolders, hidden: int) -> list[DenseLayer]:
    """The linear layers after the pooling, the last cut off where the folder says so; the identity where it has none.

    Raises:
        ConfigError: an activation that is not known, weights as .bin, or weights of another width.
        MissingError: no weights.
    """
    layers = [_read_dense(root / folder) for folder in modules.dense]
    if not layers:
        linear = nn.Linear(hidden, hidden)
        with torch.no_grad():
            linear.weight.copy_(torch.eye(hidden))
            linear.bias.zero_()
        layers = [DenseLayer(linear)]
    width = hidden
    for folder, layer in zip(modules.dense, layers, strict=False):
        if layer.linear.in_features != width:
            what = "the model's have" if folder == modules.dense[0] else "the layer before gives"
            raise ConfigError(f"{root / folder}: projects {layer.linear.in_features} numbers, {what} {width}")
        width = layer.linear.out_features
    return [*layers[:-1], replace(layers[-1], linear=_cut_off(root, layers[-1].linear))]


def _read_dense(path: Path) -> DenseLayer:
    known = {_last(name): activation for activation, name in _ACTIVATIONS.items()}
    config = model_files.read_object(path / "config.json")
    module_settings.check_dense(path / "config.json", config)
    name = _last(str(config.get("activation_function", "Tanh")))  # As the library takes it where none is named.
    if name not in known:
        raise ConfigError(
            f"{path / 'config.json'}: activation_function {name} is not known; known are {', '.join(known)}"
        )
    model_files.check_weights(path)
    try:
        layer = DenseLayer(read_linear(path / "model.safetensors"), known[name])
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"{path / 'model.safetensors'}: not a linear layer ({error})") from error
    model_values.check_values(path, layer.linear)
    return layer


def read_linear(file: Path) -> nn.Linear:
    """The linear layer of a file with linear.weight and perhaps linear.bias.

    Raises:
        OSError, ValueError, KeyError, RuntimeError, SafetensorError: the file holds none.
    """
    values = load_file(file)
    out_features, in_features = values["linear.weight"].shape
    linear = nn.Linear(in_features, out_features)
    with torch.no_grad():
        linear.weight.copy_(values["linear.weight"])
        linear.bias.copy_(values.get("linear.bias", torch.zeros(out_features)))
    return linear


def _cut_off(root: Path, dense: nn.Linear) -> nn.Linear:
    """The projection to the first `truncate_dim` numbers, where the folder says that its vectors are cut off there."""
    path = root / SETTINGS
    width = model_files.value_of(model_files.read_object(path), "truncate_dim", int, path)
    if width is None or width >= dense.out_features:
        return dense
    if width < 1:
        raise ConfigError(f"{path}: truncate_dim is {width}, and vectors have at least one number")
    narrow = nn.Linear(dense.in_features, width)
    with torch.no_grad():
        narrow.weight.copy_(dense.weight[:width])
        narrow.bias.copy_(dense.bias[:width])
    return narrow


def _last(name: str) -> str:
    """The last part of a dotted name."""
    return name.rsplit(".", 1)[-1]


def read_prompt(root: Path, role: Literal["query", "document"]) -> str:
    """The text that stands before each query or document; empty where the folder names none.

    Raises:
        ConfigError: a prompt or a name that is no text.
    """
    path = root / SETTINGS
    config = model_files.read_object(path)
    known = model_files.value_of(config, "prompts", dict, path) or {}
    names = (*_PROMPT_NAMES[role], model_files.value_of(config, "default_prompt_name", str, path) or "")
    # An empty prompt may be one that sentence-transformers adds by itself, so it hides no other.
    prompt = next(filter(None, (model_files.value_of(known, name, str, path) for name in names)), "")
    if not prompt.isascii() and prompt != prompt.encode(errors="replace").decode():
        raise ConfigError(f"{path}: the prompt for a {role} holds half of a surrogate pair, which is no text")
    return prompt
