"""The costs of a release: sizes, rates and seconds that its stages measured.

Groups of label → number for the report and the card. They differ from run to run, so they are shown and never
part of a fingerprint.
"""

import json
from collections.abc import Mapping
from typing import Any

from pipeline.artifacts import Artifact

PRECISION_ROWS = {
    "bytes": "bytes",
    "texts_per_cpu_s": "inputs per CPU-second",
    "ndcg": "nDCG@10 (valid)",
    "kendall_tau": "Kendall tau to fp32",
    "max_change": "largest change",
}
"""Figure of a precision → its label in the report."""


def bundle(artifact: Artifact) -> dict[str, Any]:
    """The content of an exported model's bundle.json."""
    content = json.loads(artifact.file("bundle.json").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def of(
    bundles: Mapping[str, Artifact], vectors: Artifact, index: Artifact, trained: Mapping[str, Artifact]
) -> dict[str, Any]:
    """Groups of facts for `ReportStats.measured`.

    Args:
        bundles: role → exported model.
        trained: name → model artifact, for the training times.
    """
    groups: dict[str, Any] = {
        "index": {
            "documents": index.metrics["documents"],
            **{label: index.metrics[name] for name, label in PASSAGE_ROWS.items() if name in index.metrics},
            "dimensions": index.metrics["dimensions"],
            "kind": index.metrics["factory"],
            "bytes a document": index.metrics["bytes_per_document"],
            "build, seconds": index.metrics["build_seconds"],
            **_throughput(vectors.metrics),
            **_contract(index.metrics),
        }
    }
    if "recall_curve" in index.metrics:
        groups["index, recall at 100 and latency by lists visited"] = {
            str(point["nprobe"]): {
                "recall": point["recall"],
                "lower 95 % bound": point["lower"],
                "p50, ms": point["p50_ms"],
                "p95, ms": point["p95_ms"],
            }
            for point in index.metrics["recall_curve"]
        }
    for name, artifact in bundles.items():
        groups |= _precisions(name, bundle(artifact))
    groups["training"] = {
        name: {label: model.metrics[key] for key, label in TRAINING_ROWS.items() if key in model.metrics}
        for name, model in trained.items()
    }
    return groups


def _precisions(name: str, description: Mapping[str, Any]) -> dict[str, Any]:
    """Groups on the precisions of an exported model, and on its parts' sensitivity to them where it was measured.

    Args:
        name: the model's role.
        description: the content of its bundle.json.
    """
    precisions = description["precisions"]
    groups = {
        f"{name} precisions": {
            precision + (" (chosen for CPU)" if description["chosen"]["cpu"] == precision else ""): {
                **{label: figures.get(key) for key, label in PRECISION_ROWS.items()},
                "kept in fp32": ", ".join(figures["fp32_parts"]) or "–",
            }
            for precision, figures in precisions.items()
        }
    }
    if scanned := {precision: item["sensitivity"] for precision, item in precisions.items() if item["sensitivity"]}:
        groups[f"{name} sensitivity, mean change by one part alone"] = {
            part: {precision: harm[part] for precision, harm in scanned.items()}
            for part in next(iter(scanned.values()))
        }
    return groups


def fields(indexes: Mapping[str, Artifact]) -> dict[str, Any]:
    """The group on indexes of single fields, by their names as parts of a release; empty where there are none."""
    if not indexes:
        return {}
    group = {f"{name}, bytes a document": index.metrics["bytes_per_document"] for name, index in indexes.items()}
    return {"fields indexed apart": group}


def _throughput(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The speed at which documents or passages were embedded; empty where the vectors of all of them were known."""
    speed, texts = metrics.get("embedded_per_s"), "passages" if "passages" in metrics else "documents"
    return {f"embedding, {texts} per second": speed} if speed else {}


def _contract(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The promise of an index by `index.recall`, and how it is kept; empty without such a contract."""
    if "recall_target" not in metrics:
        return {}
    return {
        "chosen for": metrics["choice"],
        "recall at 100, stated": metrics["recall_target"],
        "recall at 100, measured": metrics["recall_at_100"],
        "recall at 100, lower 95 % bound": metrics["recall_at_100_lower"],
        "recall measured on": f"{metrics['recall_queries']} {metrics['recall_measured_on']}",
        "lists visited": metrics["nprobe"],
        "search of one query, p50, ms": metrics["p50_ms"],
    }


PASSAGE_ROWS = {"passages": "vectors, one a passage", "in_passages": "documents of several passages"}
TRAINING_ROWS = {"pairs": "pairs", "pairs_per_s": "pairs per second", "seconds": "seconds"}
