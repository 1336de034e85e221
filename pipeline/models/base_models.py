"""A base model in a folder of transformers: its config, its shape, and its weights, loaded whole or not at all.

Nothing here runs code that comes with a model.
"""

import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel

from pipeline.artifacts import Artifact, Staging
from pipeline.errors import ConfigError, MissingError, RelevanceError
from pipeline.models import model_folders, model_values
from pipeline.models.families import ModelFamily, family_of
from pipeline.outside import OutsideFolder
from pipeline.text import read_text, split_lines

LAYER = re.compile(r"(?<![a-z])layers?\.\d+\.")
"""Part of the name of a weight of a numbered layer."""


@dataclass(frozen=True, slots=True)
class StartingModel:
    """A base model as it was when a stage named it as its input."""

    input: Artifact | OutsideFolder

    @classmethod
    def of(cls, base: Artifact | Path | str) -> "StartingModel":
        """The model that `model_folders.folder` finds, as it is now.

        Raises:
            MissingError: there is no such folder, package or hub name.
        """
        return cls(base if isinstance(base, Artifact) else OutsideFolder.at(model_folders.folder(base)))

    @contextmanager
    def opened(self, staging: Staging) -> Iterator[Path]:
        """Yields a folder that holds what the fingerprint says: the artifact's, or a copy that ends with the block.

        Raises:
            SchemaError: a folder from outside was changed since.
        """
        if isinstance(self.input, Artifact):
            yield model_folders.folder(self.input)
        else:
            with self.input.copied(staging.folder / "base") as copy:
                yield copy


def model_type(path: Path) -> str:
    """`model_type` of the config.json in a folder, such as bert or roberta.

    Raises:
        ConfigError: not JSON, or no model_type in it.
    """
    try:
        name = json.loads(read_text(path / "config.json"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path / 'config.json'}: not a model's config ({error!r}); give the folder that transformers saved"
        ) from error
    return str(name)


def family(path: Path) -> ModelFamily:
    """The family of the model in a folder, from its config.json alone.

    Raises:
        ConfigError: not a model's config, or a model of no known family; names those that are known.
    """
    return family_of(model_type(path), str(path))


def config(path: Path) -> Any:
    """The transformers config of the model in a folder.

    Raises:
        ConfigError: transformers does not take it.
    """
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # Each key is checked by code of its own, which raises what it likes.
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{path / 'config.json'}: not a config that transformers takes ({reason}); give the model with its own "
            "config.json"
        ) from error


def check_loads(root: Path) -> None:
    """Refuses a folder whose weights are not those of the whole model that config.json describes.

    Raises:
        ConfigError: the weights cannot be loaded, or have other shapes.
        MissingError: weights that config.json wants are not there.
    """
    with torch.random.fork_rng(devices=[]):
        load_whole(AutoModel, root)


def load_whole(kind: Any, root: Path, **settings: Any) -> tuple[Any, list[str]]:
    """A model of transformers in fp32 whose body has all its weights, and the names of those that the folder lacks.

    What is lacking, such as the weights of a head, has random numbers.

    Args:
        kind: an AutoModel class.
        root: the folder.
        settings: further arguments of its `from_pretrained`.

    Raises:
        ConfigError: the weights cannot be loaded, have other shapes or more layers than config.json says, or were
            damaged.
        MissingError: weights of the body are not there.
    """
    with _weights_of(root), quiet():
        model, report = kind.from_pretrained(
            root,
            dtype=torch.float32,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # The check below says which, and transformers only that some are.
            **settings,
        )
    _check_shapes(root, report["mismatched_keys"])
    prefix = "" if kind is AutoModel else f"{model.base_model_prefix}."
    _check_complete(root, report["missing_keys"], prefix)
    _check_all_layers(root, report["unexpected_keys"])
    model_values.check_values(root, model)
    return model, sorted(report["missing_keys"])


