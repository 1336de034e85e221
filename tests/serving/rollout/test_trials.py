"""Canary, shadow and administration over HTTP, on releases whose scores numpy knows."""

import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np
import pytest
from starlette.testclient import TestClient

from pipeline import disk, release_parts
from pipeline.errors import ArtifactError
from serving.api import app as apps
from serving.api import keys
from serving.rollout import shadow
from serving.rollout.arrival import RETRY_S
from serving.rollout.lifecycle import Lifecycle
from serving.rollout.trials import Bounds, Canary, Trial, TrialFile
from serving.runtime.items import Item
from tests.serving.metrics_text import series
from tests.serving.patience import patient
from tests.serving.rollout.test_canary import write_judgments

TEXTS = ["Shuffle list x in place", "Return a new sorted list", "Open file and return a stream", "a list of words"]
KEY, HASH = keys.make()

Start = Callable[..., tuple[TestClient, Lifecycle]]


@pytest.fixture
def begin(fresh: Any) -> Iterator[Start]:
    """Starts the service over the workspace `fresh`, asked from this machine with the administrator's key."""
    opened: list[TestClient] = []

    def start(host: str = "127.0.0.1", **knobs: Any) -> tuple[TestClient, Lifecycle]:
        given = {"threads": 1, "poll_s": 60, "admin_keys": (HASH,), **knobs}
        lifecycle = Lifecycle(patient(workspace=fresh.path, **given))
        lifecycle.start()
        client = TestClient(apps.create(lifecycle), client=(host, 5000), headers={"authorization": f"Bearer {KEY}"})
        opened.append(client.__enter__())
        return client, lifecycle

    if not fresh.releases.ids():
        fresh.releases.promote(fresh.publish(1), reason="test")
    yield start
    for client in opened:
        client.__exit__(None, None, None)


def rerank(client: TestClient, *texts: str, **headers: str) -> httpx.Response:
    body = {"query": "a list", "texts": list(texts or TEXTS), "raw_scores": True}
    return client.post("/rerank", json=body, headers=headers)


def agrees(fresh: Any, response: httpx.Response, texts: Sequence[str] = TEXTS) -> bool:
    """Whether the scores are those of the release that the answer names."""
    assert response.status_code == 200, response.text
    models = fresh.models[response.headers["x-release"]]
    return all(
        item["score"] == pytest.approx(models.score("a list", texts[item["index"]]), abs=1e-5)
        for item in response.json()
    )


# The canary.


def test_a_canary_answers_its_share_and_each_answer_names_who_made_it(begin: Start, fresh: Any) -> None:
    client, lifecycle = begin()
    live, other = lifecycle.current.release, fresh.publish(2)
    answer = client.put("/admin/canary", json={"release": other[:10], "share": 0.3})
    assert answer.status_code == 200, answer.text
    assert answer.json()["runs_here"]
    variants = {}
    for number in range(200):
        response = rerank(client, **{"x-request-id": f"id {number}"})
        variant = variants[number] = response.headers["x-variant"]
        assert response.headers["x-release"] == (other if variant == "canary" else live)
        assert agrees(fresh, response)
    assert 35 < list(variants.values()).count("canary") < 85
    for number in range(50):  # The same id has the same answer.
        assert rerank(client, **{"x-request-id": f"id {number}"}).headers["x-variant"] == variants[number]
    search = client.get("/search?q=list", headers={"x-canary": "always"})
    assert (search.headers["x-variant"], search.json()["release"]) == ("canary", other)


def test_a_client_may_wish_and_vectors_are_always_the_live_ones(begin: Start, fresh: Any) -> None:
    client, lifecycle = begin()
    live, other = lifecycle.current.release, fresh.publish(2)
    assert rerank(client, **{"x-canary": "always"}).headers["x-release"] == live  # There is none.
    client.put("/admin/canary", json={"release": other, "share": 0})
    assert {rerank(client).headers["x-variant"] for _ in range(20)} == {"live"}
    assert rerank(client, **{"x-canary": "always"}).headers["x-release"] == other
    assert rerank(client, **{"x-canary": "never"}).headers["x-release"] == live
    embedded = client.post("/v1/embeddings", json={"input": "a"}, headers={"x-canary": "always"})
    assert (embedded.status_code, embedded.headers["x-release"]) == (200, live)
    refused = rerank(client, **{"x-canary": "perhaps"})
    assert refused.status_code == 422
    assert "always or never" in refused.json()["message"]


