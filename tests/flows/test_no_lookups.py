"""Retraining, search and serving look up no host name: no library that we use reports to its maker."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from pipeline.errors import GateError
from pipeline.releases import Releases
from tests.flows.conftest import Trained
from tests.lookups import LookupGuard, make_guard
from tests.serving.processes import start

ROOT = Path(__file__).resolve().parents[2]
TELEMETRY = ("ORT_DISABLE_TELEMETRY", "DO_NOT_TRACK", "HF_HUB_DISABLE_TELEMETRY", "PREFECT_SERVER_ANALYTICS_ENABLED")


@pytest.fixture
def guard(tmp_path: Path) -> LookupGuard:
    folder = tmp_path / "guard"
    folder.mkdir()
    return make_guard(folder)


@pytest.fixture
def live(copied: Trained) -> Path:
    """A workspace with a live release, whatever the gate says of the tiny world."""
    releases = Releases(copied.workspace)
    if releases.live() is None:
        releases.promote(copied.outcome.release.fingerprint, reason="test")
    return copied.workspace


def environment(guard: LookupGuard) -> dict[str, str]:
    """A child's environment without the variables under test, which a test run has set in its own."""
    inherited = {name: value for name, value in os.environ.items() if name not in TELEMETRY}
    return {**inherited, **guard.environment, "PYTHONPATH": str(ROOT)}


def python(guard: LookupGuard, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, env=environment(guard), capture_output=True, text=True, check=False, timeout=300, cwd=ROOT
    )


def test_the_guard_sees_and_refuses_look_ups(guard: LookupGuard) -> None:
    done = python(guard, "-c", "import socket; socket.getaddrinfo('127.0.0.1', 80); socket.getaddrinfo('a.invalid', 1)")
    assert done.returncode == 1
    assert guard.names() == ["a.invalid"]


def test_retraining_looks_up_no_name(guard: LookupGuard, copied: Trained) -> None:
    """The models are exported and indexed again; what PyTorch trained is taken as it is."""
    for kind in ("bundle", "vectors", "release"):
        shutil.rmtree(copied.workspace / "artifacts" / kind)
    shutil.rmtree(copied.workspace / "releases", ignore_errors=True)
    recipe = [str(copied.world / "tiny.toml"), "--set", f"data.root={copied.world}"]
    done = python(guard, "-m", "flows.cli", "retrain", *recipe, "--workspace", str(copied.workspace), "--json")
    assert done.returncode in (0, GateError.exit_code), done.stderr[-2000:]
    assert guard.names() == []
    assert guard.makers_files() == []


def test_search_looks_up_no_name(guard: LookupGuard, live: Path) -> None:
    done = python(guard, "-m", "flows.cli", "search", "a word", "--workspace", str(live), "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)
    assert guard.names() == []
    assert guard.makers_files() == []


def test_serving_looks_up_no_name(guard: LookupGuard, live: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TELEMETRY:
        monkeypatch.delenv(name, raising=False)
    server = start(live, **guard.environment)
    body = {"query": "q", "texts": ["a text"]}
    assert httpx.post(f"{server.url}/rerank", json=body, timeout=60).status_code == 200
    assert server.stop() == 0
    assert guard.names() == []
    assert guard.makers_files() == []


@pytest.mark.parametrize("package", ["pipeline", "index", "serving", "flows"])
def test_each_package_switches_telemetry_off_before_it_imports_a_library(guard: LookupGuard, package: str) -> None:
    code = f"import os, {package}, sys; print('onnxruntime' in sys.modules, *(os.environ.get(n) for n in {TELEMETRY}))"
    assert python(guard, "-c", code).stdout.split() == ["False", "1", "1", "1", "false"]


def test_libraries_with_telemetry_are_imported_by_our_packages_only() -> None:
    """A script outside them could import ONNX Runtime before the variable is set."""
    reporting = {"onnxruntime", "prefect", "huggingface_hub", "ray"}
    for path in [*ROOT.glob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        names = [
            alias.name if isinstance(node, ast.Import) else node.module or ""
            for node in imports
            for alias in node.names
        ]
        if reporting & {name.split(".")[0] for name in names}:
            ours = {name.split(".")[0] for name in names} & {"pipeline", "index", "serving", "flows", "tests"}
            assert ours or 'environ["ORT_DISABLE_TELEMETRY"]' in source, (
                f"{path}: imports a library with telemetry and none of our packages; import pipeline first"
            )
