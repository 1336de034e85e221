"""Judgments and documents may lie apart: in a recipe, in a database, or in the release that is judged."""

import shutil
import sqlite3
from pathlib import Path

import pandas as pd
import pytest

from flows import reindex as reindexing
from flows import report as reporting
from flows import sources
from pipeline.artifacts import Artifact
from pipeline.config import ComputeConfig, SourceConfig
from pipeline.data import convert
from pipeline.data.checks import check
from pipeline.data.formats import sql_address
from pipeline.errors import ConfigError, SchemaError
from pipeline.releases import Releases
from tests.flows.conftest import Trained


def _values(report: Artifact) -> pd.DataFrame:
    return pd.read_parquet(report.file("per_query.parquet")).drop(columns="slice")


@pytest.fixture
def apart(copied: Trained, tmp_path: Path) -> Path:
    """A recipe whose documents are in a database and whose judgments are in a folder."""
    folder = tmp_path / "apart"
    (folder / "judged").mkdir(parents=True)
    tiny = copied.world / "tiny"
    for name in ("queries", "judgments"):
        (folder / "judged" / f"{name}.parquet").write_bytes((tiny / f"{name}.parquet").read_bytes())
    with sqlite3.connect(folder / "shop.db") as connection:
        pd.read_parquet(tiny / "documents.parquet").to_sql("articles", connection, index=False)
    lines = [
        "[data]",
        f'root = "{folder}"',
        'sources = [{ path = "sqlite:///shop.db?table=articles", name = "tiny" }, { path = "judged", name = "tiny" }]',
    ]
    (folder / "own.toml").write_text("\n".join(lines), encoding="utf-8")
    return folder


def test_judgments_alone_are_judged_with_the_documents_of_the_release(copied: Trained, apart: Path) -> None:
    tiny = copied.world / "tiny"
    whole_folder = reporting.report(SourceConfig(path=str(tiny)), copied.workspace)
    alone = reporting.report(SourceConfig(path=str(apart / "judged")), copied.workspace)
    pd.testing.assert_frame_equal(_values(whole_folder), _values(alone))
    # A database gives its rows in the order of their ids, which decides ties.
    documents = pd.read_parquet(tiny / "documents.parquet").sort_values("doc_id")
    shutil.copytree(apart / "judged", apart / "tiny")
    documents.to_parquet(apart / "tiny" / "documents.parquet", index=False)
    whole_folder = reporting.report(SourceConfig(path=str(apart / "tiny")), copied.workspace)
    recipe = reporting.report(sources.named(str(apart / "own.toml")), copied.workspace)
    pd.testing.assert_frame_equal(_values(whole_folder), _values(recipe))


def test_judgments_of_other_documents_are_refused(copied: Trained, apart: Path) -> None:
    file = apart / "judged" / "judgments.parquet"
    frame = pd.read_parquet(file)
    frame.assign(doc_id="x" + frame["doc_id"]).to_parquet(file, index=False)
    with pytest.raises(SchemaError, match=r"has none of theirs; they name 'xd\d+', the release has ids such as 'd0'"):
        reporting.report(SourceConfig(path=str(apart / "judged")), copied.workspace)


def test_a_recipe_names_the_documents_of_a_reindex(copied: Trained, apart: Path) -> None:
    with sqlite3.connect(apart / "shop.db") as connection:
        connection.execute("update articles set text = 'a samovar' where doc_id = 'd3'")
    figures = reindexing.reindex([str(apart / "own.toml")], copied.workspace)
    assert (figures["live"], figures["documents"], figures["embedded"]) == (True, 150, 1)
    pointer = Releases(copied.workspace).live()
    assert pointer is not None
    assert "shop.db" in pointer.reason


def test_two_folders_of_one_name_are_not_mixed(copied: Trained, tmp_path: Path) -> None:
    folders = [tmp_path / side / "tiny" for side in "ab"]
    for folder in folders:
        folder.parent.mkdir()
        folder.symlink_to(copied.world / "tiny")
    with pytest.raises(SchemaError, match="two have one name"):
        reindexing.reindex([str(folder) for folder in folders], copied.workspace)


def test_the_sources_of_a_recipe_are_checked_together(apart: Path) -> None:
    checks = check.examine(sources.named(str(apart / "own.toml")), Path())
    assert [(report.documents, len(report.faults)) for report in checks] == [(150, 0)]
    assert check.without_documents(checks) == ""
    alone = check.examine(sources.named(str(apart / "judged")), Path())
    assert len(alone[0].faults) == alone[0].judgments
    assert "relevance data check RECIPE" in check.without_documents(alone)


