"""The log lines of a command: each error stands on the terminal once."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = """
import logging
from flows.logs import write_log
from pipeline.errors import MissingError

write_log()
for logger in ("prefect.task_runs", "prefect.flow_runs", "prefect.flow_runs.runner", "flows.retrain"):
    for error in (MissingError("no such table"), ValueError("a fault of ours")):
        try:
            raise error
        except Exception:
            logging.getLogger(logger).exception("%s met %s", logger, type(error).__name__)
    logging.getLogger(logger).info("Finished in state Failed in %s", logger)
    logging.getLogger(logger).info("%s began", logger)
"""


def test_an_error_of_a_run_is_left_to_the_last_line_and_a_fault_of_ours_keeps_its_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=ROOT, check=True, timeout=60
    )
    shown = [line.split("  ", 1)[1] for line in done.stderr.splitlines() if "  " in line and line[2] == ":"]
    quiet, loud = ("prefect.task_runs", "prefect.flow_runs"), ("prefect.flow_runs.runner", "flows.retrain")
    for name in quiet:
        assert [line for line in shown if name in line.split()] == [f"{name} met ValueError", f"{name} began"]
    for name in loud:
        kept = [f"{name} met MissingError", f"{name} met ValueError", f"Finished in state Failed in {name}"]
        assert [line for line in shown if name in line.split()] == [*kept, f"{name} began"]
    assert done.stderr.count("ValueError: a fault of ours") == 4
    assert done.stderr.count("MissingError: no such table") == 2
