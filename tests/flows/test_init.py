"""`relevance init` writes recipes that fit the data and that the next command takes."""

import bz2
import csv
import gzip
import io
import json
import re
import shlex
import sqlite3
import tomllib
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console
from typer.testing import CliRunner

from flows import data_look, init, init_recipe, sources
from flows.built_in_recipes import RECIPES
from flows.cli.command import app
from pipeline import recipe as recipes
from pipeline.config import SourceConfig
from pipeline.data import convert
from pipeline.data import sources as readers
from pipeline.data.checks import check, check_tables
from pipeline.data.clicks import short_logs
from pipeline.data.formats import option_text
from pipeline.errors import ConfigError, InputError, SchemaError
from pipeline.models.base_models import ModelShape
from pipeline.training import ranker_shape
from tests.flows.world import write_tiny_world

TEXTS = {
    "english": "a knife for the kitchen",
    "cjk": "厨房用的刀",
    "other": "нож для кухни",
}


@pytest.mark.parametrize("expected", TEXTS)
def test_the_language_is_told_by_the_texts(expected: str) -> None:
    assert data_look.language(pd.Series([TEXTS[expected]] * 3 + ["", "123"])) == expected


def test_a_folder_of_tables_gives_a_recipe_that_loads(tmp_path: Path) -> None:
    write_tiny_world(tmp_path / "tiny")
    seen, _ = init.write(str(tmp_path / "tiny"), tmp_path / "own.toml")
    recipe = recipes.load(tmp_path / "own.toml", [])
    assert (seen.documents, seen.judged_queries) == (150, 80)
    assert recipe.name == "own"
    assert recipe.data.sources[0].path == str(tmp_path / "tiny")
    assert recipe.data.valid_share * seen.judged_queries >= 20
    assert recipe.candidates.pool == "retrieved"
    assert recipe.teacher.loop.max_seconds > 0


def test_a_table_of_other_columns_is_mapped_by_their_names(tmp_path: Path) -> None:
    table = tmp_path / "ratings.csv"
    rows = [
        f"red knife,a {colour} knife number {number},{number % 4}" for number in range(8) for colour in ("red", "blue")
    ]
    table.write_text("\n".join(["search_term,product_title,relevance", *rows]) + "\n", encoding="utf-8")
    seen, _ = init.write(str(table), tmp_path / "own.toml")
    assert seen.sources[0]["columns"] == {"query": "search_term", "title": "product_title", "grade": "relevance"}
    assert recipes.load(tmp_path / "own.toml", []).data.sources[0].columns == seen.sources[0]["columns"]
    assert seen.judgments == 16
    assert recipes.load(tmp_path / "own.toml", []).candidates.pool == "judged"


def test_a_language_without_a_pretrained_model_starts_from_scratch(tmp_path: Path) -> None:
    table = tmp_path / "ratings.csv"
    rows = [f"刀具 {number},厨房用的刀 {number},{number % 2}" for number in range(8)]
    table.write_text("\n".join(["query,title,grade", *rows]) + "\n", encoding="utf-8")
    init.write(str(table), tmp_path / "own.toml")
    recipe = recipes.load(tmp_path / "own.toml", [])
    assert recipe.teacher.base == "scratch"
    assert recipe.pretrain.max_tokens <= recipe.pretrain.scratch.positions


MINILM_SHAPE = ModelShape(6, 384, 12, shared=False, intermediate=1536)


def test_the_ranker_keeps_all_layers_of_minilm_at_the_cost_of_three(tmp_path: Path) -> None:
    write_tiny_world(tmp_path / "tiny")
    seen = replace(data_look.look(str(tmp_path / "tiny")), language="english", cuda=False, minilm=True)
    (tmp_path / "own.toml").write_text(init_recipe.recipe(seen, "own"), encoding="utf-8")
    for path in (tmp_path / "own.toml", RECIPES / "small.toml"):
        ranker = recipes.load(path, []).ranker
        student = ranker_shape.cut(ranker, MINILM_SHAPE, MINILM_SHAPE)
        assert student.layers == MINILM_SHAPE.layers
        cost = ranker_shape.products(MINILM_SHAPE, student.layers, student.intermediate)
        assert cost <= ranker_shape.products(MINILM_SHAPE, 3, MINILM_SHAPE.intermediate)


