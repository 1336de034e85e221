"""A stage makes one kind of artifact, and declares which kinds of artifact it takes.

    STAGE = Stage("ranker", version=2, section="ranker", inputs={"data": "data", "pairs": "pairs"})

    @STAGE
    def make(workspace: Path, config: RankerConfig, *, data: Artifact, pairs: Artifact) -> Artifact:
        ...
        return STAGE.make(workspace, config=settings, inputs={"data": data, "pairs": pairs}, build=build)

The decorator checks the kind of each input before the function runs. Inputs are keyword-only parameters, and the
names in the declaration are those of the parameters. A parameter may hold one artifact, several in a sequence or a
mapping, or none (None, or a text that names something that is no artifact).
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ParamSpec

from pipeline import artifacts
from pipeline.artifacts import Artifact, Input, Staging
from pipeline.errors import WrongKindError

P = ParamSpec("P")

STAGE_ATTRIBUTE = "stage"
"""The attribute of a stage's function that holds its `Stage`."""


@dataclass(frozen=True, slots=True)
class Stage:
    """The contract of a stage: what it makes, and from what."""

    kind: str
    """The kind of the artifact, and the name of its folder in the workspace."""
    version: int
    """Part of the fingerprint; raise it when the code changes what the stage makes."""
    inputs: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    """Parameter → the kind, or kinds, of artifact that it takes."""
    section: str = ""
    """Name of the recipe's section that configures the stage; empty without one."""
    title: str = ""
    """The stage's name in logs and in Prefect; the kind when empty."""

    @property
    def name(self) -> str:
        """The stage's name in logs and as a Prefect task."""
        return self.title or self.kind.replace("_", " ")

    def kinds(self, parameter: str) -> tuple[str, ...]:
        """The kinds of artifact that a parameter takes."""
        kinds = self.inputs[parameter]
        return (kinds,) if isinstance(kinds, str) else kinds

    def __call__(self, function: Callable[P, Artifact]) -> Callable[P, Artifact]:
        """Decorates the function that makes the artifact: its inputs are checked before it runs.

        Raises:
            TypeError: a declared input is not a keyword-only parameter of the function.
        """
        parameters = inspect.signature(function).parameters
        for name in self.inputs:
            if name not in parameters or parameters[name].kind is not inspect.Parameter.KEYWORD_ONLY:
                raise TypeError(f"{function.__module__}.{function.__name__}: input {name} is no keyword-only parameter")

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> Artifact:
            for name in self.inputs:
                self.check(name, kwargs.get(name))
            return function(*args, **kwargs)

        setattr(checked, STAGE_ATTRIBUTE, self)
        return checked

    def check(self, parameter: str, value: object) -> None:
        """Checks that the artifacts in `value` are of a kind that this input takes.

        Raises:
            WrongKindError: one is not; the message names the kind it has and the kinds that fit.
        """
        wanted = self.kinds(parameter)
        for artifact in _artifacts(value):
            kind = artifact.manifest.kind
            if kind not in wanted:
                raise WrongKindError(
                    f"the stage {self.name} takes a {' or '.join(wanted)} artifact as {parameter}; "
                    f"{artifact.path} is a {kind} artifact, so pass another one"
                )

    def make(
        self,
        workspace: Path,
        *,
        config: Mapping[str, Any],
        inputs: Mapping[str, Input],
        build: Callable[[Staging], Mapping[str, Any]],
    ) -> Artifact:
        """The artifact of this config and these inputs: the finished one, or the one that `build` makes now.

        See `artifacts.make` for the arguments and errors.
        """
        return artifacts.make(workspace, self.kind, version=self.version, config=config, inputs=inputs, build=build)


def stage_of(function: Callable[..., Any]) -> Stage | None:
    """The stage whose function this is; None for any other function."""
    stage = getattr(function, STAGE_ATTRIBUTE, None)
    return stage if isinstance(stage, Stage) else None


def _artifacts(value: object) -> Iterator[Artifact]:
    """The artifacts in the value of one parameter."""
    if isinstance(value, Artifact):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _artifacts(item)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            yield from _artifacts(item)
    elif is_dataclass(value):
        for item in fields(value):
            yield from _artifacts(getattr(value, item.name))
