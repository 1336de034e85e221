"""Queries are cut by their normalised text: together, steadily, and in the shares asked for."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import text
from pipeline.config import DataConfig
from pipeline.data import splits
from pipeline.errors import SchemaError

HASH = DataConfig(splits="hash", valid_share=0.2, test_share=0.3)
SOURCE = DataConfig(splits="source", valid_share=0.25)


def test_shares_are_those_asked_for() -> None:
    assigned = splits.assign([f"query {number}" for number in range(20_000)], [None] * 20_000, HASH)
    assert assigned.count("test") / 20_000 == pytest.approx(0.3, abs=0.01)
    assert assigned.count("valid") / 20_000 == pytest.approx(0.2, abs=0.01)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_equal_normalised_queries_land_together_and_alone_as_among_others(queries: list[str]) -> None:
    written = [*queries, *(query.upper() + " " for query in queries)]
    assigned = splits.assign(written, [None] * len(written), HASH)
    sides: dict[str, set[str]] = {}
    for query, split in zip(written, assigned, strict=True):
        sides.setdefault(text.normalise(query), set()).add(split)
    assert all(len(side) == 1 for side in sides.values())
    assert assigned == [splits.hashed(text.normalise(query), HASH) for query in written]


def test_another_seed_cuts_elsewhere() -> None:
    queries = [f"query {number}" for number in range(200)]
    first, second = (splits.assign(queries, [None] * 200, DataConfig(seed=seed)) for seed in (1, 2))
    assert first != second


@pytest.mark.parametrize(
    ("published", "meaning"),
    [
        (["train", "valid", "test"], ["train", "valid", "test"]),
        (["train", "valid", None], ["cut", "test", None]),
        (["train", "test"], ["cut", "test"]),
        (["valid", "test"], ["cut", "test"]),
        (["test", "test"], ["test", "test"]),
        (["valid"], ["test"]),
        (["train", "train"], [None, None]),
        ([None, None], [None, None]),
    ],
)
def test_what_published_splits_mean(published: list[str | None], meaning: list[str | None]) -> None:
    assert splits.labels(published) == meaning


def test_published_splits_are_kept_and_valid_is_cut_from_train_alone() -> None:
    train, test = [f"train {n}" for n in range(2000)], [f"test {n}" for n in range(50)]
    labels = splits.labels(["train"] * 2000 + ["valid"] * 50)
    assigned = splits.assign(train + test, labels, SOURCE)
    assert set(assigned[2000:]) == {"test"}
    assert set(assigned[:2000]) == {"train", "valid"}
    assert assigned[:2000].count("valid") / 2000 == pytest.approx(0.25, abs=0.03)


def test_an_unpublished_query_goes_with_the_published_one_of_the_same_text() -> None:
    assert splits.assign(["Red  Shoe", "red shoe", "RED SHOE"], ["test", None, None], SOURCE) == ["test"] * 3


@pytest.mark.parametrize(("first", "second"), [("train", "test"), ("cut", "valid"), ("valid", "test")])
def test_one_query_on_two_sides_is_an_error_with_examples(first: str, second: str) -> None:
    with pytest.raises(SchemaError, match=r"1 query stands.*'红 shoe' in \w+ and \w+.*data.splits = \"hash\""):
        splits.assign(["红 Shoe", " 红 SHOE", "other"], [first, second, "train"], SOURCE)


def test_hash_splits_do_not_look_at_published_ones() -> None:
    assert splits.assign(["a", "a"], ["train", "test"], HASH) == splits.assign(["a", "a"], [None, None], HASH)


def test_all_can_be_test_queries() -> None:
    assert splits.assign(["a", "b", "a"], ["train", None, "valid"], DataConfig(splits="test")) == ["test"] * 3


def test_all_but_the_test_queries_of_the_hash_can_be_valid_queries() -> None:
    queries = [f"query {number}" for number in range(300)]
    for share in (0.0, 0.3):
        config = DataConfig(test_share=share)
        by_hash, refit = (
            splits.assign(queries, [None] * 300, replace(config, splits=how)) for how in ("hash", "valid")
        )
        assert refit == ["test" if split == "test" else "valid" for split in by_hash]
        assert ("test" in refit) == (share > 0)


def test_a_sample_changes_by_no_more_than_what_is_added() -> None:
    ids = [f"q{number}" for number in range(500)]
    texts = [f"text {number}" for number in range(500)]
    few = splits.sample(texts[:400], ids[:400], 100, seed=3)
    more = splits.sample(texts, ids, 100, seed=3)
    assert len(few) == len(more) == 100
    assert few - more <= few
    assert more - few <= set(ids[400:])
    order = random.Random(3).sample(range(500), 500)
    assert splits.sample([texts[n] for n in order], [ids[n] for n in order], 100, seed=3) == more


def test_no_limit_keeps_all() -> None:
    assert splits.sample(["a", "b"], ["1", "2"], 0, seed=1) == {"1", "2"}
