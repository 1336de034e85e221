"""The loop on a small linear task: resumed training equals uninterrupted training, best states, faults, precision."""

import itertools
import json
import logging
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import LoopConfig
from pipeline.errors import ArtifactError, ConfigError, MemoryShortageError, TrainingError
from pipeline.training.loop import checkpoint, loop, schedule
from pipeline.training.loop.loop import Step, train

STEPS = 20
CONFIG = LoopConfig(learning_rate=1e-2, evaluations=4, checkpoint_s=0.0, precision="fp32", seed=5)


class Killed(BaseException):
    """A stand-in for a kill, which the test itself survives."""


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 1))


class Noisy:
    """Regression on noise drawn at each step, with dropout: any generator state that is not restored shows."""

    unit = "rows"

    def __init__(self, module: nn.Module, *, stop_at: int = 0, kill_at: int = 0, nan_at: int = 0) -> None:
        self.module = module
        self.calls = 0
        self.stop_at, self.kill_at, self.nan_at = stop_at, kill_at, nan_at
        self.measures: list[float] = []

    def plan(self, epoch: int) -> Sequence[Step[int]]:
        return [Step([2 * number, 2 * number + 1], examples=8, tokens=8, padded=10) for number in range(STEPS)]

    def loss(self, chunk: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        self.calls += 1
        if self.calls == self.stop_at:
            raise Killed
        if self.calls == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        inputs = torch.randn(4, 6)
        loss = (self.module(inputs)[:, 0] - inputs.sum(1)).square().mean() / 2
        if self.calls == self.nan_at:
            loss = loss * float("nan")
        return loss, {"half": loss / 2}

    def evaluate(self) -> float:
        inputs = torch.linspace(-1, 1, 60).reshape(10, 6)
        value = -float((self.module(inputs)[:, 0] - inputs.sum(1)).square().mean())
        self.measures.append(value)
        return value


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(value, other) for value, other in pairs)


def test_ten_steps_killed_and_ten_more_are_twenty_steps(tmp_path: Path) -> None:
    straight, broken = network(), network()
    uninterrupted = train(straight, Noisy(straight), CONFIG, label="straight", checkpoint=tmp_path / "straight")
    with pytest.raises(Killed):
        train(broken, Noisy(broken, stop_at=21), CONFIG, label="broken", checkpoint=tmp_path / "broken")

    resumed = network()
    task = Noisy(resumed)
    result = train(resumed, task, CONFIG, label="resumed", checkpoint=tmp_path / "broken")

    assert task.calls == 20  # ten steps of two chunks: the first ten were not done again
    assert same_weights(straight, resumed)
    assert result.history == uninterrupted.history
    assert result.evaluations == uninterrupted.evaluations
    assert (result.best, result.best_step, result.before) == (
        uninterrupted.best,
        uninterrupted.best_step,
        uninterrupted.before,
    )
    assert (result.step, result.examples, result.tokens, result.padded) == (20, 160, 160, 200)


def test_a_point_of_the_history_is_the_same_where_a_kill_fell_into_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "HISTORY", 4)
    straight, broken, resumed = network(), network(), network()
    uninterrupted = train(straight, Noisy(straight), CONFIG, label="straight")
    with pytest.raises(Killed):
        train(broken, Noisy(broken, stop_at=25), CONFIG, label="broken", checkpoint=tmp_path)  # Twelve steps are done.
    result = train(resumed, Noisy(resumed), CONFIG, label="resumed", checkpoint=tmp_path)
    assert [point["step"] for point in result.history] == [5, 10, 15, 20]
    assert result.history == uninterrupted.history


def test_the_same_without_a_kept_best_state(tmp_path: Path) -> None:
    config = replace(CONFIG, evaluations=0)
    straight, broken, resumed = network(), network(), network()
    train(straight, Noisy(straight), config, label="straight")
    with pytest.raises(Killed):
        train(broken, Noisy(broken, stop_at=14), config, label="broken", checkpoint=tmp_path)
    train(resumed, Noisy(resumed), config, label="resumed", checkpoint=tmp_path)
    assert same_weights(straight, resumed)


