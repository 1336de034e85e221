"""Base models that are not whole: each is refused before the first training, and by the stage itself.

transformers fills missing weights with random numbers, and a missing vocabulary with special tokens, without an error.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from pipeline.config import LoopConfig, PretrainConfig
from pipeline.errors import ConfigError, InputError, MissingError
from pipeline.models import base_models
from pipeline.models.bi_encoder import BiEncoder
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.training import preflight
from pipeline.training.tasks.masked_model import MaskedModel
from tests.pipeline.models.test_ready_made import body
from tests.pipeline.training.test_preflight import RECIPE


def configured(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps(config | values), encoding="utf-8")

    return change


def without_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    dropped = next(name for name in weights if "layer.0" in name and name.endswith("weight"))
    save_file({name: value for name, value in weights.items() if name != dropped}, folder / "model.safetensors")


def without_tokenizer(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()


DAMAGE: dict[str, tuple[Callable[[Path], None], type[InputError], str]] = {
    "more layers in its config": (configured(num_hidden_layers=9), MissingError, "its weights lack .*layer"),
    "other shapes in its config": (
        configured(intermediate_size=48),
        ConfigError,
        "not those that config.json describes",
    ),
    "impossible shapes": (configured(hidden_size=31), ConfigError, "not those that config.json"),
    "a weight left out": (without_weight, MissingError, "its weights lack .*layer.0"),
    "no tokenizer": (without_tokenizer, MissingError, "holds no tokenizer"),
}
STARTS: dict[str, Callable[[Path], object]] = {
    "a cross-encoder": lambda base: CrossEncoder.start(
        base, thresholds=[0.0], max_tokens=16, max_query_tokens=6, seed=0
    ),
    "a bi-encoder": lambda base: BiEncoder.start(base, dimensions=4, max_tokens=16, max_query_tokens=6, seed=0),
    "pre-training": lambda base: MaskedModel.start(base, PretrainConfig(max_tokens=16, loop=LoopConfig())),
    "the check": lambda base: preflight.check_loads(
        dataclasses.replace(RECIPE, encoder=dataclasses.replace(RECIPE.encoder, base=str(base)))
    ),
}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", DAMAGE)
def test_half_a_model_is_refused(tmp_path: Path, name: str, start: str) -> None:
    damage, kind, message = DAMAGE[name]
    base = body(tmp_path / "base", "bert")
    damage(base)
    with pytest.raises(kind, match=message) as refused:
        STARTS[start](base)
    assert str(base) in str(refused.value)


@pytest.mark.parametrize("family", ["bert", "roberta", "albert"])
@pytest.mark.parametrize("head", [0, 1])
def test_a_whole_model_with_or_without_a_head_loads(tmp_path: Path, family: str, head: int) -> None:
    base_models.check_loads(body(tmp_path / "base", family, head=head))
