import ast
import dataclasses
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError
from serving import settings as settings_module
from serving.settings import Settings, from_environment, unknown_variables


def test_arguments_go_before_the_environment_and_that_before_the_defaults() -> None:
    environ = {"RELEVANCE_PORT": "9000", "RELEVANCE_WORKSPACE": "/tmp/w", "RELEVANCE_DEADLINE_S": "2.5", "PORT": "1"}
    settings = from_environment(environ, port=9001, release=None)
    assert settings == Settings(port=9001, workspace=Path("/tmp/w"), deadline_s=2.5)


def test_keys_are_a_list_of_hashes_in_the_environment() -> None:
    settings = from_environment({"RELEVANCE_API_KEYS": f" {'a' * 64}, {'b' * 64} ,"})
    assert settings.api_keys == ("a" * 64, "b" * 64)
    assert "aaa" not in repr(settings)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"canary_share": 1.1}, "canary_share is 1.1; it must be between 0 and 1"),
        ({"shadow_share": -0.1}, "shadow_share is -0.1"),
        ({"kept_releases": -1}, "kept_releases is -1; it must be 0 or more"),
        ({"admin_from": "home"}, "admin_from is 'home'; it must be one of loopback, anywhere"),
        ({"admin_keys": ("secret",)}, "admin_keys holds something that is not a SHA-256"),
    ],
)
def test_impossible_trials_and_administrators_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Settings(**wrong)


def test_addresses_of_shards_may_end_with_a_slash_and_stand_there_once() -> None:
    values = from_environment({"RELEVANCE_SHARDS": "http://a:8080/, https://b/part/"})
    assert values.shards == Settings(shards=("http://a:8080", "https://b/part")).shards
    assert values.shards == ("http://a:8080", "https://b/part")
    with pytest.raises(ConfigError, match="twice"):
        from_environment({"RELEVANCE_SHARDS": "http://a:8080,http://a:8080/"})
    with pytest.raises(ConfigError, match="http://10"):
        Settings(shards=("a:8080",))


NAMES = ("*", "*.inner.example", "Search.Example.com", "localhost", "xn--bcher-kva.example", "a_b.example", "10.0.0.7")
NO_NAMES = ("search.example.com:8080", "http://search.example.com", "search.example.com.", "*.", "*example.com", "a b")


@pytest.mark.parametrize("name", [*NAMES, *NO_NAMES, "search.example.com/path", "bücher.example", "a.*.example", ""])
def test_a_host_name_that_no_request_can_have_is_refused(name: str) -> None:
    if name in NAMES:
        assert from_environment({"RELEVANCE_ALLOWED_HOSTS": name}).allowed_hosts == (name,)
        return
    with pytest.raises(ConfigError, match=r"allowed_hosts has .*, which no client can call by; write names such as"):
        Settings(allowed_hosts=("search.example.com", name))


def test_the_password_of_a_redis_is_not_printed() -> None:
    settings = from_environment({"RELEVANCE_REDIS_URL": "redis://me:secret@cache:6379/0"})
    assert settings.redis_url.startswith("redis://me:secret@")
    assert "secret" not in repr(settings)


def test_processes_share_cores_and_memory() -> None:
    settings = Settings(workers=4, cache_bytes=400)
    assert settings.share(8) == Settings(workers=1, threads=2, cache_bytes=100)
    assert settings.share(2).threads == 1
    assert Settings(workers=2, threads=3).share(8).threads == 3


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
        ({"RELEVANCE_DEADLINE_S": "31"}, "max_deadline_s is 30.0, less than deadline_s, 31.0"),
        ({"RELEVANCE_MAX_BODY_BYTES": "1000000000"}, "max_held_bytes is 268435456, less than max_body_bytes"),
        ({"RELEVANCE_REDIS_TTL_S": "0"}, "redis_ttl_s is 0.0"),
        ({"RELEVANCE_DRAIN_S": "inf"}, "drain_s is inf; it must be a number above 0"),
        ({"RELEVANCE_LOG": "xml"}, "log is 'xml'"),
        ({"RELEVANCE_WORKERS": "0"}, "workers is 0"),
        ({"RELEVANCE_API_KEYS": "my-secret"}, "not a SHA-256 in hex; `relevance key` makes"),
    ],
)
def test_an_impossible_value_is_named(environ: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        from_environment(environ)


def test_a_variable_that_is_no_setting_is_told_of() -> None:
    environ = {"RELEVANCE_API_KEY": "secret", "RELEVANCE_PORT": "1", "PATH": "/bin"}
    assert unknown_variables(environ) == ["RELEVANCE_API_KEY"]
    assert from_environment(environ).port == 1


def test_the_address_that_kubernetes_sets_for_a_service_called_relevance_is_no_port() -> None:
    environ = {"RELEVANCE_PORT": "tcp://10.0.0.1:8080", "RELEVANCE_SERVICE_PORT": "8080", "RELEVANCE_WORKERS": "2"}
    assert from_environment(environ) == Settings(workers=2)
    assert unknown_variables(environ) == ["RELEVANCE_PORT", "RELEVANCE_SERVICE_PORT"]
    assert from_environment(environ, port=9000).port == 9000


def test_empty_variables_count_as_absent() -> None:
    assert from_environment({"RELEVANCE_PORT": " "}) == Settings()


def test_the_page_of_the_service_lists_all_settings() -> None:
    """Prints the table that belongs into serving/README.md when it differs."""
    source = Path(settings_module.__file__).read_text(encoding="utf-8")
    body = next(node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)).body
    meanings = {
        field.target.id: " ".join(str(text.value.value).split())
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for field in dataclasses.fields(Settings):
        default = "" if field.default in ("", ()) else f"{field.default}"
        rows.append(f"| `RELEVANCE_{field.name.upper()}` | {default} | {meanings[field.name]} |")
    page = (Path(settings_module.__file__).parent / "README.md").read_text(encoding="utf-8")
    table = re.search(r"<!-- settings -->\n(.*)\n<!-- /settings -->", page, re.DOTALL)
    assert table, "serving/README.md has no block <!-- settings -->"
    assert table[1] == "\n".join(rows), "put this table into serving/README.md:\n" + "\n".join(rows)