@pytest.mark.parametrize(("queries", "bounded"), [(40, False), (20_000, True)])
def test_trainings_and_the_pairs_that_the_teacher_scores_are_bounded_on_a_cpu(
    tmp_path: Path, queries: int, bounded: bool
) -> None:
    seen, text = init.write(str(_rated(tmp_path / "ratings.csv", ("0", "1", "3"), queries)), tmp_path / "own.toml")
    recipe = recipes.load(tmp_path / "own.toml", [])
    loops = (recipe.teacher.loop, recipe.ranker.loop, recipe.encoder.loop)
    assert sum(loop.max_seconds for loop in loops) <= 420
    train = seen.judged_queries * (1 - recipe.data.valid_share - recipe.data.test_share)
    assert (0 < recipe.candidates.train_queries < train) == bounded
    pairs = (recipe.candidates.train_queries or train) * (4 + recipe.candidates.negatives)
    pairs *= 1 + recipe.candidates.unlabelled
    assert pairs * recipe.teacher.max_tokens <= 1.01 * init_recipe.CPU_PAIR_TOKENS
    for loop in loops:
        assert loop.max_tokens == pytest.approx(init_recipe.CPU_PASSES * pairs * recipe.teacher.max_tokens, rel=0.05)
    on_gpu = init_recipe.recipe(replace(seen, cuda=True), "own")
    assert "max_seconds" in text
    assert not any(bound in on_gpu for bound in ("max_seconds", "train_queries"))


def test_a_base_from_scratch_gets_a_ranker_that_can_be_cut_from_it(tmp_path: Path) -> None:
    write_tiny_world(tmp_path / "tiny")
    seen = replace(data_look.look(str(tmp_path / "tiny")), language="other", cuda=False)
    (tmp_path / "own.toml").write_text(init_recipe.recipe(seen, "own"), encoding="utf-8")
    recipe = recipes.load(tmp_path / "own.toml", [])
    scratch = recipe.pretrain.scratch
    shape = ModelShape(scratch.layers, scratch.hidden, scratch.heads, shared=False, intermediate=scratch.intermediate)
    student = ranker_shape.cut(recipe.ranker, shape, shape)
    two_layers, attention = (ranker_shape.products(shape, *cut) for cut in ((2, shape.intermediate), (shape.layers, 0)))
    assert (student.layers, student.intermediate) == (2, shape.intermediate)
    assert attention >= two_layers, "so layers cannot all be kept at the cost of two, as they are of MiniLM"


def test_nothing_is_overwritten_and_nothing_half_written_stays(tmp_path: Path) -> None:
    write_tiny_world(tmp_path / "tiny")
    out = tmp_path / "own.toml"
    out.write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="exists already"):
        init.write(str(tmp_path / "tiny"), out)
    assert out.read_text(encoding="utf-8") == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.toml", "tiny"]


def test_documents_without_judgments_are_refused(tmp_path: Path) -> None:
    write_tiny_world(tmp_path / "tiny")
    (tmp_path / "tiny" / "judgments.parquet").unlink()
    with pytest.raises(
        SchemaError, match=r"(?s)grade \(how well.*--columns title=title,text=text,doc_id=doc_id,query=COL"
    ):
        init.write(str(tmp_path / "tiny" / "documents.parquet"), tmp_path / "own.toml")


def test_a_table_without_a_known_name_for_grades_is_answered_with_the_option_to_give(tmp_path: Path) -> None:
    table = tmp_path / "ratings.csv"
    table.write_text("query,title,how_good\nred knife,a red knife,3\n", encoding="utf-8")
    with pytest.raises(SchemaError, match="--columns query=query,title=title,grade=COLUMN"):
        init.write(str(table), tmp_path / "own.toml")


