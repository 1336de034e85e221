"""The queries that a report judges, by the recipes of the releases in it."""

import itertools

import pytest

from flows import report
from pipeline.config import DataConfig
from pipeline.data import splits

QUERIES = [f"query {number}" for number in range(400)]
SHARES = [(0.1, 0.2), (0.3, 0.4), (0.2, 0.05)]


def held_out_queries(config: DataConfig) -> set[str]:
    cut = splits.assign(QUERIES, [None] * len(QUERIES), config)
    return {query for query, split in zip(QUERIES, cut, strict=True) if split == "test"}


@pytest.mark.parametrize(("first", "second"), list(itertools.product(SHARES, SHARES)))
def test_no_release_is_judged_on_queries_that_it_learned_from(
    first: tuple[float, float], second: tuple[float, float], caplog: pytest.LogCaptureFixture
) -> None:
    learned = [DataConfig(valid_share=valid, test_share=test) for valid, test in (first, second)]
    with caplog.at_level("WARNING"):
        judged = held_out_queries(report.held_out(learned[0], learned))
    assert judged == held_out_queries(learned[0]) & held_out_queries(learned[1])
    assert not caplog.messages
    assert held_out_queries(report.held_out(DataConfig(), learned[1:])) == held_out_queries(learned[1]), (
        "the first is ready-made"
    )


@pytest.mark.parametrize("other", [DataConfig(seed=7), DataConfig(splits="source")])
def test_releases_that_cut_otherwise_are_compared_with_a_warning(
    other: DataConfig, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING"):
        assert report.held_out(DataConfig(), [DataConfig(), other]) == DataConfig()
    assert "figures are too good" in caplog.text
