"""Pruned vocabularies: on the corpus bit-equal scores, on any other text still a reading."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    BertTokenizer,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from pipeline.config import EncoderConfig, MiningConfig, ScratchConfig
from pipeline.errors import ConfigError
from pipeline.models import pruning
from pipeline.models.bi_encoder import BiEncoder
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.training.tasks import vocabulary

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
TRAINED_ON = [
    "steel angle bracket for decks",
    "galvanised steel angles",
    "one gallon of deck paint",
    "angle grinder 115 mm",
] * 3
CORPUS = ["steel deck", "an angle of 115 mm ☃", "paint the gallon", "STEEL  angle!", "角 deck", ""]
OTHER = "grinder brackets galvanised"
PAIR: dict[str, Any] = {"thresholds": [-1.0, 1.0], "max_tokens": 40, "max_query_tokens": 12, "seed": 3}


def ids_of(encoder: CrossEncoder | BiEncoder, text: str) -> list[int]:
    ids: list[int] = encoder.tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def score(model: CrossEncoder, query: str, document: str) -> float:
    ids, types = model.template.assemble(ids_of(model, query), ids_of(model, document))
    with torch.no_grad():
        return model(torch.tensor([ids]), torch.tensor([types]), torch.ones(1, len(ids), dtype=torch.long)).item()


def vector(model: BiEncoder, text: str) -> torch.Tensor:
    ids = torch.tensor([model.document_template.assemble(ids_of(model, text))])
    with torch.no_grad():
        return model(ids, torch.ones_like(ids))[0]


def unigram() -> PreTrainedTokenizerFast:
    """XLM-RoBERTa's layout: `<mask>` stands after the model's own tokens. "zz" is rarest, not in the corpus."""
    letters = sorted({letter for text in TRAINED_ON for letter in text if letter != " "} | {"▁"} - {"g"})
    words = [("▁steel", -3.0), ("▁angle", -3.5), ("▁deck", -4.0), ("▁ga", -4.2), ("llon", -4.4), ("▁grinder", -5.0)]
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *words, ("zz", -12.0)]
    tokenizer = Tokenizer(models.Unigram([*pieces, *((letter, -9.0) for letter in letters)], unk_id=3))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", mask_token="<mask>", **names)


def wordpiece(words: list[str]) -> BertTokenizer:
    """A WordPiece tokenizer of these words, numbered from 0."""
    return BertTokenizer(vocab={word: number for number, word in enumerate(words)})


def base(folder: Path, family: str) -> Path:
    torch.manual_seed(5)
    if family == "unigram":
        tokenizer = unigram()
        model: Any = XLMRobertaModel(XLMRobertaConfig(vocab_size=len(tokenizer), type_vocab_size=1, **SIZES))
    else:
        tokenizer = vocabulary.train(TRAINED_ON, ScratchConfig(family=family, vocab_size=340, positions=62))
        bert = family == "bert"
        config = (
            BertConfig(vocab_size=len(tokenizer), **SIZES)
            if bert
            else RobertaConfig(
                vocab_size=len(tokenizer), type_vocab_size=1, bos_token_id=0, pad_token_id=1, eos_token_id=2, **SIZES
            )
        )
        model = BertModel(config) if bert else RobertaModel(config)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["bert", "roberta", "unigram"])
def test_scores_and_vectors_of_the_corpus_are_bit_equal(tmp_path: Path, family: str) -> None:
    folder = base(tmp_path / "base", family)
    ranker = CrossEncoder.start(folder, **PAIR).eval()
    encoder = BiEncoder.start(folder, dimensions=4, max_tokens=40, max_query_tokens=12, seed=3).eval()
    pairs = [(first, second) for first in CORPUS for second in CORPUS]
    scores = [score(ranker, *pair) for pair in pairs]
    vectors = [vector(encoder, text) for text in CORPUS]
    pieces = {text: ranker.tokenizer.encode(text).tokens for text in CORPUS}

    figures = pruning.to_corpus(ranker, CORPUS)
    assert figures["after"] < figures["before"]
    assert figures["bytes_saved"] == (figures["before"] - figures["after"]) * 16 * 4
    assert pruning.to_corpus(encoder, iter(CORPUS)) == figures
    assert len(ranker.model.get_input_embeddings().weight) == ranker.model.config.vocab_size == figures["after"]
    assert [score(ranker, *pair) for pair in pairs] == scores
    assert all(torch.equal(vector(encoder, text), former) for text, former in zip(CORPUS, vectors, strict=True))

    ranker.save(tmp_path)
    again = CrossEncoder.load(tmp_path)
    assert {text: again.tokenizer.encode(text).tokens for text in CORPUS} == pieces
    # Weights read from a file lie otherwise in memory, which may move the last bit of a sum.
    assert [score(again, *pair) for pair in pairs] == pytest.approx(scores, abs=1e-5)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "model")("steel deck", "an angle")
    ids, _ = again.template.assemble(ids_of(again, "steel deck"), ids_of(again, "an angle"))
    assert theirs["input_ids"] == ids
    names = ("pad", "cls", "sep", "mask", "unk")
    assert [getattr(again.hub_tokenizer, f"{name}_token_id") for name in names] == [
        again.tokenizer.token_to_id(getattr(again.hub_tokenizer, f"{name}_token")) for name in names
    ]
    assert again.model.config.pad_token_id == again.hub_tokenizer.pad_token_id


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_another_text_reads_in_smaller_pieces(tmp_path: Path, family: str) -> None:
    ranker = CrossEncoder.start(base(tmp_path, family), **PAIR).eval()
    before = ranker.tokenizer.encode(OTHER, add_special_tokens=False)
    pruning.to_corpus(ranker, CORPUS)
    after = ranker.tokenizer.encode(OTHER, add_special_tokens=False)
    assert len(after.ids) > len(before.ids)
    assert ranker.tokenizer.decode(after.ids) == OTHER
    assert np.isfinite(score(ranker, OTHER, OTHER))


def test_positions_of_roberta_stay(tmp_path: Path) -> None:
    """They are counted from the padding id, so it may not move even where a token below it is not used."""
    ranker = CrossEncoder.start(base(tmp_path, "roberta"), **PAIR).eval()
    kept = pruning.prune(ranker.model, ranker.hub_tokenizer, {40, 41})
    assert ranker.model.config.pad_token_id == kept.pad_token_id == 1
    assert ranker.model.get_input_embeddings().padding_idx == 1


def test_an_unknown_word_stays_unknown() -> None:
    """Longest match takes "ab" and fails at "##c"; were "ab" gone, "a" and "##bc" would read the word."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "ab", "##bc", "##b", "##bcd", "a☃"]
    tokenizer = wordpiece(words)
    kept = pruning.needed(tokenizer, ["abc", "a b"])
    assert words.index("ab") in kept
    assert words.index("##bcd") not in kept
    model = BertModel(BertConfig(vocab_size=len(words), **SIZES))
    smaller = pruning.prune(model, tokenizer, kept | {words.index("##bc")})
    assert smaller.tokenize("abc") == tokenizer.tokenize("abc") == ["[UNK]"]


