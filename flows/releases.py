"""Lists and describes the releases of a workspace."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows import judging
from pipeline import release_parts
from pipeline import releases as registry
from pipeline.command_line import typed
from pipeline.errors import ArtifactError, RelevanceError
from pipeline.secrets import without_passwords
from pipeline.surface_warnings import marked, surface_warnings
from pipeline.text import counted

if TYPE_CHECKING:
    from rich.console import RenderableType


def releases(workspace: Path) -> dict[str, Any]:
    """All releases, the oldest first, with the live one and the history of changes.

    A damaged release is listed with the reason. `damaged` of the result tells what cannot be read of the live pointer
    and of the history.
    """
    known = registry.Releases(workspace)
    damaged = []
    try:
        pointer = known.live()
    except ArtifactError as error:
        damaged.append(str(error))
        pointer = known.pointer_file.recover()
    history, unreadable = known.pointer_file.history()
    if unreadable:
        damaged.append(
            f"{known.pointer_file.history_path}: leaves out {counted(unreadable, 'line')} that cannot be read"
        )
    return {
        "live": pointer.release if pointer else None,
        "generation": pointer.generation if pointer else 0,
        "releases": [_summary(known, name) for name in known.ids()],
        "history": [
            {"release": item.release, "action": item.action, "changed": item.changed, "reason": item.reason}
            for item in history
        ],
        "damaged": damaged,
    }


def _summary(known: registry.Releases, name: str) -> dict[str, Any]:
    """One line of the list; files are checked for their presence and size only."""
    try:
        release = known.open(name, verify=False)
    except RelevanceError as error:
        empty: dict[str, Any] = {"recipe": "", "created": "", "measure": "", "systems": {}, "bytes": 0}
        return {"release": name, **empty, "carried_from": None, "damaged": str(error)}
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
        "carried_from": release.metrics.get("figures", {}).get("carried_from"),
        "damaged": None,
    }


def render_releases(listing: dict[str, Any], workspace: Path) -> "RenderableType":
    """A table of what `releases` returns."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None)
    for heading in ("", "release", "recipe", "made", "fused", "MiB"):
        table.add_column(heading)
    for item in listing["releases"]:
        live = "live →" if item["release"] == listing["live"] else ""
        if item["damaged"]:
            table.add_row(live, item["release"][:12], "damaged", "", "", "")
            continue
        created = datetime.fromisoformat(item["created"]).strftime("%Y-%m-%d %H:%M")
        fused = item["systems"].get("fused")
        table.add_row(
            live,
            item["release"][:12],
            item["recipe"],
            created,
            f"{fused:.4f}{'*' if item['carried_from'] else ''}" if fused is not None else "–",
            f"{item['bytes'] / 2**20:.1f}",
        )
    notes = [item["damaged"] for item in listing["releases"] if item["damaged"]] + listing["damaged"]
    sound = [item for item in listing["releases"] if not item["damaged"]]
    if measures := sorted({item["measure"] for item in sound if "fused" in item["systems"]}):
        notes.append(f"fused: mean {' or '.join(measures)} of the final order, each on its own recipe's test queries")
    if any("fused" not in item["systems"] for item in sound):
        notes.append(f"– {_not_judged('RELEASE', workspace)}")
    if any(item["carried_from"] for item in listing["releases"]):
        notes.append("* carried over from the release whose documents or order were replaced")
    return Group(table, *map(Text, notes))


def _not_judged(release: str, workspace: Path) -> str:
    """The sentence on a release without figures, with the command that judges it."""
    report = typed(f"report --judgments FILE --release {release}", workspace)
    return f"was not judged when it was made: `{report}` judges it"


def show(workspace: Path, name: str) -> dict[str, Any]:
    """Describes one release after a full check of its files.

    Raises:
        MissingError: no such release.
        ArtifactError: a file is damaged.
    """
    known = registry.Releases(workspace)
    release = known.open(name)
    return {
        **_summary(known, release.fingerprint),
        "path": str(release.path),
        "parts": {
            part: release_parts.part(release, part).fingerprint
            for part in (*judging.PARTS, *release_parts.field_parts(release))
            if release_parts.has_part(release, part)
        },
        "files": {file: record.bytes for file, record in release.manifest.files.items()},
        "warnings": surface_warnings(release.metrics.get("surfaces", {})),
        "figures": dict(release.metrics.get("figures", {})),
        "recipe_values": without_passwords(release.manifest.config),
    }


def render_show(release: dict[str, Any], workspace: Path) -> "RenderableType":
    """A description of what `show` returns."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    systems: RenderableType = Text(f"The release {_not_judged(release['release'][:12], workspace)}.")
    if release["systems"]:
        systems = Table(title=release["measure"], box=None, title_justify="left")
        systems.add_column("system")
        systems.add_column("mean", justify="right")
        for name, value in release["systems"].items():
            systems.add_row(name, f"{value:.4f}")
    files = Table(title="files, all as they were written", box=None, title_justify="left")
    files.add_column("file")
    files.add_column("bytes", justify="right")
    for name, size in release["files"].items():
        files.add_row(name, f"{size:,}")
    carried = release["carried_from"]
    source = f"figures carried over from release {carried[:12]}\n" if carried else ""
    origin = f"recipe {release['recipe']}, made {release['created']}"
    head = Text(f"{release['release']}\n{origin}\n{release['path']}\n{source}")
    return Group(head, *marked(release["warnings"]), systems, Text(), files)