@pytest.mark.parametrize("name", ["ratings.csv", "ratings.jsonl"])
def test_one_star_is_irrelevant(name: str, tmp_path: Path) -> None:
    table = tmp_path / name
    rated = [(f"red knife {number % 2}", f"a knife number {number}", 1 + number % 5) for number in range(20)]
    if name.endswith(".csv"):
        lines = ["query,title,stars", *(",".join(map(str, row)) for row in rated)]
    else:
        rows = [{"query": query, "title": title, "review": {"stars": stars}} for query, title, stars in rated]
        lines = list(map(json.dumps, rows))
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    columns = {} if name.endswith(".csv") else {"query": "query", "title": "title", "grade": "review.stars"}
    seen, _ = init.write(str(table), tmp_path / "own.toml", columns)
    recipe = recipes.load(tmp_path / "own.toml", [])
    assert recipe.data.sources[0].grade_scale == (1, 5, 4)
    assert seen.irrelevant == pytest.approx(0.2)
    assert recipe.candidates.pool == "judged"


def test_the_grades_of_labels_stay_as_they_were_given(tmp_path: Path) -> None:
    """A column called rating once got a scale beside its labels, by which nothing was read."""
    table = _rated(tmp_path / "ratings.csv", ("bad", "good"), head="query,title,rating")
    _, text = init.write(str(table), tmp_path / "own.toml", labels={"bad": 1, "good": 3})
    assert "grade_scale" not in text
    (source,) = recipes.load(tmp_path / "own.toml", []).data.sources
    assert set(readers.read(source, tmp_path).judgments["grade"].to_pylist()) == {1, 3}
    with pytest.raises(ConfigError, match="labels give the grades themselves; take grade_scale out"):
        readers.read(replace(source, grade_scale=(1, 3, 2)), tmp_path)


def test_a_scale_that_no_column_is_read_by_is_refused(tmp_path: Path) -> None:
    write_tiny_world(tmp_path / "tiny")
    with pytest.raises(ConfigError, match="tiny: grade_scale belongs to a table whose columns map grade or clicked"):
        readers.read(SourceConfig(path=str(tmp_path / "tiny"), grade_scale=(0, 4, 2)), Path())
    table = _rated(tmp_path / "ratings.csv", ("0", "4"))
    with pytest.raises(ConfigError, match="grade_scale belongs to a table"):
        readers.read(SourceConfig(path=str(table), columns={"title": "title"}, grade_scale=(0, 4, 2)), Path())


def test_judgments_none_of_which_can_be_used_are_refused_however_few_they_are(tmp_path: Path) -> None:
    write_tiny_world(tmp_path / "tiny")
    judgments = pd.read_parquet(tmp_path / "tiny" / "judgments.parquet").head(3)
    judgments.assign(doc_id="of another shop").to_parquet(tmp_path / "tiny" / "judgments.parquet", index=False)
    with pytest.raises(SchemaError, match="3 rows cannot be used"):
        init.write(str(tmp_path / "tiny"), tmp_path / "own.toml")


@pytest.mark.parametrize("name", ["grade", "stars"])
@pytest.mark.parametrize(("grades", "scale"), [(("1.33", "2.67", "3"), (1, 3, 6)), (("1.7", "2", "4.5"), (1, 5, 10))])
def test_a_recipe_states_the_scale_that_was_chosen_for_fractional_grades(
    tmp_path: Path, name: str, grades: tuple[str, ...], scale: tuple[int, ...]
) -> None:
    """Rows that are added later change no grade of the earlier ones."""
    table = _rated(tmp_path / "ratings.csv", grades, head=f"query,title,{name}")
    seen, text = init.write(str(table), tmp_path / "own.toml")
    (source,) = recipes.load(tmp_path / "own.toml", []).data.sources
    assert source.grade_scale == scale
    assert f"# Grades from {scale[0]} to {scale[1]} become whole ones from 0 to {scale[2]}, halves rounded up" in text
    first = readers.read(source, tmp_path).judgments
    assert seen.irrelevant == first["grade"].to_pylist().count(0) / first.num_rows
    with table.open("a", encoding="utf-8") as file:
        file.write("another knife,a knife,0.5\n")
    later = readers.read(source, tmp_path)
    assert later.judgments.slice(0, first.num_rows).equals(first)
    assert [fault.reason for fault in later.faults] == [
        f"grade '0.5' is outside {scale[0]} to {scale[1]} of grade_scale"
    ]


