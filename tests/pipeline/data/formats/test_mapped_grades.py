"""Every word of a mapped column of grades has a grade, or every command says which one lacks it and what to type."""

import dataclasses
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import DataConfig, SourceConfig
from pipeline.data import convert, judgments, sources
from pipeline.data.checks import check
from pipeline.data.formats import option_text
from pipeline.errors import ConfigError, InputError, SchemaError

COLUMNS = {"query": "query", "title": "title", "grade": "worth"}


def table(path: Path, grades: list[str]) -> SourceConfig:
    rows = [f'knife {number},a knife {number},"{grade}"' for number, grade in enumerate(grades)]
    path.write_text("\n".join(["query,title,worth", *rows]) + "\n", encoding="utf-8")
    return SourceConfig(path=str(path), columns=COLUMNS)


def suggested(message: str) -> dict[str, int]:
    """The labels that a message tells to type, read back as the command line reads them; 9 stands for GRADE."""
    match = re.search(r"--labels ('[^']*'|\S+) on the command line", message.replace("GRADE", "9"))
    assert match, message
    return option_text.parse_labels(shlex.split(match[1])[0])


@pytest.mark.parametrize(
    ("grades", "labels", "counts", "fit"),
    [
        (
            ["Exact", "Partial", "Partial", "No"],
            {"Exact": 2, "No": 0},
            "'Partial' in 2 rows;",
            {"Exact": 2, "No": 0, "Partial": 9},
        ),
        (["Exact", "EXACT", " no "], {"Exact": 2, "no": 0}, "'EXACT' in 1 row;", {"Exact": 2, "no": 0, "EXACT": 2}),
        (["Exact", "Exact", "no"], {"Exct": 2, "no": 0}, "in 2 rows; 'Exct' stands in no row", {"no": 0, "Exact": 2}),
        (["relevant", "irrelevant"], {"relevant": 2}, "'irrelevant' in 1 row;", {"relevant": 2, "irrelevant": 9}),
        (["相关", "不相关", "不相关"], {"相关": 2}, "'不相关' in 2 rows;", {"相关": 2, "不相关": 9}),
        (["最佳", "是", "否"], {"最佳": 2}, "'是' in 1 row", {"最佳": 2, "是": 1, "否": 0}),
        (["Exact", "2", "0"], {"Exact": 2}, "'2' in 1 row, '0' in 1 row", {"Exact": 2, "2": 2, "0": 0}),
        (["Exact", "2", "nan", ""], {}, "'Exact' in 1 row;", {"2": 2, "Exact": 9}),
        (["so, so", 'say ""=1""', "no"], {"no": 0}, "'so, so'", {"no": 0, "so, so": 9, 'say "=1"': 9}),
    ],
)
def test_a_word_without_a_grade_is_counted_and_the_labels_that_fit_are_named_everywhere(
    tmp_path: Path, grades: list[str], labels: Mapping[str, int], counts: str, fit: Mapping[str, int]
) -> None:
    source = table(tmp_path / "ratings.csv", grades)
    recipe = SourceConfig(path=source.path, columns=COLUMNS, labels=labels)
    with pytest.raises(SchemaError, match=re.escape(counts)) as raised:
        convert.convert(source.path, "auto", tmp_path / "out", COLUMNS, labels)
    assert suggested(str(raised.value)) == fit
    with pytest.raises(SchemaError, match=rf"{re.escape(counts)}.*data\.faulty_rows") as raised:
        judgments.make(tmp_path / "work", DataConfig(sources=(recipe,)))
    assert suggested(str(raised.value)) == fit
    (report,) = check.examine([recipe], Path())
    assert suggested(check.hint([report])) == fit
    assert not (tmp_path / "out").exists()
    labelled = sources.read(SourceConfig(path=source.path, columns=COLUMNS, labels=fit), Path())
    assert labelled.advice == ""
    assert len(labelled.faults) == sum(grade in ("", "nan") for grade in grades)