def test_a_canary_whose_results_are_others_is_withdrawn_by_itself(begin: Start, fresh: Any) -> None:
    client, lifecycle = begin()
    other = fresh.publish(2)
    bounds = {"compare": 1, "min_compared": 3, "min_overlap": 1.0, "max_latency": 1000}
    client.put("/admin/canary", json={"release": other, "share": 1, "bounds": bounds})
    requests = 0
    while rerank(client, *(f"{requests} {text}" for text in TEXTS * 3)).headers["x-variant"] == "canary":
        requests += 1
        lifecycle.rollout.settle()
        assert requests < 20
    assert requests == 3
    lifecycle.poll()
    withdrawal = client.get("/readyz").json()["withdrawn"]
    assert (withdrawal["kind"], withdrawal["release"]) == ("canary", other)
    assert withdrawal["reason"].startswith("the first results overlap by 0.")
    counters = series(client.get("/metrics").text)
    assert counters['relevance_trial_withdrawals_total{kind="canary"}'] == 1
    assert counters['relevance_trial_copies_total{end="compared",kind="canary"}'] == 3
    assert counters['relevance_trial_overlap_count{kind="canary"}'] == 3
    assert counters['relevance_trial_requests_total{variant="canary"}'] == 3
    assert client.get("/admin/releases").json()["canary"] is None
    assert TrialFile(fresh.path).read().canary is None


def test_a_canary_that_fails_is_withdrawn_and_live_goes_on(begin: Start, fresh: Any, monkeypatch: Any) -> None:
    client, lifecycle = begin()
    other = fresh.publish(2)
    client.put("/admin/canary", json={"release": other, "share": 1, "bounds": {"min_requests": 100}})

    def fail(items: Sequence[Item]) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(lifecycle.rollout.choose(lifecycle.current, "x", None).searcher.ranker, "run", fail)
    statuses = []
    for number in range(5):
        statuses.append(rerank(client, f"text {number}", "other").status_code)
        lifecycle.rollout.settle()  # The live release answers the same question, so the model is at fault.
    assert statuses == [500, 500, 200, 200, 200]  # More than one in a hundred failed, however many come.
    lifecycle.poll()
    assert "2 of 2 requests failed" in client.get("/readyz").json()["withdrawn"]["reason"]
    assert series(client.get("/metrics").text)['relevance_trial_errors_total{variant="canary"}'] == 2


def test_a_canary_whose_ranker_fails_is_withdrawn_though_searches_go_on(
    begin: Start, fresh: Any, monkeypatch: Any
) -> None:
    client, lifecycle = begin()
    other = fresh.publish(2)
    client.put("/admin/canary", json={"release": other, "share": 1, "bounds": {"min_requests": 100}})

    def fail(items: Sequence[Item]) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(lifecycle.rollout.choose(lifecycle.current, "x", None).searcher.ranker, "run", fail)
    answers = []
    for number in range(5):
        answers.append(client.post("/search", json={"query": f"sort a list {number}"}))
        lifecycle.rollout.settle()
    assert [answer.status_code for answer in answers] == [200] * 5
    assert [answer.json().get("degraded") for answer in answers] == ["ranker", "ranker", None, None, None]
    assert "model_failed" not in answers[0].json()
    lifecycle.poll()
    assert "2 of 2 requests failed" in client.get("/readyz").json()["withdrawn"]["reason"]


def test_a_canary_that_ranks_judged_queries_worse_is_withdrawn(begin: Start, fresh: Any, tmp_path: Path) -> None:
    query = "sort a list"
    first, other = fresh.releases.resolve("live"), fresh.publish(2)
    client, lifecycle = begin()
    live = [item["doc_id"] for item in client.post("/search", json={"query": query}).json()["reranked"]]
    client.__exit__(None, None, None)
    # What live finds is what is wanted, so its nDCG is 1 and any other order has less.
    rows = [("q", doc_id, 10 - number, "test") for number, doc_id in enumerate(live)]
    write_judgments(tmp_path / "judged", rows, {"q": query})
    client, lifecycle = begin(judgments=str(tmp_path / "judged"))
    bounds = {"compare": 0, "min_judged": 1, "max_ndcg_drop": 0.0}
    client.put("/admin/canary", json={"release": other, "share": 1, "bounds": bounds})
    client.post("/search", json={"query": "another query"})
    client.post("/search", json={"query": query, "filters": {"kind": "class"}})
    lifecycle.rollout.settle()
    assert lifecycle.stats()["canary"]["counts"]["judged"] == 0
    assert lifecycle.stats()["canary"]["counts"]["compared"] == 0
    client.post("/search", json={"query": "Sort a  LIST"})
    lifecycle.rollout.settle()
    lifecycle.poll()
    reason = client.get("/readyz").json()["withdrawn"]["reason"]
    assert reason.startswith("nDCG@10 is 0.")
    assert "the live release's 1.0000" in reason
    assert lifecycle.current.release == first


