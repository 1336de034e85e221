"""Recipes: TOML files and `--set` overrides, read into the typed sections of `pipeline.config`."""

import copy
import dataclasses
import difflib
import json
import logging
import math
import re
import tomllib
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pipeline.config import LoopConfig, PassagesConfig, RankerConfig, Recipe, T
from pipeline.config_checks import ADDED
from pipeline.errors import ConfigError, MissingError
from pipeline.secrets import without_passwords
from pipeline.text import fault, read_text

log = logging.getLogger(__name__)

RENAMED = {"outside": "external_teacher", "ablation.doses": "ablation.unlabelled_ratios"}
"""Old name → new name of a key or section; the old one still works and warns."""

_LARGEST = 2**63 - 1
"""Largest whole number that an array or a table can hold."""

_PLAIN = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def load(path: Path, overrides: Sequence[str] = (), changes: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe in a TOML file, with `--set` overrides such as `ranker.layers=3` laid over it.

    Args:
        path: the TOML file.
        overrides: changes of single values, as text.
        changes: sections with changed values, such as `{"ranker": {"layers": 3}}`, laid over both; None, as a form
            gives for a field that was emptied, leaves a value as it is. A list replaces the recipe's.

    Raises:
        MissingError: no such file.
        ConfigError: not TOML, an unknown key, a wrong type or an impossible value; names the key.
    """
    try:
        text = read_text(path)
    except FileNotFoundError as error:
        raise MissingError(f"{path}: no such recipe; `relevance recipe list` lists those that are built in") from error
    except (UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: cannot be read as a UTF-8 text ({error})") from error
    try:
        tree = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # A number of 5,000 digits, brackets in brackets in brackets.
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    try:
        for old in rename(tree):
            log.warning("%s: %s is the old name of %s; write the new one", path, old, RENAMED[old])
        for item in overrides:
            override(tree, item)
        _lay_over(tree, changes or {})
        tree.setdefault("name", path.stem)
        return parse(Recipe, tree)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def to_dict(config: Any, *, complete: bool = False) -> dict[str, Any]:
    """A config as plain values, for a manifest; the password of a database's address is left out.

    Args:
        config: a recipe or a section of one.
        complete: whether fields that were added later (`config_checks.added`) stand there with their default too.
    """
    plain: dict[str, Any] = without_passwords(_plain_values(config, complete))
    return plain


def _plain_values(value: Any, complete: bool) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain_values(getattr(value, field.name), complete)
            for field in dataclasses.fields(value)
            if complete or ADDED not in field.metadata or getattr(value, field.name) != field.default
        }
    if isinstance(value, list | tuple):
        return type(value)(_plain_values(item, complete) for item in value)
    if isinstance(value, Mapping):
        return {name: _plain_values(item, complete) for name, item in value.items()}
    return value


def rename(tree: dict[str, Any]) -> list[str]:
    """Gives keys that have an old name their new one, in place; returns the old names that were there.

    Raises:
        ConfigError: a key stands there by its old and its new name.
    """
    renamed = []
    for old, new in RENAMED.items():
        *sections, old_key = old.split(".")
        node: Any = tree
        for section in sections:
            node = node.get(section) if isinstance(node, dict) else None
        if not isinstance(node, dict) or old_key not in node:
            continue
        new_key = new.rpartition(".")[2]
        if new_key in node:
            raise ConfigError(f"{old} is the old name of {new}, and both are given; keep {new}")
        node[new_key] = node.pop(old_key)
        renamed.append(old)
    return renamed


def to_toml(recipe: Recipe) -> str:
    """The resolved recipe, defaults included, as a TOML file that loads as the same recipe."""
    return _toml(to_dict(recipe, complete=True), "")


def _toml(section: Mapping[str, Any], name: str) -> str:
    values = {key: item for key, item in section.items() if not isinstance(item, dict) or not item}
    lines = [f"{_toml_key(key)} = {_toml_value(item)}" for key, item in values.items()]
    for key, item in section.items():
        if key not in values:
            path = f"{name}.{_toml_key(key)}" if name else _toml_key(key)
            lines += ["", f"[{path}]", _toml(item, path).rstrip("\n")]
    return "\n".join(lines) + "\n"


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)


def _toml_value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_toml_key(key)} = {_toml_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)


def override(tree: dict[str, Any], text: str) -> None:
    """Lays one `section.key=value` over the plain values of a recipe; of a section's table only the keys that it has.

    Raises:
        ConfigError: the text has another form, or its section is a plain value of the recipe.
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    for old, new in RENAMED.items():
        if key == old or key.startswith(f"{old}."):
            log.warning("--set %s: %s is the old name of %s; write the new one", text, old, new)
            key = new + key[len(old) :]
    parts = key.split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {text}: write it as section.key=value, for example --set ranker.layers=3")
    try:
        content = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError as error:
        if value.lstrip().startswith(('"', "'")):
            raise ConfigError(f"--set {text[:60]}: its quotes do not close ({error})") from error
        if "\n" in value:
            raise _several_lines(text) from error
        content = {"value": value}  # A bare word is a string, so that a shell needs no second pair of quotes.
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--set {text[:60]}…: not valid TOML: {error}") from error
    if len(content) > 1:
        raise _several_lines(text)
    node = tree
    for part in parts[:-1]:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {text}: {part} is a value, not a section")
    _lay_over(node, {parts[-1]: content["value"]})


def _several_lines(text: str) -> ConfigError:
    return ConfigError(f"--set {text[:60]!r}: holds several lines; give each value a --set of its own")


def _lay_over(tree: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Lays changed values of sections over the plain values of a recipe, in place."""
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(tree.setdefault(key, {}), dict):
            _lay_over(tree[key], value)
        elif value is not None:
            tree[key] = value


def changed(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """The recipe with changes as `--set` takes them.

    Raises:
        ConfigError: a change is not of the form `section.key=value`, or has an unknown key, a wrong type or an
            impossible value.
    """
    tree = dataclasses.asdict(recipe)  # Not `to_dict`, which hides passwords.
    for item in overrides:
        override(tree, item)
    return parse(Recipe, tree)


def parse(kind: type[T], tree: Mapping[str, Any], where: str = "") -> T:
    """A config of this class from plain values.

    Raises:
        ConfigError: an unknown key (with the nearest known one), a wrong type, an impossible value.
    """
    if kind is Recipe:
        modern = copy.deepcopy(dict(tree))
        rename(modern)  # A release made before holds a recipe with the old names.
        tree = modern
    hints = get_type_hints(kind)
    for key in tree:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            hint = f"did you mean {where}{near[0]}?" if near else f"known keys: {', '.join(hints)}"
            escaped = "" if key.isascii() else f" ({ascii(key)[1:-1]})"  # A letter may look like another.
            raise ConfigError(f"unknown key {where}{key}{escaped}; {hint}")
    values = {key: _value(hints[key], value, f"{where}{key}") for key, value in tree.items()}
    _refuse_missing(kind, values, where)
    path = where.rstrip(".")
    own = _OWN_NAMES.get(kind, path)
    with named(own, path or own):
        return kind(**values)


def _refuse_missing(kind: type[T], values: Mapping[str, Any], where: str) -> None:
    """Raises `ConfigError` if the section lacks a key that has no default."""
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]  # T is any section's dataclass.
        unset = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if unset and field.name not in values:
            raise ConfigError(f"{where}{field.name} is missing; it has no default, so write it")


_OWN_NAMES: Mapping[type, str] = {RankerConfig: "ranker", LoopConfig: "loop", PassagesConfig: "passages"}
"""The name by which a section that stands in several places of a recipe is called in its own errors."""


@contextmanager
def named(own: str, path: str) -> Iterator[None]:
    """Errors about the section `own` say where it stands: `ranker.layers` becomes `assistants[0].layers`."""
    try:
        yield
    except ConfigError as error:
        if own == path:
            raise
        raise ConfigError(re.sub(rf"\b{own}(?=[.:])", path, str(error))) from error


def _value(wanted: Any, value: Any, where: str) -> Any:
    origin = get_origin(wanted)
    if dataclasses.is_dataclass(wanted) and isinstance(wanted, type):
        if not isinstance(value, Mapping):
            raise _wrong(where, f"a section [{where}]", value)
        return parse(wanted, value, f"{where}.")
    if origin is Literal:
        choices = get_args(wanted)
        if value not in choices:
            raise _wrong(where, "one of " + ", ".join(map(str, choices)), value)
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise _wrong(where, "a list", value)
        return tuple(_value(get_args(wanted)[0], item, f"{where}[{number}]") for number, item in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise _wrong(where, "a table of names and values", value)
        texts = [_plain_value(str, str(key), f"{where}: a name of the table") for key in value]
        return {key: _value(get_args(wanted)[1], value[key], f"{where}.{key}") for key in texts}
    if origin in (Union, types.UnionType):
        raise AssertionError(f"{where}: unions are not used in recipes")
    return _plain_value(wanted, value, where)


def _plain_value(wanted: Any, value: Any, where: str) -> Any:
    """A text, number or truth value that artifacts, files and arrays can hold.

    Raises:
        ConfigError: a value of another type, a number that is not finite or has more than 63 bits, a text with a
            character that no path and no log can carry.
    """
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise ConfigError(f"{where} has {len(str(abs(value)))} digits; it must be at most {_LARGEST}")
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if wanted is float and isinstance(value, float) and not math.isfinite(value):
        raise _wrong(where, "a finite number", value)
    if not isinstance(value, wanted) or (wanted is not bool and isinstance(value, bool)):
        raise _wrong(where, _PLAIN[wanted], value)
    if isinstance(value, str) and (reason := fault(value)):
        raise ConfigError(f"{where} {reason}")
    return value


def _wrong(where: str, wanted: str, value: Any) -> ConfigError:
    return ConfigError(f"{where} is {value!r}; it must be {wanted}")
