"""The part of a document that a search result shows.

The work is bounded whatever the query and the documents are: at most MAX_WORDS different words of the query are looked
for in the first TEXT_CHARS of each document. A document in several result lists is searched once. Words are compared as
the lexical index compares them (`index.folding`).
"""

from collections.abc import Mapping, Sequence

from index import folding
from serving.runtime.deadline import Deadline
from serving.scoring.best_passages import BestPassage

SNIPPET_CHARS = 240
"""Most characters of a snippet, without its ellipses."""
TEXT_CHARS = 40 * SNIPPET_CHARS
"""Characters of a document in which words are looked for."""
QUERY_CHARS = 10_000
"""Characters of a query whose words are looked for."""
WORD_CHARS = 30
"""Characters before a passage in which the beginning of its first word is looked for."""
MAX_WORDS = 64
"""Different words of a query that are looked for."""


def snippets(
    texts: Mapping[int, str], query: str, deadline: Deadline, passages: Mapping[int, BestPassage] | None = None
) -> dict[int, str]:
    """The snippet of each text, under the key of the text.

    Args:
        passages: key of a text → the passage that its snippet is cut from. The snippet of any other text is cut from
            its beginning.

    Raises:
        DeadlineError: the deadline has passed.
        ClientGoneError: the client has closed the connection.
    """
    words = query_words(query)
    shown = {}
    for key, body in texts.items():
        deadline.check()
        passage = passages.get(key) if passages else None
        shown[key] = snippet(body, words) if passage is None else passage_snippet(body, passage, words)
    return shown


def passage_snippet(body: str, passage: BestPassage, words: Sequence[str]) -> str:
    """The snippet of one passage of a text, with an ellipsis on each side where the text goes on."""
    start = _word_start(body, passage.start)
    shown = snippet(body[start : passage.end], words)
    before = "… " if start and not shown.startswith("… ") else ""
    return before + shown + (" …" if passage.end < len(body) and not shown.endswith(" …") else "")


def _word_start(body: str, position: int) -> int:
    """The start of the word that holds a position; the position itself where no white space stands near before it."""
    for start in range(position, max(position - WORD_CHARS, 0), -1):
        if body[start - 1].isspace():
            return start
    return position


def query_words(query: str) -> list[str]:
    """The different words of a query to look for, folded and in order: no ASCII words of one or two letters."""
    words = (word for word in folding.fold(query[:QUERY_CHARS]).split() if len(word) > 2 or not word.isascii())
    return list(dict.fromkeys(words))[:MAX_WORDS]


def snippet(body: str, words: Sequence[str]) -> str:
    """The beginning of a text or, where its first word of the query stands far below, the part around that.

    It has at most SNIPPET_CHARS, without the ellipses.

    Args:
        words: see `query_words`.
    """
    flat = " ".join(body[:TEXT_CHARS].split())
    if len(flat) <= SNIPPET_CHARS:
        return flat
    folded = folding.fold(flat)
    matches = [position for position in map(folded.find, words) if position >= 0]
    first = folding.position_before(flat, min(matches, default=0))
    start = 0
    if first > SNIPPET_CHARS // 2:
        start = flat.find(" ", first - SNIPPET_CHARS // 4, first) + 1 or first
    end = start + SNIPPET_CHARS
    return ("… " if start else "") + flat[start:end].rstrip() + ("" if end >= len(flat) else " …")
