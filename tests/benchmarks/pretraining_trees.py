"""Masked pre-training in two versions of this repository, by turns: real tokens a second of its training loop.

    python tests/benchmarks/pretraining_trees.py DATA OLD NEW [TURNS]

DATA is the folder of the data sets; OLD and NEW are check-outs. Each turn is a process of its own that pre-trains the
model of the recipe `chinese` on texts of qbqtc_v1, without evaluations; what comes before the first step is not
counted. `OMP_NUM_THREADS` sets the threads of both.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

TOKENS = 150_000
"""Real tokens of one turn."""

TURN = f"""
import sys, time
from pathlib import Path
from pipeline.config import DataConfig, LoopConfig, PretrainConfig, ScratchConfig, SourceConfig
from pipeline.data import judgments
from pipeline.training import pretrain

workspace, root = Path(sys.argv[1]), sys.argv[2]
shape = ScratchConfig(layers=4, hidden=256, heads=4, intermediate=1024, positions=128, vocab_size=8000)
loop = LoopConfig(learning_rate=1e-3, tokens_per_batch=2048, max_tokens={TOKENS}, evaluations=0)
sources = (SourceConfig(path="qbqtc_v1"),)
data = judgments.make(workspace, DataConfig(root=root, sources=sources, conflicts="max", splits="hash"))
train = pretrain.train

def timed(*given, **named):
    began, clock = time.process_time(), time.monotonic()
    progress = train(*given, **named)
    rates = progress.tokens / (time.process_time() - began), progress.tokens / (time.monotonic() - clock)
    print("REAL TOKENS A CPU-SECOND AND A SECOND", *rates)
    return progress

pretrain.train = timed
pretrain.make(workspace, PretrainConfig(max_tokens=64, scratch=shape, loop=loop), "scratch", data=data)
"""


def rates(tree: Path, data: str) -> tuple[float, float]:
    """Real tokens per CPU-second and per second on the clock of one pre-training by this version."""
    environment = {**os.environ, "PYTHONPATH": str(tree.resolve())}
    with tempfile.TemporaryDirectory() as workspace:
        command = [sys.executable, "-P", "-c", TURN, workspace, data]
        output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    line = next(line for line in output.splitlines() if line.startswith("REAL TOKENS"))
    cpu, clock = map(float, line.rsplit(" ", 2)[1:])
    return cpu, clock


def main(data: str, trees: list[Path], turns: int) -> None:
    """Prints the rates of both versions, the medians, and the median of the ratios of a turn."""
    measured = [[rates(tree, data) for tree in trees] for _ in range(turns)]
    for kind, unit in enumerate(("CPU-second", "second")):
        for number, tree in enumerate(trees):
            own = [turn[number][kind] for turn in measured]
            print(f"{tree}, a {unit}: {statistics.median(own):,.0f} ({', '.join(f'{value:,.0f}' for value in own)})")
        print(f"new over old, a {unit}: {statistics.median(new[kind] / old[kind] for old, new in measured):.2f}")


if __name__ == "__main__":
    main(sys.argv[1], [Path(sys.argv[2]), Path(sys.argv[3])], int(sys.argv[4]) if len(sys.argv) > 4 else 3)
