"""Docstrings taken apart for `python_api`: summary, rest and See Also references of each, without markup."""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pipeline import text
from pipeline.data.formats.docstrings import Docstring

MIN_DOCUMENT_WORDS = 25
"""Words that a document has at least; a shorter text adds little to its name."""

_SIGNATURE = re.compile(r"[\w.]+\(.*\)\s*(->.*)?")
_UNDERLINE = re.compile(r"^\s*([-=~^*\"#])\1{2,}\s*$")
_SENTENCE = re.compile(r"(?<!e\.g)(?<!i\.e)(?<!etc)(?<!vs)\.\s+(?=[A-Z`:*\"(\[])")
_ROLE = re.compile(r":(?:[a-zA-Z]+:)?[a-zA-Z]+:`~?!?\.?(?:_\w+\.)?([^`<]*?)(?:\s*<[^`>]*>)?`")
_TICKS = re.compile(r"(`{1,2})~?!?([^`]+?)(?:\s+<[^`>]*>)?\1_{0,2}")
_LINKED = re.compile(r"\[(`[^`]+`)\](?:\([^)]*\))?")
_DIRECTIVE = re.compile(r"^\s*\.\. seealso::(.*)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Entry:
    """The parts of one docstring."""

    name: str
    aliases: tuple[str, ...]
    summary: str
    body: str
    see_also: tuple[str, ...]
    """Dotted names as written, whole or in part."""


def entries_of(docstrings: Iterable[Docstring]) -> list[Entry]:
    """The entries of docstrings that are long enough to be documents, by name."""
    return distinct(take_apart(docstring) for docstring in docstrings if _long_enough(docstring.text))


def take_apart(docstring: Docstring) -> Entry:
    """The summary, the rest and the references of a docstring, without markup."""
    paragraphs = re.split(r"\n\s*\n", docstring.text.strip(), maxsplit=1)
    if _SIGNATURE.fullmatch(" ".join(paragraphs[0].split())) and len(paragraphs) > 1:
        paragraphs = re.split(r"\n\s*\n", paragraphs[1].strip(), maxsplit=1)
    first, rest = paragraphs[0], paragraphs[1] if len(paragraphs) > 1 else ""
    lines = [line for line in text.split_lines(first) if not _UNDERLINE.match(line)]
    summary, *more = _SENTENCE.split(" ".join(" ".join(lines).split()), maxsplit=1)
    body, references = _without_see_also(rest)
    return Entry(
        docstring.name,
        docstring.aliases,
        _plain(summary).replace("**", "").strip().rstrip(".:"),
        _plain("\n\n".join([*more, body])).strip(),
        tuple(_references(references)),
    )


def _without_see_also(rest: str) -> tuple[str, list[str]]:
    """The text without its See Also sections, and their lines."""
    lines = text.split_lines(rest)
    kept: list[str] = []
    taken: list[str] = []
    at = 0
    while at < len(lines):
        length = _see_also(lines, at)
        if length:
            taken.extend(lines[at : at + length])
        else:
            kept.append(lines[at])
        at += max(length, 1)
    return "\n".join(kept), taken


def _see_also(lines: Sequence[str], at: int) -> int:
    """Number of lines of a See Also section at this line, in NumPy's, Google's or Sphinx's form; 0 without one."""
    line = lines[at]
    titled = line.strip().casefold().rstrip(":") == "see also"
    if titled and at + 1 < len(lines) and _UNDERLINE.match(lines[at + 1]):
        heads = (n for n in range(at + 2, len(lines) - 1) if lines[n].strip() and _UNDERLINE.match(lines[n + 1]))
        return next(heads, len(lines)) - at
    if (titled and line.rstrip().endswith(":")) or _DIRECTIVE.match(line):
        outside = (n for n in range(at + 1, len(lines)) if lines[n].strip() and _indent(lines[n]) <= _indent(line))
        return next(outside, len(lines)) - at
    return 0


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _references(lines: Iterable[str]) -> Iterator[str]:
    """Dotted names that See Also lines refer to: in roles, or ahead of a description."""
    for line in lines:
        roles = _ROLE.findall(line)
        if roles:
            yield from (role.removesuffix("()") for role in roles)
        elif not line[:1].isspace():
            for part in re.split(r"\s:\s|:$", line)[0].split(","):
                name = part.strip().strip("`").removesuffix("()")
                if name and all(piece.isidentifier() for piece in name.split(".")):
                    yield name


def _plain(written: str) -> str:
    """The text without reStructuredText roles, backticks and heading lines."""
    written = _LINKED.sub(r"\1", written)
    written = _TICKS.sub(r"\2", _ROLE.sub(r"\1", written))
    lines = [line.rstrip() for line in text.split_lines(written) if not _UNDERLINE.match(line)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


def distinct(entries: Iterable[Entry]) -> list[Entry]:
    """The entries long enough to be documents, by name; a text under several names keeps the shortest one."""
    groups: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        if _long_enough(entry.body) and not text.fault(f"{entry.name} {entry.summary} {entry.body}"):
            groups[_shape(entry)].append(entry)
    kept = []
    for group in groups.values():
        best, *copies = sorted(group, key=lambda entry: (entry.name.count("."), len(entry.name), entry.name))
        aliases = {*best.aliases, *(name for other in copies for name in (other.name, *other.aliases))}
        kept.append(dataclasses.replace(best, aliases=tuple(sorted(aliases))))
    return sorted(kept, key=lambda entry: entry.name)


def _long_enough(body: str) -> bool:
    return len(body.split(maxsplit=MIN_DOCUMENT_WORDS)) >= MIN_DOCUMENT_WORDS


def _shape(entry: Entry) -> str:
    """The words of an entry without its own names and numbers; copies of a text for several classes have one shape."""
    own = set(re.findall(r"[a-z]+", entry.name.casefold().rpartition(".")[0]))
    return " ".join(
        word for word in re.findall(r"[a-z]+", f"{entry.summary} {entry.body}".casefold()) if word not in own
    )
