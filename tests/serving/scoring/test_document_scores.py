"""The part of a document that a request lets the ranker read: what it leaves open is as the ranker has it."""

import pytest

from pipeline.passages import Passages
from serving.scoring.document_scores import DocumentLimits

OWN = Passages(most=4, tokens=20, stride=5, best=3, max_document_tokens=50)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (DocumentLimits(), OWN),
        (DocumentLimits(max_tokens=30), Passages(most=4, tokens=20, stride=5, best=3, max_document_tokens=30)),
        (DocumentLimits(max_tokens=90), OWN),
        (DocumentLimits(max_passages=2), Passages(most=2, tokens=20, stride=5, best=2, max_document_tokens=50)),
        (DocumentLimits(max_passages=1, max_tokens=30), None),
    ],
)
def test_a_request_bounds_what_is_read_and_widens_nothing(limits: DocumentLimits, expected: Passages | None) -> None:
    assert limits.passages(OWN) == expected


def test_a_ranker_without_passages_reads_them_where_a_request_wants_some() -> None:
    assert DocumentLimits().passages(None) is None
    assert DocumentLimits(max_tokens=30).passages(None) is None
    assert DocumentLimits(max_passages=3, max_tokens=30).passages(None) == Passages(most=3, max_document_tokens=30)
