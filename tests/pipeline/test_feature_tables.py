import numpy as np
import pandas as pd
import pytest

from pipeline.errors import SchemaError
from pipeline.feature_tables import by_query
from pipeline.features import FEATURES, table


def judged(queries: int = 30, documents: int = 12) -> pd.DataFrame:
    """Rows sorted by grade, best first, whose scores are three values each and so often equal."""
    rng = np.random.default_rng(3)
    count = queries * documents
    frame = pd.DataFrame(
        {
            "row_id": range(count),
            "query_id": np.repeat([f"q{number:02d}" for number in range(queries)], documents),
            "doc_id": [f"d{number}" for number in range(count)],
            "grade": np.tile(np.arange(documents)[::-1], queries),
        }
    )
    return frame.assign(**{name: rng.integers(0, 3, count) / 2 for name in ("bm25", "encoder", "ranker", "bm25.title")})


def test_features_do_not_depend_on_the_order_of_the_rows() -> None:
    frame = judged()
    features = {}
    for name, rows in (("sorted", frame), ("shuffled", frame.sample(frac=1, random_state=5).reset_index(drop=True))):
        for positions, columns in by_query(rows):
            features[name] = features.get(name, {}) | dict(
                zip(rows["row_id"].to_numpy()[positions].tolist(), columns.tolist(), strict=True)
            )
    assert len(features["sorted"]) == len(frame)
    assert features["sorted"] == features["shuffled"]


def test_ranks_of_equal_scores_tell_nothing_of_grades_that_the_rows_follow() -> None:
    frame = judged(queries=400).assign(bm25=1.0, encoder=0.5)
    column = FEATURES.index("bm25_reciprocal_rank")
    by_hash = [
        np.corrcoef(columns[:, column], frame["grade"].to_numpy()[positions])[0, 1]
        for positions, columns in by_query(frame)
    ]
    by_row = [row[column] for row in table([1.0] * 12, [0.0] * 12, [0.0] * 12)]
    assert np.corrcoef(by_row, np.arange(12)[::-1])[0, 1] > 0.9  # So it would be in the order of the rows.
    assert abs(np.mean(by_hash)) < 0.05


def test_candidates_that_the_encoder_alone_finds_rank_by_their_cosine_as_in_a_search() -> None:
    frame = judged().assign(bm25=0.0)
    frame["encoder"] = np.random.default_rng(8).permutation(len(frame)) / len(frame)
    for _, columns in by_query(frame):
        ranks = columns[:, [FEATURES.index("bm25_reciprocal_rank"), FEATURES.index("encoder_reciprocal_rank")]]
        assert ranks[:, 0].tolist() == ranks[:, 1].tolist()


def test_a_score_that_is_no_number_names_its_query() -> None:
    frame = judged()
    frame.loc[frame["query_id"] == "q07", "encoder"] = np.nan
    with pytest.raises(SchemaError, match=r"query 'q07'.*not a finite number"):
        by_query(frame)
