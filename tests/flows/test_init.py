"""`relevance init` writes recipes that fit the data and that the next command takes."""

from pathlib import Path

import pandas as pd
import pytest

from flows import init
from pipeline import recipe as recipes
from pipeline.errors import ConfigError, SchemaError
from tests.flows.world import write_tiny_world

TEXTS = {
    "english": "a knife for the kitchen",
    "cjk": "厨房用的刀",
    "other": "нож для кухни",
}


@pytest.mark.parametrize("expected", TEXTS)
def test_the_language_is_told_by_the_letters(expected: str) -> None:
    assert init.language(pd.Series([TEXTS[expected]] * 3 + ["", "123"])) == expected


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
    assert seen.source["columns"] == {"query": "search_term", "title": "product_title", "grade": "relevance"}
    assert recipes.load(tmp_path / "own.toml", []).data.sources[0].columns == seen.source["columns"]
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
    with pytest.raises((SchemaError, ConfigError), match="judgments"):
        init.write(str(tmp_path / "tiny" / "documents.parquet"), tmp_path / "own.toml")


def test_a_table_without_a_known_name_for_grades_is_answered_with_the_option_to_give(tmp_path: Path) -> None:
    table = tmp_path / "ratings.csv"
    table.write_text("query,title,how_good\nred knife,a red knife,3\n", encoding="utf-8")
    with pytest.raises(SchemaError, match="--columns query=query,title=title,grade=COLUMN"):
        init.write(str(table), tmp_path / "own.toml")


def test_one_star_is_irrelevant(tmp_path: Path) -> None:
    table = tmp_path / "ratings.csv"
    rows = [f"red knife {number % 2},a knife number {number},{1 + number % 5}" for number in range(20)]
    table.write_text("\n".join(["query,title,stars", *rows]) + "\n", encoding="utf-8")
    seen, _ = init.write(str(table), tmp_path / "own.toml")
    recipe = recipes.load(tmp_path / "own.toml", [])
    assert recipe.data.sources[0].grade_scale == (1, 5, 4)
    assert seen.irrelevant == pytest.approx(0.2)
    assert recipe.candidates.pool == "judged"


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
