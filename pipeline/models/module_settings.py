"""Settings in a folder of sentence-transformers that change its numbers and are not taken over; they are refused.

Each module there has a few settings that nearly every model leaves at their default. One that does not would be
served with other vectors or scores than its own, so nothing here is skipped in silence.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import ConfigError
from pipeline.models import model_files

SETTINGS = "config_sentence_transformers.json"
"""The file of prompts, `similarity_fn_name` and `truncate_dim`."""
LENGTHS = "sentence_bert_config.json"
"""The file of the maximum length, `max_seq_length`, and of what the transformer gives."""

DENSE: Mapping[str, tuple[Any, ...]] = {
    "use_residual": (None, False),
    "module_input_name": (None, "sentence_embedding"),
    "module_output_name": (None, "sentence_embedding"),
}
"""Key of a linear layer's config.json → the values under which it is the layer alone."""

TRANSFORMER: Mapping[Literal["ranker", "encoder"], Mapping[str, tuple[Any, ...]]] = {
    "encoder": {
        "transformer_task": (None, "feature-extraction"),
        "module_output_name": (None, "token_embeddings"),
        "query_expansion": (None,),
    },
    "ranker": {
        "transformer_task": (None, "sequence-classification"),
        "module_output_name": (None, "scores"),
        "query_expansion": (None,),
    },
}
"""Role → key of sentence_bert_config.json → the values under which the model's own output is read."""

_HARMLESS = ("padding", "truncation")
"""Keys of `processing_kwargs` that change no token of an input which is cut and padded as here."""


def check_dense(file: Path, config: Mapping[str, Any]) -> None:
    """Raises ConfigError where a layer's config.json asks for more than the layer and its activation."""
    _check(file, config, DENSE)


def check_transformer(file: Path, role: Literal["ranker", "encoder"]) -> None:
    """Raises ConfigError where sentence_bert_config.json asks for another output, or for other tokens of a text."""
    config = model_files.read_object(file)
    _check(file, config, TRANSFORMER[role])
    processing = model_files.value_of(config, "processing_kwargs", dict, file) or {}
    for kind in ("common", "text"):
        named = model_files.value_of(processing, kind, dict, file) or {}
        if other := [key for key in named if key not in _HARMLESS]:
            raise ConfigError(
                f"{file}: processing_kwargs.{kind} has {', '.join(map(str, other))}, which changes how texts are read "
                "and is not known here; take another model, or save it without"
            )


def check_ranker(root: Path, kinds: Sequence[str]) -> None:
    """Raises ConfigError where a cross-encoder has further modules, or a prompt that it puts before each query.

    Args:
        root: the folder.
        kinds: the kinds of its modules; none in a folder of transformers.
    """
    if list(kinds) not in ([], ["Transformer"]):
        raise ConfigError(
            f"{root / 'modules.json'}: modules {', '.join(kinds)}; a ranker here is one transformer with a head for "
            "scores"
        )
    check_transformer(root / LENGTHS, "ranker")
    file = root / SETTINGS
    config = model_files.read_object(file)
    name = model_files.value_of(config, "default_prompt_name", str, file)
    if name and (prompt := (model_files.value_of(config, "prompts", dict, file) or {}).get(name)):
        raise ConfigError(
            f"{file}: default_prompt_name is {name}, whose text {str(prompt)[:40]!r} stands before each query there, "
            "and a ranker here reads queries as they are sent; set it to null, and let clients send the text with the "
            "query"
        )


def _check(file: Path, config: Mapping[str, Any], known: Mapping[str, tuple[Any, ...]]) -> None:
    for key, values in known.items():
        if config.get(key) not in values:
            expected = next((value for value in values if value is not None), None)
            raise ConfigError(
                f"{file}: {key} is {str(config[key])[:60]}, which changes the model's numbers and is not known here "
                f"({'without it' if expected is None else f'known is {expected}'}); take another model"
            )
