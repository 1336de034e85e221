"""From a thumb on the page to a report, apart from the grades that people gave."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from starlette.testclient import TestClient
from typer.testing import CliRunner

from flows import report as reports
from flows.cli import command
from pipeline.config import SourceConfig
from pipeline.errors import SchemaError
from serving.api import app as apps
from serving.rollout.lifecycle import Lifecycle
from serving.settings import Settings
from tests.flows.conftest import Trained

QUERIES = ("cheap hammer", "a red knife", "my lamp")


def press_thumbs(workspace: Path, folder: Path) -> dict[str, list[str]]:
    """Searches as the page does, a thumb up on the second result and one down on the first; the ids shown, by query."""
    lifecycle = Lifecycle(Settings(workspace=workspace, threads=1, thumbs=str(folder)))
    lifecycle.start()
    shown = {}
    with TestClient(apps.create(lifecycle), base_url="http://localhost") as client:
        for query in QUERIES:
            hits = client.post("/search", json={"query": query}).json()["reranked"]
            shown[query] = [hit["doc_id"] for hit in hits]
            for hit, thumb in zip(hits, ("down", "up"), strict=False):
                body = {"query": query, "doc_id": hit["doc_id"], "thumb": thumb, "voter": "somebody"}
                assert client.post("/thumbs", json=body).status_code == 200
    return shown


def relevance(*words: str) -> Any:
    return CliRunner().invoke(command.app, list(words))


def test_thumbs_reach_a_report_only_where_they_are_asked_for(copied: Trained, tmp_path: Path) -> None:
    shown = press_thumbs(copied.workspace, tmp_path / "thumbs")
    words = ["report", "--judgments", str(tmp_path / "thumbs"), "--workspace", str(copied.workspace), "--all", "--json"]
    refused = relevance(*words)
    assert isinstance(refused.exception, SchemaError)
    assert "--clicks of a report" in str(refused.exception)
    answer = relevance(*words, "--clicks")
    assert answer.exit_code == 0, answer.output
    report = json.loads(answer.output)
    assert report["queries"]["judged"] == len(QUERIES)
    # One relevant document, at rank 2 of the final order: nDCG is 1 / log2(3) for each query, MRR a half.
    assert report["systems"]["fused"]["measures"]["mrr"]["mean"] == 0.5
    assert all(len(ids) >= 2 for ids in shown.values())


def test_people_grades_and_thumbs_in_one_collection_stay_apart(copied: Trained, tmp_path: Path) -> None:
    press_thumbs(copied.workspace, tmp_path / "thumbs")
    both = [
        SourceConfig(path=str(copied.world / "tiny"), name="shop"),
        SourceConfig(path=str(tmp_path / "thumbs"), name="shop"),
    ]

    def judged(clicks: bool) -> int:
        artifact = reports.report(both, copied.workspace, split="all", clicks=clicks)
        return int(json.loads(artifact.file("report.json").read_text(encoding="utf-8"))["queries"]["judged"])

    people = len(set(pq.read_table(copied.world / "tiny" / "judgments.parquet")["query_id"].to_pylist()))
    assert judged(False) == people
    assert judged(True) == people + len(QUERIES)