def test_a_recipe_that_drops_rows_on_purpose_counts_the_words_it_does_without(tmp_path: Path) -> None:
    source = table(tmp_path / "ratings.csv", ["Exact", "unsure"] * 20)
    recipe = SourceConfig(path=source.path, columns=COLUMNS, labels={"Exact": 2})
    data = judgments.make(tmp_path / "work", DataConfig(sources=(recipe,), faulty_rows="drop"))
    assert data.metrics["dropped"]["judgments"] == {"unreadable": 20}
    assert data.metrics["judgments"] == 20


@pytest.mark.parametrize(
    ("grades", "message"),
    [
        (["", " ", ""], "'worth', has no grade in any of its 3 rows"),
        (["nan", "n/a", "-"], "'worth', has no grade in any of its 3 rows"),
        (["True", "False", "True"], r"--labels False=0,True=1 on the command line"),
        (["good", "bad", ""], r"the grades are words \('good' in 1 row, 'bad' in 1 row\)"),
        ([f"remark {number}" for number in range(30)], "30 different words .* is 'worth' the column of grades"),
    ],
)
def test_a_column_without_one_number_says_what_it_holds(tmp_path: Path, grades: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        sources.read(table(tmp_path / "ratings.csv", grades), Path())


@pytest.mark.parametrize("digits", ["٠٢١", "０２１", "०२१"])
def test_digits_of_other_scripts_are_grades(tmp_path: Path, digits: str) -> None:
    read = sources.read(table(tmp_path / "ratings.csv", list(digits)), Path())
    assert read.judgments["grade"].to_pylist() == [0, 2, 1]
    assert read.faults == ()


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_grades_that_are_true_or_false_are_words(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"ratings.{suffix}"
    rows = pa.table({"query": ["a", "b"], "title": ["x", "y"], "worth": [True, False]})
    if suffix == "parquet":
        pq.write_table(rows, path)
    else:
        rows.to_pandas().to_json(path, orient="records", lines=True)
    with pytest.raises(SchemaError, match="--labels false=0,true=1 on the command line"):
        sources.read(SourceConfig(path=str(path), columns=COLUMNS), Path())
    labelled = SourceConfig(path=str(path), columns=COLUMNS, labels={"true": 1, "false": 0})
    assert sources.read(labelled, Path()).judgments["grade"].to_pylist() == [1, 0]


def test_a_null_grade_of_json_lines_is_a_fault_of_its_row(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text(
        '{"query": "a", "title": "x", "worth": null}\n{"query": "a", "title": "y", "worth": 1}\n'
    )
    read = sources.read(SourceConfig(path=str(tmp_path / "r.jsonl"), columns=COLUMNS), Path())
    assert [str(fault) for fault in read.faults] == ["judgments, row 1: the grade is empty"]


def test_labels_that_belong_to_no_column_are_refused(tmp_path: Path) -> None:
    source = table(tmp_path / "ratings.csv", ["1"])
    with pytest.raises(ConfigError, match="columns maps no grade"):
        sources.read(SourceConfig(path=source.path, columns={"title": "title"}, labels={"Exact": 1}), Path())
    with pytest.raises(ConfigError, match="labels belong to a table"):
        sources.read(SourceConfig(path=str(tmp_path), labels={"Exact": 1}), Path())


@pytest.mark.parametrize("strange", ["9" * 5000, "a whole text " * 100])
def test_a_grade_of_thousands_of_characters_is_refused_without_repeating_it(strange: str, tmp_path: Path) -> None:
    """Python refuses to read a number of more than 4,300 digits, with advice for programmers."""
    for grades in ([strange, "1", "0"], [strange, strange]):
        source = table(tmp_path / "ratings.csv", grades)
        with pytest.raises(SchemaError) as raised:
            convert.convert(source.path, "auto", tmp_path / "out", COLUMNS)
        message = str(raised.value)
        assert "the column of grades?" in message
        assert len(message) < 500
    with pytest.raises(ConfigError, match="with a grade from 0 to 10"):
        option_text.parse_labels(f"Exact={strange}")


def test_a_comma_before_the_decimals_is_read_as_a_point(tmp_path: Path) -> None:
    grades = {}
    for name, mark in (("comma", ","), ("point", ".")):
        rows = [f"knife;a knife {number};{number}{mark}5" for number in range(3)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["query;title;grade", *rows]) + "\n", encoding="utf-8")
        columns = {key: key for key in ("query", "title", "grade")}
        grades[name] = sources.read(SourceConfig(path=f"{name}.csv", columns=columns), tmp_path).judgments["grade"]
    assert grades["comma"].to_pylist() == grades["point"].to_pylist() == [2, 5, 8]


@pytest.mark.parametrize(("highest", "is_scale"), [(100, True), (10, False), (20260131, False)])
def test_grades_of_a_larger_scale_are_answered_with_one(tmp_path: Path, highest: int, is_scale: bool) -> None:
    rows = [f"knife,a knife {number},{number * highest // 4}" for number in range(5)]
    (tmp_path / "own.csv").write_text("\n".join(["query,title,grade", *rows]) + "\n", encoding="utf-8")
    config = SourceConfig(path="own.csv", columns={key: key for key in ("query", "title", "grade")})
    source = sources.read(config, tmp_path)
    assert ("grade_scale = [0, 100, 4] makes 0 to 4" in source.advice) == is_scale
    if is_scale:
        scaled = sources.read(dataclasses.replace(config, grade_scale=(0, 100, 4)), tmp_path)
        assert scaled.judgments["grade"].to_pylist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("numbers", [["1.0", "2.0", "3.0"], ["1,0", "2.00", "+3"]])
def test_a_number_written_otherwise_is_advised_the_grade_of_its_label(tmp_path: Path, numbers: list[str]) -> None:
    """Typed as advised, the labels give the grades that were meant: 1 is the worst here, and worth 0."""
    source = dataclasses.replace(table(tmp_path / "worth.csv", numbers), labels={"1": 0, "2": 1, "3": 2})
    advised = suggested(sources.read(source, Path()).advice)
    assert advised == dict(zip(numbers, (0, 1, 2), strict=True))
    source = dataclasses.replace(source, labels=advised)
    assert sources.read(source, Path()).judgments["grade"].to_pylist() == [0, 1, 2]


@pytest.mark.parametrize(
    "grades",
    [["0/5", "4/5"], ["0 stars", "4 stars"], ["0%", "4 %"], ["0 - no", "4 - exact"], ["0 out of 5", "4 out of 5"]],
)
def test_numbers_with_a_unit_are_advised_as_these_numbers(tmp_path: Path, grades: list[str]) -> None:
    with pytest.raises(SchemaError) as raised:
        sources.read(table(tmp_path / "worth.csv", grades), Path())
    assert suggested(str(raised.value)) == dict(zip(grades, (0, 4), strict=True))


def test_stars_are_counted_and_ordinals_are_not_taken_for_grades(tmp_path: Path) -> None:
    with pytest.raises(SchemaError) as raised:
        sources.read(table(tmp_path / "worth.csv", ["★", "★★★", "2nd"]), Path())
    assert suggested(str(raised.value)) == {"★": 1, "★★★": 3, "2nd": 9}


def test_many_numbers_with_one_unit_are_no_words_of_another_column(tmp_path: Path) -> None:
    with pytest.raises(
        SchemaError, match=r"the grades are numbers with '%' .*; write the numbers alone, and map those"
    ):
        sources.read(table(tmp_path / "worth.csv", [f"{number}%" for number in range(60)]), Path())
    with pytest.raises(SchemaError, match=r"60 different words .* is 'worth' the column of grades"):
        sources.read(table(tmp_path / "worth.csv", [f"2024-01-{number}" for number in range(60)]), Path())