def test_a_damaged_canary_never_answers(begin: Start, fresh: Any) -> None:
    client, lifecycle = begin()
    lying = fresh.publish(2, lie=3.0)
    refused = client.put("/admin/canary", json={"release": lying, "share": 1})
    assert refused.status_code == 409
    assert "golden" in refused.json()["message"]
    assert rerank(client).headers["x-release"] == lifecycle.current.release
    lifecycle.poll()
    assert "golden" in client.get("/readyz").json()["withdrawn"]["reason"]


@pytest.mark.parametrize("kind", ["canary", "shadow"])
def test_a_trial_whose_files_arrive_later_waits_for_them(
    begin: Start, fresh: Any, tmp_path: Path, kind: Literal["canary", "shadow"]
) -> None:
    """A host whose copy of the workspace is behind must not end the trial for all hosts."""
    client, lifecycle = begin()
    other = fresh.publish(2)
    folder, elsewhere = fresh.folder(other), tmp_path / "elsewhere"
    folder.rename(elsewhere)
    trial = Canary(release=other, share=1.0, bounds=Bounds()) if kind == "canary" else Trial(release=other, share=1.0)
    lifecycle.rollout.active.file.begin(kind, trial)
    for path in sorted(path for path in elsewhere.rglob("*") if path.is_file()):
        lifecycle.poll()
        stats = client.get("/admin/releases").json()
        assert (stats[kind]["runs_here"], stats["withdrawn"]) == (False, None)
        assert str(folder) in stats[kind]["waits_for"]
        assert rerank(client).headers["x-variant"] == "live"
        target = folder / path.relative_to(elsewhere)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes()[:-1])
        lifecycle.poll()
        target.write_bytes(path.read_bytes())
    lifecycle.poll()
    stats = client.get("/admin/releases").json()
    assert (stats[kind]["runs_here"], stats[kind]["waits_for"]) == (True, None)
    assert lifecycle.rollout.active.withdrawals[kind] == 0


def test_a_trial_waits_while_memory_or_open_files_are_short(begin: Start, fresh: Any, monkeypatch: Any) -> None:
    client, lifecycle = begin()
    load = lifecycle._load

    def short(path: Path) -> Any:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(lifecycle, "_load", short)
    refused = client.put("/admin/canary", json={"release": fresh.publish(2), "share": 1})
    assert refused.status_code == 409
    assert "tried again until it does or is taken back: OSError: [Errno 24] Too many open files" in refused.text
    monkeypatch.setattr(lifecycle, "_load", load)
    lifecycle.poll()  # Too early.
    assert rerank(client).headers["x-variant"] == "live"
    waiting = lifecycle.rollout.active._waiting["canary"]
    lifecycle.rollout.active._waiting["canary"] = replace(waiting, until=waiting.until - RETRY_S)
    lifecycle.poll()
    assert rerank(client).headers["x-variant"] == "canary"


def test_a_promoted_canary_is_live_at_once_and_a_rollback_brings_the_old_one_back(begin: Start, fresh: Any) -> None:
    client, lifecycle = begin()
    old, new = lifecycle.current, fresh.publish(2)
    client.put("/admin/canary", json={"release": new, "share": 0.5})
    searcher = lifecycle.rollout.choose(old, "x", "always").searcher
    stale = client.post("/admin/canary/promote", json={"expected": 7})
    assert stale.status_code == 409
    assert "generation 1, not 7" in stale.json()["message"]
    pointer = client.post("/admin/canary/promote", json={"reason": "it does well", "expected": 1}).json()
    assert (pointer["release"], pointer["generation"], pointer["reason"]) == (new, 2, "it does well")
    assert lifecycle.current is searcher
    assert agrees(fresh, rerank(client))
    listing = client.get("/admin/releases").json()
    assert listing["canary"] is listing["withdrawn"] is None
    assert {item["release"]: item["roles"] for item in listing["releases"]} == {old.release: ["kept"], new: ["live"]}
    assert client.post("/admin/canary/promote").status_code == 404
    assert client.post("/admin/rollback").json()["release"] == old.release
    assert lifecycle.current is old
    assert rerank(client).headers["x-release"] == old.release


