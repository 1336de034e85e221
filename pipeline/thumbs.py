"""Thumbs, users' votes up or down on results: one JSON line each, written by the service and read as judgments.

page ─► POST /thumbs ─► FOLDER/thumbs.jsonl ─► `pipeline.data.formats.thumb_files` ─► judgments of source "page"
"""

import json
from dataclasses import asdict, dataclass
from typing import Literal, get_args

FILE = "thumbs.jsonl"
"""The file of thumbs in its folder."""

ThumbValue = Literal["up", "down", "none"]
"""A vote; none takes back the earlier vote of the same user."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Thumb:
    """A user's vote, up or down, on one result of a query."""

    query: str
    doc_id: str
    thumb: ThumbValue
    voter: str
    """Random mark of a browser: its last thumb on a result takes the place of those before."""
    release: str
    """Fingerprint of the release that showed the result."""
    time: str
    """UTC, as ISO 8601 writes it."""

    def to_json(self) -> str:
        """The thumb as one line without its end."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> "Thumb":
        """The thumb of one line; fields that it does not know are left out.

        Raises:
            ValueError: not a thumb.
        """
        fields = json.loads(line)
        if not isinstance(fields, dict):
            raise ValueError(f"a JSON {type(fields).__name__}, not an object")
        names = cls.__slots__
        wrong = [name for name in names if not isinstance(fields.get(name), str)]
        if wrong:
            raise ValueError(f"has no text for {wrong[0]}")
        if fields["thumb"] not in get_args(ThumbValue):
            raise ValueError(f"thumb is {fields['thumb'][:40]!r}, not {', '.join(get_args(ThumbValue))}")
        return cls(**{name: fields[name] for name in names})
