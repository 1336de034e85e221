"""The container file and the unit, read rather than built: what they name exists and what they set is a setting."""

import configparser
import dataclasses
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from serving.settings import Settings, from_environment

ROOT = Path(__file__).resolve().parents[2]
CONTAINER = (ROOT / "serving" / "Containerfile").read_text(encoding="utf-8").replace("\\\n", " ")
STEPS = [line.split(maxsplit=1) for line in CONTAINER.splitlines() if line.strip() and not line.startswith("#")]
VARIABLES = {f"RELEVANCE_{knob.name.upper()}" for knob in dataclasses.fields(Settings)}


class Unit(configparser.RawConfigParser):
    """A systemd unit is an INI file whose keys keep their capitals."""

    def optionxform(self, optionstr: str) -> str:
        return optionstr


@pytest.fixture(scope="module")
def unit() -> Unit:
    unit_file = Unit(strict=True)
    unit_file.read(ROOT / "serving" / "search-relevance.service")
    return unit_file


def pairs(text: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in shlex.split(text))


def test_the_container_copies_what_is_there_and_runs_as_nobody() -> None:
    for name, words in STEPS:
        if name == "COPY" and not words.startswith("--from"):
            for source in words.split()[:-1]:
                assert (ROOT / source).exists(), source
    names = [name for name, _ in STEPS]
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert dict(STEPS)["USER"] != "0"
    assert json.loads(dict(STEPS)["ENTRYPOINT"]) == ["/app/bin/relevance", "serve"]


def test_the_settings_of_both_are_settings(unit: Unit) -> None:
    container = pairs(" ".join(words for name, words in STEPS if name == "ENV"))
    for environ in (container, pairs(unit["Service"]["Environment"])):
        assert {name for name in environ if name.startswith("RELEVANCE_")} <= VARIABLES
        assert from_environment(environ).log == "json"
    assert from_environment(container).host == "0.0.0.0"


def test_the_container_installs_what_serving_imports() -> None:
    """Exactly the top-level packages that a serving process loads, so that an import added later is not forgotten."""
    script = (
        "import sys, serving.process.worker, serving.process.supervisor, serving.process.launch, flows.cli.command\n"
        "import prometheus_client.multiprocess\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(done.stdout.split())
    (install,) = [words for name, words in STEPS if name == "RUN" and "constraints.txt" in words]
    wanted = set(install.rsplit("constraints.txt", 1)[1].split())
    modules = {"faiss-cpu": "faiss", "prometheus-client": "prometheus_client", "PyStemmer": "Stemmer"}
    later = {"rich", "redis", "pyarrow", "Stemmer"}  # Imported when a command, a setting or a file asks for them.
    assert {modules.get(name, name) for name in wanted} - later <= loaded
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = {re.split(r"[^A-Za-z0-9-]", line)[0].lower() for line in project["dependencies"]} | {"redis"}
    assert {name.lower() for name in wanted} <= listed
    heavy = {"torch", "transformers", "scipy", "pandas", "sklearn", "onnx", "prefect", "jinja2", "sqlalchemy"}
    assert not loaded & heavy


def test_the_unit_waits_longer_than_the_drain(unit: Unit) -> None:
    from serving.process import supervisor

    assert float(unit["Service"]["TimeoutStopSec"]) > Settings().drain_s + supervisor.LATE_S
    assert shlex.split(unit["Service"]["ExecStart"])[1:] == ["serve"]
