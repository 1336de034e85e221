"""Host names, content types, credentials and prefixes: what a request's head decides."""

import gzip
from typing import Any

import httpx
import pytest
from starlette.datastructures import Headers
from starlette.testclient import TestClient

from pipeline import regular_files
from serving.api import app as apps
from serving.api import keys
from serving.settings import Settings
from tests.serving.patience import patient
from tests.serving.process.test_launch import browse
from tests.serving.processes import start

BODY = {"query": "q", "texts": ["a"]}
JSON = {"content-type": "application/json"}


def client_of(started: Any, **knobs: Any) -> TestClient:
    return TestClient(apps.create(started(**knobs)))


@pytest.fixture(scope="module")
def keyless(tiny: Any) -> TestClient:
    from serving.rollout.lifecycle import Lifecycle

    lifecycle = Lifecycle(patient(workspace=tiny.path, release=tiny.releases.resolve("live"), threads=1))
    lifecycle.start()
    return TestClient(apps.create(lifecycle))


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8080",
        "a.localhost",
        "127.0.0.1:8080",
        "127.9.9.9",
        "[::1]:8080",
        "10.0.0.7",
        "relevance",
    ],
)
def test_names_that_no_stranger_can_own_are_taken(keyless: TestClient, host: str) -> None:
    assert keyless.post("/rerank", json=BODY, headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil.com"])
@pytest.mark.parametrize("path", ["/", "/rerank", "/metrics", "/search", "/nope", "/openapi.json"])
def test_a_strange_host_name_reaches_nothing_of_a_keyless_service(keyless: TestClient, host: str, path: str) -> None:
    for method in ("GET", "POST"):
        response = keyless.request(method, path, headers={"host": host})
        assert response.status_code == 421
        assert "RELEVANCE_ALLOWED_HOSTS" in response.json()["message"]


def test_allowed_hosts_are_a_setting(started: Any) -> None:
    client = client_of(started, allowed_hosts=("search.example.com", "*.inner.example"))

    def status(host: str) -> int:
        return client.get("/livez", headers={"host": host}).status_code

    assert [status(host) for host in ("Search.Example.com:443", "a.inner.example", "127.0.0.1")] == [200] * 3
    assert [status(host) for host in ("inner.example", "example.com", "xsearch.example.com")] == [421] * 3
    assert client_of(started, allowed_hosts=("*",)).get("/livez", headers={"host": "any.name"}).status_code == 200


def test_a_service_with_keys_may_have_any_name_unless_names_are_set(started: Any) -> None:
    hashes = (keys.digest("key").hex(),)
    assert client_of(started, api_keys=hashes).get("/livez", headers={"host": "a.example"}).status_code == 200
    limited = client_of(started, api_keys=hashes, allowed_hosts=("b.example",))
    assert limited.get("/livez", headers={"host": "a.example"}).status_code == 421


def test_a_compressed_body_is_refused_by_name(keyless: TestClient) -> None:
    body = gzip.compress(b'{"query": "q", "texts": ["a"]}')
    response = keyless.post("/rerank", content=body, headers={**JSON, "content-encoding": "gzip"})
    assert response.status_code == 415
    assert "content-encoding is 'gzip'; send the body as it is" in response.json()["message"]
    plain = b'{"query": "q", "texts": ["a"]}'
    assert keyless.post("/rerank", content=plain, headers={**JSON, "content-encoding": "identity"}).status_code == 200


@pytest.mark.parametrize(
    "sent",
    ["text/plain", "text/plain;charset=UTF-8", "application/x-www-form-urlencoded", "multipart/form-data", "json"],
)
@pytest.mark.parametrize("path", ["/rerank", "/search", "/embed", "/v1/embeddings", "/"])
def test_only_json_is_read_as_json(keyless: TestClient, path: str, sent: str) -> None:
    response = keyless.post(path, content=b'{"query": "q", "texts": ["a"]}', headers={"content-type": sent})
    assert response.status_code == 415
    assert "application/json" in response.json()["message"]


def test_json_content_types(keyless: TestClient) -> None:
    for sent in ("application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json"):
        response = keyless.post("/rerank", content=b'{"query": "q", "texts": ["a"]}', headers={"content-type": sent})
        assert response.status_code == 200


def test_a_browser_cannot_leave_the_content_type_out(keyless: TestClient) -> None:
    body = b'{"query": "q", "texts": ["a"]}'
    assert keyless.post("/rerank", content=body).status_code == 200
    assert keyless.post("/rerank", content=body, headers={"origin": "https://evil.example"}).status_code == 415
    assert keyless.post("/rerank", content=body, headers={"origin": "null"}).status_code == 415


@pytest.mark.parametrize(
    "headers",
    [
        [("authorization", "BEARER key")],
        [("authorization", "bearer  key")],
        [("Authorization", "Bearer key")],
        [("authorization", "key")],
        [("authorization", "Basic dXNlcjpwYXNz"), ("x-api-key", "key")],
        [("authorization", "Bearer of-the-proxy"), ("x-api-key", "key")],
        [("x-api-key", "wrong"), ("api-key", "key")],
    ],
)
def test_a_right_key_is_found_wherever_it_stands(started: Any, headers: list[tuple[str, str]]) -> None:
    hashes = (keys.digest("key").hex(),)
    client = client_of(started, api_keys=hashes, admin_keys=hashes, admin_from="anywhere")
    assert client.get("/info", headers=httpx.Headers(headers)).status_code == 200
    assert client.get("/admin/releases", headers=httpx.Headers(headers)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Basic key"},
        {"authorization": "Digest key"},
        {"authorization": "Bearer"},
        {"authorization": ""},
        {"authorization": "Bearer key more"},
        {"x-api-key": "Bearer key"},
        {"cookie": "key"},
    ],
)
def test_credentials_of_another_kind_open_nothing(started: Any, headers: dict[str, str]) -> None:
    client = client_of(started, api_keys=(keys.digest("key").hex(),))
    assert client.get("/info", headers=headers).status_code == 401