@contextmanager
def _weights_of(root: Path) -> Iterator[None]:
    """Names the folder where the libraries that load its weights fail.

    Raises:
        ConfigError: the weights cannot be loaded, or have other shapes than config.json says.
    """
    try:
        yield
    except RelevanceError:
        raise
    except Exception as error:  # Whatever a value of config.json leads to inside the library.
        lines = [line for line in split_lines(str(error)) if line.strip()] or [type(error).__name__]
        raise ConfigError(
            f"{root}: its weights are not those that config.json describes ({lines[0][:200]}); give the model with its "
            "own config.json"
        ) from error


def _check_shapes(root: Path, mismatched: Iterable[tuple[str, Sequence[int], Sequence[int]]]) -> None:
    """Refuses weights of other shapes than config.json gives them.

    Args:
        mismatched: name, shape in the folder's file, and shape by its config.json.

    Raises:
        ConfigError: names the first.
    """
    unlike = sorted((name, tuple(held), tuple(wanted)) for name, held, wanted in mismatched)
    if unlike:
        name, held, wanted = unlike[0]
        raise ConfigError(
            f"{root}: its weights are not those that config.json describes: {name} is {held} in the file and {wanted} "
            f"there ({len(unlike)} such weights); give the model with its own config.json"
        )


def _check_complete(root: Path, missing: Iterable[str], prefix: str) -> None:
    """Refuses a body that lacked weights; transformers fills their places with random numbers and goes on.

    Args:
        missing: names of the weights that were not in the folder.
        prefix: beginning of the names of the body's weights. Those of a head may be missing, as a pooler's may.

    Raises:
        MissingError: names the first.
    """
    lacking = sorted(name for name in missing if name.startswith(prefix) and "pooler" not in name)
    if lacking:
        raise MissingError(
            f"{root}: its weights lack {', '.join(lacking[:3])} ({len(lacking)} in all), which config.json wants; give "
            "the whole model, with its own config.json"
        )


def _check_all_layers(root: Path, unexpected: Iterable[str]) -> None:
    """Refuses weights of layers that config.json does not have; transformers leaves them out and goes on.

    Raises:
        ConfigError: names the first.
    """
    layers = sorted(name for name in unexpected if LAYER.search(name))
    if layers:
        raise ConfigError(
            f"{root}: its weights have {layers[0]} ({len(layers)} such in all), and config.json no such layer; give "
            "the model with its own config.json"
        )


def without_dropout(config: Any) -> None:
    """Sets every dropout of a transformers config to 0: short trainings learn more without, and are a fifth faster."""
    for name, value in config.to_dict().items():
        if "drop" in name and (value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))):
            setattr(config, name, 0.0)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes that decide which student can be cut from a model, and what it can learn from another."""

    layers: int
    hidden: int
    """Width of the states."""
    heads: int
    shared: bool
    """Whether all layers use one set of weights, as ALBERT's do."""
    intermediate: int = 0
    """Units of a feed-forward layer; 0 where it is not known."""
    tokenizer: Path | None = None
    """The folder of its tokenizer; None where there is none yet."""
    model_type: str = "bert"
    """`model_type` of its config, which tells its family."""


def shape(path: Path) -> ModelShape:
    """The shape of the model in a folder, from its config.json alone.

    Raises:
        ConfigError: not a transformer's config, or a model of no known family.
    """
    try:
        config = json.loads(read_text(path / "config.json"))
        name = str(config["model_type"])
        known = family_of(name, str(path))
        own_names = CONFIG_MAPPING[name].attribute_map  # distilbert's hidden_size is called dim.

        def number(field: str) -> int:
            return int(config[own_names.get(field, field)])

        return ModelShape(
            layers=number("num_hidden_layers"),
            hidden=number("hidden_size"),
            heads=number("num_attention_heads"),
            shared=known.shares_layers,
            intermediate=int(config.get(known.units_field, 0)),
            tokenizer=path,
            model_type=name,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path / 'config.json'}: not a transformer's config ({error!r})") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silences transformers' bars and its report on a new head, which every training from a body would print."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
