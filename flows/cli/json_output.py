"""Standard output of a command that was asked for JSON: one object, whether the command succeeds or fails.

    {"error": "ratings.csv: no such file or folder", "exit_code": 2}

A command whose result stands there already, such as a retraining that the gate refused, adds no second object.
"""

import json
import os
from collections.abc import Sequence
from typing import Any

from flows.cli import surroundings

OPTION = "--json"

_printed: list[Any] = []
"""The object on standard output; empty where the command has printed none."""


def print_json(value: Any) -> None:
    """Prints the result of a command."""
    print(text(value))
    _printed.append(value)


def text(value: Any) -> str:
    """The JSON of a value for standard output; escapes what the encoding of the output may lack."""
    return json.dumps(value, ensure_ascii=not surroundings.is_utf8_output(), indent=1)


def print_failure(message: str, exit_code: int, arguments: Sequence[str]) -> None:
    """Prints the failure of a command that was asked for JSON and has printed none.

    Args:
        message: the message that stands on standard error.
        arguments: the program and its arguments, which may be such as no command takes.
    """
    words = list(arguments[: arguments.index("--")] if "--" in arguments else arguments)
    if OPTION in words and not _printed and os.environ.get("RANK", "0") == "0":
        print_json({"error": message, "exit_code": exit_code})