def test_a_click_log_is_judged_by_its_clicks(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    rows = [
        f"knife {query},knife {(query + position + turn) % 4},{position},{int((query + turn + position) % 3 == 0)}"
        for query in range(6)
        for turn in range(40)
        for position in (1, 2, 3)
    ]
    log.write_text("\n".join(["query,title,position,clicked", *rows]) + "\n", encoding="utf-8")
    columns = {"query": "query", "title": "title", "position": "position", "clicked": "clicked"}
    init.write(str(log), tmp_path / "own.toml", columns)
    assert recipes.load(tmp_path / "own.toml", []).evaluation.clicks


def _clicks(path: Path, turns: int, queries: int = 60) -> Path:
    """A log in which each of three documents of a query is shown at each of three positions by turns."""
    rows = [
        f"knife {query},knife {query} {(position + turn) % 3},{position},{int((query + turn + position) % 4 == 0)}"
        for query in range(queries)
        for turn in range(turns)
        for position in (1, 2, 3)
    ]
    path.write_text("\n".join(["query,title,position,clicked", *rows]) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(("turns", "minimum"), [(40, None), (8, 5.0), (5, 3.0)])
def test_a_short_click_log_is_judged_from_less_evidence_and_the_recipe_says_so(
    tmp_path: Path, turns: int, minimum: float | None
) -> None:
    seen, text = init.write(str(_clicks(tmp_path / "log.csv", turns)), tmp_path / "own.toml")
    (source,) = recipes.load(tmp_path / "own.toml", []).data.sources
    assert seen.judged_queries == 60
    assert source.min_examined == (minimum or 10.0)
    assert ("A short log" in text) == (minimum is not None)


def test_a_short_click_log_is_checked_and_converted_by_the_same_evidence(tmp_path: Path) -> None:
    log = _clicks(tmp_path / "log.csv", turns=5)
    seen, _ = init.write(str(log), tmp_path / "own.toml")
    (named,) = sources.of_any_data(str(log))
    (report,) = check.examine([named], Path(), short_logs.read)
    assert (report.judgments, report.clicks[0]["min_examined"]) == (seen.judgments, 3.0)
    shown = io.StringIO()
    Console(file=shown, width=140).print(check_tables.render(report))
    assert re.search(r"examined impressions that a judged pair needs +3", shown.getvalue())
    out = convert.convert(log, "auto", tmp_path / "out", named.columns)
    assert readers.read(SourceConfig(path=str(out)), Path()).judgments.num_rows == seen.judgments
    (stated,) = check.examine(recipes.load(tmp_path / "own.toml", []).data.sources, Path())
    assert stated.judgments == seen.judgments
    with pytest.raises(SchemaError, match="no pair has 10 examined impressions"):
        check.examine([named], Path())


def test_a_click_log_without_evidence_is_answered_with_what_is_missing_and_what_to_do(tmp_path: Path) -> None:
    log = _clicks(tmp_path / "log.csv", turns=2)
    with pytest.raises(SchemaError, match=r"no pair has more than 2\.0; take a log about 2 times as long"):
        init.write(str(log), tmp_path / "own.toml")
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]
    few, _ = init.write(str(_clicks(tmp_path / "few.csv", turns=40, queries=5)), tmp_path / "few.toml")
    assert "take a longer log, as clicks judge only what was seen often, or judge 20 or more" in few.too_few


def _rated(path: Path, grades: tuple[str, ...], queries: int = 40, head: str = "query,title,grade") -> Path:
    rows = [
        f"knife {query},a knife number {number},{grades[(query + number) % len(grades)]}"
        for query in range(queries)
        for number in range(4)
    ]
    path.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    return path


def test_grades_as_words_need_the_option_that_the_message_names(tmp_path: Path) -> None:
    table = _rated(tmp_path / "ratings.csv", ("Exact", "Irrelevant"))
    with pytest.raises(SchemaError, match=r"--labels Exact=GRADE,Irrelevant=GRADE on the command line"):
        init.write(str(table), tmp_path / "own.toml")
    assert not (tmp_path / "own.toml").exists()
    init.write(str(table), tmp_path / "own.toml", labels=option_text.parse_labels("Exact=2, Irrelevant=0"))
    assert recipes.load(tmp_path / "own.toml", []).data.sources[0].labels == {"Exact": 2, "Irrelevant": 0}


def test_a_word_that_the_labels_leave_out_is_refused_with_its_rows_and_the_labels_that_fit(tmp_path: Path) -> None:
    table = _rated(tmp_path / "ratings.csv", ("Exact", "Exact", "Exact", "Exact", "Exact", "Partial", "Irrelevant"))
    rows = table.read_text(encoding="utf-8").count("Partial")
    with pytest.raises(SchemaError, match=f"'Partial' in {rows} rows.*--labels Exact=2,Irrelevant=0,Partial=GRADE on"):
        init.write(str(table), tmp_path / "own.toml", labels={"Exact": 2, "Irrelevant": 0})
    assert [path.name for path in tmp_path.iterdir()] == ["ratings.csv"]


def test_the_recipe_is_named_after_the_data_unless_its_file_has_a_name(tmp_path: Path) -> None:
    ratings, recipe = _rated(tmp_path / "ratings of 2026.csv", ("0", "1")), tmp_path / "recipe.toml"
    init.write(str(ratings), recipe)
    assert recipes.load(recipe, []).name == "ratings-of-2026"
    init.write(str(ratings), tmp_path / "own.toml")
    assert recipes.load(tmp_path / "own.toml", []).name == "own"


@pytest.mark.parametrize(
    ("grades", "reason"), [(("1", "2"), "only 0.0% of the judgments are"), (("0", "1"), "at most 4 documents")]
)
def test_the_reason_for_a_retrieved_pool_is_the_true_one(tmp_path: Path, grades: tuple[str, ...], reason: str) -> None:
    table = _rated(tmp_path / "ratings.csv", grades)
    if reason.startswith("only"):
        table.write_text(table.read_text() + "\n".join(f"knife {n},a fork {n},1" for n in range(40)) + "\n")
    _, text = init.write(str(table), tmp_path / "own.toml")
    assert 'pool = "retrieved" # ' in text
    assert reason in text


def test_a_strange_value_cannot_break_the_recipe(tmp_path: Path) -> None:
    table = _rated(tmp_path / "ratings.csv", ("0", "1"))
    table.write_text(table.read_text() + 'knife 1,"a\x00 fork",1\nknife 1,a fork,"1\n2"\n', encoding="utf-8")
    with pytest.raises(SchemaError, match="no grade is given for"):
        init.write(str(table), tmp_path / "own.toml")
    table.write_text(table.read_text().replace('"1\n2"', '"7\n7\n"').replace('"7\n7\n"', '"-"'), encoding="utf-8")
    seen, _ = init.write(str(table), tmp_path / "own.toml")
    assert seen.unusable == 3


@pytest.mark.parametrize("words", [("完全", "无关"), ("a, b", 'c "d"'), ("größer", "x=y"), ("1", "2.5 x")])
def test_words_of_any_script_and_their_labels_stand_in_the_recipe(tmp_path: Path, words: tuple[str, str]) -> None:
    ratings = tmp_path / "ratings.csv"
    with ratings.open("w", encoding="utf-8", newline="") as file:
        rows = [(f"knife {number}", f"a knife {item}", words[item % 2]) for number in range(30) for item in range(4)]
        csv.writer(file).writerows([("query", "title", "grade"), *rows])
    labels = dict(zip(words, (2, 0), strict=True))
    assert option_text.parse_labels(option_text.option(labels)) == labels
    init.write(str(ratings), tmp_path / "own.toml", labels=labels)
    source = recipes.load(tmp_path / "own.toml", []).data.sources[0]
    assert source.labels == labels
    written = option_text.written("labels", labels).partition("or labels = ")[2].partition(" in the recipe's")[0]
    assert tomllib.loads(f"labels = {written}")["labels"] == labels


@pytest.mark.parametrize("text", ["Exact", "Exact=", "=1", "Exact=x", "Exact=-1", "Exact=11", "Exact=1,Exact=2"])
def test_labels_that_are_not_word_and_grade_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--labels"):
        option_text.parse_labels(text)


def test_labels_without_a_column_of_grades_are_refused(tmp_path: Path) -> None:
    write_tiny_world(tmp_path / "tiny")
    with pytest.raises(ConfigError, match=r"tiny: labels belong to a table whose columns are mapped; .*--columns"):
        init.write(str(tmp_path / "tiny"), tmp_path / "own.toml", labels={"Exact": 1})


def test_too_few_queries_are_said_in_the_recipe(tmp_path: Path) -> None:
    first_draft, _ = init.write(str(_rated(tmp_path / "one.csv", ("0", "1"), queries=1)), tmp_path / "one.toml")
    assert "1 judged query is too few" in first_draft.too_few
    few, _ = init.write(str(_rated(tmp_path / "few.csv", ("0", "1"), queries=3)), tmp_path / "few.toml")
    assert "judge 20 or more" in few.too_few
    assert few.too_few in (tmp_path / "few.toml").read_text(encoding="utf-8")
    enough, _ = init.write(str(_rated(tmp_path / "enough.csv", ("0", "1"))), tmp_path / "enough.toml")
    assert not enough.too_few


def test_unusable_rows_are_left_out_where_they_are_few_and_refused_where_they_are_many(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    some = _rated(tmp_path / "some.csv", ("0", "1", "2", "1", "0", "1", "nan"))
    seen, text = init.write(str(some), tmp_path / "some.toml")
    assert seen.unusable > 0
    assert f"# {seen.unusable} rows cannot be used and are left out: judgments, line 17: grade 'nan' is not" in text
    assert f"the recipe leaves out {seen.unusable} rows: {seen.reasons}" in caplog.text
    assert f"; `relevance data check {tmp_path}/some.toml` lists them all" in caplog.text
    assert recipes.load(tmp_path / "some.toml", []).data.faulty_rows == "drop"
    with pytest.raises(SchemaError, match=r"80 rows cannot be used .*grade 'nan' is not a number") as refused:
        init.write(str(_rated(tmp_path / "many.csv", ("0", "nan"))), tmp_path / "many.toml")
    command = re.search("`relevance (data check .*)` lists them all", str(refused.value))
    assert command
    checked = CliRunner().invoke(app, shlex.split(command[1]))
    assert isinstance(checked.exception, InputError)
    assert checked.stdout.count("grade 'nan' is not a number") == 20
    assert not (tmp_path / "many.toml").exists()


def test_many_documents_do_not_hide_that_most_judgments_are_unusable(tmp_path: Path) -> None:
    judged = _rated(tmp_path / "rated.csv", ("0", "nan"))
    documents = tmp_path / "documents.csv"
    documents.write_text("title\n" + "\n".join(f"a spare document {row}" for row in range(2000)), encoding="utf-8")
    recipe = tmp_path / "own.toml"
    recipe.write_text(
        f'[data]\nsources = [{{ path = "{judged}", name = "own", columns = {{ query = "query", title = "title", '
        f'grade = "grade" }} }}, {{ path = "{documents}", name = "own", columns = {{ title = "title" }} }}]\n',
        encoding="utf-8",
    )
    with pytest.raises(SchemaError, match=r"80 rows cannot be used .*grade 'nan' is not a number"):
        init.write(str(recipe), tmp_path / "written.toml")


def test_pairs_that_nobody_graded_are_left_out_however_many(tmp_path: Path) -> None:
    """An export of ratings has a row for each result that was shown, most of them unrated."""
    seen, text = init.write(str(_rated(tmp_path / "some.csv", ("0", "", "", "2", "", ""))), tmp_path / "some.toml")
    assert seen.unusable > seen.judgments
    assert f"# {seen.unusable} rows cannot be used and are left out: judgments, line 3: the grade is empty" in text
    assert recipes.load(tmp_path / "some.toml", []).data.faulty_rows == "drop"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("query,title,grade\nknife,a knife,1\n".encode("utf-16"), "is written in UTF-16"),
        ("query,title,grade\nknife,a knife,1\n".encode("utf-16-le"), "is written in UTF-16LE"),
        ("query,title,grade\nknife,a knife,1\n".encode("utf-32"), "is written in UTF-32"),
        ("query,title,grade\nmesser,größe,1\n".encode("latin-1"), "0xf6 is not UTF-8"),
        (b"query^title^grade\nknife^a knife^1\n", r"if '\^' separates its columns"),
        (b"knife,a knife,1\nspoon,a spoon,0\n", "Its first line must name the columns"),
        (b"query,title,grade\n", "has no rows"),
        (b"query\nknife\n", "--columns query=query,title=COLUMN,grade=COLUMN"),
        (b"title,grade\na knife,1\n", "--columns title=title,grade=grade,query=COLUMN"),
        (b"query,title,position,clicked\n" + b"knife,a knife,1,1\n" * 20, "all impressions are at position 1"),
        (b"", "is empty"),
        (
            gzip.compress(b"query,title,grade\nknife,a knife,1\n", mtime=0),
            r"a file of gzip, not a text file; unpack it with `gzip -dc /\S*/ratings.csv > /\S*/unpacked-ratings.csv`",
        ),
        (bz2.compress(b"query,title,grade\nknife,a knife,1\n"), "a file of bzip2"),
        (b"PK\x03\x04\x14\x00", "a file of zip, or of a spreadsheet"),
        (b"PAR1\x15\x04\r", "a file of Parquet"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 12\n", "`git lfs pull`"),
    ],
)
def test_bad_tables_are_answered_with_one_message_and_nothing_half_made(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "ratings.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        init.write(str(tmp_path / "ratings.csv"), tmp_path / "own.toml")
    assert [path.name for path in tmp_path.iterdir()] == ["ratings.csv"]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"query,title,grade\n", b"PAR1" + b"x" * 60 + b"PAR1"])
