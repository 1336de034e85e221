"""Vocabulary pruning: removes tokens that a corpus never uses from a model and its tokenizer.

Texts of the corpus are tokenised as before. Most of a small model is its embedding table, and a corpus uses a part of
it. A token is kept when the corpus has it, when it is special, or when another text could not be tokenised without it:
single characters, bytes, and for BPE the pieces that a kept token is merged from. Other texts become smaller pieces.

`to_corpus` prunes one of our models; `needed` and `prune` are its two steps for any transformer.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice, pairwise
from typing import Any

import pyarrow.parquet as pq
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from pipeline.artifacts import Artifact
from pipeline.errors import ConfigError
from pipeline.models import tokenizers
from pipeline.models.bi_encoder import BiEncoder
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.models.families import family_of
from pipeline.text import counted, document_text

BATCH = 4096
"""Number of texts that are tokenised at once."""

BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""The form of a token that stands for one byte."""


def to_corpus(encoder: CrossEncoder | BiEncoder, corpus: Iterable[str]) -> dict[str, int]:
    """Prunes the encoder, its tokenizer and its templates in place to what these texts need.

    Returns:
        Tokens `before` and `after`, and `bytes_saved` of the embedding table.

    Raises:
        ConfigError: a tokenizer of a kind that cannot be pruned.
    """
    weight = _embedding(encoder.model).weight
    before = len(weight)
    kept = _kept(encoder.model, encoder.hub_tokenizer, needed(encoder.hub_tokenizer, corpus))
    encoder.hub_tokenizer = prune(encoder.model, encoder.hub_tokenizer, kept)
    encoder.tokenizer = tokenizers.plain_tokenizer(encoder.hub_tokenizer)
    new_id = {old: new for new, old in enumerate(kept)}
    if isinstance(encoder, CrossEncoder):
        template = encoder.template
        encoder.template = replace(
            template,
            before=_renumbered(template.before, new_id),
            between=_renumbered(template.between, new_id),
            after=_renumbered(template.after, new_id),
        )
    else:
        for name in ("query_template", "document_template"):
            single = getattr(encoder, name)
            before_text, after_text = (_renumbered(part, new_id) for part in (single.before, single.after))
            setattr(encoder, name, replace(single, before=before_text, after=after_text))
    row_bytes = weight.shape[1] * weight.element_size()
    return {"before": before, "after": len(kept), "bytes_saved": (before - len(kept)) * row_bytes}


def corpus_of(data: Artifact) -> Iterable[str]:
    """The texts of a data artifact as models read them: every document, every query."""
    with pq.ParquetFile(data.file("documents.parquet")) as file:
        for batch in file.iter_batches(BATCH, columns=["title", "text"]):
            titles, bodies = batch.column("title").to_pylist(), batch.column("text").to_pylist()
            yield from map(document_text, titles, bodies)
    yield from pq.read_table(data.file("queries.parquet"), columns=["text"]).column("text").to_pylist()


def needed(tokenizer: PreTrainedTokenizerBase, corpus: Iterable[str]) -> set[int]:
    """Ids of the tokens that the corpus needs to be tokenised as before, and any other text to be tokenised at all.

    Raises:
        ConfigError: a tokenizer of a kind that cannot be pruned.
    """
    plain = tokenizers.plain_tokenizer(tokenizer)
    tree = json.loads(plain.to_str())
    model, vocabulary = tree["model"], plain.get_vocab(with_added_tokens=True)
    unknown = vocabulary.get(model.get("unk_token") or "")
    needed: set[int] = set()
    unreadable: set[str] = set()
    waiting = iter(corpus)
    while batch := list(islice(waiting, BATCH)):
        for text, encoding in zip(batch, plain.encode_batch_fast(batch, add_special_tokens=False), strict=True):
            ids = set(encoding.ids)
            needed |= ids
            if model["type"] == "WordPiece" and unknown in ids:
                unreadable.update(_words(plain, text))
    needed |= {number for token, number in vocabulary.items() if len(token) == 1 or BYTE.fullmatch(token)}
    if unknown is not None:
        needed.add(unknown)
    if model["type"] == "WordPiece":
        prefix = model["continuing_subword_prefix"]
        inner = {token: number for token, number in vocabulary.items() if _is_letter(token, prefix)}
        needed |= {number for token, number in inner.items() if _words(plain, f"a{token[-1]}") == [f"a{token[-1]}"]}
        return needed.union(*(_before_failing(word, vocabulary, prefix) for word in unreadable))
    if model["type"] == "BPE":
        if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
            raise ConfigError(
                "vocabulary pruning: BPE with a prefix or suffix on its pieces; set prune_vocabulary false"
            )
        return _merges_of(needed, tree)[0]
    if model["type"] == "Unigram":
        # An unknown character costs a fixed amount more than the rarest token, so that one must stay.
        scores = [score for _, score in model["vocab"]]
        return needed | {scores.index(min(scores)), *([model["unk_id"]] if model["unk_id"] is not None else [])}
    raise ConfigError(f"vocabulary pruning: a {model['type']} tokenizer; set prune_vocabulary false")


