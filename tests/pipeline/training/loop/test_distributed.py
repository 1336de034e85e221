"""Two processes under torchrun train as one does: the same gradients, weights, measures and artifact."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.config import LoopConfig
from pipeline.training.loop import batches
from pipeline.training.loop.loop import Step, train

CONFIG = LoopConfig(learning_rate=1e-2, evaluations=2, checkpoint_s=0.0, precision="fp32", seed=5)
STEPS = 6


class Lists:
    """Regression on fixed rows, in chunks of unlike size; the last step has too few for two processes."""

    unit = "rows"

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.inputs = torch.linspace(-2, 3, 240).sin().reshape(40, 6)

    def plan(self, epoch: int) -> Sequence[Step[range]]:
        cut = [[range(0, 3), range(3, 12), range(12, 20)], [range(20, 33), range(33, 40)]]
        steps = [cut[number % 2] for number in range(STEPS - 1)] + [[range(5, 9)]]
        return [Step(chunks, examples=sum(map(len, chunks)), tokens=9, padded=10) for chunks in steps]

    def loss(self, chunk: range) -> tuple[Tensor, Mapping[str, Tensor]]:
        rows = self.inputs[chunk.start : chunk.stop]
        loss = (self.module(rows)[:, 0] - rows.sum(1)).square().sum() / 20
        return loss, {"rows": torch.tensor(float(len(chunk)))}

    def evaluate(self) -> float:
        return -float((self.module(self.inputs)[:, 0] - self.inputs.sum(1)).square().mean())


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))
    layers.register_parameter("unused", nn.Parameter(torch.ones(3, 3)))  # No process ever has a gradient for it.
    return layers


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from test_distributed import CONFIG, Lists, network
from pipeline.training.loop import distributed, loop
from pathlib import Path
distributed.join(0)
if distributed.process():
    distributed.follow(loop.follow)
else:
    for name in ("first", "second"):  # The followers wait for as many trainings as there are.
        module = network()
        found = loop.train(module, Lists(module), CONFIG, label=name, checkpoint=Path({folder!r}) / name)
    assert distributed.processes() == 2
    (Path({folder!r}) / "history").write_text(repr((found.history, found.evaluations, found.examples)))
    distributed.leave()
"""


def under_torchrun(folder: Path) -> subprocess.CompletedProcess[str]:
    script = folder / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), folder=str(folder)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)


def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    ran = under_torchrun(tmp_path)
    assert ran.returncode == 0, ran.stderr
    module = network()
    result = train(module, Lists(module), CONFIG, label="one", checkpoint=tmp_path / "one")
    alone, first, second = (load_file(max((tmp_path / name).iterdir())) for name in ("one", "first", "second"))
    assert set(alone) == set(first)
    assert "optimizer.exp_avg.0.weight" in alone  # Of the gradients of all steps.
    assert "optimizer.exp_avg.unused" not in alone
    for name, value in alone.items():
        assert torch.allclose(value, first[name], rtol=0, atol=1e-6), name
        assert torch.equal(first[name], second[name])
    history, evaluations, examples = eval((tmp_path / "history").read_text())
    assert [point["rows"] for point in history] == [point["rows"] for point in result.history]
    assert [point["loss"] for point in history] == pytest.approx([point["loss"] for point in result.history], abs=1e-4)
    assert [step for step, _ in evaluations] == [step for step, _ in result.evaluations]
    assert [value for _, value in evaluations] == pytest.approx([value for _, value in result.evaluations], abs=1e-4)
    assert examples == result.examples


@pytest.mark.parametrize("processes", [2, 3, 8])
def test_balanced_chunks_hold_whole_lists_and_are_of_like_size(processes: int) -> None:
    rng = np.random.default_rng(processes)
    lengths = rng.integers(5, 60, size=300)
    lists = np.split(np.arange(300), np.sort(rng.choice(np.arange(1, 300), size=50, replace=False)))
    for limit in (10**6, 1500):
        chunks = batches.balanced(lists, lengths, limit, processes)
        assert len(chunks) % processes == 0
        assert sorted(np.concatenate(chunks).tolist()) == list(range(300))
        assert all(batches.padded_tokens(lengths[chunk]) <= limit for chunk in chunks)
        groups = [{*indices.tolist()} for indices in lists]
        assert all(sum(len(group & {*chunk.tolist()}) for group in groups) == len(chunk) for chunk in chunks)
        assert all(not (group & (held := {*chunk.tolist()})) or group <= held for group in groups for chunk in chunks)
        sizes = [int(lengths[chunk].sum()) for chunk in chunks]
        assert max(sizes) - min(sizes) <= max(int(lengths[indices].sum()) for indices in lists)


def test_fewer_lists_than_processes_are_a_chunk_each() -> None:
    lists = [np.arange(3), np.arange(3, 5)]
    chunks = batches.balanced(lists, np.full(5, 10), 30, 4)
    assert sorted(map(len, chunks)) == [2, 3]
