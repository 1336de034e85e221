from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from serving.settings import Settings, from_environment


def test_arguments_go_before_the_environment_and_that_before_the_defaults() -> None:
    environ = {"RELEVANCE_PORT": "9000", "RELEVANCE_WORKSPACE": "/tmp/w", "RELEVANCE_DEADLINE_S": "2.5", "PORT": "1"}
    found = from_environment(environ, port=9001, release=None)
    assert found == Settings(port=9001, workspace=Path("/tmp/w"), deadline_s=2.5)


def test_keys_are_a_list_in_the_environment_and_are_not_printed() -> None:
    found = from_environment({"RELEVANCE_API_KEYS": " one, two ,"})
    assert found.api_keys == ("one", "two")
    assert "one" not in repr(found)


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"RELEVANCE_PORT": "http"}, "RELEVANCE_PORT is 'http'; it must be a whole number"),
        ({"RELEVANCE_PORT": "70000"}, "port is 70000"),
        ({"RELEVANCE_DEADLINE_S": "soon"}, "RELEVANCE_DEADLINE_S is 'soon'; it must be a number"),
        ({"RELEVANCE_DEADLINE_S": "nan"}, "deadline_s is nan"),
        ({"RELEVANCE_MAX_DOCUMENTS": "0"}, "max_documents is 0"),
        ({"RELEVANCE_CACHE_BYTES": "-1"}, "cache_bytes is -1"),
        ({"RELEVANCE_PRECISION": "int4"}, "precision is 'int4'"),
    ],
)
def test_an_impossible_value_is_named(environ: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        from_environment(environ)


def test_empty_variables_count_as_absent() -> None:
    assert from_environment({"RELEVANCE_PORT": " "}) == Settings()
