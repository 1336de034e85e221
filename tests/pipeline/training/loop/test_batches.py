"""Plans and padded batches: each pair once, whole queries, within the budget, little padding, the same every time."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import artifacts, schema
from pipeline.config import LoopConfig
from pipeline.errors import ConfigError, SchemaError
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.training.loop import batches, pair_tokens

CONFIG = LoopConfig(tokens_per_batch=2000, chunk_tokens=8000, seed=4)


def world(queries: int = 120, seed: int = 0) -> tuple[batches.Ints, batches.Ints]:
    """Lengths and groups of lists of 1 to 20 documents, in shuffled order."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(queries) * 3, rng.integers(1, 21, size=queries))
    rng.shuffle(groups)
    lengths = np.clip(rng.lognormal(3.5, 0.6, size=len(groups)), 6, 128).astype(np.int64)
    return lengths, groups


def chunks_of(steps: list[list[batches.Ints]]) -> Iterator[batches.Ints]:
    for step in steps:
        yield from step


@pytest.mark.parametrize("seed", range(3))
def test_an_epoch_has_every_pair_once_and_queries_whole(seed: int) -> None:
    lengths, groups = world(seed=seed)
    steps = batches.plan(lengths, groups, CONFIG, max_list=20, epoch=0)
    assert np.array_equal(np.sort(np.concatenate(list(chunks_of(steps)))), np.arange(len(groups)))
    holders = [set(groups[chunk]) for chunk in chunks_of(steps)]
    assert sum(map(len, holders)) == len(set().union(*holders))


def test_the_plan_is_a_function_of_seed_and_epoch() -> None:
    lengths, groups = world()

    def flat(epoch: int, config: LoopConfig = CONFIG) -> list[int]:
        return np.concatenate(list(chunks_of(batches.plan(lengths, groups, config, max_list=7, epoch=epoch)))).tolist()

    assert flat(0) == flat(0)
    assert flat(0) != flat(1)
    assert flat(0) != flat(0, replace(CONFIG, seed=5))


def test_long_lists_are_sampled_anew_each_epoch() -> None:
    lengths, groups = world()
    seen: set[int] = set()
    for epoch in range(12):
        chosen = np.concatenate(list(chunks_of(batches.plan(lengths, groups, CONFIG, max_list=7, epoch=epoch))))
        assert len(set(chosen)) == len(chosen)
        counts = np.bincount(groups[chosen], minlength=groups.max() + 1)
        assert np.array_equal(counts, np.minimum(np.bincount(groups), 7))
        seen |= set(chosen.tolist())
    assert len(seen) > 0.98 * len(groups)


