"""Log lines of a command and of the processes that it starts: to standard error, without passwords."""

import logging
import sys

from pipeline.errors import RelevanceError
from pipeline.secrets import hide_passwords_in_logs

NOISY = ("httpx", "faiss", "faiss.loader", "transformers", "urllib3", "filelock")
"""Libraries whose lines below a warning tell a person nothing."""

PREFECT_RUNS = ("prefect.flow_runs", "prefect.task_runs")
"""Loggers on which Prefect says how a run ended."""


def write_log(level: int = logging.INFO) -> None:
    """Writes log lines of this process to standard error, from a level on."""
    hide_passwords_in_logs()
    logging.basicConfig(level=level, stream=sys.stderr, format="%(asctime)s  %(message)s", datefmt="%H:%M:%S")
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_not_told_at_the_end)
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)


def _is_not_told_at_the_end(record: logging.LogRecord) -> bool:
    """False for Prefect's lines on the end of a run and its traceback of an error of ours; the command tells both.

    Prefect's own records of the run keep them.
    """
    if record.name not in PREFECT_RUNS:
        return True
    if record.getMessage().startswith("Finished in state"):
        return False
    return not (record.exc_info and isinstance(record.exc_info[1], RelevanceError))
