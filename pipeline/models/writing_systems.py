"""The scripts and languages that a model reads, told from its vocabulary and its card; needs no torch."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pipeline.errors import ConfigError

COVERED_TOKENS = 1000
COVERED_SHARE = 0.05
"""A vocabulary covers a script with this many tokens of it, or this share of its tokens. BERT's English vocabulary
holds a few hundred single Chinese characters and reads no Chinese."""

_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---", re.DOTALL)
_MANY = ("multilingual", "multi", "mul")
_LANGUAGES = """
    ar ara arabic, bn ben bengali, cs ces cze czech, da dan danish, de deu ger german, el ell gre greek, en eng english,
    es spa spanish, fa fas per persian, fi fin finnish, fr fra fre french, he heb hebrew, hi hin hindi,
    hu hun hungarian, id ind indonesian, it ita italian, ja jpn japanese, ko kor korean, nl nld dut dutch,
    no nor norwegian nb nob nn nno, pl pol polish, pt por portuguese, ro ron rum romanian, ru rus russian,
    sv swe swedish, th tha thai, tr tur turkish, uk ukr ukrainian, ur urd urdu, vi vie vietnamese,
    zh zho chi chinese cmn"""
_CODES = {name: names.split()[0] for names in _LANGUAGES.split(",") for name in names.split()}
"""Codes of ISO 639 and English names of languages, as cards spell them, each with the code of two letters."""
_NAMES = {"CJK": "Han", "HIRAGANA": "Kana", "KATAKANA": "Kana"}


def counts(texts: Iterable[str]) -> Counter[str]:
    """Script → number of texts whose first letter belongs to it, such as Latin, Han or Cyrillic."""
    scripts: Counter[str] = Counter()
    for text in texts:
        letter = next(filter(str.isalpha, text), "")
        if letter:
            scripts[_script(letter)] += 1
    return scripts


def vocabulary(tokenizer: str) -> Counter[str]:
    """Script → number of tokens, of the text of a `tokenizer.json`; a byte-level vocabulary is read as UTF-8."""
    definition = json.loads(tokenizer)
    words = definition["model"]["vocab"]
    tokens = list(words) if isinstance(words, dict) else [token for token, *_ in words]
    if "ByteLevel" in json.dumps([definition.get("pre_tokenizer"), definition.get("decoder")]):
        tokens = [_from_bytes(token) for token in tokens]
    return counts(tokens)


def covers(tokens: Mapping[str, int], script: str) -> bool:
    """Whether a vocabulary with these numbers of tokens reads a script."""
    return tokens.get(script, 0) >= min(COVERED_TOKENS, COVERED_SHARE * sum(tokens.values()))


def languages(folder: Path) -> frozenset[str]:
    """The languages that the card of a model names, as codes of two letters; empty for none or a multilingual one."""
    import yaml

    card = folder / "README.md"
    head = _FRONT_MATTER.match(card.read_text(encoding="utf-8", errors="replace")) if card.is_file() else None
    try:
        # All values as texts: to YAML itself, `no` for Norwegian is the value false.
        named = (yaml.load(head[1], yaml.BaseLoader) or {}).get("language") if head else None
    except (yaml.YAMLError, AttributeError, RecursionError):
        return frozenset()
    names = [name for name in (named if isinstance(named, list) else [named]) if isinstance(name, str)]
    codes = {_code(name) for name in names if name not in ("", "~", "null")}
    return frozenset() if codes & set(_MANY) else frozenset(codes)


def _code(name: str) -> str:
    """A language's code without its country or script: en for en-US, eng and English, zh for zh_Hans."""
    plain = re.split("[-_]", name.strip().lower())[0]
    return _CODES.get(plain, plain)


@dataclass(frozen=True, slots=True)
class Readable:
    """The parts of a model that tell which languages it reads: its folder, with a card, and its tokenizer."""

    folder: Path
    tokenizer: str
    """The text of its tokenizer.json."""


def check_one_language(ranker: Readable, encoder: Readable) -> None:
    """Refuses two models that read different languages.

    Raises:
        ConfigError: their cards name no common language, or one's vocabulary lacks the script that the other mostly
            reads.
    """
    ours, theirs = languages(ranker.folder), languages(encoder.folder)
    if ours and theirs and not ours & theirs:
        raise ConfigError(
            f"{ranker.folder} reads {_list(ours)} and {encoder.folder} reads {_list(theirs)}, by `language` in their "
            "README.md; take two models of one language"
        )
    tokens = {model.folder: vocabulary(model.tokenizer) for model in (ranker, encoder)}
    for folder, other in ((ranker.folder, encoder.folder), (encoder.folder, ranker.folder)):
        if tokens[other] and not covers(tokens[folder], script := tokens[other].most_common(1)[0][0]):
            raise ConfigError(
                f"{other} mostly reads {script} script, which the vocabulary of {folder} lacks; take two models of one "
                "language"
            )


def check_reads(encoder: Readable, texts: Iterable[str]) -> None:
    """Refuses an encoder whose vocabulary lacks the script of the documents.

    Raises:
        ConfigError: names the script.
    """
    words = counts(word for text in texts for word in text[:500].split())
    tokens = vocabulary(encoder.tokenizer)
    if words and tokens and not covers(tokens, script := words.most_common(1)[0][0]):
        raise ConfigError(
            f"the documents are in {script} script, which the vocabulary of {encoder.folder} lacks; give an encoder of "
            "their language with --encoder, by its folder or hub name such as intfloat/multilingual-e5-small, or train "
            "one from judged queries or clicks: `relevance init DATA`"
        )


def _list(codes: frozenset[str]) -> str:
    return ", ".join(sorted(codes))


@cache
def _script(letter: str) -> str:
    name = unicodedata.name(letter, "OTHER").split()[0]
    return _NAMES.get(name, name.capitalize())


@cache
def _bytes_of_letters() -> dict[str, int]:
    """The letters with which a byte-level vocabulary writes bytes; see GPT-2."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = {chr(byte): byte for byte in plain}
    rest = [byte for byte in range(256) if byte not in plain]
    return letters | {chr(256 + number): byte for number, byte in enumerate(rest)}


def _from_bytes(token: str) -> str:
    letters = _bytes_of_letters()
    if any(letter not in letters for letter in token):
        return ""
    return bytes(letters[letter] for letter in token).decode("utf-8", "ignore")