def check(tokenizer: PreTrainedTokenizerBase) -> None:
    """Checks that a tokenizer is of a kind that can be pruned.

    Raises:
        ConfigError: it is not.
    """
    tree = json.loads(tokenizer.backend_tokenizer.to_str())
    kept = needed(tokenizer, ()) | _special(tree)
    if tree["model"]["type"] == "BPE":
        kept |= _merges_of(kept, tree)[0]
    _smaller(tokenizer, {old: new for new, old in enumerate(sorted(kept))})


def prune(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, kept_ids: Iterable[int]
) -> PreTrainedTokenizerFast:
    """Cuts the model's embeddings in place to these tokens, in ascending order, and returns the tokenizer that fits.

    Special tokens, and of BPE the pieces that a kept token is merged from, are kept in any case. Where positions are
    counted from the padding id (RoBERTa) it keeps its value. Tied embeddings stay tied.

    Raises:
        ConfigError: the tokenizer numbers its tokens so that the smaller one cannot follow.
    """
    kept = _kept(model, tokenizer, kept_ids)
    new_id = {old: new for new, old in enumerate(kept)}
    smaller = _smaller(tokenizer, new_id)  # First, as it may be refused.
    id_fields = _id_fields(model.config)  # While the config still has the old vocabulary's size.

    embedding = _embedding(model)
    output = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    parameters = [embedding.weight]
    if output is not None:
        parameters += [part for part in (output.weight, getattr(output, "bias", None)) if part is not None]
        output.out_features = len(kept)
    swapped = {id(part): nn.Parameter(part.detach()[kept].clone(), part.requires_grad) for part in parameters}
    for module in model.modules():
        for name, value in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(value) in swapped:
                setattr(module, name, swapped[id(value)])
    embedding.num_embeddings = len(kept)
    embedding.padding_idx = None if embedding.padding_idx is None else new_id[embedding.padding_idx]
    model.config.vocab_size = len(kept)
    for name in id_fields:
        setattr(model.config, name, new_id[getattr(model.config, name)])
    return smaller


def _embedding(model: PreTrainedModel) -> nn.Embedding:
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    return embedding


def _id_fields(config: Any) -> list[str]:
    """Names of the config's token ids, as far as they are numbers of the vocabulary."""
    fields = config.to_dict()
    return [
        name
        for name, value in fields.items()
        if name.endswith("_token_id") and isinstance(value, int) and 0 <= value < config.vocab_size
    ]


def _kept(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, wanted: Iterable[int]) -> list[int]:
    """The ids to keep, ascending: the wanted ones, special tokens, and those below RoBERTa's first position.

    Of BPE the pieces of which a kept token is merged are kept too.
    """
    tree = json.loads(tokenizer.backend_tokenizer.to_str())
    config = model.config
    special = _special(tree)
    special |= {getattr(config, name) for name in _id_fields(config)}
    padding = _embedding(model).padding_idx
    if padding is not None:
        special.add(padding)
    special |= set(range(family_of(config).first_position(config)))
    kept = set(wanted) | special
    if tree["model"]["type"] == "BPE":
        kept |= _merges_of(kept, tree)[0]
    rows = len(_embedding(model).weight)
    if not kept <= set(range(rows)):
        raise ConfigError(
            f"vocabulary pruning: token {max(kept)} has no embedding, the table has {counted(rows, 'row')}"
        )
    return sorted(kept)


def _special(tree: Mapping[str, Any]) -> set[int]:
    """Ids of the tokens that were added to a tokenizer and of those that its post-processor puts around texts."""
    return {added["id"] for added in tree["added_tokens"]} | set(_template_ids(tree["post_processor"]))


