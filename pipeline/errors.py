"""The errors of the pipeline, one tree.

    RelevanceError                 exit 1   the work failed
    ├── InputError                 exit 2   something a person gave is wrong
    │   ├── ConfigError                     a recipe or an option
    │   ├── SchemaError                     a table, a row
    │   ├── MissingError                    a model, release, file or extra that is not there
    │   └── WrongKindError                  an artifact of one kind where a stage takes another
    ├── ArtifactError                       a stage's output is damaged, unfinished or could not be written
    ├── ConflictError                       another publisher moved the pointer first
    ├── MemoryShortageError                 memory ran out
    ├── UnavailableError                    a database or a cluster cannot be reached, or was lost; try again later
    ├── TrainingError                       a loss that is not a number, a model that cannot be trained so
    │   └── ShapeError                      tensors that do not fit together
    └── GateError                  exit 3   the new release is not good enough to go live
        └── ImplausibleError                the new documents look as if their source were broken

The command line prints the message and exits with `exit_code`; a message says what was wrong, where,
and what to do.
"""

from pipeline.secrets import hide_passwords


class RelevanceError(Exception):
    """Root of all errors that this package raises on purpose. Passwords of URLs are hidden in every message."""

    exit_code = 1

    def __init__(self, *args: object) -> None:
        super().__init__(*(hide_passwords(arg) if isinstance(arg, str) else arg for arg in args))


class InputError(RelevanceError):
    """Something a person gave is wrong: a recipe, an option, a table."""

    exit_code = 2


class ConfigError(InputError):
    """A recipe or an option has an unknown key, a wrong type or an impossible value."""


class SchemaError(InputError):
    """A table or a row does not keep the contract of `pipeline.schema`."""


class MissingError(InputError):
    """A named model, release, file or optional package is not there."""


class WrongKindError(InputError):
    """A stage was given an artifact of a kind that it does not take."""


class ArtifactError(RelevanceError):
    """A stage's output is damaged, unfinished, or could not be written."""


class ConflictError(RelevanceError):
    """Another publisher moved the pointer between reading it and writing it."""


class MemoryShortageError(RelevanceError):
    """Memory ran out; nothing half-made was kept."""


class UnavailableError(RelevanceError):
    """A database or a cluster cannot be reached, or was lost on the way; nothing was published, so try again later."""


class TrainingError(RelevanceError):
    """Training cannot go on: the loss is not a number, or the parts do not fit."""


class ShapeError(TrainingError):
    """Tensors that do not fit together."""


class GateError(RelevanceError):
    """The gate found the new release worse than the live one."""

    exit_code = 3


class ImplausibleError(GateError):
    """The new documents are far fewer, emptier or more repeated than the live ones; a person may insist."""
