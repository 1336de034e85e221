"""What a text is to every part: cleaned once, normalised one way, a document's fields joined one way.

Training, indexing and serving all call these functions, so a pair that was learned is the pair that
is scored.
"""

import unicodedata

MAX_CHARS = 1_000_000
"""A longer title, text or query is refused on import; no ranking model reads that far."""

CHARS_PER_TOKEN = 24
"""Characters read for each token of the model's limit. English has about 4.5 and Chinese about 1.5, so
nothing that a model would see is cut, and a text of a million characters costs no more than a page."""


def fault(text: str) -> str | None:
    """Why this text cannot be used, or None when it can."""
    if len(text) > MAX_CHARS:
        return f"has {len(text):,} characters; the limit is {MAX_CHARS:,}"
    if "\x00" in text:
        return "contains a NUL character"
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        return "contains a lone surrogate, so it is not valid Unicode"
    return None


def clean(text: str) -> str:
    """The text with NUL as a space and lone surrogates as U+FFFD; what the service does with a stranger's text."""
    if text.isascii():
        return text.replace("\x00", " ")
    return text.replace("\x00", " ").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def normalise(text: str) -> str:
    """NFKC, case folded, white space collapsed: two queries that differ in nothing a reader sees are one."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def document_text(title: str, text: str) -> str:
    """A document as the models read it: the title, a line break, the text; either may be empty."""
    return f"{title}\n{text}" if title and text else title or text


def head(text: str, max_tokens: int) -> str:
    """The part of a text that can reach a model which reads `max_tokens` tokens."""
    return text[: max_tokens * CHARS_PER_TOKEN]
