"""The bounds on a process's memory, and errors of many libraries that say that it ran out."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import machine_memory
from pipeline.errors import ConfigError, MemoryShortageError
from pipeline.machine_memory import tightest

GIB = 1 << 30
GROUPS: dict[str, tuple[str, dict[str, str], str]] = {
    "a container": ("0::/", {"memory.max": f"{GIB}"}, "memory.max of the control group allows 1.0 GiB"),
    "a service within a slice": (
        "0::/system.slice/search.service",
        {"system.slice/search.service/memory.max": "max", "system.slice/memory.max": f"{GIB}"},
        "memory.max of the control group allows 1.0 GiB",
    ),
    "version 1": (
        "4:memory:/docker/abc\n0::/",
        {"memory/docker/abc/memory.limit_in_bytes": f"{GIB}", "memory/memory.limit_in_bytes": "9223372036854771712"},
        "memory.limit_in_bytes of the control group allows 1.0 GiB",
    ),
    "version 1, seen from within": (
        "5:cpu:/\n4:memory:/docker/abc",
        {"memory/memory.limit_in_bytes": f"{GIB}"},
        "memory.limit_in_bytes of the control group allows 1.0 GiB",
    ),
    "no bound": ("0::/", {"memory.max": "max"}, "this machine has"),
    "no control groups": ("", {}, "this machine has"),
}
"""Surroundings → /proc/self/cgroup, the files of the control groups, and the bound that holds."""


@pytest.mark.parametrize("surroundings", GROUPS)
def test_the_bound_of_a_control_group_holds(surroundings: str, tmp_path: Path) -> None:
    own, files, expected = GROUPS[surroundings]
    (tmp_path / "cgroup").write_text(own, encoding="utf-8")
    for name, content in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(content + "\n", encoding="utf-8")
    limit = tightest(tmp_path, tmp_path / "groups")
    assert limit.name.startswith(expected)
    assert (limit.bytes == GIB) == ("1.0 GiB" in expected)


def test_the_bound_of_the_shell_is_less_what_the_process_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "status").write_text("Name:\tpython\nVmSize:\t  524288 kB\nVmData:\t 1048576 kB\n", encoding="utf-8")
    limits = {resource.RLIMIT_AS: GIB, resource.RLIMIT_DATA: resource.RLIM_INFINITY}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limits[kind], resource.RLIM_INFINITY))
    limit = tightest(tmp_path, tmp_path)
    assert (limit.bytes, limit.name) == (GIB // 2, "ulimit -v allows 1.0 GiB in all")
    limits[resource.RLIMIT_DATA] = GIB // 2
    limit = tightest(tmp_path, tmp_path)
    assert (limit.bytes, limit.name) == (0, "ulimit -d allows 0.5 GiB in all")
    assert machine_memory.of_shell(tmp_path) == limit
    limits[resource.RLIMIT_AS] = limits[resource.RLIMIT_DATA] = resource.RLIM_INFINITY
    assert machine_memory.of_shell(tmp_path) is None


UNDER_A_BOUND = """
import resource
import torch
from pathlib import Path
from pipeline import machine_memory

room = 256 << 20
size = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (int(size.split()[1]) * 1024 + room,) * 2)
assert machine_memory.tightest().bytes <= room
with machine_memory.shortage_told():
    torch.zeros(1 << 30)
"""


def test_torch_under_a_bound_of_the_shell_says_what_to_do() -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNDER_A_BOUND],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    *_, last = done.stderr.splitlines()
    assert "MemoryShortageError: memory ran out (" in last, done.stderr
    assert "ulimit -v allows" in last


SHORTAGES = [
    MemoryError(),
    RuntimeError("std::bad_alloc"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"),
    RuntimeError(
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer of size 9"
    ),
    OSError(12, "Cannot allocate memory"),
    ValueError("Cannot allocate memory (os error 12)"),
    RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
]


MESSAGE = r"^memory ran out \(.*\); .*GiB.* Raise that, .* smaller model$"


def _taken_for_damage(error: Exception) -> None:
    try:
        raise error
    except Exception as reason:
        raise ConfigError("model.safetensors: cut off or damaged; fetch the model again") from reason


@pytest.mark.parametrize("error", SHORTAGES, ids=repr)
def test_the_shortage_of_each_library_is_told_alike_also_where_it_was_taken_for_damage(error: Exception) -> None:
    with pytest.raises(MemoryShortageError, match=MESSAGE) as raised, machine_memory.shortage_told():
        _taken_for_damage(error)
    assert "damaged" not in str(raised.value)
    assert raised.value.exit_code == 1


def test_words_that_mean_a_shortage_under_a_bound_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    error = ImportError("libtorch_cpu.so: failed to map segment from shared object")
    for bound, expected in ((resource.RLIM_INFINITY, False), (GIB, True)):
        monkeypatch.setattr(resource, "getrlimit", lambda kind, bound=bound: (bound, bound))
        assert machine_memory.is_shortage(error) is expected


@pytest.mark.parametrize("error", [ConfigError("no such column"), ValueError("shapes differ")], ids=repr)
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)), machine_memory.shortage_told():
        raise error
