"""Lists and describes the releases of a workspace."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows import judging
from pipeline import releases as registry

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


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
        "parts": {part: registry.part(release, part).fingerprint for part in judging.PARTS},
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
