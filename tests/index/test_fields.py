"""BM25 of single fields: equal to an index of that column alone, and clear about columns that are not there."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from index import lexical_build, semantic_build, vectors
from index.fields import FieldIndexes
from index.lexical import LexicalIndex
from index.quality import QualityFilter
from index.vector_texts import TextChoice
from pipeline.artifacts import Artifact
from pipeline.config import IndexConfig
from pipeline.errors import ConfigError, SchemaError

TITLES = ["red knife", "blue spade", "", "knife and fork", "lamp"]
TEXTS = ["cuts bread", "a knife for the garden", "knife knife", "for the table", "red light"]
TAGS = [["red", "kitchen"], None, [], ["kitchen"], ["red"]]


@pytest.fixture
def data(make_data: Callable[..., Artifact]) -> Artifact:
    return make_data(TEXTS, columns={"title": TITLES, "tags": TAGS, "price": [5.0, None, 7.25, 1.0, 5.0]})


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("title", TITLES),
        ("text", TEXTS),
        ("tags", ["red\nkitchen", "", "", "kitchen", "red"]),
        ("price", ["5", "", "7.25", "1", "5"]),
    ],
)
def test_a_field_is_scored_as_if_documents_had_nothing_else(
    field: str, values: list[str], data: Artifact, make_data: Callable[..., Artifact], tmp_path: Path
) -> None:
    apart = lexical_build.make(tmp_path, IndexConfig(), data=data, field=field)
    alone = LexicalIndex.load(lexical_build.make(tmp_path / "alone", IndexConfig(), data=make_data(values)).path)
    indexes = FieldIndexes.load({f"lexical.{field}": apart})
    assert indexes.features == (f"bm25.{field}",)
    for query in ["knife", "red kitchen knife", "7.25 5", "unknown"]:
        scores = indexes.scores(query, None, range(5), indexes.features)[f"bm25.{field}"]
        np.testing.assert_array_equal(scores, alone.scores(query, range(5)))
    assert indexes.scores("knife", None, range(5), ()) == {}


def letters(texts: Sequence[str]) -> np.ndarray:
    """Unit vectors by the counts of five letters, so that each text has a direction of its own."""
    counts = np.array([[1 + text.count(letter) for letter in "aeikn"] for text in texts], np.float32)
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


@pytest.mark.parametrize("quality", [None, QualityFilter("up", "down", 0.3)])
def test_a_field_has_a_vector_where_it_is_not_empty(
    quality: QualityFilter | None, make_data: Callable[..., Artifact], tmp_path: Path
) -> None:
    data = make_data(TEXTS, columns={"title": TITLES, "up": [9, 9, 9, 0, 9], "down": [0, 0, 0, 9, 0]})
    embedded = vectors.make(
        tmp_path,
        vectors.DocumentEncoder("digest", letters),
        data=data,
        choice=TextChoice(quality=quality, field="title"),
    )
    index = semantic_build.make(tmp_path, IndexConfig(), vectors=embedded)
    assert index.manifest.config["field"] == "title"
    indexes = FieldIndexes.load({"index.title": index})
    query = letters(["a kitchen knife"])[0]
    expected = letters(TITLES) @ query
    expected[[2] if quality is None else [2, 3]] = 0  # The third title is empty, the fourth has bad votes.
    scores = indexes.scores("", query, range(5), ["encoder.title"])["encoder.title"]
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert indexes.scores("", None, range(5), ["encoder.title"]) == {}


def test_a_field_that_is_empty_everywhere_has_no_vectors(make_data: Callable[..., Artifact], tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=r"column title, which index\.fields names, is empty in every document"):
        vectors.make(
            tmp_path,
            vectors.DocumentEncoder("digest", letters),
            data=make_data(["a b", "c"]),
            choice=TextChoice(field="title"),
        )


def test_a_column_that_is_not_there_or_empty_is_named(data: Artifact, tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=r"index\.fields names brand, .* there are doc_id, title, text, tags, price"):
        lexical_build.make(tmp_path, IndexConfig(), data=data, field="brand")
    assert not [path for path in (tmp_path / "artifacts" / "lexical").iterdir() if path.is_dir()]


def test_a_column_without_a_word_is_named(make_data: Callable[..., Artifact], tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=r"not one word in 2 documents; look at their column title, which index"):
        lexical_build.make(tmp_path, IndexConfig(), data=make_data(["a b", "c"]), field="title")


@pytest.mark.parametrize("fields", [("a/b",), ("",), ("..",), ("title", "title"), ("1st",)])
def test_names_that_no_part_of_a_release_can_have_are_refused(fields: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"index\.fields"):
        IndexConfig(fields=fields)


def test_vectors_of_fields_need_fields() -> None:
    with pytest.raises(ConfigError, match=r"index\.field_vectors is true and index\.fields names no field"):
        IndexConfig(field_vectors=True)
