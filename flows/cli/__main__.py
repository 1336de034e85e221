"""Runs the command `relevance` as `python -m flows.cli`."""

from flows.cli import main

main()
