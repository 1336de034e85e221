"""The command line: one file for each group of commands; `command` joins them."""

from flows.cli.command import app, main

__all__ = ["app", "main"]
