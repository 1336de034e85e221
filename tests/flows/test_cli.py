"""The command as a person meets it: answers, messages, exit codes; never a traceback."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from index.document_store import DocumentStore
from pipeline import release_parts
from tests import commands
from tests.flows.conftest import Trained


def _run(
    *arguments: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs the command: in a new interpreter where `env` gives variables, as libraries read some as they start."""
    if env is None:
        return commands.run(*arguments, cwd=cwd)
    command = [sys.executable, "-m", "flows.cli", *map(str, arguments)]
    root = Path(__file__).parents[2]
    settings = {**os.environ, "PYTHONPATH": str(root), **env}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=settings, check=False, timeout=120)


def _refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_search_and_rerank(trained: Trained, tmp_path: Path) -> None:
    done = _run("search", "knife", "--workspace", trained.workspace, "--json", "--top", "3")
    results = json.loads(done.stdout)
    assert [len(results[name]) for name in ("lexical", "semantic", "reranked")] == [3, 3, 3]
    assert "knife" in results["lexical"][0]["title"]
    texts = tmp_path / "texts.txt"
    texts.write_text("blue lawn\n\nred knife\n", encoding="utf-8")
    done = _run("rerank", "red knife", texts, "--workspace", trained.workspace, "--json")
    results = json.loads(done.stdout)
    assert sorted(item["line"] for item in results["results"]) == [1, 3]
    assert results["release"] == trained.outcome.release.fingerprint
    rendered = _run("search", "red [bold]knife", "--workspace", trained.workspace)
    assert "red [bold]knife" in rendered.stdout
    shown = [float(line.split("│")[-3]) for line in rendered.stdout.splitlines() if re.match(r"│ +\d+ │", line)]
    assert len(shown) == 10
    assert shown == sorted(shown, reverse=True), "the table shows the score that orders it"


def test_rerank_reads_json_lines_and_names_the_line_it_cannot_use(trained: Trained, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"title": "a", "text": "b"}\n{"body": "c"}\n', encoding="utf-8")
    _refused(_run("rerank", "q", texts, "--workspace", trained.workspace), 2, "line 2", "text")
    texts.write_text('{"text": "b", "score": 1}\n{"text": "c"}\n', encoding="utf-8")
    _refused(_run("rerank", "q", texts, "--workspace", trained.workspace), 2, "line 2", "BM25 score is a number")
    texts.write_text('{"text": "b", "score": -1}\n', encoding="utf-8")
    _refused(_run("rerank", "q", texts, "--workspace", trained.workspace), 2, "line 1", "score is -1")
    _refused(_run("rerank", "q", tmp_path / "none", "--workspace", trained.workspace), 2, "no such file")


def test_rerank_with_bm25_scores_has_the_order_of_a_search(trained: Trained, tmp_path: Path) -> None:
    where = ("--workspace", trained.workspace, "--json")
    search_results = json.loads(_run("search", "red knife", *where, "--top", "1000").stdout)
    bm25 = {hit["doc_id"]: hit["score"] for hit in search_results["lexical"]}
    assert search_results["candidates"] == len(
        search_results["reranked"]
    )  # The whole pool, as features are relative to it.
    store = DocumentStore.load(release_parts.part(trained.outcome.release, "documents").path)
    hits = sorted(search_results["reranked"], key=lambda hit: hit["doc_id"])
    lines = []
    for hit in hits:
        document = store.get(store.row_of(hit["doc_id"]))
        score = bm25.get(hit["doc_id"], 0.0)
        lines.append(json.dumps({"title": document.title, "text": document.text, "score": score}))
    texts = tmp_path / "texts.jsonl"
    texts.write_text("\n".join(lines), encoding="utf-8")
    results = json.loads(_run("rerank", "red knife", texts, *where).stdout)["results"]
    fused = {hit["doc_id"]: hit["score"] for hit in hits}
    given = [fused[hits[result["line"] - 1]["doc_id"]] for result in results]
    assert [result["score"] for result in results] == pytest.approx(given, abs=1e-4)


