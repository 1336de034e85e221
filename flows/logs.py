"""Log lines of a command and of the processes that it starts: to standard error, without passwords."""

import logging
import sys

from pipeline.secrets import hide_passwords_in_logs

NOISY = ("httpx", "faiss", "faiss.loader", "transformers", "urllib3", "filelock")
"""Libraries whose lines below a warning tell a person nothing."""


def write_log(level: int = logging.INFO) -> None:
    """Writes log lines of this process to standard error, from a level on."""
    hide_passwords_in_logs()
    logging.basicConfig(level=level, stream=sys.stderr, format="%(asctime)s  %(message)s", datefmt="%H:%M:%S")
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
