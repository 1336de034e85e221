"""Checks that texts fit the models of a recipe: lengths, positions, passages, vocabularies. A part of `preflight`."""

import dataclasses

from transformers import PreTrainedConfig

from pipeline.config import RankerConfig, Recipe
from pipeline.errors import ConfigError
from pipeline.models import base_models, model_folders, pruning, tokenizers
from pipeline.models.base_models import ModelShape
from pipeline.recipe import named
from pipeline.tokens import PairTemplate
from pipeline.training import pretrain, ranker, ranker_chain, ranker_shape

SPECIAL_TOKENS = 2
"""Special tokens of one text: a model's first and last."""


def check_lengths(recipe: Recipe) -> None:
    """Checks that no input is longer than its model's positions.

    Raises:
        ConfigError: the message names the key.
    """
    wanted = [("teacher", recipe.teacher.base, recipe.teacher.max_tokens)]
    wanted.append(("encoder", ranker_chain.served_bases(recipe)["encoder.base"], recipe.encoder.max_tokens))
    if recipe.pretrain.enabled or recipe.teacher.base == pretrain.SCRATCH:
        wanted.append(("pretrain", recipe.teacher.base, recipe.pretrain.max_tokens))
    for path, student, base in ranker_chain.bases(recipe):
        if student.base == pretrain.SCRATCH or student.general_tokens:
            wanted.append(("pretrain", base, recipe.pretrain.max_tokens))
        wanted.append((path, base, student.max_tokens or recipe.teacher.max_tokens))
    for section, base, max_tokens in wanted:
        scratch = base == pretrain.SCRATCH
        positions = recipe.pretrain.scratch.positions if scratch else tokenizers.positions(_config(base))
        if max_tokens > positions:
            raise ConfigError(f"{section}.max_tokens {max_tokens}: {base} has {positions} positions; lower it")


def check_passages(recipe: Recipe) -> None:
    """Checks that passages fit into the encoder and beside the longest query, and that students can read the teacher's.

    Raises:
        ConfigError: the message names the section.
    """
    with named("passages", "index.passages"):
        indexed = recipe.index.passages.passages(None)
        if indexed is not None:
            indexed.check(recipe.encoder.max_tokens - SPECIAL_TOKENS)
    template = _pair_template(recipe)
    with named("passages", "teacher.passages"):
        teacher = dataclasses.replace(template, passages=recipe.teacher.passages.passages(None))
    for number, (path, config, source, shape) in enumerate(ranker_chain.cuts(recipe)):
        tokens = config.max_tokens or teacher.max_tokens
        with named("passages", f"{path}.passages"):
            passages = config.passages.passages(teacher.passages)
            student = dataclasses.replace(teacher, max_tokens=tokens, passages=passages)
        whole_documents = recipe.external_teacher.scores and number == 0  # A file of scores teaches the first student.
        if teacher.passages is not None and not whole_documents and _other_tokens(config, source, shape):
            raise ConfigError(f"{path}.base: {ranker.OTHER_PASSAGES}")
        teacher = student


def _other_tokens(config: RankerConfig, source: ModelShape, teacher: ModelShape) -> bool:
    """Whether a student is known to make other tokens of a text than its teacher."""
    if source.tokenizer is None or teacher.tokenizer is None:
        return config.base == pretrain.SCRATCH and teacher.tokenizer is not None
    ours, theirs = (
        tokenizers.plain_tokenizer(tokenizers.load_tokenizer(model.tokenizer))
        for model in (source, teacher)
        if model.tokenizer
    )
    return not ranker_shape.same_tokens(ours, theirs)


def _pair_template(recipe: Recipe) -> PairTemplate:
    """The shape of the teacher's inputs; of a model from scratch, which has no tokenizer yet, with BERT's."""
    lengths = recipe.teacher.max_tokens, recipe.teacher.max_query_tokens
    if recipe.teacher.base == pretrain.SCRATCH:
        return PairTemplate(before=(0,), between=(0,), after=(0,), max_tokens=lengths[0], max_query_tokens=lengths[1])
    tokenizer = tokenizers.load_tokenizer(model_folders.folder(recipe.teacher.base))
    return tokenizers.pair_template(tokenizer, _config(recipe.teacher.base), *lengths)


def check_vocabularies(recipe: Recipe) -> None:
    """Checks that the tokenizers of the models whose vocabulary is pruned can be pruned.

    Raises:
        ConfigError: one cannot; the message names the section.
    """
    pruned = [(path, base) for path, student, base in ranker_chain.bases(recipe) if student.prune_vocabulary]
    if recipe.encoder.prune_vocabulary:
        pruned.append(("encoder", ranker_chain.served_bases(recipe)["encoder.base"]))
    for path, base in pruned:
        if base != pretrain.SCRATCH:
            try:
                pruning.check(tokenizers.load_tokenizer(model_folders.folder(base)))
            except ConfigError as error:
                raise ConfigError(f"{path}.prune_vocabulary: {error}") from error


def _config(base: str) -> PreTrainedConfig:
    config: PreTrainedConfig = base_models.config(model_folders.folder(base))
    return config