def test_steps_are_of_about_the_budget() -> None:
    lengths, groups = world(queries=400)
    sizes = [
        sum(int(lengths[chunk].sum()) for chunk in step)
        for step in batches.plan(lengths, groups, CONFIG, max_list=20, epoch=0)
    ]
    assert len(sizes) == -(-int(lengths.sum()) // CONFIG.tokens_per_batch)
    largest_list = max(int(lengths[groups == group].sum()) for group in np.unique(groups))
    assert max(sizes) <= CONFIG.tokens_per_batch + largest_list
    assert min(sizes) >= CONFIG.tokens_per_batch - 2 * largest_list


def test_a_step_is_above_its_share_by_half_of_its_first_and_last_query_at_most() -> None:
    lengths, groups = world(queries=60)
    per_query = np.bincount(groups, weights=lengths)
    for epoch in range(20):
        steps = batches.plan(lengths, groups, CONFIG, max_list=1000, epoch=epoch)
        share = lengths.sum() / np.ceil(lengths.sum() / CONFIG.tokens_per_batch)
        for (step,) in (step for step in steps if len(step) == 1):
            first, last = per_query[groups[step[0]]], per_query[groups[step[-1]]]
            assert lengths[step].sum() <= share + (first + last) / 2


def test_lengths_do_not_decide_who_goes_together() -> None:
    lengths, groups = world(queries=2000)
    steps = batches.plan(lengths, groups, CONFIG, max_list=20, epoch=0)
    means = np.array([np.mean(np.concatenate([lengths[chunk] for chunk in step])) for step in steps])
    counts = np.array([sum(map(len, step)) for step in steps])
    by_chance = lengths.std() / np.sqrt(counts.mean())
    assert means.std() < 2 * by_chance


def test_chunks_hold_whole_queries_within_the_memory_budget() -> None:
    lengths, groups = world()
    uncut = batches.plan(lengths, groups, CONFIG, max_list=8, epoch=0)
    cut = batches.plan(lengths, groups, replace(CONFIG, chunk_tokens=1100), max_list=8, epoch=0)
    assert [set(np.concatenate(step)) for step in uncut] == [set(np.concatenate(step)) for step in cut]
    assert all(batches.padded_tokens(lengths[chunk]) <= 1100 for chunk in chunks_of(cut))
    assert max(len(step) for step in cut) >= 2
    for step in cut:
        holders = [set(groups[chunk]) for chunk in step]
        assert sum(map(len, holders)) == len(set().union(*holders))


def test_a_query_too_large_for_memory_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"12 pairs have 1200 tokens.*chunk_tokens 1000.*max_list"):
        batches.plan(np.full(12, 100), np.zeros(12, np.int64), replace(CONFIG, chunk_tokens=1000), max_list=16, epoch=0)


def test_nothing_to_plan() -> None:
    assert batches.plan(np.zeros(0, np.int64), np.zeros(0, np.int64), CONFIG, max_list=4, epoch=0) == []


def best_cost(lengths: list[int]) -> int:
    """The least padding plus cost of padded batches over every way to cut the sorted lengths."""
    ordered = sorted(lengths, reverse=True)
    costs = []
    for cuts in range(2 ** (len(ordered) - 1)):
        ends = [position + 1 for position in range(len(ordered) - 1) if cuts >> position & 1] + [len(ordered)]
        begin, cost = 0, 0
        for end in ends:
            cost += ordered[begin] * (end - begin) + batches.BATCH_COST_TOKENS
            begin = end
        costs.append(cost)
    return min(costs)


@given(st.lists(st.integers(1, 200), min_size=1, max_size=9))
def test_length_groups_are_the_best_cut_of_the_sorted_lengths(lengths: list[int]) -> None:
    array = np.array(lengths)
    groups = batches.length_groups(array)
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(lengths)))
    assert all(array[group[0]] == array[group].max() for group in groups)
    cost = batches.padded_tokens(array) + batches.BATCH_COST_TOKENS * len(groups)
    assert cost == best_cost(lengths)


def test_little_is_wasted_on_padding() -> None:
    lengths, groups = world(queries=400)
    steps = batches.plan(lengths, groups, replace(CONFIG, tokens_per_batch=4096), max_list=16, epoch=0)
    real = sum(int(lengths[chunk].sum()) for chunk in chunks_of(steps))
    padded = sum(batches.padded_tokens(lengths[chunk]) for chunk in chunks_of(steps))
    together = sum(len(chunk) * int(lengths[chunk].max()) for chunk in chunks_of(steps))
    assert 1 - real / padded < 0.1
    assert together > 1.8 * real  # what one padded batch a step would cost


def test_scoring_batches_hold_each_text_once_within_the_budget() -> None:
    lengths, _ = world()
    chunks = list(batches.scoring_batches(lengths, 500))
    assert sorted(np.concatenate(chunks).tolist()) == list(range(len(lengths)))
    assert all(len(chunk) * int(lengths[chunk].max()) <= 500 or len(chunk) == 1 for chunk in chunks)


