"""`relevance init`: looks at data and machine, and writes a recipe that fits both.

It asks nothing. What it chose, and why, stands as a comment beside each value, and is printed.
"""

import logging
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from flows.built_in_recipes import UNNAMED
from flows.data_look import Look, look
from flows.init_recipe import recipe
from pipeline import storage
from pipeline.command_line import typed
from pipeline.errors import ConfigError
from pipeline.secrets import hide_passwords
from pipeline.temporary import temporary_file
from pipeline.text import counted

log = logging.getLogger(__name__)


def write(
    path: str, out: Path, columns: Mapping[str, str] | None = None, labels: Mapping[str, int] | None = None
) -> tuple[Look, str]:
    """Writes a recipe for the data at `path` and returns what was seen and the recipe's text.

    Raises:
        ConfigError: `out` exists already; nothing is overwritten.
        MissingError, SchemaError: see `look`.
    """
    from pipeline import recipe as recipes

    if out.exists():
        raise ConfigError(f"{out}: exists already; name another file with --out")
    seen = look(path, columns, labels)
    if seen.too_few:
        log.warning("%s: %s", hide_passwords(path), seen.too_few)
    if seen.unusable:
        check = typed(f"data check {shlex.quote(str(out))}")
        rows, shown = counted(seen.unusable, "row"), hide_passwords(path)
        log.warning("%s: the recipe leaves out %s: %s; `%s` lists them all", shown, rows, seen.reasons, check)
    text = recipe(seen, _name(path) if out.name == UNNAMED else out.stem)
    out.parent.mkdir(parents=True, exist_ok=True)
    with temporary_file(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
        recipes.load(temporary, [])  # Nothing is written that the next command would refuse.
        temporary.rename(out)
    return seen, text


def _name(path: str) -> str:
    """The name of a recipe for the data at a path: that of its file or folder, or of the table of a database."""
    from pipeline.data.formats import sql_address

    if storage.is_address(path):
        address = urlsplit(path)
        last = PurePosixPath(address.path).stem or address.hostname or ""
    elif "://" in path:
        last = sql_address.short_name(path)
    else:
        last = Path(os.path.realpath(path)).stem
    return "-".join(re.findall(r"[\w.-]+", last)).strip("-.") or "own-data"
