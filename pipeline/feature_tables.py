"""The features of judged candidates in a table, query by query, as reports and the fusion's training need them."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SchemaError
from pipeline.features import field_features, table

if TYPE_CHECKING:
    import pandas as pd

SCORES = ("bm25", "encoder", "ranker")
"""Columns of raw scores, one for each model."""


def by_query(frame: "pd.DataFrame") -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """The row positions of each query, in order of query id, and the features of these rows.

    Ranks are features, and of equal scores the candidate that stands first ranks first. The rows of judged data may
    follow the grades, so candidates stand here nearly as in a search: by falling BM25 score, those of equal score (as
    where the encoder alone finds them) by falling cosine; where both tie, by a hash of the document id, which tells
    nothing.

    Args:
        frame: query_id, doc_id, bm25, encoder, ranker, and the scores of single fields (see `field_feature`), in any
            order; all rows of a query must be there.

    Returns:
        For each query: positions (candidates,) in the frame, features (candidates, features).

    Raises:
        SchemaError: a score is not a finite number.
    """
    from pandas.util import hash_array

    names = (*SCORES, *field_features(frame.columns))
    scores = {name: frame[name].to_numpy() for name in names}
    hashes = hash_array(frame["doc_id"].to_numpy(dtype=object), categorize=False)
    tables = []
    for query, rows in frame.groupby("query_id", sort=True).indices.items():
        unordered = np.asarray(rows)
        bm25, cosines = scores["bm25"][unordered], scores["encoder"][unordered]
        positions = unordered[np.lexsort((hashes[unordered], -cosines, -bm25))]
        own = {name: values[positions].tolist() for name, values in scores.items()}
        fields = {name: own[name] for name in names[len(SCORES) :]}
        try:
            features = table(own["bm25"], own["encoder"], own["ranker"], fields)
        except SchemaError as error:
            raise SchemaError(f"query '{query}': {error}") from error
        tables.append((positions, np.asarray(features, dtype=np.float64)))
    return tables
