"""What a person is told at the end of a retraining, and about releases: plain values, and tables of them."""

import json
import os
import shutil
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows import chain
from pipeline import releases as registry

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text


def make(outcome: chain.Outcome, workspace: Path) -> dict[str, Any]:
    """The card of a retraining; also written to `card.json` in the workspace."""
    from pipeline import artifacts

    found = json.loads(outcome.report.file("report.json").read_text(encoding="utf-8"))
    facts = found["facts"]
    headline = found["headline"]
    rates = {name.split(" ")[0]: row["inputs per CPU-second"] for name, row in facts["ranker precisions"].items()}
    card = {
        "release": outcome.release.fingerprint,
        "live": outcome.live,
        "gate": list(outcome.reasons),
        "measure": headline,
        "queries": found["queries"]["judged"],
        "systems": {
            name: {
                "mean": system["measures"][headline]["mean"],
                "low": system["measures"][headline]["low"],
                "high": system["measures"][headline]["high"],
            }
            for name, system in found["systems"].items()
        },
        "differences": {
            f"{found['subject']} - {found['baseline']}": found["systems"][found["subject"]]["difference"][headline]
        },
        "bytes_per_document": facts["index"]["bytes a document"],
        "index_build_seconds": facts["index"]["build, seconds"],
        "documents": facts["index"]["documents"],
        "ranker_pairs_per_cpu_second": rates,
        "seconds": round(outcome.seconds, 1),
        "report": str(outcome.report.file("report.html")),
        "next": [f"{_program()} serve{_workspace(workspace)}", f'{_program()} search "…"{_workspace(workspace)}'],
    }
    artifacts.write_atomically(workspace / "card.json", json.dumps(card, indent=1, ensure_ascii=False) + "\n")
    return card


def _program() -> str:
    """The command as this shell would find it: `make demo` runs it out of an environment that is not active."""
    return "relevance" if shutil.which("relevance") or sys.argv[0].endswith(".py") else os.path.relpath(sys.argv[0])


def _workspace(workspace: Path) -> str:
    return "" if workspace == Path("workspace") else f" --workspace {workspace}"


def render(card: dict[str, Any], workspace: Path) -> "RenderableType":
    """The card for a terminal."""
    from rich.console import Group
    from rich.panel import Panel
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
    (pair, gap), *_ = card["differences"].items()
    rates = ", ".join(f"{name} {rate:,.0f}" for name, rate in card["ranker_pairs_per_cpu_second"].items() if rate)
    lines = [
        f"{pair}: {gap['mean']:+.4f} [{gap['low']:+.4f}, {gap['high']:+.4f}], p = {gap['p']:.4f}; "
        f"{card['queries']:,} test queries",
        "",
        f"index     {card['documents']:,} documents, {card['bytes_per_document']:.0f} bytes a document, "
        f"built in {card['index_build_seconds']} s",
        f"ranker    {rates} pairs per CPU-second",
        f"release   {card['release'][:12]} {'is live' if card['live'] else 'is not live'}: {'; '.join(card['gate'])}",
        f"report    {card['report']}",
        f"card      {workspace / 'card.json'}, after {card['seconds']:.0f} s",
        "",
        "try next",
    ]
    return Group(Panel(table, title="search-relevance", expand=False), *map(Text, lines), *_commands(card["next"]))


def _commands(commands: list[str]) -> "list[Text]":
    from rich.text import Text

    return [Text(f"  {command}", style="bold") for command in commands]


def releases(workspace: Path) -> dict[str, Any]:
    """All releases, oldest first, the pointer and its history."""
    known = registry.Releases(workspace)
    pointer = known.live()
    return {
        "live": pointer.release if pointer else None,
        "generation": pointer.generation if pointer else 0,
        "releases": [_summary(known, name) for name in known.ids()],
        "history": [
            {"release": item.release, "action": item.action, "changed": item.changed, "reason": item.reason}
            for item in known.history()
        ],
    }


def _summary(known: registry.Releases, name: str) -> dict[str, Any]:
    release = known.open(name, verify=False)
    return {
        "release": name,
        "recipe": release.manifest.config.get("name", ""),
        "created": release.manifest.created,
        "measure": release.metrics.get("measure", ""),
        "systems": {
            system: value["mean"] if isinstance(value, dict) else value
            for system, value in release.metrics.get("systems", {}).items()
        },
        "bytes": sum(record.bytes for record in release.manifest.files.values()),
    }


def render_releases(found: dict[str, Any]) -> "Table":
    from rich.table import Table

    table = Table(box=None)
    for heading in ("", "release", "recipe", "made", "fused", "MiB"):
        table.add_column(heading)
    for item in found["releases"]:
        live = "live →" if item["release"] == found["live"] else ""
        made = datetime.fromisoformat(item["created"]).strftime("%Y-%m-%d %H:%M")
        fused = item["systems"].get("fused")
        table.add_row(
            live,
            item["release"][:12],
            item["recipe"],
            made,
            f"{fused:.4f}" if fused is not None else "–",
            f"{item['bytes'] / 2**20:.1f}",
        )
    return table


def show(workspace: Path, name: str) -> dict[str, Any]:
    """One release, every file of it checked.

    Raises:
        MissingError: no such release.
        ArtifactError: a file is damaged.
    """
    known = registry.Releases(workspace)
    release = known.open(name)
    return {
        **_summary(known, release.fingerprint),
        "path": str(release.path),
        "parts": {part: registry.part(release, part).fingerprint for part in chain.PARTS},
        "files": {file: record.bytes for file, record in release.manifest.files.items()},
        "recipe_values": dict(release.manifest.config),
    }


def render_show(found: dict[str, Any]) -> "RenderableType":
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    systems = Table(title=found["measure"], box=None, title_justify="left")
    systems.add_column("system")
    systems.add_column("mean", justify="right")
    for name, value in found["systems"].items():
        systems.add_row(name, f"{value:.4f}")
    files = Table(title="files, all whole", box=None, title_justify="left")
    files.add_column("file")
    files.add_column("bytes", justify="right")
    for name, size in found["files"].items():
        files.add_row(name, f"{size:,}")
    head = Text(f"{found['release']}\nrecipe {found['recipe']}, made {found['created']}\n{found['path']}\n")
    return Group(head, systems, Text(), files)
