"""The files that a bi-encoder's folder needs beside the transformer to open with `SentenceTransformer(folder)`.

    modules.json                    the transformer, then the folders below, in this order
    sentence_bert_config.json       where texts are cut
    config_sentence_transformers.json
    1_Pooling/config.json           mean over real tokens
    2_Dense/                        the projection: config.json, model.safetensors
    3_Normalize/                    nothing to know

Names and keys are those that the library has read since its third version; newer ones read them as well.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

DENSE = "2_Dense/model.safetensors"
"""Where the projection's weights are; linear.weight (dimensions, hidden), linear.bias (dimensions,)."""

_MODULES = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"), ("3_Normalize", "Normalize"))


_POOLING_KEYS = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "lasttoken": "lasttoken"}
"""Kind of pooling → the end of its key in 1_Pooling/config.json."""

_ACTIVATIONS = {
    "identity": "torch.nn.modules.linear.Identity",
    "tanh": "torch.nn.modules.activation.Tanh",
}


def write(
    folder: Path,
    dense: nn.Linear,
    *,
    max_tokens: int,
    pooling: str = "mean",
    activation: str = "identity",
    prompts: Mapping[str, str] | None = None,
) -> None:
    """Makes the folder of a saved transformer one of sentence-transformers: pooling, this projection, unit length.

    Args:
        place: the folder, with config.json, weights and tokenizer in it.
        dense: the projection.
        max_tokens: maximum length of a text, special tokens included; the rest is cut.
        pooling: mean, cls, max or lasttoken.
        activation: identity or tanh, after the projection.
        prompts: role → the text that stands before each text of that role; empty ones are left out.
    """
    listed = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(_MODULES)
    ]
    _json(folder / "modules.json", listed)
    _json(folder / "sentence_bert_config.json", {"max_seq_length": max_tokens, "do_lower_case": False})
    _json(
        folder / "config_sentence_transformers.json",
        {
            "prompts": {role: prompt for role, prompt in (prompts or {}).items() if prompt},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )
    _json(
        folder / "1_Pooling" / "config.json",
        {"word_embedding_dimension": dense.in_features, **_pooling_modes(pooling)},
    )
    _json(
        folder / "2_Dense" / "config.json",
        {
            "in_features": dense.in_features,
            "out_features": dense.out_features,
            "bias": True,
            "activation_function": _ACTIVATIONS[activation],
        },
    )
    save_file({f"linear.{name}": value.contiguous() for name, value in dense.state_dict().items()}, folder / DENSE)
    _json(folder / "3_Normalize" / "config.json", {})


def leave_out_pooler(folder: Path) -> None:
    """Says in a saved folder that the transformer has no pooler, where its class would add one.

    The weights of a bi-encoder hold none. Without this, sentence-transformers makes one at random, never uses it, and
    reports its weights as MISSING.
    """
    import inspect

    import transformers

    (name,) = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"]
    if "add_pooling_layer" in inspect.signature(getattr(transformers, name)).parameters:
        path = folder / "sentence_bert_config.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        _json(path, content | {"model_args": {"add_pooling_layer": False}})


def _pooling_modes(pooling: str) -> dict[str, bool]:
    """The keys of 1_Pooling/config.json; the mean alone stands there as its own key, as it always did."""
    if pooling == "mean":
        return {"pooling_mode_mean_tokens": True}
    return {f"pooling_mode_{key}": kind == pooling for kind, key in _POOLING_KEYS.items()}


def _json(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
