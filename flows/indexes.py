"""Lists and checks the indexes of all releases: the commands `relevance index list` and `relevance index verify`."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import artifacts, disk, release_parts
from pipeline.artifacts import Artifact
from pipeline.errors import RelevanceError
from pipeline.releases import Releases

if TYPE_CHECKING:
    from rich.console import RenderableType

    from index.inventory import SegmentRecord

SearchableParts = dict[str, Artifact]
"""Name of a part of a release → its artifact. Vectors, of which a release holds no copy, are named `vectors`, those
of one field `vectors.FIELD`."""


def inventory(workspace: Path) -> dict[str, Any]:
    """The segments of each release, the oldest release first, and the releases that each one is shared with.

    A damaged release is listed with the reason and without segments.
    """
    from index import inventory

    registry = Releases(workspace)
    pointer = registry.pointer_file.recover()
    listed: dict[str, dict[str, list[SegmentRecord]]] = {}
    damaged: dict[str, str] = {}
    for release in registry.ids():
        try:
            parts = _searchable(registry.open(release, verify=False))
            parts |= _vectors(workspace, parts)
            listed[release] = {name: inventory.segments_of(part) for name, part in parts.items()}
        except RelevanceError as error:
            damaged[release] = str(error)
    owners = defaultdict(list)
    for release, segments in listed.items():
        for records in segments.values():
            for record in records:
                for inode in record.inodes():
                    owners[inode].append(release)
    releases = []
    for release in registry.ids():
        segments = listed.get(release, {})
        items = [_segment(part, record, owners, release) for part, records in segments.items() for record in records]
        releases.append(
            {
                "release": release,
                "live": pointer is not None and pointer.release == release,
                "bytes": sum(item["bytes"] for item in items),
                "bytes_of_its_own": sum(item["bytes"] for item in items if not item["shared_with"]),
                "segments": items,
                "damaged": damaged.get(release),
            }
        )
    return {"releases": releases}


def _searchable(release: Artifact) -> SearchableParts:
    """The parts of a release that make documents searchable."""
    names = [name for name in ("lexical", "documents", "index") if release_parts.has_part(release, name)]
    parts = {name: release_parts.part(release, name) for name in names}
    return parts | release_parts.field_parts(release)


def _vectors(workspace: Path, parts: SearchableParts) -> SearchableParts:
    """The vectors that these parts of a release were built from, as far as the workspace still has them."""
    inputs = {
        name.replace("index", "vectors", 1): artifacts.input_of(workspace, part, "vectors", verify=False)
        for name, part in parts.items()
        if part.manifest.kind == "index"
    }
    return {name: vectors for name, vectors in inputs.items() if vectors is not None}


def _segment(
    part: str, record: "SegmentRecord", owners: dict[tuple[int, int], list[str]], release: str
) -> dict[str, Any]:
    """The entry of one segment in the list, with the other releases that have all of its files.

    Args:
        owners: (device, inode) of a file → the releases that have it.
    """
    sharing = [set(owners[inode]) for inode in record.inodes()]
    shared = set.intersection(*sharing) - {release} if sharing else set()
    return {
        "part": part,
        "segment": record.name,
        "documents": record.documents,
        "live": record.live,
        "tombstones": record.documents - record.live,
        "bytes": record.bytes,
        "shared_with": sorted(shared),
    }


def render_inventory(listing: dict[str, Any]) -> "RenderableType":
    """A table of what `inventory` returns."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    tables: list[RenderableType] = []
    for release in listing["releases"]:
        live = ", live" if release["live"] else ""
        size, own = (release[name] / 2**20 for name in ("bytes", "bytes_of_its_own"))
        title = f"release {release['release'][:12]}{live}: {size:.1f} MiB, {own:.1f} of them its own"
        if release["damaged"]:
            tables.append(Text(f"release {release['release'][:12]}{live}: damaged; {release['damaged']}"))
            continue
        table = Table(box=None, title=title, title_justify="left")
        table.add_column("part")
        table.add_column("segment")
        for heading in ("documents", "live", "tombstones", "MiB"):
            table.add_column(heading, justify="right")
        table.add_column("shared with")
        for item in release["segments"]:
            counts = [f"{item[name]:,}" for name in ("documents", "live", "tombstones")]
            shared = ", ".join(name[:12] for name in item["shared_with"])
            table.add_row(item["part"], item["segment"] or "–", *counts, f"{item['bytes'] / 2**20:.2f}", shared)
        tables += [table, Text()]
    return Group(*tables)


def verify(workspace: Path, name: str = "all") -> dict[str, Any]:
    """Checks every file of a release, or of all, and the contents of its indexes; returns what is wrong.

    A file that several releases share is read once.

    Args:
        name: see `Releases.resolve`; `all` for every release.

    Raises:
        MissingError: no such release.
    """
    registry = Releases(workspace)
    chosen = registry.ids() if name == "all" else [registry.resolve(name)]
    with disk.digests_remembered():
        checked = [{"release": item, "problems": list(_problems(workspace, registry.path(item)))} for item in chosen]
    return {"sound": not any(item["problems"] for item in checked), "releases": checked}


def _problems(workspace: Path, path: Path) -> Iterator[str]:
    """The faults of a release, each with its file and what to do."""
    from index import checks

    try:
        release = Artifact(path, artifacts.read_manifest(path))
        damaged = dict(artifacts.damaged_files(release))
        yield from damaged.values()
        if damaged:
            return  # The contents of damaged files say nothing.
        release_parts.check(release)
        parts = _searchable(release)
        vectors = _vectors(workspace, parts)
        for part in vectors.values():
            problems = dict(artifacts.damaged_files(part))
            damaged |= problems
            yield from problems.values()
        yield from checks.problems(parts, None if damaged else vectors.get("vectors"))
    except RelevanceError as error:
        yield str(error)


def render_verify(outcome: dict[str, Any]) -> "RenderableType":
    """Lines of what `verify` returns."""
    from rich.text import Text

    lines = []
    for item in outcome["releases"]:
        lines.append(f"release {item['release'][:12]}: {'sound' if not item['problems'] else 'damaged'}")
        lines += [f"  {problem}" for problem in item["problems"]]
    return Text("\n".join(lines) or "no release")
