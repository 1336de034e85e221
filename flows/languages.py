"""The language of a collection, told from a sample of its texts, by which stemmer and base model are chosen.

Chinese, Japanese and Korean are told by their letters, all others by py3langid, a naive Bayes classifier over byte
n-grams of 139 languages (Lui and Baldwin, langid.py, ACL 2012).
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

SAMPLE = 2000
"""Minimum number of sampled texts that decide the language, if there are as many; fewer than twice as many are read."""
TEXT_CHARS = 500
"""Number of characters read of each sampled text."""
CHUNK_CHARS = 1000
"""Characters that are classified together: titles alone are too short."""
CJK_SHARE = 0.2
"""Share of Chinese, Japanese or Korean letters among all letters from which a collection counts as such."""
KANA_SHARE = 0.05
"""Share of kana among Chinese, Japanese and Korean letters from which a collection counts as Japanese."""
MOST_SHARE = 0.5
"""Share of the chunks that must be of one language; a collection in which none has it is of no single language."""

ENGLISH, CJK, JAPANESE, KOREAN, OTHER = "english", "cjk", "japanese", "korean", "other"

STEMMERS: Mapping[str, str] = {
    "ar": "arabic",
    "ca": "catalan",
    "cs": "czech",
    "da": "danish",
    "de": "german",
    "el": "greek",
    "en": ENGLISH,
    "eo": "esperanto",
    "es": "spanish",
    "et": "estonian",
    "eu": "basque",
    "fa": "persian",
    "fi": "finnish",
    "fr": "french",
    "ga": "irish",
    "hi": "hindi",
    "hu": "hungarian",
    "hy": "armenian",
    "id": "indonesian",
    "it": "italian",
    "lt": "lithuanian",
    "ne": "nepali",
    "nl": "dutch",
    "nn": "norwegian",
    "no": "norwegian",
    "pl": "polish",
    "pt": "portuguese",
    "ro": "romanian",
    "ru": "russian",
    "sr": "serbian",
    "st": "sesotho",
    "sv": "swedish",
    "ta": "tamil",
    "tr": "turkish",
}
"""ISO 639 code → name of the Snowball stemmer, as in `index.language`; the classifier does not know Yiddish."""


def language(texts: "pd.Series") -> str:
    """The language that most of the texts are in.

    Returns:
        The name of a Snowball stemmer; cjk for Chinese, japanese, korean; or other, for a language without a stemmer,
        several languages, or no letters.
    """
    sample = [text[:TEXT_CHARS] for text in texts.iloc[:: max(1, len(texts) // SAMPLE)]]
    by_letters = _by_letters("".join(sample))
    if by_letters is not None:
        return by_letters
    votes = Counter(_identifier().classify(chunk)[0] for chunk in _chunks(sample))
    code, count = votes.most_common(1)[0]
    return STEMMERS.get(code, OTHER) if count > MOST_SHARE * votes.total() else OTHER


def stemmer(language: str) -> str:
    """The value of `index.language` for a language: empty where there is no stemmer."""
    import Stemmer

    return language if language in Stemmer.algorithms() else ""


def _by_letters(text: str) -> str | None:
    """The language that the letters of a text tell: of East Asia, or other where there are none; else None."""
    letters = [letter for letter in text if letter.isalpha()]
    if not letters:
        return OTHER
    kana = sum("\u3040" <= letter <= "\u30ff" for letter in letters)
    hangul = sum("\uac00" <= letter <= "\ud7a3" for letter in letters)
    east_asian = hangul + sum("\u3040" <= letter <= "\u9fff" for letter in letters)
    if east_asian < CJK_SHARE * len(letters):
        return None
    if hangul > east_asian / 2:
        return KOREAN
    return JAPANESE if kana >= KANA_SHARE * east_asian else CJK


def _chunks(texts: Sequence[str]) -> Iterator[str]:
    """The texts joined by lines into chunks of at least CHUNK_CHARS characters, the last one perhaps shorter."""
    chunk: list[str] = []
    size = 0
    for text in texts:
        chunk.append(text)
        size += len(text)
        if size >= CHUNK_CHARS:
            yield "\n".join(chunk)
            chunk, size = [], 0
    if size:
        yield "\n".join(chunk)


@cache
def _identifier() -> Any:
    """The classifier of languages, without its class for text in no language (zxx)."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    identifier.set_languages([code for code in identifier.labels if code != "zxx"])
    return identifier
