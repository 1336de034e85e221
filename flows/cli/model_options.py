"""The options that name ready-made models, alike in `relevance serve` and `relevance quickstart`."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from flows.ready_made import ReadyMadeModels
    from pipeline.config import Precision
    from pipeline.models.ready_made_files import ReadyMadeOptions


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Ready-made models as a command line names them; each field is an option of its own name."""

    ranker: Annotated[str, typer.Option(help="Folder, package:NAME or hub name of a ready-made cross-encoder.")] = ""
    encoder: Annotated[str, typer.Option(help="Folder, package:NAME or hub name of a ready-made sentence encoder.")] = (
        ""
    )
    label: Annotated[str, typer.Option(help="Label of relevance, where the ranker has several and none says so.")] = ""
    query_prompt: Annotated[
        str | None, typer.Option(help='Text before each query, such as "query: "; else the folder\'s.')
    ] = None
    document_prompt: Annotated[str | None, typer.Option(help="Text before each document; the folder's by default.")] = (
        None
    )
    max_tokens: Annotated[
        int, typer.Option(min=0, help="Length at which inputs are cut; 0 for what the folder says.")
    ] = 0
    widths: Annotated[str, typer.Option(help="Matryoshka widths at which vectors may be cut off, such as 256,128.")] = (
        ""
    )
    passages: Annotated[
        int, typer.Option(min=0, help="Passages in which a document is read that is too long for a model; 0 cuts it.")
    ] = 0
    judgments: Annotated[str, typer.Option(help="Judged queries on which a lower precision is measured.")] = ""

    def read(self, precision: str | None, *, indexed: bool = False) -> "ReadyMadeModels":
        """The models that these options name.

        Args:
            precision: fp32, fp16, int8 or w8; auto or None for fp32.
            indexed: documents are indexed too, by an encoder that need not be named.

        Raises:
            ConfigError: widths that are no numbers; an unknown precision; an option that would change nothing.
            MissingError: a package that is not there, or its name without `package:`.
        """
        self._refuse_idle(precision, indexed)
        from flows.ready_made import ReadyMadeModels
        from pipeline.models import packaged_models

        for name in (self.ranker, self.encoder):
            packaged_models.check_name(name)
        return ReadyMadeModels(
            ranker=self.ranker,
            encoder=self.encoder,
            options=self.of_folders(),
            precision=_precision(precision),
            judgments=self.judgments,
        )

    def _refuse_idle(self, precision: str | None, indexed: bool) -> None:
        """Raises ConfigError where an option belongs to a model that is not named, or to a precision."""
        of_encoder = {
            "--query-prompt": self.query_prompt is not None,
            "--document-prompt": self.document_prompt is not None,
            "--widths": bool(self.widths),
        }
        of_ranker = {"--label": bool(self.label), "--passages": bool(self.passages) and not indexed}
        for given, model, options in (
            (self.encoder or indexed, "--encoder", of_encoder),
            (self.ranker, "--ranker", of_ranker),
        ):
            if idle := [option for option, is_set in options.items() if is_set and not given]:
                raise ConfigError(f"{', '.join(idle)}: of use to {model} alone; name one, or leave it out")
        if self.judgments and _precision(precision) == "fp32":
            raise ConfigError("--judgments: measures a precision below fp32; add --precision int8, or leave it out")

    def of_folders(self) -> "ReadyMadeOptions":
        """The options that say what the models' folders leave open.

        Raises:
            ConfigError: widths that are no numbers.
        """
        from pipeline.models.ready_made_files import ReadyMadeOptions

        try:
            widths = tuple(int(width) for width in self.widths.split(",") if width.strip())
        except ValueError as error:
            raise ConfigError(f"--widths {self.widths}: write whole numbers with commas, such as 256,128") from error
        return ReadyMadeOptions(
            label=self.label,
            query_prompt=self.query_prompt,
            document_prompt=self.document_prompt,
            max_tokens=self.max_tokens,
            widths=widths,
            passages=self.passages,
        )


def with_model_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options of `ModelOptions` in place of its parameter `models`."""
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name != "models":
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        parameters += [
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
            for field in fields(ModelOptions)
        ]

    @functools.wraps(command)
    def expanded(**values: Any) -> None:
        models = ModelOptions(**{field.name: values.pop(field.name) for field in fields(ModelOptions)})
        command(models=models, **values)

    # Typer reads both.
    expanded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    expanded.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return expanded


def _precision(name: str | None) -> "Precision":
    from pipeline.config import Precision

    if name in (None, "auto"):
        return "fp32"
    if name in get_args(Precision):
        return cast("Precision", name)
    raise ConfigError(f"--precision {name}: not one of {', '.join(get_args(Precision))}")
