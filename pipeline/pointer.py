"""The live pointer: one small file that says which release is live, and the history of its changes.

    <workspace>/releases/live.json        replaced atomically; carries a generation number
    <workspace>/releases/history.jsonl    every change of the pointer, appended afterwards

The pointer carries all that a rollback needs, so the history may be damaged or missing. The history is written second:
after a kill between the two, the next move appends the record that is missing. A pointer that cannot be read is
replaced by the last readable record of the history.
"""

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline import disk, locks, regular_files
from pipeline.command_line import typed
from pipeline.errors import ArtifactError, ConflictError
from pipeline.secrets import hide_passwords

KEPT = 32
"""Earlier releases, and releases that were rolled back, that a pointer remembers."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pointer:
    """One state of the live pointer."""

    release: str
    """Fingerprint of the live release, and the name of its folder."""
    generation: int
    """Grows by at least one at every change."""
    previous: str | None
    """The release that was live before."""
    changed: str
    """Time of the change, UTC."""
    action: str
    """promote or rollback."""
    reason: str
    """Free text; passwords of URLs are hidden."""
    earlier: tuple[str, ...] | None = None
    """Releases that a rollback can return to, the nearest first; None in records from before this field."""
    rolled_back: Mapping[str, str] = field(default_factory=dict)
    """Releases that a person rolled back → digest of their models; no retraining promotes these again."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Pointer":
        """The pointer with this text.

        Raises:
            ValueError, TypeError: not the text of a pointer.
        """
        fields = json.loads(text)
        earlier = fields.get("earlier")
        fields["reason"] = hide_passwords(fields["reason"])
        pointer = cls(**{**fields, "earlier": None if earlier is None else tuple(earlier)})
        names = [pointer.release, *(pointer.earlier or ()), *pointer.rolled_back, pointer.previous or ""]
        if not all(isinstance(name, str) for name in names) or not isinstance(pointer.generation, int):
            raise TypeError("a release is not named by text, or the generation is no whole number")
        return pointer


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """A change of the pointer that somebody wants."""

    release: str
    action: str
    reason: str
    expected: int | None
    """The generation that the caller saw, 0 for none yet; None moves the pointer whatever it is."""
    earlier: tuple[str, ...]
    rolled_back: Mapping[str, str]


class PointerFile:
    """Reads and moves the live pointer of one workspace."""

    def __init__(self, root: Path) -> None:
        self.path = root / "live.json"
        self.history_path = root / "history.jsonl"

    def read(self) -> Pointer | None:
        """The pointer, or None before the first promotion.

        Raises:
            ArtifactError: the pointer cannot be read.
        """
        try:
            return Pointer.from_json(regular_files.read(self.path).decode())
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
            listing = typed("releases list", self.path.parent.parent)
            raise ArtifactError(
                f"{self.path}: not a readable pointer ({error}); the next promotion or rollback writes it anew. The "
                f"last whole line of history.jsonl is what it held; `{listing}` shows the releases"
            ) from error

    def recover(self) -> Pointer | None:
        """The pointer; where that cannot be read, the last readable record of the history; None without either."""
        if pointer := self._readable():
            return pointer
        records, _ = self.history()
        return records[-1] if records else None

    def _readable(self) -> Pointer | None:
        """The pointer; None where it is not there or, with a warning in the log, cannot be read."""
        try:
            return self.read()
        except ArtifactError as error:
            log.warning("%s", error)
            return None

    def history(self) -> tuple[list[Pointer], int]:
        """Every readable change of the pointer, the oldest first, and the number of lines that cannot be read."""
        try:
            lines = regular_files.read(self.history_path).split(b"\n")
        except FileNotFoundError:
            return [], 0
        except OSError as error:
            log.warning("%s: cannot be read (%s)", self.history_path, error)
            return [], 1
        records: list[Pointer] = []
        unreadable = 0
        for line in lines:
            if line.strip():
                try:
                    records.append(Pointer.from_json(line.decode()))
                except (ValueError, TypeError, KeyError, AttributeError):
                    unreadable += 1
        return records, unreadable

    def earlier(self, pointer: Pointer) -> tuple[str, ...]:
        """Releases that a rollback from this pointer can return to, the nearest first.

        Records from before the field `earlier` are completed from the history, as far as it can be read.
        """
        if pointer.earlier is not None:
            return pointer.earlier
        records, _ = self.history()
        chain: list[str] = []
        before = pointer.previous
        while before is not None and before not in (pointer.release, *chain):
            chain.append(before)
            before = next((record.previous for record in reversed(records) if record.release == before), None)
        return tuple(chain)

    def move(self, move: Move) -> Pointer:
        """Points at a release; nothing happens where it is live already, by a pointer that can be read.

        Raises:
            ConflictError: the pointer is not at the expected generation.
            ArtifactError, OSError: the pointer could not be written; the old one stays.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with locks.locked(self.path):
            current = self.recover()
            generation = current.generation if current else 0
            if current and current.release == move.release and self._readable():
                self._complete(current)
                return current
            if move.expected is not None and move.expected != generation:
                raise ConflictError(
                    f"{self.path}: is at generation {generation}, not {move.expected}; another publisher "
                    f"made {current.release[:12] if current else 'nothing'} live meanwhile, look at it and try again"
                )
            last = self._complete(current)
            pointer = Pointer(
                release=move.release,
                generation=max(generation, last) + 1,
                previous=move.earlier[0] if move.earlier else None,
                changed=datetime.now(UTC).isoformat(timespec="seconds"),
                action=move.action,
                reason=hide_passwords(move.reason.encode("utf-8", "replace").decode()),
                earlier=move.earlier[:KEPT],
                rolled_back=dict(list(move.rolled_back.items())[-KEPT:]),
            )
            disk.write_atomically(self.path, pointer.to_json() + "\n", Pointer.from_json)
            self._append(pointer)
            return pointer

    def _complete(self, current: Pointer | None) -> int:
        """Appends the pointer to the history if a kill left it out; returns the last generation recorded there."""
        records, _ = self.history()
        last = max((record.generation for record in records), default=0)
        if current is not None and current.generation > last:
            self._append(current)
        return last

    def _append(self, pointer: Pointer) -> None:
        """Adds a record on a line of its own, whatever the last line looks like.

        The pointer has moved already, so a failure is logged and not raised; the next move makes up for it.
        """
        try:
            with open(self.history_path, "a+b", opener=regular_files.opener) as file:
                torn = file.seek(0, os.SEEK_END) > 0 and _last_byte(file) != b"\n"
                file.write(b"\n" * torn + pointer.to_json().encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            log.warning("%s: the change is not recorded yet (%s); the pointer is right", self.history_path, error)


def _last_byte(file: Any) -> bytes:
    file.seek(-1, os.SEEK_END)
    return bytes(file.read(1))
