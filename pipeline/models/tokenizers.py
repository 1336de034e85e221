"""Input handling that cross-encoder and bi-encoder share: tokenizers, templates of special tokens, limits of length.

`attention` names the implementation of attention with which both are trained.
"""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pipeline.errors import ConfigError, MissingError
from pipeline.models import base_models
from pipeline.models.families import family_of
from pipeline.tokens import PairTemplate, TextTemplate

UNUSUAL_TEXT = "a \u0378"
"""A text with a code point that stands for no character, so that a tokenizer needs its token for unknown words."""

TOKENIZER_FILES = ("tokenizer.json", "vocab*", "*.model")
"""Files of which a model's folder has at least one."""

NO_SPECIAL_TOKENS = (
    "the tokenizer puts no special token around a text, as one whose tokenizer.json lacks its post_processor; save the "
    "tokenizer that the model was trained with"
)
"""The message on a tokenizer that puts no special token around a text."""


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The fast tokenizer in a model's folder.

    Raises:
        ConfigError: a model of no known family, or without a fast tokenizer.
        MissingError: no tokenizer's file.
    """
    base_models.family(folder)
    if not any(path.is_file() for pattern in TOKENIZER_FILES for path in folder.glob(pattern)):
        # Where there is no vocabulary, transformers makes one of the special tokens alone.
        raise MissingError(f"{folder}: holds no tokenizer; save tokenizer.json beside the weights")
    try:
        with base_models.quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False)
        tokenizer(UNUSUAL_TEXT)
    except Exception as error:  # Of a damaged file, the library raises nothing more special.
        reason = str(error).partition("\n")[0][:200]
        raise ConfigError(
            f"{folder}: its tokenizer cannot be used ({reason}); save it again, with tokenizer.json"
        ) from error
    if not tokenizer.is_fast:
        raise ConfigError(f"{folder}: has no fast tokenizer; save tokenizer.json beside its weights")
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path, max_tokens: int) -> None:
    """Writes the tokenizer so that other libraries read texts as we do.

    They cut inputs to `max_tokens`, and "[SEP]" in a text is text to them as well.
    """
    saved = copy.deepcopy(tokenizer)
    saved.backend_tokenizer.no_truncation()  # What a base brings along would be read back as ours.
    saved.backend_tokenizer.no_padding()
    for name in ("max_length", "truncation_strategy", "stride", "pad_to_multiple_of"):
        saved.init_kwargs.pop(name, None)
    for name, value in (("model_max_length", max_tokens), ("split_special_tokens", True)):
        setattr(saved, name, value)
        saved.init_kwargs[name] = value
    with base_models.quiet():
        saved.save_pretrained(folder)


def plain_tokenizer(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A copy of the Rust tokenizer that neither cuts nor pads, and to which "[SEP]" in a text is text."""
    plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    plain.encode_special_tokens = True
    plain.no_truncation()
    plain.no_padding()
    return plain


def pair_template(
    tokenizer: PreTrainedTokenizerBase, config: Any, max_tokens: int, max_query_tokens: int
) -> PairTemplate:
    """The template that gives what the tokenizer itself gives for a pair.

    Raises:
        ConfigError: the tokenizer puts special tokens where no template can, or `max_tokens` is too small.
    """
    plain = plain_tokenizer(tokenizer)
    query, document = (plain.encode(text, add_special_tokens=False).ids for text in ("a", "b a"))
    encoded = tokenizer("a", "b a")
    ids, types = list(encoded["input_ids"]), list(encoded.get("token_type_ids", []))
    first = _index_of(ids, query, 0)
    second = _index_of(ids, document, first + len(query))
    family = family_of(config)
    segments = family.segments(config) > 1 and bool(types)
    types = family.template_segments(types)
    template = PairTemplate(
        before=tuple(ids[:first]),
        between=tuple(ids[first + len(query) : second]),
        after=tuple(ids[second + len(document) :]),
        query_type=types[first] if segments else 0,
        document_type=types[second] if segments else 0,
        max_tokens=2 * len(ids),
        max_query_tokens=len(query),
    )
    if not (template.before or template.between or template.after):
        raise ConfigError(NO_SPECIAL_TOKENS)
    made_ids, made_types = template.assemble(query, document)
    if made_ids != ids or (segments and made_types != types):
        raise ConfigError(f"the tokenizer gives {ids} {types} for a pair, our template {made_ids} {made_types}")
    return replace(template, max_tokens=max_tokens, max_query_tokens=max_query_tokens)


def text_template(tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> TextTemplate:
    """The template that gives what the tokenizer itself gives for one text.

    Raises:
        ConfigError: the special tokens alone fill `max_tokens`.
    """
    text = plain_tokenizer(tokenizer).encode("a", add_special_tokens=False).ids
    ids = list(tokenizer("a")["input_ids"])
    first = _index_of(ids, text, 0)
    template = TextTemplate(before=tuple(ids[:first]), after=tuple(ids[first + len(text) :]), max_tokens=max_tokens)
    if not (template.before or template.after):
        raise ConfigError(NO_SPECIAL_TOKENS)
    if max_tokens <= len(template.before) + len(template.after):
        raise ConfigError(f"max_tokens {max_tokens} leaves no room beside the special tokens; raise it")
    return template


def _index_of(ids: list[int], part: list[int], begin: int) -> int:
    for index in range(begin, len(ids) - len(part) + 1):
        if ids[index : index + len(part)] == part:
            return index
    raise ConfigError(f"the tokenizer gives {ids} with special tokens, which does not contain {part}, without them")


def positions(config: Any) -> int:
    """The number of tokens that the model can read."""
    return family_of(config).positions(config)


def check_positions(config: Any, max_tokens: int) -> None:
    """Checks that the model has a position for each of `max_tokens` tokens.

    Raises:
        ConfigError: inputs of `max_tokens` do not fit the model.
    """
    if max_tokens > positions(config):
        raise ConfigError(
            f"max_tokens {max_tokens}: this {config.model_type} model has {positions(config)} positions; lower it"
        )


def attention() -> str:
    """Kind of attention for training: on a CPU the plain one, whose backward pass is a third faster at ≤ 128 tokens."""
    return "sdpa" if torch.cuda.is_available() else "eager"