def test_chinese_continuations_that_no_text_can_reach_go() -> None:
    """Each ideograph is a word of its own, so a token such as "##角" is never read."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "角", "##角", "b", "##b"]
    tokenizer = wordpiece(words)
    kept = {words[number] for number in pruning.needed(tokenizer, [])}
    assert kept == {"[UNK]", "角", "b", "##b"}


@pytest.mark.parametrize("tied", [True, False])
def test_output_embeddings_give_the_kept_tokens_the_same_logits(tied: bool) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]
    tokenizer = wordpiece(words)
    torch.manual_seed(1)
    model = BertForMaskedLM(BertConfig(vocab_size=len(words), tie_word_embeddings=tied, **SIZES)).eval()
    with torch.no_grad():
        model.get_output_embeddings().bias.normal_()
        before = model(input_ids=torch.tensor([[2, 6, 9, 3]])).logits
    kept = [0, 1, 2, 3, 4, 6, 9]
    smaller = pruning.prune(model, tokenizer, kept)
    ids = torch.tensor([[2, 5, 6, 3]])
    assert smaller("b e")["input_ids"] == ids[0].tolist()
    with torch.no_grad():
        after = model(input_ids=ids).logits
    assert after.shape[-1] == model.get_output_embeddings().out_features == len(kept)
    assert torch.allclose(after, before[..., kept], atol=1e-6)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) is tied


def test_merges_of_kept_tokens_are_closed(tmp_path: Path) -> None:
    """Every merge left has both its parts and its result in the vocabulary, and every byte is there."""
    ranker = CrossEncoder.start(base(tmp_path, "roberta"), **PAIR)
    pruning.to_corpus(ranker, CORPUS)
    tree = json.loads(ranker.tokenizer.to_str())["model"]
    assert 0 < len(tree["merges"]) < 340 - 256
    assert all({first, second, first + second} <= tree["vocab"].keys() for first, second in tree["merges"])
    assert set(pre_tokenizers.ByteLevel.alphabet()) <= tree["vocab"].keys()


def test_a_kind_that_cannot_be_pruned_is_named() -> None:
    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(ConfigError, match="a WordLevel tokenizer"):
        pruning.needed(plain, ["a"])


@pytest.mark.data
@pytest.mark.parametrize("kind", ["wordpiece", "chinese", "bytes"])
def test_real_vocabularies_read_the_corpus_as_before(shared_data: Path, kind: str) -> None:
    import pyarrow.parquet as pq

    names = {"wordpiece": "bert_base_uncased_vocab.txt", "chinese": "bert_base_chinese_vocab.txt"}
    source = "qbqtc" if kind == "chinese" else "crowdflower"
    table = pq.read_table(shared_data / source / "queries.parquet")
    texts = table.column("text").to_pylist()[:400]
    folder = shared_data / "vocab"
    if kind == "bytes":
        merges = (folder / "roberta_gpt2_merges.txt").read_text(encoding="utf-8").splitlines()
        pairs = [tuple(line.split(" ")) for line in merges if line and not line.startswith("#")]
        vocab = json.loads((folder / "roberta_vocab.json").read_text(encoding="utf-8"))
        from transformers import RobertaTokenizer

        tokenizer: Any = RobertaTokenizer(vocab=vocab, merges=pairs)
        model: Any = RobertaModel(RobertaConfig(vocab_size=len(tokenizer), type_vocab_size=1, pad_token_id=1, **SIZES))
    else:
        words = (folder / names[kind]).read_text(encoding="utf-8").splitlines()
        tokenizer = wordpiece(words)
        model = BertModel(BertConfig(vocab_size=len(words), **SIZES))
    before = [tokenizer.tokenize(text) for text in texts]
    smaller = pruning.prune(model, tokenizer, pruning.needed(tokenizer, texts))
    assert len(smaller) == model.config.vocab_size < 0.6 * len(tokenizer)
    assert [smaller.tokenize(text) for text in texts] == before


def test_a_round_that_compares_with_the_base_is_not_pruned() -> None:
    with pytest.raises(ConfigError, match=r"similarity_weight to 0 or encoder\.mining\.rounds to 1"):
        EncoderConfig(prune_vocabulary=True, similarity_weight=0.5, mining=MiningConfig(rounds=2))
    assert EncoderConfig(prune_vocabulary=True, similarity_weight=0.5).mining.rounds == 1


def test_special_token_ids_of_the_config_are_those_of_the_pruned_tokenizer() -> None:
    words = [*"abcdefgh", "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = wordpiece(words)
    model = BertModel(BertConfig(vocab_size=len(words), pad_token_id=8, bos_token_id=10, eos_token_id=11, **SIZES))
    smaller = pruning.prune(model, tokenizer, [0, 1])
    special_ids = [model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id]
    assert special_ids == smaller.convert_tokens_to_ids(["[PAD]", "[CLS]", "[SEP]"]) == [2, 4, 5]
