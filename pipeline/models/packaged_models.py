"""Models inside installed Python packages, which a recipe names `package:NAME`.

Nothing here imports a package, and no message advises to install one by a name that a person has typed: a mistyped
name may be that of somebody else's package. It needs no torch, which the parent process of a service does without.
"""

import difflib
import importlib.util
import json
from importlib.metadata import distributions
from pathlib import Path

from pipeline.errors import InputError, MissingError
from pipeline.text import read_text

PACKAGE = "package:"
"""The beginning of a base that names an installed Python package."""


def inside(name: str) -> Path:
    """The folder of the model in an installed package.

    Args:
        name: the package's name, without the prefix.

    Raises:
        MissingError: no such package, or it holds no model; names the installed packages that hold one.
    """
    locations = _locations(name)
    if not locations:
        raise MissingError(f"{PACKAGE}{name}: no package of this name is installed; {advice(name)}")
    folder = _model_below(locations)
    if folder is None:
        raise MissingError(
            f"{PACKAGE}{name}: the package holds no transformers model (no config.json with model_type); {advice(name)}"
        )
    return folder


def check_name(name: str) -> None:
    """Checks what can be told of a model's name without the network: whether it is that of an installed package.

    Args:
        name: a folder, `package:NAME` or a hub name.

    Raises:
        MissingError: `package:NAME` without a model; the name of a package that holds one, without the prefix.
    """
    if name.startswith(PACKAGE):
        inside(name.removeprefix(PACKAGE))
    elif not Path(name).exists() and _model_below(_locations(name)) is not None:
        raise MissingError(f"{name}: no such folder; for the model of the installed package write {PACKAGE}{name}")


def _locations(name: str) -> list[Path]:
    """The folders of an installed package; none where there is no package of this name."""
    module = name.replace("-", "_")
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    return [Path(location) for location in spec.submodule_search_locations or ()] if spec is not None else []


def _model_below(locations: list[Path]) -> Path | None:
    """The first folder below these that holds a model; None without one."""
    for location in locations:
        for config in sorted(location.rglob("config.json"), key=lambda path: (len(path.parts), path)):
            if _is_of_model(config):
                return config.parent
    return None


def advice(name: str) -> str:
    """A sentence on the installed packages that hold a model; first one whose name is like that of a package or hub."""
    names = installed()
    if not names:
        return "no installed package holds a model; give the folder of one"
    near = difflib.get_close_matches(name.rpartition("/")[2].lower().replace("_", "-"), names, n=1, cutoff=0.8)
    known = ", ".join(f"{PACKAGE}{item}" for item in names)
    meant = f"did you mean {PACKAGE}{near[0]}? " if near else ""
    return f"{meant}Installed packages with a model: {known}"


def installed() -> list[str]:
    """The names by which `inside` finds the installed packages that hold a model in safetensors, sorted."""
    names = set()
    for distribution in distributions():
        for file in distribution.files or ():
            if file.name != "config.json" or len(file.parts) < 2:
                continue
            config = Path(str(distribution.locate_file(file)))
            if any(config.parent.glob("*.safetensors")) and _is_of_model(config):
                names.add(file.parts[0].replace("_", "-"))
    return sorted(names)


def _is_of_model(config: Path) -> bool:
    """Whether a config.json is one of transformers; packages have others of this name."""
    try:
        content = json.loads(read_text(config))
    except (InputError, OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and "model_type" in content
