"""The summary card at the end of a retraining: its figures as plain values, and a table for a terminal."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows import retrain
from pipeline.command_line import typed
from pipeline.pointer import Pointer
from pipeline.releases import Releases
from pipeline.surface_warnings import marked, surface_warnings
from pipeline.text import counted

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


def make(
    outcome: retrain.RetrainResult,
    workspace: Path,
    *,
    served: Mapping[str, Any] | None = None,
    refitted: Mapping[str, Any] | None = None,
    questions: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The card of a retraining; also written to `card.json` in the workspace.

    Args:
        outcome: what the retraining made.
        workspace: the folder of artifacts and releases.
        served: figures of a re-index that followed (`flows.reindex.reindex`); its release is live then.
        refitted: figures of a refit after that (`flows.refit.refit`); its release is live then.
        questions: the result of test questions to the live release (`flows.demo.ask`).
    """
    from pipeline import disk

    report = json.loads(outcome.report.file("report.json").read_text(encoding="utf-8"))
    pointer = Releases(workspace).pointer_file.recover()
    card = {
        "release": outcome.release.fingerprint,
        "live": outcome.live,
        "live_release": pointer.release if pointer else None,
        "verdict": outcome.verdict,
        "gate": list(outcome.reasons),
        "warnings": surface_warnings(report.get("surfaces", {})),
        **_quality(report),
        **_costs(report["facts"]),
        "seconds": round(outcome.seconds + sum(item["seconds"] for item in (served, refitted) if item), 1),
        **({"served": dict(served)} if served else {}),
        **({"refit": dict(refitted)} if refitted else {}),
        **({"questions": dict(questions)} if questions else {}),
        "report": str(outcome.report.file("report.html")),
        "next": [typed(command, workspace) for command in _next_commands(outcome, pointer)],
    }
    disk.write_atomically(workspace / "card.json", json.dumps(card, indent=1, ensure_ascii=False) + "\n", json.loads)
    return card


def _quality(report: Mapping[str, Any]) -> dict[str, Any]:
    """The headline measure of each system with its interval, and the difference that the report is about."""
    headline, subject, systems = report["headline"], report["subject"], report["systems"]
    return {
        "surfaces": report.get("surfaces", {}),
        "measure": headline,
        "queries": report["queries"]["judged"],
        "systems": {
            name: {figure: system["measures"][headline][figure] for figure in ("mean", "low", "high")}
            for name, system in systems.items()
        },
        "differences": {f"{subject} - {report['baseline']}": systems[subject]["difference"][headline]},
    }


def _costs(stats: Mapping[str, Any]) -> dict[str, Any]:
    """Size and build time of the index, and the speed of the ranker in each precision."""
    index = stats["index"]
    rates = {name.split(" ")[0]: row["inputs per CPU-second"] for name, row in stats["ranker precisions"].items()}
    return {
        "bytes_per_document": index["bytes a document"],
        "index_build_seconds": index["build, seconds"],
        "documents": index["documents"],
        "ranker_pairs_per_cpu_second": rates,
    }


def _next_commands(outcome: retrain.RetrainResult, pointer: Pointer | None) -> list[str]:
    """Commands to try next: with the new release where it is live, else those that try it and make it live.

    A workspace where nothing is live can neither serve nor search.
    """
    if outcome.live:
        return ["serve", 'search "…"']
    name = outcome.release.fingerprint[:12]
    promote = f"releases promote {name}"
    return [f'search "…" --release {name}', promote] if pointer else [promote]


def _heading(card: Mapping[str, Any]) -> str:
    """The line above the commands to try next: what answers now, and what they do."""
    if card["live"]:
        return "try next"
    if card["live_release"]:
        return f"release {card['live_release'][:12]} answers as before; to search with the new one, and to make it live"
    return "nothing is live; to make the new one live"


def render(card: dict[str, Any], workspace: Path) -> "RenderableType":
    """The card for a terminal."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    head = [Text(card["verdict"], style="bold green" if card["live"] else "bold red")]
    panel = Panel(_systems(card), title="search-relevance", expand=False)
    following = [Text(f"  {command}", style="bold") for command in card["next"]]
    return Group(*head, *marked(card["warnings"]), panel, *map(Text, _lines(card, workspace)), *following)


def _systems(card: dict[str, Any]) -> "Table":
    """A table of the systems: the measure, its interval and a bar."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("system")
    table.add_column(card["measure"], justify="right")
    table.add_column("95 % interval", justify="right")
    table.add_column("")
    for name, value in card["systems"].items():
        bar = "▇" * round(30 * value["mean"])
        style = "bold" if name == "fused" else ""
        interval = f"{value['low']:.4f} – {value['high']:.4f}"
        table.add_row(name, f"{value['mean']:.4f}", interval, Text(bar, style="cyan"), style=style)
    return table


def _lines(card: dict[str, Any], workspace: Path) -> list[str]:
    """The lines under the table, down to the heading of the commands to try."""
    from pipeline.evaluation import report_card

    (pair, gap), *_ = card["differences"].items()
    rates = ", ".join(f"{name} {rate:,.0f}" for name, rate in card["ranker_pairs_per_cpu_second"].items() if rate)
    return [
        f"{pair}: {gap['mean']:+.4f} [{gap['low']:+.4f}, {gap['high']:+.4f}], p = {gap['p']:.4f}; "
        f"{counted(card['queries'], 'test query')}",
        *report_card.surface_lines(card),
        "",
        f"index     {counted(card['documents'], 'document')}, {card['bytes_per_document']:.0f} bytes a document, "
        f"built in {card['index_build_seconds']} s",
        f"ranker    {rates} pairs per CPU-second",
        *served_lines(card),
        f"report    {card['report']}",
        f"card      {workspace / 'card.json'}, after {card['seconds']:.0f} s",
        "",
        _heading(card),
    ]


def served_lines(card: dict[str, Any]) -> list[str]:
    """Lines on a release that a re-index made live after the retraining, and on the test questions; empty without."""
    lines = []
    if "served" in card:
        served = card["served"]
        lines.append(
            f"served    {served['release'][:12]}: the same models over {counted(served['documents'], 'whole document')}"
        )
    if "refit" in card:
        refitted = card["refit"]
        before, fused = (refitted[f"ndcg@10, {name}"] for name in ("before", "fused"))
        lines.append(
            f"order     learned from {counted(refitted['queries'], 'plain question')} apart: nDCG@10 {fused:.4f} on "
            f"those held out, before {before:.4f}" + ("" if refitted["changed"] else "; the order before stays")
        )
    if "questions" in card:
        questions = card["questions"]
        missed = [question for question in questions["results"] if question not in questions["answered"]]
        lines.append(
            f"questions {len(questions['answered'])} of {questions['asked']} plain ones have a good answer in the "
            f"first {questions['first']}" + (f"; not: {', '.join(missed)}" if missed else "")
        )
    return lines