def run_to_the_end(folder: Path, kill_at: int) -> None:
    """Trains in the child process and leaves the weights in `folder`."""
    module = network()
    result = train(module, Noisy(module, kill_at=kill_at), CONFIG, label="child", checkpoint=folder / "checkpoint")
    torch.save(module.state_dict(), folder / "weights.pt")
    (folder / "progress.json").write_text(json.dumps([result.evaluations, result.history]))


def test_a_process_killed_for_real_goes_on_bit_by_bit(tmp_path: Path) -> None:
    def child(folder: Path, kill_at: int) -> int:
        folder.mkdir(exist_ok=True)
        code = f"import runpy; from pathlib import Path; m = runpy.run_path({__file__!r}); "
        code += f"m['run_to_the_end'](Path({str(folder)!r}), {kill_at})"
        return subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode

    assert child(tmp_path / "killed", kill_at=26) == -signal.SIGKILL
    assert not (tmp_path / "killed" / "weights.pt").exists()
    assert child(tmp_path / "killed", kill_at=0) == 0
    (tmp_path / "straight").mkdir()
    run_to_the_end(tmp_path / "straight", kill_at=0)
    first, second = (torch.load(tmp_path / name / "weights.pt", weights_only=True) for name in ("killed", "straight"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    texts = [(tmp_path / name / "progress.json").read_text() for name in ("killed", "straight")]
    assert texts[0] == texts[1]


def test_a_loss_that_is_no_number_stops_with_the_last_checkpoint_whole(tmp_path: Path) -> None:
    module = network()
    with pytest.raises(TrainingError, match=r"tiny: at step 8 the loss is nan.*learning_rate \(0.01\)"):
        train(module, Noisy(module, nan_at=15), CONFIG, label="tiny", checkpoint=tmp_path)
    assert all(torch.isfinite(value).all() for value in module.state_dict().values())

    again, straight = network(), network()
    train(again, Noisy(again), CONFIG, label="again", checkpoint=tmp_path)
    train(straight, Noisy(straight), CONFIG, label="straight")
    assert same_weights(again, straight)


def test_the_best_state_is_kept_even_where_it_is_the_first() -> None:
    module = network()
    start = {name: value.clone() for name, value in module.state_dict().items()}
    task = Noisy(module)
    result = train(module, task, replace(CONFIG, learning_rate=5.0), label="too fast")
    assert result.best == max(task.measures)
    assert (result.best_step, result.best) == (0, result.before)
    assert all(torch.equal(start[name], value) for name, value in module.state_dict().items())


def test_evaluations_are_spread_and_the_last_is_at_the_end() -> None:
    module = network()
    result = train(module, Noisy(module), CONFIG, label="spread")
    assert [step for step, _ in result.evaluations] == [0, 5, 10, 15, 20]
    assert result.best == pytest.approx(max(value for _, value in result.evaluations), abs=1e-5)


@pytest.mark.parametrize(("epochs", "steps"), [(0.5, 10), (1.0, 20), (2.25, 45), (0.001, 1)])
def test_a_part_of_an_epoch_is_that_part_of_its_steps(epochs: float, steps: int) -> None:
    module = network()
    assert train(module, Noisy(module), replace(CONFIG, epochs=epochs), label="part").step == steps


def test_nothing_to_train_on_says_so() -> None:
    class Empty(Noisy):
        def plan(self, epoch: int) -> Sequence[Step[int]]:
            return []

    module = network()
    with pytest.raises(TrainingError, match="nothing to train on"):
        train(module, Empty(module), CONFIG, label="empty")


def test_the_history_is_the_mean_of_what_the_task_logged() -> None:
    module = network()
    result = train(module, Noisy(module), CONFIG, label="history")
    assert [point["step"] for point in result.history] == list(range(1, 21))
    for point in result.history:
        assert point["half"] == pytest.approx(point["loss"] / 2, abs=1e-4)


def test_the_rate_warms_up_and_falls_to_a_tenth() -> None:
    rates = [schedule.linear_rate(step, 100, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert rates[-1] == pytest.approx(0.1)
    falls = [first - second for first, second in itertools.pairwise(rates[10:])]
    assert falls == pytest.approx([falls[0]] * len(falls))
    assert schedule.linear_rate(0, 1, 0.06) == 1.0


def test_decay_spares_vectors_and_fresh_parameters_learn_faster() -> None:
    module = network()
    groups = loop.parameter_groups(module, replace(CONFIG, fresh_rate=7.0), ["3."])
    options = {
        id(parameter): (group["rate"], group["weight_decay"]) for group in groups for parameter in group["params"]
    }
    expected = {"0.weight": (1.0, 0.01), "0.bias": (1.0, 0.0), "3.weight": (7.0, 0.01), "3.bias": (7.0, 0.0)}
    assert {name: options[id(parameter)] for name, parameter in module.named_parameters()} == expected


def test_tied_weights_are_saved_once_and_come_back(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(5, 3)
            self.out = nn.Linear(3, 5, bias=False)
            self.out.weight = self.words.weight

    first, second = Tied(), Tied()
    optimizer = torch.optim.AdamW(first.parameters())
    F.cross_entropy(first.out(first.words(torch.arange(5))), torch.arange(5)).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    checkpoint.save(tmp_path, first, optimizer, {}, checkpoint.Progress(step=3))
    progress = checkpoint.restore(tmp_path, second, torch.optim.AdamW(second.parameters()), {})
    assert progress is not None
    assert progress.step == 3
    assert torch.equal(first.out.weight, second.words.weight)
    assert second.out.weight is second.words.weight


def stopped_after_ten_steps(folder: Path) -> list[Path]:
    """A training's checkpoints, the newest first, after it was stopped in step 11."""
    module = network()
    with pytest.raises(Killed):
        train(module, Noisy(module, stop_at=21), CONFIG, label="stopped", checkpoint=folder)
    return sorted(folder.iterdir(), reverse=True)


def flip_bit(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def bits_of(file: Path) -> list[int]:
    """Bits of the header's length, the header, the first and last tensor, and twenty drawn with seed 3."""
    size = 8 * file.stat().st_size
    return [1, 100, 5000, size - 1, *random.Random(3).sample(range(size), 20)]


def test_a_flipped_bit_is_named_and_the_checkpoint_before_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    straight = network()
    train(straight, Noisy(straight), CONFIG, label="straight")
    newest, before = stopped_after_ten_steps(tmp_path / "stopped")
    for bit in bits_of(newest):
        folder = tmp_path / str(bit)
        shutil.copytree(tmp_path / "stopped", folder)
        flip_bit(folder / newest.name, bit)
        caplog.clear()
        module = network()
        task = Noisy(module)
        train(module, task, CONFIG, label="resumed", checkpoint=folder)
        assert task.calls == 22, "the checkpoint of step 9 is followed by eleven steps of two chunks"
        assert same_weights(straight, module)
        assert f"{folder / newest.name}: a damaged checkpoint" in caplog.text
        assert before.name not in caplog.text


def test_with_a_flipped_bit_in_each_checkpoint_the_training_starts_anew_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    straight, module = network(), network()
    train(straight, Noisy(straight), CONFIG, label="straight")
    files = stopped_after_ten_steps(tmp_path)
    for file in files:
        flip_bit(file, 8 * file.stat().st_size // 2)
    task = Noisy(module)
    train(module, task, CONFIG, label="anew", checkpoint=tmp_path)
    assert task.calls == 40
    assert same_weights(straight, module)
    assert all(f"{file}: a damaged checkpoint" in caplog.text for file in files)
    assert "no checkpoint is whole, so the training starts from the beginning" in caplog.text


def test_a_checkpoint_of_another_model_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stopped_after_ten_steps(tmp_path)
    other = nn.Linear(7, 1)
    progress = checkpoint.restore(tmp_path, other, torch.optim.AdamW(other.parameters()), {})
    assert progress is None
    assert "it holds another model: weight differs" in caplog.text


def test_a_full_disk_names_the_folder_and_the_room_and_the_earlier_checkpoint_stays(tmp_path: Path) -> None:
    """A limit on the size of files gives the real error of the system (EFBIG), in a process of its own."""
    code = f"""
import resource, runpy
from pipeline.errors import ArtifactError
from pathlib import Path
module = runpy.run_path({__file__!r})
folder = Path({str(tmp_path)!r})
module["stopped_after_ten_steps"](folder)
resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
model = module["network"]()
try:
    module["train"](model, module["Noisy"](model), module["CONFIG"], label="full", checkpoint=folder)
except ArtifactError as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert f"{tmp_path}: the checkpoint of step 11 could not be written" in ran.stdout
    assert "(`ulimit -f`) and run again: training goes on from step-00000010-" in ran.stdout
    assert "delete" not in ran.stdout
    left = [path.name[:13] for path in tmp_path.iterdir()]
    assert left == ["step-00000010"]
    resumed, straight = network(), network()
    train(resumed, Noisy(resumed), CONFIG, label="resumed", checkpoint=tmp_path)
    train(straight, Noisy(straight), CONFIG, label="straight")
    assert same_weights(straight, resumed)


@pytest.mark.parametrize(("bad_call", "message"), [(1, "before the first step"), (3, "after step 10")])
def test_a_measure_that_is_no_number_stops_the_training(tmp_path: Path, bad_call: int, message: str) -> None:
    class Unmeasured(Noisy):
        def evaluate(self) -> float:
            value = super().evaluate()
            return math.nan if len(self.measures) == bad_call else value

    module = network()
    with pytest.raises(TrainingError, match=rf"tiny: {message} the measure of the valid split is nan.*precision"):
        train(module, Unmeasured(module), CONFIG, label="tiny", checkpoint=tmp_path)


def test_bf16_is_used_where_it_is_asked_for() -> None:
    def kind(precision: str) -> torch.dtype:
        with loop.autocast(precision, torch.device("cpu")):
            return nn.Linear(4, 4)(torch.zeros(1, 4)).dtype

    assert kind("fp32") == torch.float32
    assert kind("bf16") == torch.bfloat16
    native = loop.bf16_is_native(torch.device("cpu"))
    assert kind("auto") == (torch.bfloat16 if native else torch.float32)


class Unlike(Noisy):
    """Steps of unlike size, more of them in each epoch."""

    def plan(self, epoch: int) -> Sequence[Step[int]]:
        sizes = [5 + (3 * number + epoch) % 7 for number in range(4 + epoch)]
        return [Step([number], examples=1, tokens=size, padded=size) for number, size in enumerate(sizes)]


BOUNDED = replace(CONFIG, epochs=0.1, max_tokens=100, warmup_share=0.2)


def test_a_bound_of_tokens_ends_annealed_over_as_many_epochs_as_it_takes() -> None:
    module = network()
    task = Unlike(module)
    result = train(module, task, BOUNDED, label="bounded")
    sizes = [step.tokens for epoch in range(9) for step in task.plan(epoch)]
    ends = list(itertools.accumulate(sizes))
    assert result.step == next(index for index, end in enumerate(ends) if end >= 100) + 1
    assert result.tokens == ends[result.step - 1] < 100 + max(sizes)
    expected = [next(index + 1 for index, end in enumerate(ends) if end >= part * 25) for part in range(1, 5)]
    assert [step for step, _ in result.evaluations] == [0, *expected]


def test_the_rate_follows_the_share_of_the_bound() -> None:
    planned = schedule.schedule_of(Unlike(network()).plan, BOUNDED)
    step = Step([0], examples=1, tokens=10, padded=10)
    rates = [planned.rate(checkpoint.Progress(tokens=tokens), step) for tokens in (0, 10, 50, 90, 95)]
    assert rates == pytest.approx([0.5, 1.0, 1 - 0.9 * 0.4 / 0.8, 0.1, 0.1])

    timed = schedule.schedule_of(Unlike(network()).plan, replace(BOUNDED, max_tokens=0, max_seconds=50.0))
    begun, midway = checkpoint.Progress(), checkpoint.Progress(step=6, seconds=24.0, tokens=10**6)
    late, over = checkpoint.Progress(step=9, seconds=45.0), checkpoint.Progress(step=9, seconds=50.1)
    assert timed.rate(begun, step) == schedule.FIRST_RATE
    assert timed.rate(midway, step) == pytest.approx(1 - 0.9 * (28 / 50 - 0.2) / 0.8)  # The next takes 4 s too.
    assert timed.rate(late, step) == pytest.approx(0.1)
    assert [timed.finished(moment) for moment in (begun, midway, late, over)] == [False, False, False, True]
    both = schedule.schedule_of(Unlike(network()).plan, replace(BOUNDED, max_seconds=50.0))
    assert both.finished(checkpoint.Progress(step=3, tokens=100, seconds=1.0))


def test_a_bound_of_tokens_is_resumed_bit_by_bit(tmp_path: Path) -> None:
    straight, broken, resumed = network(), network(), network()
    uninterrupted = train(straight, Unlike(straight), BOUNDED, label="straight")
    with pytest.raises(Killed):
        train(broken, Unlike(broken, stop_at=8), BOUNDED, label="broken", checkpoint=tmp_path)
    task = Unlike(resumed)
    result = train(resumed, task, BOUNDED, label="resumed", checkpoint=tmp_path)
    assert task.calls == uninterrupted.step - 7
    assert same_weights(straight, resumed)
    assert (result.history, result.evaluations) == (uninterrupted.history, uninterrupted.evaluations)


def test_a_bound_of_time_counts_what_passed_before(tmp_path: Path) -> None:
    config = replace(CONFIG, max_seconds=1000.0, evaluations=0)
    module = network()
    with pytest.raises(Killed):
        train(module, Noisy(module, stop_at=9), config, label="timed", checkpoint=tmp_path)
    optimizer = torch.optim.AdamW(loop.parameter_groups(module, config, ()))
    progress = checkpoint.restore(tmp_path, module, optimizer, {})
    assert progress is not None
    progress.seconds = 999.9999  # As if the machine had been slow.
    checkpoint.save(tmp_path, module, optimizer, {}, progress)
    again = network()
    result = train(again, Noisy(again), config, label="timed", checkpoint=tmp_path)
    assert progress.step <= result.step <= progress.step + 1
    assert 999 < result.seconds < 1060


def test_a_bound_of_time_is_that_of_the_stage() -> None:
    """A driven clock: what the stage did before the steps, and the evaluation that is to come, count too."""
    config = replace(BOUNDED, max_tokens=0, max_seconds=100.0, evaluations=4)
    timed = schedule.schedule_of(Unlike(network()).plan, config)
    assert isinstance(timed, schedule.BoundedSchedule)
    prepared = checkpoint.Progress(step=1, seconds=29.0, preparation=60.0, evaluation=10.0)
    assert timed.training_seconds(prepared) == pytest.approx(30.0)
    assert not timed.finished(prepared)
    assert timed.finished(replace(prepared, seconds=30.0))
    assert timed.evaluations(prepared) == 1, "one of 10 s in 30 s"
    assert timed.evaluations(replace(prepared, evaluation=0.1)) == 4
    assert timed.training_seconds(replace(prepared, preparation=1000.0)) == 25.0, "the steps get a quarter"
    first = Step([0], examples=1, tokens=10, padded=10)
    assert timed.rate(replace(prepared, step=0, seconds=0.0), first) == schedule.FIRST_RATE, "the warm-up is not lost"


def test_the_time_before_the_loop_counts_and_is_kept_for_a_resumption(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(CONFIG, max_seconds=2000.0, evaluations=2)
    module = network()
    began = time.monotonic() - 1700
    with caplog.at_level(logging.WARNING), pytest.raises(Killed):
        train(module, Noisy(module, stop_at=9), config, label="timed", checkpoint=tmp_path, began=began)
    assert "preparation and evaluations take 1700 of loop.max_seconds = 2000; the training gets 500 s" in caplog.text
    optimizer = torch.optim.AdamW(loop.parameter_groups(module, config, ()))
    progress = checkpoint.restore(tmp_path, module, optimizer, {})
    assert progress is not None
    assert 1700 <= progress.preparation < 1800
    progress.seconds = 499.9999  # As if the machine had been slow.
    checkpoint.save(tmp_path, module, optimizer, {}, progress)
    again = network()
    result = train(again, Noisy(again), config, label="timed", checkpoint=tmp_path)
    assert progress.step <= result.step <= progress.step + 1


@pytest.mark.parametrize("key", ["max_tokens", "max_seconds"])
def test_a_negative_bound_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"loop\.{key} is -1"):
        replace(CONFIG, **{key: -1})


SHORTAGES = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
]


@pytest.mark.parametrize("error", SHORTAGES, ids=lambda error: type(error).__name__)
def test_memory_that_runs_out_says_what_to_lower_and_the_checkpoint_is_whole(tmp_path: Path, error: Exception) -> None:
    class Large(Noisy):
        def loss(self, chunk: int) -> tuple[Tensor, Mapping[str, Tensor]]:
            if self.calls == 14:
                raise error
            return super().loss(chunk)

    module = network()
    config = replace(CONFIG, chunk_tokens=4096)
    with pytest.raises(MemoryShortageError, match=r"tiny: at step 8 memory ran out.*loop\.chunk_tokens \(4096\)"):
        train(module, Large(module), config, label="tiny", checkpoint=tmp_path)
    again, straight = network(), network()
    train(again, Noisy(again), CONFIG, label="again", checkpoint=tmp_path)
    train(straight, Noisy(straight), CONFIG, label="straight")
    assert same_weights(again, straight)


def test_other_errors_stay_what_they_are() -> None:
    class Wrong(Noisy):
        def loss(self, chunk: int) -> tuple[Tensor, Mapping[str, Tensor]]:
            raise RuntimeError("shapes differ")

    module = network()
    with pytest.raises(RuntimeError, match="shapes differ"):
        train(module, Wrong(module), CONFIG, label="wrong")


def test_recomputing_activations_needs_layers() -> None:
    module = network()
    with pytest.raises(ConfigError, match=r"loop\.checkpoint_activations"):
        train(module, Noisy(module), replace(CONFIG, checkpoint_activations=True), label="none")


def test_a_checkpoint_that_cannot_be_read_for_a_while_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = stopped_after_ten_steps(tmp_path)
    module = network()

    def unreachable(path: Path) -> str:
        raise OSError(5, "Input/output error", str(path))

    with monkeypatch.context() as away:
        away.setattr(checkpoint.disk, "sha256", unreachable)
        with pytest.raises(ArtifactError, match="cannot be read now"):
            checkpoint.restore(tmp_path, module, torch.optim.AdamW(module.parameters()), {})
    progress = checkpoint.restore(tmp_path, module, torch.optim.AdamW(module.parameters()), {})
    assert progress is not None
    assert progress.step == 10
    assert all(file.exists() for file in files)