def test_data_in_place_of_a_recipe_is_answered_with_init(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text("query,title,grade\n", encoding="utf-8")
    for name in ("ratings.csv", ".", "sqlite:///shop.db"):
        _refused(_run("retrain", name, cwd=tmp_path), 2, f"`relevance init {name}` writes a recipe")


def test_an_argument_that_is_not_utf_8_is_one_message(tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"r\xe9.csv")
    file.write_text("query,title,grade\nknife,a knife,1\n", encoding="utf-8")
    _refused(_run("init", file, "--out", tmp_path / "own.toml"), 2, "is not UTF-8; rename the file")
    assert not (tmp_path / "own.toml").exists()


def test_an_output_that_is_not_utf_8_gets_every_answer(trained: Trained) -> None:
    search, ascii_only = ("search", "knife", "--workspace", trained.workspace), {"PYTHONIOENCODING": "ascii"}
    table = _run(*search, env=ascii_only)
    assert (table.returncode, "knife" in table.stdout) == (0, True), table.stderr
    schema, escaped = (_run("recipe", "schema", env=env) for env in ({"PYTHONIOENCODING": "utf-8"}, ascii_only))
    assert not schema.stdout.isascii()
    assert json.loads(escaped.stdout) == json.loads(schema.stdout)


@pytest.mark.parametrize("closed", [">&-", "<&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_no_fault(trained: Trained, closed: str) -> None:
    command = f"'{sys.executable}' -m flows.cli releases list --workspace '{trained.workspace}' {closed}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert (trained.outcome.release.fingerprint[:12] in done.stdout) == (">" not in closed.replace("2>", ""))


@pytest.mark.parametrize("variables", [{"WORLD_SIZE": "x"}, {"WORLD_SIZE": "2"}, {"WORLD_SIZE": "2", "RANK": "one"}])
def test_variables_of_torchrun_without_torchrun_are_one_message(variables: dict[str, str]) -> None:
    _refused(_run("stages", env=variables), 2, "in the environment", "unset WORLD_SIZE")


def test_a_current_folder_that_was_removed_is_one_message(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    command = f"rmdir '{folder}' && '{sys.executable}' -m flows.cli stages"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        ["sh", "-c", command], cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=120
    )
    _refused(done, 2, "the current folder was removed")


def test_releases_list_show_promote_rollback(copied: Trained) -> None:
    release = copied.outcome.release.fingerprint
    where = ("--workspace", copied.workspace)
    assert json.loads(_run("releases", "list", "--json", *where).stdout)["live"] == release
    assert json.loads(_run("releases", "show", release[:6], "--json", *where).stdout)["release"] == release
    assert "live" in _run("releases", "list", *where).stdout
    assert "bundle.json" in _run("releases", "show", *where).stdout
    _refused(_run("releases", "rollback", *where), 2, "no earlier release")
    _refused(_run("releases", "promote", "zzz", *where), 2, "no release called 'zzz'")
    assert _run("releases", "promote", release[:8], *where).returncode == 0


def test_no_release_yet(tmp_path: Path) -> None:
    for arguments in (["search", "x"], ["serve", "--port", "0"], ["releases", "show"], ["reindex", "--documents", "x"]):
        _refused(_run(*arguments, "--workspace", tmp_path), 2, "there is no live release", "relevance retrain")


def test_workspace_from_the_environment(trained: Trained) -> None:
    done = _run("releases", "list", "--json", env={"RELEVANCE_WORKSPACE": str(trained.workspace)})
    assert json.loads(done.stdout)["live"] == trained.outcome.release.fingerprint


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["retrain", "nope"], ["nope: no such recipe", "demo"]),
        (["retrain", "demo", "--set", "ranker.layer=3"], ["unknown key ranker.layer", "ranker.layers"]),
        (["retrain", "demo", "--set", "ranker.layers=x"], ["ranker.layers is 'x'", "whole number"]),
        (["retrain", "homedepot", "--set", "data.root=/nonexistent"], ["/nonexistent"]),
        (["data", "check", "/nonexistent"], ["/nonexistent"]),
        (["report", "--judgments", "/nonexistent"], ["no live release"]),
        (["report", "--judgments", "a", "--run", "b", "--release", "c"], ["--release", "--baseline"]),
        (["export", "--model", "a", "--release", "b"], ["--release", "--model", "give one"]),
        (["quickstart", "tests", "--no-serve", "--port", "1"], ["--no-serve", "--port", "leave them out"]),
    ],
)
def test_bad_usage_is_told_in_one_message(tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    where = [] if arguments[0] == "data" else ["--workspace", str(tmp_path)]
    _refused(_run(*arguments, *where), 2, *words)


def test_a_file_in_place_of_the_workspace_is_told(tmp_path: Path) -> None:
    file = tmp_path / "docs.jsonl"
    file.write_text('{"text": "a knife"}\n')
    _refused(_run("quickstart", file, "--workspace", file), 2, "--workspace", "is a file")


def test_unknown_base_model_without_a_network(trained: Trained, tmp_path: Path) -> None:
    done = _run(
        "retrain",
        trained.world / "tiny.toml",
        "--workspace",
        tmp_path,
        "--set",
        f"data.root={trained.world}",
        "--set",
        "teacher.base=nobody/no-such-model",
        env={"HF_HUB_OFFLINE": "1"},
    )
    _refused(done, 2, "nobody/no-such-model")


def test_port_in_use(trained: Trained) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        _refused(_run("serve", "--workspace", trained.workspace, "--port", port), 2, str(port))


def test_data_check_names_row_and_reason(trained: Trained, tmp_path: Path) -> None:
    good = _run("data", "check", trained.world / "tiny", "--json")
    assert good.returncode == 0
    assert json.loads(good.stdout)
    bad = tmp_path / "bad"
    bad.mkdir()
    for name in ("documents", "queries", "judgments"):
        frame = pd.read_parquet(trained.world / "tiny" / f"{name}.parquet")
        if name == "judgments":
            frame.loc[4, "grade"] = 77
        frame.to_parquet(bad / f"{name}.parquet", index=False)
    done = _run("data", "check", bad)
    assert re.search(r"judgments +row 5 +grade 77 is outside", done.stdout)
    _refused(done, 2)
    _refused(
        _run(
            "retrain",
            trained.world / "tiny.toml",
            "--workspace",
            tmp_path,
            "--set",
            f"data.root={tmp_path}",
            "--set",
            'data.sources=[{path="bad"}]',
        ),
        2,
        "row 5",
        "77",
    )


def test_convert_and_split(trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "converted"
    assert _run("data", "convert", trained.world / "tiny", out).returncode == 0
    assert _run("data", "split", out, tmp_path / "split", "--test", "0.5").returncode == 0
    splits = pd.read_parquet(tmp_path / "split" / "judgments.parquet")["split"]
    assert set(splits) == {"train", "valid", "test"}
    _refused(_run("data", "convert", trained.world / "tiny", out), 2, str(out))


def test_report_and_reindex_commands(copied: Trained, tmp_path: Path) -> None:
    where = ("--workspace", copied.workspace)
    done = _run("report", "--judgments", copied.world / "tiny", "--out", tmp_path / "out", *where)
    assert done.returncode == 0, done.stderr
    assert "fused" in done.stdout
    assert (tmp_path / "out" / "report.json").is_file()
    done = _run("reindex", "--documents", copied.world / "tiny", "--json", *where)
    assert json.loads(done.stdout)["embedded"] == 0


def test_report_compares_two_run_files_query_by_query(trained: Trained, tmp_path: Path) -> None:
    judgments = pd.read_parquet(trained.world / "tiny" / "judgments.parquet")
    good = judgments.assign(score=judgments["grade"].astype(float), system="good")
    flat = judgments.assign(score=0.0, system="flat")
    pd.concat([good, flat]).to_parquet(tmp_path / "runs.parquet", index=False)
    (tmp_path / "other").mkdir()
    good.to_parquet(tmp_path / "other" / "runs.parquet", index=False)
    where = ("--judgments", trained.world / "tiny", "--workspace", tmp_path / "workspace", "--json")
    runs = tmp_path / "runs.parquet"
    report = json.loads(_run("report", "--run", f"{runs}:good", "--baseline-run", f"{runs}:flat", *where).stdout)
    assert (report["baseline"], report["subject"]) == ("flat", "good")
    gap = report["systems"]["good"]["difference"]["ndcg@10"]
    means = [report["systems"][name]["measures"]["ndcg@10"]["mean"] for name in ("good", "flat")]
    assert gap["mean"] == pytest.approx(means[0] - means[1])
    assert (gap["losses"], gap["queries"]) == (0, judgments["query_id"].nunique())
    same_names = (f"{tmp_path / 'other' / 'runs.parquet'}", f"{runs}:flat")
    report = json.loads(_run("report", "--run", same_names[0], "--baseline-run", same_names[1], *where).stdout)
    assert list(report["systems"]) == ["flat", "runs"]
    _refused(_run("report", "--run", runs, "--baseline-run", same_names[1], *where), 2, "FILE:SYSTEM")
    _refused(_run("report", "--baseline-run", same_names[1], *where), 2, "--baseline-run")


def test_gate_that_says_no_exits_3(copied: Trained) -> None:
    """No margin for noise: models that are not surely better do not replace the live ones."""
    done = _run(
        "retrain",
        copied.world / "tiny.toml",
        "--workspace",
        copied.workspace,
        "--set",
        f"data.root={copied.world}",
        "--set",
        "gate.margin=0",
        "--set",
        "evaluation.examples=4",
    )
    _refused(done, 3, "the gate said no")
    assert (
        json.loads(_run("releases", "list", "--json", "--workspace", copied.workspace).stdout)["live"]
        == copied.outcome.release.fingerprint
    )


@pytest.mark.parametrize(
    "command",
    [
        ("search", "knife"),
        ("rerank", "knife", "texts.txt"),
        ("releases", "list"),
        ("releases", "show"),
        ("releases", "promote", "abc"),
        ("releases", "rollback"),
        ("releases", "gc", "--keep", "1"),
        ("report", "--judgments", "x"),
        ("reindex", "--documents", "x"),
        ("export",),
        ("serve",),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_a_workspace_that_is_not_there_is_named_with_the_nearest(command: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "workspace" / "releases").mkdir(parents=True)
    done = _run(*command, "--workspace", "workspce", cwd=tmp_path)
    _refused(done, 2, "workspce: there is no such workspace; did you mean workspace?")
    assert not (tmp_path / "workspce").exists()
    _refused(
        _run(*command, "--workspace", "other", cwd=tmp_path),
        2,
        "`relevance quickstart DOCUMENTS --workspace other` makes a release",
    )


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("serve", "--ranker", "broken"), "broken: "),
        (("quickstart", "documents.csv", "--no-serve", "--encoder", "missing/of/all"), "no such folder"),
        (("quickstart", "twice.csv", "--no-serve"), "twice.csv"),
        (("retrain", "own.toml", "--check"), "broken.csv"),
        (("report", "--run", "none.run", "--judgments", "broken.csv"), "broken.csv"),
    ],
    ids=lambda part: part[0] if isinstance(part, tuple) else "",
)
def test_a_command_that_fails_before_it_writes_leaves_no_workspace(
    command: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    (tmp_path / "documents.csv").write_text("title\nred knife\n")
    (tmp_path / "twice.csv").write_text("doc_id,title\n1,red knife\n1,blue knife\n")
    (tmp_path / "broken.csv").write_text("query,title,grade\nknife,red knife,much\n")
    columns = '{ query = "query", title = "title", grade = "grade" }'
    (tmp_path / "own.toml").write_text(
        f'[data]\nsources = [{{ path = "broken.csv", columns = {columns} }}]\n[teacher]\nbase = "scratch"\n'
        "[ranker]\nlayers = 1\n[encoder]\nlayers = 1\n"
    )
    done = _run(*command, "--workspace", "new", cwd=tmp_path)
    assert done.returncode in (1, 2), done.stdout
    _refused(done, done.returncode, message)
    assert not (tmp_path / "new").exists()


def test_recipes_are_listed_shown_and_described(tmp_path: Path) -> None:
    assert set(json.loads(_run("recipe", "list", "--json").stdout)) >= {"demo", "homedepot", "english"}
    shown = _run("recipe", "show", "demo", "--set", "ranker.layers=2")
    (tmp_path / "shown.toml").write_bytes(b"\xef\xbb\xbf" + shown.stdout.encode())  # Some editors add the mark.
    again = json.loads(_run("recipe", "show", tmp_path / "shown.toml", "--json").stdout)
    assert again["ranker"]["layers"] == 2
    assert "RankerConfig" in json.loads(_run("recipe", "schema").stdout)["$defs"]
    _refused(_run("recipe", "show", "homdepot"), 2, "did you mean homedepot?")
    _refused(_run("recipe", "show", "demo", "--set", "ranker.layer=2"), 2, "did you mean ranker.layers?")


def test_a_check_alone_trains_nothing(tiny_world: Path, tmp_path: Path) -> None:
    where = ("--workspace", tmp_path / "workspace", "--set", f"data.root={tiny_world}")
    done = _run("retrain", tiny_world / "tiny.toml", "--check", "--json", *where)
    assert done.returncode == 0, done.stderr
    assert any("valid queries" in line for line in json.loads(done.stdout)["checked"])
    assert _kinds(tmp_path / "workspace") == {"data"}
    without = ("--set", "data.valid_share=0")
    _refused(_run("retrain", tiny_world / "tiny.toml", "--check", *where, *without), 2, "no valid queries")
    _refused(_run("retrain", tiny_world / "tiny.toml", *where, *without), 2, "no valid queries")
    assert _kinds(tmp_path / "workspace") == {"data"}


def _kinds(workspace: Path) -> set[str]:
    return {path.parent.parent.name for path in workspace.glob("artifacts/*/*/manifest.json")}


def test_the_version_is_told() -> None:
    assert re.fullmatch(r"relevance \d+\.\d+\S*\n", _run("--version").stdout)


def test_a_table_of_own_columns_is_checked_and_judged(copied: Trained, tmp_path: Path) -> None:
    table = tmp_path / "ratings.csv"
    rows = [f"best {thing},red {thing},{grade}" for thing, grade in (("knife", 2), ("pan", 1), ("lamp", 2))]
    table.write_text("\n".join(["what,name,worth", *rows]) + "\n", encoding="utf-8")
    columns = "query=what,title=name,grade=worth"
    checked = _run("data", "check", table, "--columns", columns, "--json")
    assert json.loads(checked.stdout)["judgments"] == 3, checked.stderr
    where = ("--workspace", copied.workspace, "--all", "--json")
    judged = _run("report", "--judgments", table, "--columns", columns, *where)
    assert judged.returncode == 0, judged.stderr
    assert "fused" in json.loads(judged.stdout)["systems"]


def test_a_recipe_that_merges_grades_is_followed_by_check_and_report(copied: Trained, tmp_path: Path) -> None:
    rows = [f"best {thing},red {thing},{grade}" for thing, grade in (("knife", 2), ("pan", 1), ("pan", 0))]
    (tmp_path / "ratings.csv").write_text("\n".join(["query,title,grade", *rows]) + "\n", encoding="utf-8")
    recipe = tmp_path / "own.toml"
    columns = '{ query = "query", title = "title", grade = "grade" }'
    source = f'[data]\nsources = [{{ path = "{tmp_path}/ratings.csv", columns = {columns} }}]\n'
    for rule, code in (("error", 2), ("mean", 0)):
        recipe.write_text(f'{source}conflicts = "{rule}"\n', encoding="utf-8")
        checked = _run("data", "check", recipe)
        judged = _run("report", "--judgments", recipe, "--workspace", copied.workspace, "--all", "--json")
        assert (checked.returncode, judged.returncode) == (code, code), checked.stderr + judged.stderr
        assert ("has grade 0 here and 1 before" in judged.stderr) == (rule == "error")
        assert ("1 of these rows grades a pair again" in checked.stderr) == (rule == "error")
    assert '1 row would be merged, as data.conflicts = "mean" says' in checked.stdout
    assert "fused" in json.loads(judged.stdout)["systems"]


def test_a_check_of_a_recipe_follows_it_and_says_when_the_gate_has_too_few_queries(tmp_path: Path) -> None:
    rows = [f"best knife {number},red knife,{number % 3}" for number in range(20)]
    (tmp_path / "ratings.csv").write_text("\n".join(["query,title,grade", *rows, "pan,red pan,-1"]) + "\n")
    columns = '{ query = "query", title = "title", grade = "grade" }'
    (tmp_path / "own.toml").write_text(f'[data]\nsources = [{{ path = "ratings.csv", columns = {columns} }}]\n')
    refused = _run("data", "check", "own.toml", cwd=tmp_path)
    _refused(refused, 2, "1 row cannot be used")
    assert "warning: about 4 test queries are too few to replace a live release, which takes 50" in refused.stdout
    fitting = ("--set", 'data.faulty_rows="drop"', "--set", "gate.min_queries=4")
    dropped = _run("data", "check", "own.toml", *fitting, cwd=tmp_path)
    assert dropped.returncode == 0, dropped.stderr
    assert "1 row would be dropped" in dropped.stdout
    assert "warning" not in dropped.stdout
    _refused(_run("data", "check", "ratings.csv", "--set", "data.seed=1", cwd=tmp_path), 2, "is no recipe")


def test_the_readme_names_every_command() -> None:
    import typer

    from flows.cli import command

    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    names = typer.main.get_command(command.app).commands  # type: ignore[attr-defined]
    assert "retrain" in names
    missing = [name for name in names if not re.search(rf"relevance {name}\b", readme)]
    assert not missing


@pytest.mark.parametrize("home", ["file", "file/below"])
def test_a_prefect_home_that_cannot_be_used_is_named_at_once(home: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "own.toml").touch()
    began = time.monotonic()
    for more in ({}, {"PREFECT_API_URL": "http://127.0.0.1:9/api"}):
        command = "retrain" if more else "schedule"
        done = _run(command, "own.toml", cwd=tmp_path, env={"PREFECT_HOME": str(tmp_path / home), **more})
        _refused(done, 2, f"{tmp_path / home}: Prefect keeps its database there", "PREFECT_HOME")
        assert len(done.stderr.splitlines()) == 1
    assert time.monotonic() - began < 60, "it does not wait for a server that cannot start"


def test_a_list_of_releases_says_what_its_figures_are(trained: Trained) -> None:
    listing = _run("releases", "list", "--workspace", trained.workspace).stdout
    assert "fused: mean ndcg@10 of the final order" in listing
    assert "was not judged" not in listing