def _smaller(tokenizer: PreTrainedTokenizerBase, new_id: Mapping[int, int]) -> PreTrainedTokenizerFast:
    plain = tokenizers.plain_tokenizer(tokenizer)
    tree = json.loads(plain.to_str())
    model = tree["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [piece for number, piece in enumerate(model["vocab"]) if number in new_id]
        if model["unk_id"] is not None:
            model["unk_id"] = new_id[model["unk_id"]]
    else:
        if model["type"] == "BPE":
            model["merges"] = _merges_of(set(new_id), tree)[1]
        model["vocab"] = {token: new_id[old] for token, old in model["vocab"].items() if old in new_id}
    for added in tree["added_tokens"]:
        added["id"] = new_id[added["id"]]
    _renumber_template(tree["post_processor"], new_id)
    smaller = Tokenizer.from_str(json.dumps(tree))
    expected = {token: new_id[old] for token, old in plain.get_vocab(with_added_tokens=True).items() if old in new_id}
    if smaller.get_vocab(with_added_tokens=True) != expected:
        raise ConfigError(
            "vocabulary pruning: added tokens stand between others in this tokenizer; set prune_vocabulary false"
        )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=smaller,
        model_max_length=tokenizer.model_max_length,
        model_input_names=list(tokenizer.model_input_names),
        padding_side=tokenizer.padding_side,
        **{name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)},
    )


def _words(tokenizer: Tokenizer, text: str) -> list[str]:
    """The words that the model of the tokenizer is given, one by one."""
    if tokenizer.normalizer is not None:
        text = tokenizer.normalizer.normalize_str(text)
    if tokenizer.pre_tokenizer is None:
        return [text]
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


def _is_letter(token: str, prefix: str) -> bool:
    return token.startswith(prefix) and len(token) == len(prefix) + 1


def _before_failing(word: str, vocabulary: Mapping[str, int], prefix: str) -> set[int]:
    """Tokens that longest-match-first takes from a word. Without them an unknown word might become a known one."""
    tokens, start = set(), 0
    while start < len(word):
        lead = prefix if start else ""
        ends = (end for end in range(len(word), start, -1) if lead + word[start:end] in vocabulary)
        end = next(ends, None)
        if end is None:
            break
        tokens.add(vocabulary[lead + word[start:end]])
        start = end
    return tokens


def _merges_of(ids: set[int], tree: Mapping[str, Any]) -> tuple[set[int], list[Any]]:
    """These ids and those of the tokens they are merged from; and the merges that do it, in their order.

    Which merges make a token does not depend on the text about it: none crosses its borders, and those inside are
    taken in the order of their ranks.
    """
    vocabulary, merges = tree["model"]["vocab"], tree["model"]["merges"]
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges]
    ranks = {pair: rank for rank, pair in enumerate(pairs)}
    special = {added["id"] for added in tree["added_tokens"]}
    needed, used = set(ids), set()
    for token, number in vocabulary.items():
        if number not in ids or number in special:
            continue
        parts = list(token)
        while len(parts) > 1:
            known = [(ranks.get(pair, len(ranks)), index) for index, pair in enumerate(pairwise(parts))]
            rank, index = min(known)
            if rank == len(ranks):
                break
            used.add(rank)
            parts[index : index + 2] = [parts[index] + parts[index + 1]]
            needed.add(vocabulary[parts[index]])
    return needed, [merges[rank] for rank in sorted(used)]


def _template_ids(node: Any) -> Iterable[int]:
    """Token ids in a post-processor, whatever its kind."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key == "ids":
                yield from value
            elif key in ("sep", "cls"):
                yield value[1]
            else:
                yield from _template_ids(value)
    elif isinstance(node, list):
        for value in node:
            yield from _template_ids(value)


def _renumber_template(node: Any, new_id: Mapping[int, int]) -> None:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "ids":
                node[key] = [new_id[old] for old in value]
            elif key in ("sep", "cls"):
                node[key] = [value[0], new_id[value[1]]]
            else:
                _renumber_template(value, new_id)
    elif isinstance(node, list):
        for value in node:
            _renumber_template(value, new_id)


def _renumbered(ids: Sequence[int], new_id: Mapping[int, int]) -> tuple[int, ...]:
    return tuple(new_id[old] for old in ids)
