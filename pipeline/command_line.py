"""Commands as a person types them: complete, so that they can be copied from a message or a card."""

import functools
import os
import shlex
import shutil
import sys
from pathlib import Path

DEFAULT_WORKSPACE = Path("workspace")
"""The workspace of a command that names none, where no variable names one either."""


def typed(command: str, workspace: Path | None = None) -> str:
    """The command as this shell takes it: with the program before it, and with the workspace unless it is the default.

    Args:
        command: a command without the program's name, such as `serve`.
        workspace: the workspace that is meant; None for a command that has none.
    """
    is_default = workspace is None or workspace.absolute() == default_workspace().absolute()
    return f"{_program()} {command}" + ("" if is_default else f" --workspace {shlex.quote(str(workspace))}")


def default_workspace() -> Path:
    """The workspace of a command without --workspace: that of the variable RELEVANCE_WORKSPACE, or `workspace`."""
    return Path(os.environ.get("RELEVANCE_WORKSPACE") or DEFAULT_WORKSPACE)


def workspace_of(path: Path) -> Path:
    """The workspace that holds this release or artifact, or a file of one; the default one for any other path."""
    for parent in (*path.parents, *path.absolute().parents):
        if parent.name in ("artifacts", "releases"):
            return parent.parent
    return DEFAULT_WORKSPACE


def _program() -> str:
    """The program as this shell would find it: `make demo` runs it out of an environment that is not active."""
    is_ours = Path(sys.argv[0]).name == "relevance"
    return os.path.relpath(sys.argv[0]) if is_ours and not _is_found(os.environ.get("PATH")) else "relevance"


@functools.cache
def _is_found(path: str | None) -> bool:
    """Whether a shell with this PATH finds the program; looked up once, as a service names commands in its answers."""
    return shutil.which("relevance", path=path) is not None