def test_every_process_follows_the_trials_and_a_withdrawal(begin: Start, fresh: Any) -> None:
    first_client, first = begin()
    second_client, second = begin()
    other = fresh.publish(2)
    first_client.put("/admin/canary", json={"release": other, "share": 1})
    assert rerank(second_client).headers["x-variant"] == "live"
    second.poll()
    assert rerank(second_client).headers["x-variant"] == "canary"
    first.rollout.active.withdraw("canary", first.rollout.active.trials.canary, "the first one saw it fail")
    assert rerank(first_client).headers["x-variant"] == "live"
    first.poll()
    second.poll()
    assert rerank(second_client).headers["x-variant"] == "live"
    assert second_client.get("/readyz").json()["withdrawn"]["reason"] == "the first one saw it fail"


def test_a_full_disk_does_not_keep_a_bad_canary(begin: Start, fresh: Any, monkeypatch: Any) -> None:
    client, lifecycle = begin()
    third = fresh.publish(3)
    client.put("/admin/canary", json={"release": fresh.publish(2), "share": 1})

    def full(path: Path, text: str, parse: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(disk, "write_atomically", full)
        lifecycle.rollout.active.withdraw("canary", lifecycle.rollout.active.trials.canary, "slow")
        for _ in range(2):
            lifecycle.poll()
            assert rerank(client).headers["x-variant"] == "live"
        assert "No space left" in client.get("/admin/releases").json()["fault"]
        refused = client.put("/admin/canary", json={"release": third})
        assert refused.status_code == 500
        assert "trials.json: could not be written" in refused.json()["message"]
        assert rerank(client).status_code == 200
    lifecycle.poll()
    assert client.get("/readyz").json()["withdrawn"]["reason"] == "slow"
    assert client.get("/admin/releases").json()["fault"] is None


@pytest.mark.parametrize("content", ["", "[]", '{"count": 1, "canary": {"release": "a", "share": 7}}', "{"])
def test_a_broken_file_of_trials_leaves_things_as_they_are(begin: Start, fresh: Any, content: str) -> None:
    client, lifecycle = begin()
    client.put("/admin/canary", json={"release": fresh.publish(2), "share": 1})
    TrialFile(fresh.path).path.write_text(content)
    lifecycle.poll()
    assert rerank(client).headers["x-variant"] == "canary"
    assert "move it elsewhere, which ends all trials" in client.get("/admin/releases").json()["fault"]
    TrialFile(fresh.path).path.unlink()
    lifecycle.poll()
    assert rerank(client).headers["x-variant"] == "live"


@pytest.mark.parametrize("kind", ["canary", "shadow"])
def test_settings_begin_a_trial_or_the_log_says_why_not(
    begin: Start, fresh: Any, caplog: pytest.LogCaptureFixture, kind: Literal["canary", "shadow"]
) -> None:
    def last() -> str:
        return [message for message in caplog.messages if "not begun" in message][-1]

    other, third = fresh.publish(2), fresh.publish(3)
    client, lifecycle = begin(**{kind: other[:12], f"{kind}_share": 1.0})
    assert lifecycle.rollout.active.share(kind) == 1.0
    begin(**{kind: other[:12], f"{kind}_share": 1.0})
    assert "not begun" not in caplog.text
    _, beside = begin(**{kind: third, f"{kind}_share": 0.5})
    assert beside.rollout.active.share(kind) == 1.0, "services of one workspace have one trial"
    assert last().startswith(f"{kind} {third[:12]} of the settings: not begun, as {other[:12]} gets 1 of")
    assert client.delete(f"/admin/{kind}?reason=enough").json()["withdrawn"]["reason"] == "enough"
    _, again = begin(**{kind: other[:12], f"{kind}_share": 1.0})
    assert again.rollout.active.share(kind) == 0
    assert re.search(f"{kind} {other[:12]} of the settings: not begun, it was withdrawn at .*: enough", caplog.text)
    begin(**{kind: "live"})
    assert last().endswith("not begun, it is live")
    fresh.folder(other).rename(fresh.path / "removed")
    begin(**{kind: other[:12]})
    assert "it was withdrawn at" in last(), "a trial that is over keeps no service from starting"


def test_a_service_that_is_pinned_to_a_canary_ends_it_for_no_other(begin: Start, fresh: Any) -> None:
    client, lifecycle = begin()
    other = fresh.publish(2)
    assert client.put("/admin/canary", json={"release": other, "share": 1}).status_code == 200
    pinned, beside = begin(release=other)
    assert rerank(pinned).headers["x-variant"] == "live"
    beside.poll()
    lifecycle.poll()
    assert rerank(client).headers["x-variant"] == "canary"


def test_a_canary_that_lacks_a_part_of_the_live_release_never_answers(begin: Start, fresh: Any) -> None:
    client, lifecycle = begin()
    complete = fresh.releases.open(lifecycle.current.release)
    parts = {name: release_parts.part(complete, name) for name in ("encoder", "lexical", "documents", "index")}
    lacking = fresh.releases.publish(parts, {}, {}).fingerprint
    refused = client.put("/admin/canary", json={"release": lacking, "share": 1})
    assert refused.status_code == 409
    assert "it cannot answer /rerank, /v1/rerank, /v2/rerank, which the live release answers" in refused.text
    assert rerank(client).headers["x-variant"] == "live"


def test_a_canary_that_serves_less_of_a_path_than_the_live_release_is_withdrawn(begin: Start, fresh: Any) -> None:
    """A release without fusion answers /rerank, but not in the fused order."""
    client, lifecycle = begin()
    complete = fresh.releases.open(lifecycle.current.release)
    names = ("ranker", "encoder", "lexical", "documents", "index")
    lacking = fresh.releases.publish({name: release_parts.part(complete, name) for name in names}, {}, {}).fingerprint
    bounds = {"max_errors": 0, "min_requests": 1, "compare": 1}
    assert client.put("/admin/canary", json={"release": lacking, "share": 1, "bounds": bounds}).status_code == 200
    refused = client.post("/rerank", json={"query": "a list", "texts": TEXTS, "fused": True})
    assert (refused.status_code, refused.headers["x-variant"]) == (404, "canary")
    lifecycle.rollout.settle()
    answered = client.post("/rerank", json={"query": "a list", "texts": TEXTS, "fused": True})
    assert (answered.status_code, answered.headers["x-variant"]) == (200, "live")


def test_a_trial_that_was_replaced_cannot_be_ended_by_its_number(tmp_path: Path) -> None:
    file = TrialFile(tmp_path)
    first = file.begin("canary", Canary(release="a", share=0.1, bounds=Bounds())).canary
    second = file.begin("canary", Canary(release="a", share=0.2, bounds=Bounds(compare=0.5))).canary
    assert first is not None
    assert second is not None
    assert (first.number, second.number) == (1, 2)
    assert file.end("canary", first.number, "too late").canary == second
    assert file.read().canary == second
    assert file.begin("shadow", Trial(release="b", share=1.0)).canary == second
    file.path.write_text(json.dumps({"count": "many"}))
    with pytest.raises(ArtifactError, match="not readable"):
        file.read()


# The shadow.


def test_a_shadow_is_asked_afterwards_and_compared(begin: Start, fresh: Any) -> None:
    client, lifecycle = begin()
    live, other = fresh.releases.resolve("live"), fresh.publish(2)
    assert client.put("/admin/shadow", json={"release": other, "share": 1}).status_code == 200
    response = rerank(client)
    assert (response.headers["x-release"], response.headers["x-variant"]) == (live, "live")
    lifecycle.rollout.settle()
    counters = series(client.get("/metrics").text)
    assert counters['relevance_trial_copies_total{end="compared",kind="shadow"}'] == 1
    first, second = (np.array([fresh.models[release].score("a list", text) for text in TEXTS])
                     for release in (live, other))  # fmt: skip
    changes = np.abs(1 / (1 + np.exp(-first)) - 1 / (1 + np.exp(-second)))
    assert counters['relevance_trial_score_change_sum{kind="shadow"}'] == pytest.approx(changes.sum(), abs=1e-4)
    assert counters['relevance_trial_score_change_count{kind="shadow"}'] == len(TEXTS)
    assert lifecycle.caches.scores.stats().entries == len(TEXTS)  # Those of the live release only.
    client.post("/search", json={"query": "list"})
    lifecycle.rollout.settle()
    assert series(client.get("/metrics").text)['relevance_trial_overlap_count{kind="shadow"}'] == 2
    rerank(client, **{"cache-control": "no-store"})  # Not to be kept, so not copied either.
    client.post("/rerank", json={"query": "q"})  # Not answered.
    lifecycle.rollout.settle()
    assert series(client.get("/metrics").text)['relevance_trial_copies_total{end="compared",kind="shadow"}'] == 2
    assert client.delete("/admin/shadow").status_code == 200
    rerank(client)
    lifecycle.rollout.settle()
    assert series(client.get("/metrics").text)['relevance_trial_copies_total{end="compared",kind="shadow"}'] == 2


def test_a_shadow_that_fails_or_is_stuck_harms_nobody(begin: Start, fresh: Any, monkeypatch: Any) -> None:
    client, lifecycle = begin(threads=2)
    client.put("/admin/shadow", json={"release": fresh.publish(2), "share": 1})
    ranker, go = lifecycle.rollout.active.shadow.searcher.ranker, threading.Event()

    def stuck(items: Sequence[Item]) -> Any:
        go.wait(60)
        raise RuntimeError("broken")

    monkeypatch.setattr(ranker, "run", stuck)
    monkeypatch.setattr(shadow, "WAITING", 1)
    for number in range(60):
        response = rerank(client, f"text {number}")
        assert agrees(fresh, response, [f"text {number}"])
    go.set()
    lifecycle.rollout.settle()
    ends = {end: count for (_, end), count in lifecycle.rollout.copies.items()}
    assert sum(ends.values()) == 60
    assert ends["dropped"] >= 60 - 34  # One runs and 32 wait.
    assert ends["failed"] >= 1
    assert "compared" not in ends


def test_stopping_waits_for_no_copy(begin: Start, fresh: Any, monkeypatch: Any) -> None:
    client, lifecycle = begin(threads=2)
    client.put("/admin/shadow", json={"release": fresh.publish(2), "share": 1})
    began, go = threading.Event(), threading.Event()

    def stuck(items: Sequence[Item]) -> Any:
        began.set()
        go.wait(60)
        return [0.0]

    monkeypatch.setattr(lifecycle.rollout.active.shadow.searcher.ranker, "run", stuck)
    for number in range(3):
        rerank(client, f"text {number}")
    assert began.wait(60)
    lifecycle.rollout.stop()
    assert not lifecycle.rollout._copies._thread.is_alive()
    assert lifecycle.rollout.copies == {("shadow", "failed"): 1, ("shadow", "dropped"): 2}
    go.set()


def test_copies_are_dropped_while_online_requests_wait(begin: Start, fresh: Any, monkeypatch: Any) -> None:
    client, lifecycle = begin()
    client.put("/admin/shadow", json={"release": fresh.publish(2), "share": 1})
    monkeypatch.setattr(lifecycle.scheduler, "wait_s", lambda *_: 0.11)
    assert rerank(client).status_code == 200
    assert lifecycle.rollout.copies == {("shadow", "dropped"): 1}
    monkeypatch.undo()
    assert rerank(client, "x" * (shadow.MAX_CHARS + 1)).status_code == 200
    assert lifecycle.rollout.copies == {("shadow", "dropped"): 2}


def test_a_copy_of_a_late_request_is_made_on_a_busy_service(begin: Start, fresh: Any, monkeypatch: Any) -> None:
    """Else a slow canary, which makes the service busy, would never be compared."""
    client, lifecycle = begin(deadline_s=0.05, max_deadline_s=0.05)
    client.put("/admin/canary", json={"release": fresh.publish(2), "share": 1, "bounds": {"compare": 1}})
    canary = lifecycle.rollout.choose(lifecycle.current, "any", "always").searcher
    real, go = canary.ranker.run, threading.Event()

    def slow(items: Sequence[Item]) -> Any:
        go.wait(60)
        return real(items)

    monkeypatch.setattr(canary.ranker, "run", slow)
    monkeypatch.setattr(shadow, "BUSY_S", -1.0)
    assert rerank(client, "a text").status_code == 504
    go.set()
    lifecycle.rollout.settle()
    assert lifecycle.rollout.copies == {("canary", "compared"): 1}
    monkeypatch.undo()


# Administration.


def test_admin_paths_do_not_exist_without_keys_or_for_other_machines(begin: Start) -> None:
    client, _ = begin(admin_keys=())
    assert client.get("/admin/releases").status_code == 404
    assert not [path for path in client.get("/openapi.json").json()["paths"] if path.startswith("/admin")]
    far, _ = begin(host="192.0.2.7")
    assert far.get("/admin/releases").status_code == 404
    assert rerank(far).status_code == 200
    paths = far.get("/openapi.json").json()["paths"]
    assert "/rerank" in paths
    assert not [path for path in paths if path.startswith("/admin")]
    opened, _ = begin(host="192.0.2.7", admin_from="anywhere")
    assert opened.get("/admin/releases").status_code == 200
    assert "/admin/releases" in opened.get("/openapi.json").json()["paths"]
    six, _ = begin(host="::ffff:127.0.0.1")
    assert six.get("/admin/releases").status_code == 200


def test_admin_keys_are_their_own(begin: Start) -> None:
    user, user_hash = keys.make()
    client, _ = begin(api_keys=(user_hash,))
    for headers in ({"authorization": ""}, {"authorization": f"Bearer {user}"}):
        refused = client.get("/admin/releases", headers=headers)
        assert refused.status_code == 401
        assert set(refused.json()) == {"error", "message", "detail", "type"}
        # What a stranger sends is not even read.
        assert client.put("/admin/canary", content=b"{", headers=headers).status_code == 401
    assert client.get("/admin/releases").status_code == 200
    assert rerank(client).status_code == 401  # The administrator's key opens nothing else.
    assert rerank(client, authorization=f"Bearer {user}").status_code == 200


def test_a_body_that_is_refused_has_its_own_status(begin: Start) -> None:
    client, _ = begin(max_body_bytes=1000)
    parts = iter([b" " * 800, b" " * 800])  # Without a length that would tell before.
    assert client.put("/admin/canary", content=parts).status_code == 413


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"release": "nothing"}, "no release called 'nothing'"),
        ({"release": "previous"}, "there is no previous release"),
        ({}, "release: Field required"),
        ({"release": "live", "share": 1.5}, "share: "),
        ({"release": "live", "share": "many"}, "share: "),
        ({"release": "live", "bounds": {"min_overlap": -1}}, "bounds.min_overlap: "),
        ({"release": "live", "bounds": {"min_overlop": 1}}, "bounds.min_overlop: "),
        ([], ""),
    ],
)
def test_bad_input_is_a_422_that_names_it(begin: Start, body: Any, words: str) -> None:
    client, lifecycle = begin()
    refused = client.put("/admin/canary", json=body)
    assert refused.status_code == 422
    assert set(refused.json()) == {"error", "message", "detail", "type"}
    assert words in refused.json()["message"]
    assert lifecycle.rollout.active.file.stamp() is None


def test_what_is_not_possible_as_things_stand_is_told(begin: Start, fresh: Any) -> None:
    client, lifecycle = begin()
    live = lifecycle.current.release
    assert "is live" in client.put("/admin/shadow", json={"release": live}).json()["message"]
    assert client.put("/admin/shadow", json={"release": live}).status_code == 409
    assert client.delete("/admin/canary").status_code == client.delete("/admin/shadow").status_code == 404
    for path in ("/admin/canary", "/admin/shadow"):
        assert "'reasn' is not known; did you mean reason?" in client.delete(f"{path}?reasn=late").text
    rolled = client.post("/admin/rollback")
    assert rolled.status_code == 409
    assert "no earlier release" in rolled.json()["message"]
    pinned, _ = begin(release=live)
    pinned.put("/admin/canary", json={"release": fresh.publish(2), "share": 1})
    assert pinned.post("/admin/canary/promote").status_code == 409
    paths = client.get("/openapi.json").json()["paths"]
    assert {path for path in paths if path.startswith("/admin")} == {
        "/admin/releases", "/admin/canary", "/admin/canary/promote", "/admin/shadow", "/admin/rollback",
    }  # fmt: skip
    assert set(paths["/admin/canary"]) == {"put", "delete"}
