"""Grades of a mapped table: whole numbers, numbers on a scale, or words to which `labels` gives a grade each.

A word that `labels` leaves out is a fault of its rows, which `data.faulty_rows` refuses or drops. `GradeColumn.advice`
counts these rows and has the labels that would fit.
"""

import difflib
import logging
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import SourceConfig
from pipeline.data.formats import option_text, tables
from pipeline.errors import ConfigError, SchemaError
from pipeline.schema import MAX_GRADE, InvalidRow, grade_of
from pipeline.text import NO, YES, counted

STEPS_PER_POINT = 3
"""Whole grades for each point of a fractional scale, where the recipe sets no `grade_scale`."""
MOST_RATING = 2.0**31
"""A value of a column of grades that is as large as this is a fault of the row: it is an id, or a time."""
_WITH_UNIT = re.compile(r"([0-9]+)(?![\w.,]).+")
"""A number before something else: 4/5, 3 stars, 80%, 2 - exact; in 1st and 0x1 the number is no grade."""
_STARS = frozenset("★⭐")
MOST_WORDS = 20
"""Number of different words from which a column is not taken for one of grades."""
MOST_CHARACTERS = 100
"""Characters of a word, beyond which it is not taken for a grade."""
MOST_OF_SCALE = 1000
"""The highest grade of a scale that is suggested; larger numbers are ids."""
MOST_TOO_HIGH = 0.2
"""Share of grades above the highest one from which they look like those of a larger scale."""
NO_VALUE = frozenset(("", "nan", "null", "n/a", "-", "?"))
"""Cells that say that there is no grade; their rows are faults, and no label is asked for."""
_TRUTH = dict.fromkeys(YES, 1) | dict.fromkeys(NO, 0)
_DECIMAL_COMMA = re.compile(r"[+-]?(?:0,[0-9]+|[0-9]{1,3},(?:[0-9]{1,2}|[0-9]{4,}))")
"""A number such as 2,5; in 1,299 the comma may as well separate thousands, and the row is a fault."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GradeColumn:
    """The grades of a mapped table, and the rows without one."""

    grades: pa.ChunkedArray
    faults: list[InvalidRow]
    advice: str = ""
    """The words without a grade, their rows and the labels that would fit; empty where every word has one."""
    scale: tuple[float, ...] = ()
    """The scale that was chosen for fractional grades, as a `grade_scale`; empty where none was."""


def read(values: pa.ChunkedArray, config: SourceConfig, shown: str) -> GradeColumn:
    """Grades from texts by `labels`, by `grade_scale`, as whole numbers, or by a scale that fits, see `_scale`.

    Args:
        shown: the source's address, for messages.

    Raises:
        ConfigError: `grade_scale` is no scale.
        SchemaError: no cell has a grade, or all are words and there are no `labels`.
    """
    cells = _with_ascii_digits(pc.utf8_trim_whitespace(values))
    column = config.columns.get("grade", "grade")
    labels = {ascii_digits(word.strip()): grade for word, grade in config.labels.items()}
    words = Counter({word["values"]: word["counts"] for word in cells.value_counts().to_pylist()})
    if not any(word in labels or word.casefold() not in NO_VALUE for word in words):
        raise SchemaError(
            f"{shown}: the column of grades, {column!r}, has no grade in any of its {counted(len(cells), 'row')}; fill "
            "it in, or map another column as grade"
        )
    if labels:
        grades, faults = tables.named_grades(cells, labels)
        unknown = _without_empty({word: rows for word, rows in words.items() if word not in labels})
        return GradeColumn(grades, faults, _missing(unknown, set(words), labels))
    distinct = _numbers(list(words))
    if not np.isfinite(distinct).any():
        raise SchemaError(f"{shown}: {_only_words(_without_empty(words), column)}")
    numbers = distinct[pc.index_in(cells, value_set=pa.array(list(words), cells.type)).to_numpy()]
    strange = {
        word: rows for (word, rows), known in zip(words.items(), np.isfinite(distinct), strict=True) if not known
    }
    return _numbered(numbers, cells, _missing(_without_empty(strange), set(words), {}), config, shown)


def _numbers(words: Sequence[str]) -> npt.NDArray[np.float64]:
    """The numbers that texts stand for, with a point or a comma before the decimals; nan for any other text."""
    with_points = [word.replace(",", ".") if _DECIMAL_COMMA.fullmatch(word) else word for word in words]
    parsed = pd.to_numeric(pd.Series(with_points, dtype=object), errors="coerce")
    return parsed.to_numpy(dtype=np.float64, na_value=np.nan)


def ascii_digits(text: str) -> str:
    """The text with decimal digits of other scripts, such as Arabic or full-width ones, as 0 to 9."""
    return text if text.isascii() else "".join(str(unicodedata.decimal(mark, mark)) for mark in text)


def _with_ascii_digits(cells: pa.ChunkedArray) -> pa.ChunkedArray:
    if pc.all(pc.string_is_ascii(cells)).as_py():
        return cells
    return pa.chunked_array([pa.array([ascii_digits(cell) for cell in cells.to_pylist()], cells.type)])


def _without_empty(words: Mapping[str, int]) -> Counter[str]:
    """The words, and the number of rows of each, that stand for something."""
    return Counter({word: rows for word, rows in words.items() if word.casefold() not in NO_VALUE})


def _numbered(
    numbers: npt.NDArray[np.float64], cells: pa.ChunkedArray, advice: str, config: SourceConfig, shown: str
) -> GradeColumn:
    """Grades from numbers, with a fault for each cell that is none."""
    finite, good = np.isfinite(numbers), np.abs(numbers) < MOST_RATING
    faults = tables.unknown_grades(cells, pa.array(finite), "is not a number")
    faults += tables.unknown_grades(cells, pa.array(good | ~finite), f"is outside 0..{MAX_GRADE}")
    numbers = np.where(good, numbers, 0.0)
    if not config.grade_scale and not (numbers % 1).any():
        advice = "; ".join(filter(None, (advice, _scale_advice(numbers[good]))))
        return GradeColumn(pa.chunked_array([numbers.astype(np.int64)]), faults, advice)
    low, high, steps = _scale(numbers[good], config, shown)
    inside = good & (low <= numbers) & (numbers <= high)
    faults += tables.unknown_grades(cells, pa.array(inside | ~good), f"is outside {low:g} to {high:g} of grade_scale")
    grades = np.where(inside, np.floor((numbers - low) / (high - low) * steps + 0.5), 0).astype(np.int64)
    chosen = () if config.grade_scale else (low, high, steps)
    return GradeColumn(pa.chunked_array([grades]), faults, advice, chosen)


def _scale_advice(numbers: npt.NDArray[np.float64]) -> str:
    """The advice on grades of a larger scale, such as 0 to 100; empty where most grades are as they should be."""
    low, high = min(numbers.min(initial=0), 0), numbers.max(initial=0)
    if not MAX_GRADE < high <= MOST_OF_SCALE or (numbers > MAX_GRADE).mean() < MOST_TOO_HIGH:
        return ""
    return (
        f"the grades go up to {high:g}, and whole grades end at {MAX_GRADE}; in the recipe's source grade_scale = "
        f"[{low:g}, {high:g}, 4] makes 0 to 4 of them (`relevance init RECIPE` takes a recipe of such a source)"
    )


def _scale(numbers: npt.NDArray[np.float64], config: SourceConfig, shown: str) -> tuple[float, float, float]:
    """Lowest value, highest value and steps: those of the recipe, or the ones that fit fractional values.

    Without a scale floor(lowest) becomes 0, and each point up to ceil(highest) three grades, ten at most; halves are
    rounded up. The log states the scale, so that it can be put into the recipe.
    """
    scale = config.grade_scale
    if not scale:
        low, high = math.floor(numbers.min()), math.ceil(numbers.max())
        scale = (float(low), float(high), float(min(MAX_GRADE, STEPS_PER_POINT * (high - low))))
        log.warning("%s: fractional grades; read by grade_scale = [%g, %g, %g]", shown, *scale)
    if len(scale) != 3 or not scale[0] < scale[1] or scale[2] % 1 or not 1 <= scale[2] <= MAX_GRADE:
        raise ConfigError(
            f"{shown}: grade_scale is {list(scale)}; give lowest value, highest value and steps from 1 to {MAX_GRADE}"
        )
    return scale[0], scale[1], scale[2]


def _only_words(words: Counter[str], column: str) -> str:
    """The message that a column of grades holds words alone."""
    ends = {match[0] for word in words if (match := re.search(r"[^0-9.,\s-]+$|/[0-9]+$", word))}
    if _too_many(words) and len(ends) == 1 and all(_WITH_UNIT.fullmatch(word) for word in words):
        return (
            f"the grades are numbers with {ends.pop()!r} ({_counted(words, 3)}, …); write the numbers alone, and map "
            "those above 10 by grade_scale in a recipe's source"
        )
    if _too_many(words):
        return (
            f"the grades are {counted(len(words), 'different word')} ({_counted(words, 3)}, …); is {column!r} the "
            "column of grades? Map the one that is: grade=COLUMN"
        )
    wanted = {word: _guess(word, {}, set(words)) for word in sorted(words)}
    return (
        f"the grades are words ({_counted(words)}); say what each is worth, 0 for the least relevant: "
        f"{_labels_written(wanted)}"
    )


def _missing(words: Counter[str], there: set[str], labels: Mapping[str, int]) -> str:
    """The advice on words without a grade; empty where there are none.

    Args:
        words: the words without a grade, and the number of rows of each.
        there: all cells of the column.
        labels: the grades of the words that have one.
    """
    if not words:
        return ""
    if _too_many(words):
        return f"{counted(len(words), 'word', 'have')} no grade: {_counted(words, 5)}, …; is it the column of grades?"
    numbers = [] if labels else sorted(word for word in there - set(words) if word.casefold() not in NO_VALUE)
    if len(numbers) + len(words) > MOST_WORDS:
        return f"no grade is given for {_counted(words)}; write numbers there, as in the other rows"
    wanted: dict[str, int | None] = {word: grade for word, grade in labels.items() if word in there}
    wanted |= {word: _guess(word, {}, there) for word in numbers}
    wanted |= {word: _guess(word, labels, there) for word, _ in words.most_common()}
    stray = "".join(f"; {word!r} stands in no row" for word in labels if word not in there)
    return f"no grade is given for {_counted(words)}{stray}; give every word one, 0 for the least relevant: " + (
        _labels_written(wanted)
    )


def _guess(word: str, labels: Mapping[str, int], there: set[str]) -> int | None:
    """The grade that a word most likely means: that of the same word or number written otherwise, a number, yes or no.

    Only a label that stands in no row can be this word misspelt. One that does is a word of its own, however near: 相关
    (relevant) is no other spelling of 不相关 (irrelevant).
    """
    folded = {label.casefold(): grade for label, grade in labels.items()}
    if not math.isnan(number := float(_numbers([word])[0])):
        equal = (grade for label, grade in labels.items() if float(_numbers([label])[0]) == number)
        return next(equal, grade_of(word.removesuffix(".0")))
    stray = [label.casefold() for label in labels if label not in there]
    near = [word.casefold()] if word.casefold() in folded else difflib.get_close_matches(word.casefold(), stray, 1, 0.8)
    if near:
        return folded[near[0]]
    counted_by = _WITH_UNIT.fullmatch(word)
    grade = grade_of(
        counted_by[1] if counted_by else str(len(word)) if set(word) <= _STARS else word.removesuffix(".0")
    )
    return _TRUTH.get(word.casefold()) if grade is None else grade


def _too_many(words: Counter[str]) -> bool:
    """Whether these words are too many, or too long, to be grades; a message then names only some of them."""
    return len(words) > MOST_WORDS or any(len(word) > MOST_CHARACTERS for word in words)


def _counted(words: Counter[str], most: int = MOST_WORDS) -> str:
    """Words with their numbers of rows, the commonest first; of a long word the beginning."""
    return ", ".join(
        f"{word[:MOST_CHARACTERS]!r}{'…' * (len(word) > MOST_CHARACTERS)} in {counted(rows, 'row')}"
        for word, rows in words.most_common(most)
    )


def _labels_written(labels: Mapping[str, int | None]) -> str:
    return f"{option_text.written('labels', labels)} beside columns"