def test_what_is_called_parquet_and_is_not_is_one_message(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ratings.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"ratings\.parquet"):
        init.write(str(tmp_path / "ratings.parquet"), tmp_path / "own.toml")
    assert not (tmp_path / "own.toml").exists()


def test_a_circle_of_links_is_a_path_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").symlink_to("ratings.csv")
    with pytest.raises(InputError, match=r"ratings\.csv"):
        init.write(str(tmp_path / "ratings.csv"), tmp_path / "own.toml")


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_other_separators_are_found(tmp_path: Path, separator: str) -> None:
    table = _rated(tmp_path / "ratings.csv", ("0", "1"))
    table.write_text(table.read_text(encoding="utf-8").replace(",", separator), encoding="utf-8")
    seen, _ = init.write(str(table), tmp_path / "own.toml")
    assert seen.judgments == 160


def test_a_map_of_some_columns_is_completed_by_the_usual_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ratings = tmp_path / "ratings.csv"
    rows = [f"knife {number},a knife,a blade,sharp,{number % 3}" for number in range(30)]
    ratings.write_text("\n".join(["asked,title,description,notes,grade", *rows]) + "\n", encoding="utf-8")
    with caplog.at_level("INFO"):
        seen, _ = init.write(str(ratings), tmp_path / "own.toml", {"query": "asked", "text": "notes"})
    assert seen.sources[0]["columns"] == {"query": "asked", "text": "notes", "title": "title", "grade": "grade"}
    assert "columns read as query=asked,text=notes,title=title,grade=grade; --columns names others" in caplog.text