def test_candidates_are_in_order() -> None:
    raw = [(b"authorization", b"Basic x"), (b"authorization", b"Bearer a"), (b"x-api-key", b" b "), (b"api-key", b"")]
    assert keys.candidates(Headers(raw=raw), "x-api-key", "api-key") == ["a", "b"]


# Behind a proxy that publishes the service below a prefix.


@pytest.mark.parametrize("path", ["/info", "/docs", "/livez"])
def test_a_slash_too_many_is_redirected_within_any_prefix(keyless: TestClient, path: str) -> None:
    response = keyless.get(f"{path}/?a=b", follow_redirects=False)
    assert response.status_code == 307
    assert httpx.URL(f"https://public.example/prefix{path}/").join(response.headers["location"]) == httpx.URL(
        f"https://public.example/prefix{path}?a=b"
    )
    assert keyless.get("/nope/", follow_redirects=False).status_code == 404


def test_the_schema_names_the_prefix_as_its_server(keyless: TestClient, started: Any) -> None:
    def servers(client: TestClient, **headers: str) -> Any:
        return client.get("/openapi.json", headers=headers).json().get("servers")

    assert servers(keyless) is None
    assert servers(keyless, **{"x-forwarded-prefix": "/a/b/"}) == [{"url": "/a/b"}]
    for wrong in ("//evil.example", "https://evil.example", "/a b", "/a?b", "relative"):
        assert servers(keyless, **{"x-forwarded-prefix": wrong}) is None
    fixed = client_of(started, root_path="/search-api")
    assert servers(fixed) == [{"url": "/search-api"}]


def test_a_prefix_that_the_proxy_passes_on_is_taken_off(started: Any) -> None:
    client = client_of(started, root_path="/p")
    for prefix in ("", "/p"):
        assert client.post(f"{prefix}/rerank", json=BODY).status_code == 200
        assert client.get(f"{prefix}/").status_code == 200
    assert client.get("/p").status_code == 200
    assert client.get("/pinfo").status_code == 404


def test_the_pages_name_no_address_outside_their_prefix(keyless: TestClient) -> None:
    for path in ("/", "/docs"):
        page = keyless.get(path).text
        for wrong in ('href="/', 'action="/', 'fetch("/', '"/?q='):
            assert wrong not in page, (path, wrong)


@pytest.mark.chromium
def test_the_pages_work_behind_a_prefix_in_a_browser(tiny: Any, tmp_path: Any) -> None:
    server = start(tiny.path, RELEVANCE_ROOT_PATH="/search-api")
    try:
        page = browse(f"{server.url}/search-api?q=a+list", tmp_path / "search")
        for name in ("lexical", "semantic", "reranked"):
            assert page.split(f'<section class="list" data-list="{name}"')[1].split("</section>")[0].count("<li ") > 0
        assert 'href="/search-api/docs"' in page
        assert 'action="/search-api/"' in page
        assert "<code>/rerank</code>" in browse(f"{server.url}/search-api/docs", tmp_path / "docs")
    finally:
        assert server.stop() == 0


# The file of keys.


def test_the_file_of_keys_is_read_again_when_it_changes(tmp_path: Any) -> None:
    file, now = tmp_path / "keys", [0.0]
    file.write_text("\ufeff" + "a" * 64 + " first\n", encoding="utf-8")
    ring = keys.KeyRing(Settings(api_keys_file=str(file)), clock=lambda: now[0])
    assert [key.hex()[0] for key in ring.known()] == ["a"]
    file.write_text("b" * 64 + "\n" + "c" * 64)
    assert [key.hex()[0] for key in ring.known()] == ["a"]
    now[0] += 2
    assert [key.hex()[0] for key in ring.known()] == ["b", "c"]
    for broken in ("no hash", ""):
        file.write_text(broken)
        now[0] += 2
        assert [key.hex()[0] for key in ring.known()] == ["b", "c"]  # Never open because of a mistake.
    file.unlink()
    now[0] += 2
    assert len(ring.known()) == 2


def test_the_file_of_keys_is_read_again_when_what_kept_it_from_being_read_has_passed(
    tmp_path: Any, monkeypatch: Any, caplog: Any
) -> None:
    """A file whose rights are mended has the size and the time of before."""
    file, now = tmp_path / "keys", [0.0]
    file.write_text("a" * 64)
    ring = keys.KeyRing(Settings(api_keys_file=str(file)), clock=lambda: now[0])
    file.write_text("b" * 64 + "\n")

    def denied(path: Any) -> bytes:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(regular_files, "read", denied)
        for _ in range(3):
            now[0] += 2
            assert [key.hex()[0] for key in ring.known()] == ["a"]
    assert [record.getMessage() for record in caplog.records if "Permission denied" in record.getMessage()][1:] == []
    now[0] += 2
    assert [key.hex()[0] for key in ring.known()] == ["b"]
