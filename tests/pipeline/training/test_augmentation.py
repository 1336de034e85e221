"""Augmented pairs: changed copies of training pairs, each change as it says, drawn for each text by itself."""

import dataclasses
from collections.abc import Mapping
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModel, BertConfig, BertForMaskedLM

from pipeline import schema
from pipeline.artifacts import Artifact
from pipeline.config import CandidatesConfig, ExternalTeacherConfig, RankerConfig, Recipe
from pipeline.errors import ConfigError
from pipeline.models import tokenizers
from pipeline.text import document_text
from pipeline.training import augmentation
from pipeline.training.loop.pair_tokens import read_texts
from pipeline.training.tasks import word_replacement
from pipeline.training.tasks.word_replacement import WordReplacer, Words

KINDS: tuple[Any, ...] = ("replace", "drop", "ngram")


def folder(untrained: Any, kind: str = "ranker") -> Path:
    return Path(getattr(untrained, kind).path / "model")


def augmented(untrained: Any, kind: str = "ranker", **changes: Any) -> Artifact:
    config = CandidatesConfig(**{"augmented": 2.0, "augmentation": KINDS, "max_list": 3, **changes})
    lengths = {"max_query_tokens": 12, "max_tokens": 48}
    inputs = {"data": untrained.data, "labelled": untrained.pairs, "base": str(folder(untrained, kind))}
    return augmentation.pairs(untrained.workspace, config, **inputs, **lengths)


def originals(untrained: Any) -> dict[str, str]:
    """Id → text of the world's queries and documents."""
    queries = pq.read_table(untrained.data.file("queries.parquet")).to_pylist()
    documents = pq.read_table(untrained.data.file("documents.parquet")).to_pylist()
    return {row["query_id"]: row["text"] for row in queries} | {
        row["doc_id"]: document_text(row["title"], row["text"]) for row in documents
    }


def changed_texts(untrained: Any, artifact: Artifact) -> list[tuple[str, str]]:
    """(before, after) of each text that the artifact has."""
    before = originals(untrained)
    queries = pq.read_table(artifact.file("queries.parquet")).to_pylist()
    documents = pq.read_table(artifact.file("documents.parquet")).to_pylist()
    pairs = [(before[row["asked"]], row["text"]) for row in queries]
    return pairs + [(before[row["doc_id"].split(":")[-1]], row["text"]) for row in documents]


def test_labelled_rows_stay_and_copies_come_behind_them(untrained: Any) -> None:
    artifact = augmented(untrained)
    before = pq.read_table(untrained.pairs.file("pairs.parquet")).to_pandas()
    table = schema.read(artifact.file("pairs.parquet"), "pairs").to_pandas()
    pd.testing.assert_frame_equal(table.head(len(before)), before, check_dtype=False)
    added = table.iloc[len(before) :]
    train = before[before["split"] == "train"]
    assert len(added) + artifact.metrics["unchanged"] == 2 * len(train)
    assert set(added["split"]) == {schema.UNLABELLED}
    assert set(added["grade"]) == {schema.NO_GRADE}
    assert table["row_id"].is_unique
    assert added.groupby("query_id").size().max() == 3  # max_list
    for _, rows in added.groupby("query_id"):
        query = rows["query_id"].iloc[0].split(":")[-1]
        own = set(train.loc[train["query_id"] == query, "doc_id"])
        assert {name.split(":")[-1] for name in rows["doc_id"]} <= own
    texts = read_texts(untrained.data, artifact)
    assert len(texts.table) == len(table)
    known = set(originals(untrained).values())
    assert sum(text not in known for text in texts.queries) > 10


def test_the_same_settings_give_the_same_texts_and_more_pairs_begin_with_the_fewer(
    untrained: Any, tmp_path: Path
) -> None:
    first = augmented(untrained)
    elsewhere = dataclasses.replace(untrained, workspace=tmp_path)
    for name in ("pairs.parquet", "queries.parquet", "documents.parquet"):
        assert pq.read_table(augmented(elsewhere).file(name)).equals(pq.read_table(first.file(name)))
    fewer = pq.read_table(augmented(untrained, augmented=0.5).file("pairs.parquet")).to_pandas()
    more = pq.read_table(first.file("pairs.parquet")).to_pandas()
    pd.testing.assert_frame_equal(more.head(len(fewer)), fewer)
    assert augmented(untrained, seed=14).fingerprint != first.fingerprint


def test_a_part_is_a_part(untrained: Any) -> None:
    for before, after in changed_texts(untrained, augmented(untrained, augmentation=("ngram",))):
        assert after in before
        assert after != before or len(before.split()) == 1


def test_dropping_keeps_the_order_of_what_stays(untrained: Any) -> None:
    for before, after in changed_texts(untrained, augmented(untrained, augmentation=("drop",))):
        rest = iter(before.split())
        assert all(any(known.startswith(word) for known in rest) for word in after.split())  # The last may be cut.
        assert len(after.split()) >= 1
        assert len(after.split()) < len(before.split()) or len(before.split()) == 1


def test_replacing_keeps_the_number_of_words_and_most_of_them(untrained: Any) -> None:
    kept, words = 0, 0
    for before, after in changed_texts(untrained, augmented(untrained, augmentation=("replace",))):
        old, new = before.split(), after.split()
        assert len(new) <= len(old)  # A long text is cut to what models read.
        kept += sum(a == b for a, b in zip(old, new, strict=False))
        words += len(new)
    assert kept / words == pytest.approx(1 - augmentation.REPLACED, abs=0.08)