def test_a_database_without_a_key_is_mapped_by_the_names_of_its_columns(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("create table rated (search text, name text, relevance integer)")
        connection.execute("create table documents (title text, text text)")
        rows = [(f"knife {query}", f"a knife {number}", number % 3) for query in range(30) for number in range(4)]
        connection.execute("insert into documents values ('knife', 'a knife')")
        connection.executemany("insert into rated values (?, ?, ?)", rows)
    seen, _ = init.write(f"sqlite:///{tmp_path}/shop.db?table=rated", tmp_path / "own.toml")
    assert seen.sources[0]["columns"] == {"query": "search", "title": "name", "grade": "relevance"}
    assert recipes.load(tmp_path / "own.toml", []).data.sources[0].columns == seen.sources[0]["columns"]
    with pytest.raises(SchemaError, match=r"columns, each with its first value: title \(knife\), text"):
        init.write(f"sqlite:///{tmp_path}/shop.db", tmp_path / "other.toml")


def test_a_recipe_and_its_text_hold_no_password(tmp_path: Path) -> None:
    rated, out = _rated(tmp_path / "ratings.csv", ("0", "1")), tmp_path / "own.toml"
    seen = replace(data_look.look(str(rated)), sources=({"path": "postgresql://shop:hunter2@db/shop?table=rated"},))
    text = init_recipe.recipe(seen, "own")
    assert "hunter2" not in text
    out.write_text(text, encoding="utf-8")
    assert recipes.load(out, []).data.sources[0].path == "postgresql://shop:${DATABASE_PASSWORD}@db/shop?table=rated"


def test_a_recipe_keeps_the_variable_of_a_password(tmp_path: Path) -> None:
    rated = _rated(tmp_path / "ratings.csv", ("0", "1"))
    address = "postgresql://shop:${SHOP_PASSWORD}@db/shop?table=rated"
    text = init_recipe.recipe(replace(data_look.look(str(rated)), sources=({"path": address},)), "own")
    assert address in text
    assert "DATABASE_PASSWORD" not in text


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("postgresql+psycopg://user:hunter2@host", "own-data"),
        ("postgresql+psycopg://user:hunter2@host/shop", "shop"),
        ("postgresql://user:${SHOP_PASSWORD}@host/shop", "shop"),
        ("postgresql://user:hunter2@host/shop?sslpassword=hunter2", "shop"),
        ("sqlite:////data/shop.db", "shop"),
        ("sqlite:///shop.db?table=two%20words", "two-words"),
        ("mysql://user:hunter2@host/shop?sslpassword=hunter2&table=rated", "rated"),
        ("s3://bucket/folder/ratings.csv", "ratings"),
        ("s3://hunter2:hunter2@bucket", "bucket"),
        ("/data/shop?/ratings.2.csv", "ratings.2"),
        ("/data/ratings-*.csv", "ratings"),
        ("/data/\U0001f600.csv", "own-data"),
    ],
)
def test_a_recipe_is_named_after_its_data_and_no_secret(path: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_PASSWORD", "hunter2")
    assert init._name(path) == name


@pytest.mark.parametrize(
    ("grades", "message"),
    [
        (["0", "0"], "all of its 60 judgments have grade 0, so nothing is relevant to a query; look at the column"),
        (["0.0001", "0.0005"], r"at grade_scale: they were read by \[0, 1, 3\], and a recipe's source may have one"),
    ],
)
def test_data_in_which_nothing_is_relevant_is_refused(tmp_path: Path, grades: list[str], message: str) -> None:
    """Its recipe passed every check, and a training of minutes ended with figures that were all zero."""
    rows = [f"knife {number},a knife {number},{grades[number % 2]}" for number in range(60)]
    (tmp_path / "ratings.csv").write_text("\n".join(["query,title,grade", *rows]), encoding="utf-8")
    with pytest.raises(SchemaError, match=message):
        init.write(str(tmp_path / "ratings.csv"), tmp_path / "own.toml")
    assert not (tmp_path / "own.toml").exists()
