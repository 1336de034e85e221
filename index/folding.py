"""Writes alike what Unicode and people hold equal: the one table that the analysis of words and the snippets fold by.

Letters are compared as Unicode compares identifiers (UAX 31): default-ignorable code points such as the soft hyphen are
dropped, then NFKC, full case folding, and NFKC again. Every dash is a hyphen, every apostrophe the ASCII one. A grave
accent alone is none, as it marks code.
"""

import re
import unicodedata

VERSION = 4
"""Version of the folding, which is that of the analysis. 3 read no acute accent as an apostrophe, as in don´t. 2 read
no dash but - as a hyphen, and no sign but ' and U+2019 as an apostrophe. 1 also kept default-ignorable code points and
the dot that folding leaves of a Turkish İ."""

# Unicode's property Default_Ignorable_Code_Point (DerivedCoreProperties.txt, 15.0), which `unicodedata` does not have.
_IGNORABLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)

# Dashes that join words or stand for a minus: Unicode's property Dash without those of East Asian texts alone; and what
# keyboards and typesetters put for an apostrophe. Those that NFKC takes for one of these are left out.
_DASH = re.compile("[\u058a\u05be\u1400\u1806\u2010-\u2015\u2212\u2e3a\u2e3b]")
_APOSTROPHES = "[\u02b9\u02bb\u02bc\u055a\u05f3\u2018\u2019\u201b\u2032\ua78b\ua78c]"
# NFKC writes the acute accent U+00B4, the Greek tonos and the Greek signs of elision as a space with a combining mark.
_SPACED_MARK = " [\u0301\u0313]"
_APOSTROPHE = {3: re.compile(_APOSTROPHES), 4: re.compile(f"{_APOSTROPHES}|{_SPACED_MARK}")}

_SPACED = re.compile(r"\s+|\S+")


def plain(text: str, version: int = VERSION) -> str:
    """The text in NFKC with plain hyphens and apostrophes and without ignorable code points; its case stays."""
    if text.isascii():
        return text
    kept = text if version == 1 else _IGNORABLE.sub("", text)
    normal = unicodedata.normalize("NFKC", kept).replace("’", "'").replace("⁄", "/")
    return normal if version < 3 else _DASH.sub("-", _APOSTROPHE[version].sub("'", normal))


def aligned(text: str, version: int = VERSION) -> tuple[str, list[int]]:
    """The result of `plain`, and where each of its characters comes from.

    The text is cut into letters with their marks. Where these give another result alone than together, as some letters
    join, it is cut at white space only.

    Returns:
        The plain text, and for each of its characters, and for its end, the index in the text at which the piece begins
        that became it. The end of a piece is the next larger index.
    """
    folded = plain(text, version)
    if len(folded) == len(text) and (text.isascii() or unicodedata.is_normalized("NFKC", text)):
        return folded, list(range(len(text) + 1))  # Signs took the place of signs one by one.
    for pieces in (_letters(text), _SPACED.findall(text), [text]):
        parts = [plain(piece, version) for piece in pieces]
        if "".join(parts) == folded:
            break
    starts, position = list[int](), 0
    for piece, part in zip(pieces, parts, strict=True):
        starts += [position] * len(part)
        position += len(piece)
    return folded, [*starts, len(text)]


def _letters(text: str) -> list[str]:
    """Characters, each with the marks, joining Hangul letters and ignorable code points after it."""
    pieces: list[str] = []
    for sign in text:
        if pieces and (unicodedata.category(sign)[0] == "M" or "\u1160" <= sign <= "\u11ff" or _IGNORABLE.match(sign)):
            pieces[-1] += sign
        else:
            pieces.append(sign)
    return pieces


def fold_case(word: str, version: int = VERSION) -> str:
    """Full case folding. A small i has its dot already, so the dot that folding leaves of a Turkish İ is dropped."""
    folded = word.casefold()
    if version == 1 or folded.isascii():
        return folded
    return unicodedata.normalize("NFKC", folded).replace("i\u0307", "i")


def fold(text: str) -> str:
    """The text as words are compared: texts that a reader holds equal become equal."""
    return fold_case(plain(text))


def position_before(text: str, position: int) -> int:
    """The position in a text of what stands at `position` in its fold: exact where a word begins, else within a few.

    The text is halved again and again, at spaces where there are some, and the first half folded alone, so the work is
    about that of one more fold.
    """
    if text.isascii():
        return position
    start, end, folded = 0, len(text), 0  # The fold of text[:start] has `folded` characters.
    while end - start > 1:
        half = (start + end) // 2
        spaces = (text.rfind(" ", start + 1, half + 1), text.find(" ", half + 1, end))
        middle = next((space for space in spaces if space > 0), half)
        length = len(fold(text[start:middle]))
        if folded + length <= position:
            start, folded = middle, folded + length
        else:
            end = middle
    return start
