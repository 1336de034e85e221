"""Administrators' bodies: every value is settled before the first change."""

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from serving.api import admin, keys
from serving.api import app as apps
from serving.rollout.lifecycle import Lifecycle
from tests.serving.patience import patient

NUMBERS = ["true", "false", "-1", "9" * 30, str(2**63), str(2**53), "1e400", "NaN", "-Infinity", '"1"', "[]", "null"]
TEXTS = ["a\nb", "a\u2028b", "\\ud800", "\\u0000", "a" * 5000, ""]
COUNTS = ("min_requests", "min_compared", "min_judged")
SHARES = ("max_errors", "max_latency", "compare", "min_overlap", "max_ndcg_drop")


@pytest.fixture
def admin_client(fresh: Any) -> TestClient:
    first, second = fresh.publish(1), fresh.publish(2)
    fresh.releases.promote(first, reason="test")
    fresh.other = second
    hashes = (keys.digest("admin").hex(),)
    lifecycle = Lifecycle(patient(workspace=fresh.path, threads=1, admin_keys=hashes, admin_from="anywhere"))
    lifecycle.start()
    return TestClient(apps.create(lifecycle), headers={"authorization": "Bearer admin"})


def put(client: TestClient, path: str, text: str) -> Any:
    return client.put(path, content=text.encode("utf-8", "surrogatepass"), headers={"content-type": "application/json"})


def test_every_number_of_a_body_is_refused_or_answered_and_never_half_done(
    admin_client: TestClient, fresh: Any
) -> None:
    assert {*COUNTS, *SHARES} == set(admin.BoundsBody.model_fields)
    trials = fresh.path / "releases" / "trials.json"
    for kind in ("canary", "shadow"):
        for value in NUMBERS:
            names = [f"bounds.{name}" for name in (*COUNTS, *SHARES)] if kind == "canary" else []
            for name in ("share", *names):
                inner = f'"{name}": {value}'
                if name.startswith("bounds."):
                    inner = f'"bounds": {{"{name.removeprefix("bounds.")}": {value}}}'
                before = trials.read_bytes() if trials.exists() else None
                response = put(admin_client, f"/admin/{kind}", f'{{"release": "{fresh.other}", {inner}}}')
                assert response.status_code in (200, 400, 422), (kind, name, value, response.text)
                if response.status_code != 200:
                    assert (trials.read_bytes() if trials.exists() else None) == before, (kind, name, value)
                else:
                    assert value in ('"1"', str(2**53)), (kind, name, value)  # Numbers in quotes are numbers.


@pytest.mark.parametrize("text", TEXTS)
def test_texts_that_no_history_line_holds_change_nothing(admin_client: TestClient, fresh: Any, text: str) -> None:
    begun = put(admin_client, "/admin/canary", json.dumps({"release": fresh.other}))
    assert begun.status_code == 200
    state = {path: path.read_bytes() for path in (fresh.path / "releases").iterdir() if path.is_file()}
    encoded = json.dumps(text, ensure_ascii=False).replace("\\\\", "\\")
    for method, path, body in (
        ("PUT", "/admin/canary", f'{{"release": {encoded}}}'),
        ("PUT", "/admin/shadow", f'{{"release": {encoded}}}'),
        *(
            (("POST", path, f'{{"reason": {encoded}}}') for path in ("/admin/canary/promote", "/admin/rollback"))
            if text
            else ()
        ),
        ("POST", "/admin/canary/promote", f'{{"expected": {"9" * 30}}}'),
        ("POST", "/admin/rollback", f'{{"expected": {2**63}}}'),
    ):
        response = admin_client.request(
            method, path, content=body.encode(), headers={"content-type": "application/json"}
        )
        assert response.status_code in (400, 422), (path, text[:20], response.text)
        assert state == {path: path.read_bytes() for path in state}