def test_judgments_alone_are_checked_and_converted_as_what_can_judge(
    copied: Trained, apart: Path, tmp_path: Path
) -> None:
    (judged,) = check.examine(sources.named(str(apart / "judged")), Path(), to_train=False)
    (complete,) = check.examine(sources.named(str(copied.world / "tiny")), Path())
    assert judged.faults == ()
    assert (judged.grades, judged.judged_queries) == (complete.grades, complete.judged_queries)
    assert check.without_documents([judged])
    convert.convert(apart / "judged", "auto", tmp_path / "tiny")
    converted = reporting.report(SourceConfig(path=str(tmp_path / "tiny")), copied.workspace)
    as_it_was = reporting.report(SourceConfig(path=str(apart / "judged")), copied.workspace)
    pd.testing.assert_frame_equal(_values(converted), _values(as_it_was))


@pytest.mark.parametrize("unusual", [("",), ("", "?")])
def test_a_report_leaves_out_pairs_that_nobody_graded_and_no_other_faulty_row(
    copied: Trained, apart: Path, unusual: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """An export of ratings has a row for each result that was shown, most of them unrated."""
    frame = pd.read_parquet(apart / "judged" / "judgments.parquet")
    texts = pd.read_parquet(apart / "judged" / "queries.parquet").set_index("query_id")["text"]
    rows = frame.assign(query=frame["query_id"].map(texts))[["query_id", "query", "doc_id", "grade"]]
    unrated = pd.concat([rows.head(1).assign(doc_id="d149", grade=grade) for grade in unusual])
    reports = []
    for name, table in {"rated": rows, "some": pd.concat([rows.astype(object), unrated])}.items():
        table.to_csv(apart / f"{name}.csv", index=False)
        (source,) = sources.of_judgments(str(apart / f"{name}.csv"))
        if name == "some" and len(unusual) > 1:
            with pytest.raises(SchemaError, match=r"1 row cannot be used \(judgments, some.csv, line \d+: grade '\?'"):
                reporting.report(source, copied.workspace)
            return
        reports.append(reporting.report(source, copied.workspace))
    assert f"left out: judgments, some.csv, line {len(rows) + 2}: the grade is empty" in caplog.text
    pd.testing.assert_frame_equal(*map(_values, reports))


def test_a_scheduled_reindex_reads_the_database_of_its_recipe(apart: Path) -> None:
    from flows import schedules
    from pipeline import recipe as recipes

    recipe = apart / "own.toml"
    settings = recipes.load(recipe)
    parameters = schedules._parameters(recipe, [], apart / "workspace", settings, judgments="", documents=[])
    assert parameters["reindex"]["documents"] == [str(recipe)]
    chosen = sources.named(str(recipe), overrides=parameters["reindex"]["overrides"])
    assert [Path(source.path.removeprefix("sqlite:///")).name for source in chosen] == [
        "shop.db?table=articles",
        "judged",
    ]


def test_a_password_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SHOP_PASSWORD", "p@ss/wörd?%")
    address, _ = sql_address.locate("postgresql://shop:${SHOP_PASSWORD}@db/shop?table=articles", tmp_path)
    assert (address.password, address.host, address.database) == ("p@ss/wörd?%", "db", "shop")
    with pytest.raises(ConfigError, match="the environment variable NOT_SET_HERE is not set"):
        sql_address.locate("postgresql://shop:${NOT_SET_HERE}@db/shop", tmp_path)
    with pytest.raises(ConfigError, match="its password was hidden when this address was written down"):
        sql_address.locate("postgresql://shop:***@db/shop", tmp_path)


def test_the_compute_section_is_that_of_the_recipe_or_of_overrides(tmp_path: Path) -> None:
    recipe = tmp_path / "cluster.toml"
    recipe.write_text('[compute]\nengine = "ray"\nworkers = 3\n', encoding="utf-8")
    assert sources.compute_of(["documents.csv"]) == ComputeConfig()
    assert sources.compute_of(["documents.csv"], ["compute.engine=ray"]) == ComputeConfig(engine="ray")
    assert sources.compute_of([str(recipe)]) == ComputeConfig(engine="ray", workers=3)
    assert sources.compute_of([str(recipe)], ["compute.workers=1"]).workers == 1
    with pytest.raises(ConfigError, match="only the section compute can be set"):
        sources.compute_of(["documents.csv"], ["ranker.layers=2"])
    other = tmp_path / "local.toml"
    other.write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="the recipes differ in their section compute"):
        sources.compute_of([str(recipe), str(other)])
