"""A language model as a judge: log-odds of two answers to a question about a query and a document.

The prompt is read once; no text is generated. Source: Nogueira et al., Document ranking with a pretrained
sequence-to-sequence model, Findings of EMNLP 2020, arXiv:2003.06713, where the score is the softmax of two such tokens.
"""

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from pipeline.config import ExternalTeacherConfig
from pipeline.errors import ConfigError, TrainingError
from pipeline.models import base_models, tokenizers
from pipeline.prefixes import PrefixTokenizer
from pipeline.progress import bar
from pipeline.training.loop import batches, memory, scoring, shards
from pipeline.training.loop.pair_tokens import PairTexts

SHARD = shards.SHARD
"""Pairs that are tokenised, sorted by length and scored together, and kept in one file until all are scored."""

Offsets = Sequence[tuple[int, int]]


class Judge:
    """A causal language model, its tokenizer, the prompt and the two answers."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: ExternalTeacherConfig
    ) -> None:
        """Prepares the prompt and finds the token of each answer.

        Raises:
            ConfigError: an answer is not one token after the prompt, the prompt leaves no room for a document,
                `max_tokens` exceeds the model's positions, or the chat template cannot be used.
        """
        self.model: Any = model
        model.train(False)
        self.tokenizer = tokenizer
        self.config = config
        self._prefixes = PrefixTokenizer.of(tokenizers.plain_tokenizer(tokenizer))
        prompt = _in_chat(tokenizer, config) if config.chat else config.prompt
        # A chat template writes its own marks at the beginning.
        self.before = [] if config.chat else list(tokenizers.text_template(tokenizer, config.max_tokens).before)
        self.parts = re.split(r"(\{query\}|\{document\})", prompt)
        special = {str(token) for token in tokenizer.get_added_vocab()} | set(map(str, tokenizer.all_special_tokens))
        self.special = sorted((token for token in special if token.strip()), key=len, reverse=True)
        positions = getattr(model.config, "max_position_embeddings", None)
        if positions is not None and config.max_tokens > positions:
            raise ConfigError(
                f"external_teacher.max_tokens {config.max_tokens}: the model reads {positions} tokens; lower it"
            )
        bare = len(self.inputs([("", "")])[0]) + config.max_query_tokens
        if bare >= config.max_tokens:
            raise ConfigError(
                f"external_teacher.max_tokens {config.max_tokens}: prompt and query alone may have {bare}; raise it, "
                "or lower external_teacher.max_query_tokens"
            )
        self.answers = [self._answer(name) for name in ("positive", "negative")]

    @classmethod
    def load(cls, folder: Path, config: ExternalTeacherConfig) -> "Judge":
        """The model in a folder, on the device of training; in bfloat16 where that is a GPU.

        Raises:
            ConfigError: no causal language model with a fast tokenizer, or as the constructor.
        """
        where = scoring.device()
        try:
            with base_models.quiet():
                tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False)
                model: Any = AutoModelForCausalLM.from_pretrained(
                    folder,
                    dtype=torch.bfloat16 if where.type == "cuda" else torch.float32,
                    trust_remote_code=False,
                )
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{folder}: not a causal language model that can be loaded ({error})") from error
        if not tokenizer.is_fast:
            raise ConfigError(f"{folder}: has no fast tokenizer; save tokenizer.json beside its weights")
        return cls(model.to(where), tokenizer, config)

    def _answer(self, name: str) -> int:
        """The token id of this answer."""
        prompt = self._filled("a", "b")[0]
        answer = getattr(self.config, name)
        without, with_answer = (
            self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, prompt + answer)
        )
        if with_answer[:-1] != without:
            pieces = self.tokenizer.convert_ids_to_tokens(with_answer[max(0, len(without) - 1) :])
            raise ConfigError(
                f"external_teacher.{name} {answer!r} is not one token after the prompt, which with it ends in {pieces};"
                " take another answer, or move a space between the two"
            )
        return int(with_answer[-1])

    def _filled(self, query: str, document: str) -> tuple[str, dict[str, tuple[int, int]]]:
        """The prompt with both texts, and the character spans of query and document in it."""
        prompt, spans = "", {}
        for part in self.parts:
            if part in ("{query}", "{document}"):
                value = self._harmless(query if part == "{query}" else document)
                spans[part] = (len(prompt), len(prompt) + len(value))
                prompt += value
            else:
                prompt += part
        return prompt, spans

    def _harmless(self, value: str) -> str:
        """The text with a space inside each special token that it contains, such as the end of a turn."""
        for mark in self.special:
            value = value.replace(mark, f"{mark[:1]} {mark[1:]}")
        return value

    def inputs(self, pairs: Sequence[tuple[str, str]]) -> list[list[int]]:
        """The ids of the prompt for each query and document, which are cut at their ends to fit."""
        config = self.config
        # Twice as many tokens, as the first word of each joins what the prompt has before it.
        queries = self._prefixes.heads([query for query, _ in pairs], 2 * config.max_query_tokens)
        documents = self._prefixes.heads([document for _, document in pairs], 2 * config.max_tokens)
        filled = [self._filled(*pair) for pair in zip(queries, documents, strict=True)]
        encoded = self.tokenizer(
            [prompt for prompt, _ in filled], add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        inputs = []
        rows = zip(encoded["input_ids"], encoded["offset_mapping"], filled, strict=True)
        for ids, offsets, (_, spans) in rows:
            query, document = (_inside(offsets, spans[part]) for part in ("{query}", "{document}"))
            lost = set(query[config.max_query_tokens :])
            beyond = len(self.before) + len(ids) - len(lost) - config.max_tokens
            lost |= set(document[max(0, len(document) - beyond) :] if beyond > 0 else [])
            inputs.append(self.before + [token for index, token in enumerate(ids) if index not in lost])
        return inputs

    @torch.no_grad()
    def log_odds(self, inputs: Sequence[list[int]]) -> Tensor:
        """(texts,) log P(positive) − log P(negative) of the next token, float32.

        Padding stands at the end, where no real token attends to it, so a score does not depend on the rest of its
        batch.
        """
        model, where = self.model, self.model.device
        lengths = torch.tensor([len(ids) for ids in inputs], device=where)
        batch = batches.pad([(ids, [0] * len(ids)) for ids in inputs], where)
        body = model.base_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
        last = body.last_hidden_state[torch.arange(len(inputs), device=where), lengths - 1]  # (texts, hidden)
        # Two columns of the head in full precision: a bfloat16 logit of 20 has steps of an eighth.
        head = model.get_output_embeddings()
        logits = last.float() @ head.weight[self.answers].float().T  # (texts, 2)
        if getattr(head, "bias", None) is not None:
            logits = logits + head.bias[self.answers].float()
        cap = getattr(model.config, "final_logit_softcapping", None)
        if cap:
            logits = cap * torch.tanh(logits / cap)
        odds: Tensor = logits[:, 0] - logits[:, 1]
        return odds


def _in_chat(tokenizer: PreTrainedTokenizerBase, config: ExternalTeacherConfig) -> str:
    """The prompt inside the chat template that stands in the model's folder, up to where the answer begins.

    Raises:
        ConfigError: there is no template, or it does not give the prompt back.
    """
    turns = [{"role": "user", "content": config.prompt}]
    if config.system:
        turns.insert(0, {"role": "system", "content": config.system})
    try:
        chat = str(
            tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, enable_thinking=False)
        )
    except (ValueError, TypeError, TemplateError) as error:
        raise ConfigError(
            f"external_teacher.chat: the model's folder has no chat template that can be used ({error}); write the "
            "marks of the chat into external_teacher.prompt and set external_teacher.chat to false"
        ) from error
    if any(chat.count(name) != 1 for name in ("{query}", "{document}")):
        raise ConfigError("external_teacher.chat: the chat template does not give the prompt back as it is")
    return chat


def _inside(offsets: Offsets, span: tuple[int, int]) -> list[int]:
    """Indices of the tokens that end within these characters; a first one may begin with the space before them."""
    begin, end = span
    return [index for index, (_, stop) in enumerate(offsets) if begin < stop <= end]


def score(model: Path, config: ExternalTeacherConfig, pairs: PairTexts, checkpoint: Path) -> NDArray[np.float64]:
    """(pairs,) log-odds of every pair; finished parts are kept in `checkpoint`, and a killed run goes on after them.

    Raises:
        ConfigError: no causal language model in the folder, or an answer, prompt or length that it cannot take.
        TrainingError: a score is not a number.
    """
    judge: Judge | None = None

    def compute(rows: range) -> shards.Arrays:
        nonlocal judge
        judge = judge or Judge.load(model, config)
        texts = [(pairs.queries[pairs.query[row]], pairs.documents[pairs.document[row]]) for row in rows]
        scores = score_shard(judge, texts)
        if not np.isfinite(scores).all():
            row = rows[int(np.flatnonzero(~np.isfinite(scores))[0])]
            raise TrainingError(f"{model}: its score of pair {row} is not a number; load it in another precision")
        return {"scores": scores}

    parts = []
    with bar("external scores", len(pairs.query), "pairs") as advance:
        for number, rows in enumerate(_shards(len(pairs.query))):
            parts.append(shards.kept(checkpoint, f"{number:06}", partial(compute, rows))["scores"])
            advance(len(rows))
    return np.concatenate([np.zeros(0), *parts]).astype(np.float64)


def _shards(count: int) -> Iterator[range]:
    for begin in range(0, count, SHARD):
        yield range(begin, min(count, begin + SHARD))


def score_shard(judge: Judge, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
    """(pairs,) log-odds, in batches of like length."""
    inputs = judge.inputs(pairs)
    lengths = np.array([len(ids) for ids in inputs], dtype=np.int64)
    scores = np.zeros(len(inputs), dtype=np.float32)
    smaller = (
        f"lower external_teacher.batch_tokens ({judge.config.batch_tokens}) and start again: finished shards are kept"
    )
    with memory.shortage_named("external scores:", smaller):
        for chosen in batches.scoring_batches(lengths, judge.config.batch_tokens):
            scores[chosen] = judge.log_odds([inputs[index] for index in chosen]).cpu().numpy()
    return scores
