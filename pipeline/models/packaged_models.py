"""Models inside installed Python packages, which a recipe names `package:NAME`.

Nothing here imports a package, and no message advises to install one by a name that a person has typed: a mistyped
name may be that of somebody else's package.
"""

import difflib
import importlib.util
from importlib.metadata import distributions
from pathlib import Path

from pipeline.errors import InputError, MissingError
from pipeline.models import model_files

PACKAGE = "package:"


def inside(name: str) -> Path:
    """The folder of the model in an installed package.

    Args:
        name: the package's name, without the prefix.

    Raises:
        MissingError: no such package, or it holds no model; names the installed packages that hold one.
    """
    module = name.replace("-", "_")
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise MissingError(f"{PACKAGE}{name}: no package of this name is installed; {advice(name)}")
    for location in map(Path, spec.submodule_search_locations):
        configs = sorted(location.rglob("config.json"), key=lambda path: (len(path.parts), path))
        for config in configs:
            if _is_of_model(config):
                return config.parent
    raise MissingError(
        f"{PACKAGE}{name}: the package holds no transformers model (no config.json with model_type); {advice(name)}"
    )


def advice(name: str) -> str:
    """A sentence on the installed packages that hold a model, the one with the most similar name first."""
    names = installed()
    if not names:
        return "no installed package holds a model; give the folder of one"
    near = difflib.get_close_matches(name.lower().replace("_", "-"), names, n=1, cutoff=0.5)
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
        return "model_type" in model_files.read_object(config)
    except InputError:
        return False