@pytest.mark.parametrize("kind", ["ranker", "roberta"])
def test_words_put_together_are_the_text(untrained: Any, kind: str) -> None:
    tokenizer = tokenizers.plain_tokenizer(tokenizers.load_tokenizer(folder(untrained, kind)))
    texts = [*originals(untrained).values(), "one, two  (three)!", " x ", "", "naïve café 12.5%"]
    for text, words in zip(texts, word_replacement.split(tokenizer, texts, 10_000), strict=True):
        assert words.with_words([None] * len(words)) == text.strip()
        assert [text[start:stop] for start, stop in words.spans] == [
            word for word in (text[start:stop].strip() for start, stop in words.spans) if word
        ]
    short = word_replacement.split(tokenizer, texts, 5)
    assert max(sum(map(len, words.ids)) for words in short) == 5


def test_neighbours_are_the_nearest_whole_words_of_the_table(untrained: Any) -> None:
    """Against numpy, over a vocabulary that is read here in another way."""
    replacer = WordReplacer(folder(untrained))
    assert not replacer.has_masked_head
    vocabulary = replacer.tokenizer.get_vocab(with_added_tokens=False)
    whole_words = {word: number for word, number in vocabulary.items() if word.isalnum() and not word.startswith("##")}
    model: Any = AutoModel.from_pretrained(folder(untrained))
    table = model.get_input_embeddings().weight.detach().numpy()
    texts = word_replacement.split(replacer.tokenizer, list(originals(untrained).values())[:20], 48)
    choices = [range(len(words)) for words in texts]
    seen = {1: 0, 2: 0}
    for words, lists in zip(texts, replacer.alternatives(texts, choices), strict=True):
        for ids, listed in zip(words.ids, lists, strict=True):
            mean = table[list(ids)].mean(0)
            other_words = {word: table[number] for word, number in whole_words.items() if ids != (number,)}
            cosine = {
                word: mean @ row / np.linalg.norm(mean) / np.linalg.norm(row) for word, row in other_words.items()
            }
            best = sorted(cosine.values(), reverse=True)[: word_replacement.CANDIDATES]
            assert [cosine[word] for word in listed] == pytest.approx(best, abs=1e-5)
            seen[min(2, len(ids))] += 1
    assert min(seen.values()) > 5


def test_a_base_that_guesses_masked_tokens_is_asked_with_all_words_masked(
    untrained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(word_replacement, "autocast", lambda *_: nullcontext())
    tokenizer = tokenizers.load_tokenizer(folder(untrained))
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    model = BertForMaskedLM(
        BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, initializer_range=0.5, **sizes)
    ).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    replacer = WordReplacer(tmp_path)
    assert replacer.has_masked_head
    texts = word_replacement.split(replacer.tokenizer, list(originals(untrained).values())[:12], 40)
    choices = [list(range(0, len(words), 2)) for words in texts]
    checked = 0
    for words, choice, lists in zip(texts, choices, replacer.alternatives(texts, choices), strict=True):
        single = [word for word in choice if len(words.ids[word]) == 1]
        shown = [[tokenizer.mask_token_id] if word in single else list(ids) for word, ids in enumerate(words.ids)]
        ids = torch.tensor(
            [[tokenizer.cls_token_id, *(token for part in shown for token in part), tokenizer.sep_token_id]]
        )
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0]
        for word, listed in zip(choice, lists, strict=True):
            if word in single:
                position = 1 + sum(map(len, shown[:word]))
                own = logits[position].numpy()
                given = [own[tokenizer.convert_tokens_to_ids(option)] for option in listed]
                assert all(first > second - 1e-4 for first, second in pairwise(given))
                better = [
                    token
                    for token in np.flatnonzero(own > given[-1] + 1e-4)
                    if tokenizer.convert_ids_to_tokens(int(token)).isalnum() and (token,) != words.ids[word]
                ]
                assert len(better) <= len(listed)
                checked += 1
    assert checked > 10


def test_a_text_without_words_stays_and_a_corpus_of_them_is_refused(
    untrained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    for empty in (Words("", (), ()), Words("--", ((0, 1), (1, 2)), ((5,), (5,)))):
        assert augmentation._part(rng, empty) == empty.text
        assert augmentation._dropped(rng, empty) == empty.text
        assert augmentation._replaced(rng, empty, [], []) == empty.text
    monkeypatch.setattr(Words, "is_word", lambda *_: False)
    elsewhere = dataclasses.replace(untrained, workspace=tmp_path)
    with pytest.raises(ConfigError, match="no training text has words that drop could change"):
        augmented(elsewhere, augmentation=("drop",))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"augmented": -1.0}, r"candidates\.augmented is -1"),
        ({"augmentation": ()}, r"candidates\.augmentation \[\]: name at least one"),
        ({"augmentation": ("drop", "drop")}, "each once"),
    ],
)
def test_impossible_settings_are_refused(values: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CandidatesConfig(**values)


def test_a_file_of_scores_cannot_teach_new_texts() -> None:
    with pytest.raises(ConfigError, match=r"candidates\.augmented is 2: external_teacher\.scores has no scores"):
        Recipe(
            candidates=CandidatesConfig(augmented=2.0),
            external_teacher=ExternalTeacherConfig(scores="x"),
            ranker=RankerConfig(hidden_weight=0.0),
        )


def test_a_tokenizer_that_does_not_split_words_is_refused_before_any_work(untrained: Any) -> None:
    tokenizer = tokenizers.load_tokenizer(folder(untrained))
    config = CandidatesConfig(augmented=1.0)
    augmentation.check(config, tokenizer)
    tokenizer.backend_tokenizer.pre_tokenizer = None
    with pytest.raises(ConfigError, match=r"candidates\.augmented is 1: the tokenizer of teacher\.base does not split"):
        augmentation.check(config, tokenizer)
    augmentation.check(CandidatesConfig(), tokenizer)