def test_ids_are_those_of_the_tokenizer_without_special_tokens(untrained: Any) -> None:
    tokenizer = CrossEncoder.load(untrained.ranker.path).tokenizer
    texts = ["steel angle", "", "one gallon of solid colour " * 9]
    ids = pair_tokens.tokenise(tokenizer, texts, 10)
    for number, text in enumerate(texts):
        assert ids[number] == tokenizer.encode(text, add_special_tokens=False).ids[:10]
    assert ids.lengths.tolist() == [len(ids[number]) for number in range(3)]
    assert len(pair_tokens.tokenise(tokenizer, [], 10)) == 0


def opened(untrained: Any, max_tokens: int = 48) -> tuple[pair_tokens.Pairs, CrossEncoder]:
    model = CrossEncoder.load(untrained.ranker.path)
    pairs = pair_tokens.read_pairs(
        untrained.data, untrained.pairs, model.tokenizer, max_query_tokens=12, max_tokens=max_tokens
    )
    return pairs, model


def test_pairs_carry_the_texts_of_their_ids(untrained: Any) -> None:
    pairs, model = opened(untrained, max_tokens=400)
    table = schema.read(untrained.pairs.file("pairs.parquet"), "pairs").to_pylist()
    documents = {
        row["doc_id"]: row for row in schema.read(untrained.data.file("documents.parquet"), "documents").to_pylist()
    }
    queries = {
        row["query_id"]: row for row in schema.read(untrained.data.file("queries.parquet"), "queries").to_pylist()
    }
    assert len(pairs) == len(table)
    for index, row in enumerate(table):
        document = documents[row["doc_id"]]
        text = f"{document['title']}\n{document['text']}" if document["text"] else document["title"]
        query = queries[row["query_id"]]["text"]
        assert pairs.documents[pairs.document[index]] == model.tokenizer.encode(text, add_special_tokens=False).ids
        assert pairs.queries[pairs.query[index]] == model.tokenizer.encode(query, add_special_tokens=False).ids[:12]
        assert (pairs.rows[index], pairs.grades[index], pairs.split[index]) == (
            row["row_id"],
            row["grade"],
            row["split"],
        )


def test_lengths_are_those_of_the_assembled_inputs(untrained: Any) -> None:
    pairs, model = opened(untrained)
    inputs = batches.pair_inputs(pairs, np.arange(len(pairs)), model.template)
    lengths = pair_tokens.pair_lengths(pairs, model.template)
    assert lengths.tolist() == [len(ids) for ids, _ in inputs]
    assert lengths.max() == model.template.max_tokens  # some are cut


def test_a_padded_batch_is_its_inputs_and_padding(untrained: Any) -> None:
    pairs, model = opened(untrained)
    inputs = batches.pair_inputs(pairs, np.array([3, 0, 11]), model.template)
    padded = batches.pad(inputs, torch.device("cpu"))
    assert padded.input_ids.shape[1] == max(len(ids) for ids, _ in inputs)
    for row, (ids, types) in enumerate(inputs):
        assert padded.input_ids[row, : len(ids)].tolist() == ids
        assert padded.token_type_ids[row, : len(ids)].tolist() == types
        assert padded.attention_mask[row].sum() == len(ids)


def test_a_pair_without_its_document_is_named(untrained: Any, tmp_path: Path) -> None:
    table = pa.table(
        {
            "row_id": [0],
            "query_id": ["q0"],
            "doc_id": ["nowhere"],
            "grade": [1],
            "split": ["train"],
            "source": ["human"],
        }
    )

    def build(staging: artifacts.Staging) -> dict[str, Any]:
        schema.write(table, staging.folder / "pairs.parquet", "pairs")
        return {}

    pairs = artifacts.make(tmp_path, "pairs", version=1, config={}, inputs={}, build=build)
    tokenizer = CrossEncoder.load(untrained.ranker.path).tokenizer
    with pytest.raises(SchemaError, match="doc_id 'nowhere'"):
        pair_tokens.read_pairs(untrained.data, pairs, tokenizer, max_query_tokens=8, max_tokens=32)
