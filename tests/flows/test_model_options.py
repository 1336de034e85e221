"""The options of ready-made models: one declaration for every command that takes them."""

import dataclasses
import inspect
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from flows.cli import serving
from flows.cli.model_options import ModelOptions, with_model_options
from pipeline.errors import ConfigError

GIVEN: dict[str, Any] = {
    "ranker": "a",
    "encoder": "b",
    "label": "yes",
    "query_prompt": "query: ",
    "document_prompt": "",
    "max_tokens": 64,
    "widths": "32, 16",
    "passages": 8,
    "judgments": "judged",
}


def test_every_option_reaches_the_command() -> None:
    app, calls = typer.Typer(), []

    @app.command()
    @with_model_options
    def command(name: str, models: ModelOptions, loud: bool = False) -> None:
        calls.append((name, models, loud))

    options = [part for key, value in GIVEN.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    for arguments in ([], [*options, "--loud"]):
        outcome = CliRunner().invoke(app, ["cat", *arguments])
        assert outcome.exit_code == 0, outcome.output
    assert GIVEN.keys() == {field.name for field in dataclasses.fields(ModelOptions)}
    assert calls == [("cat", ModelOptions(), False), ("cat", ModelOptions(**GIVEN), True)]


def test_both_commands_have_the_same_options_of_models() -> None:
    commands = {
        command.callback.__name__: command.callback for command in serving.app.registered_commands if command.callback
    }
    declared = {field.name: (field.type, field.default) for field in dataclasses.fields(ModelOptions)}
    for name in ("serve", "quickstart"):
        parameters = inspect.signature(commands[name]).parameters
        assert {key: (parameters[key].annotation, parameters[key].default) for key in declared} == declared


def test_values_are_read_for_the_models() -> None:
    models = ModelOptions(**GIVEN).read("int8")
    assert (models.ranker, models.encoder, models.precision, models.judgments) == ("a", "b", "int8", "judged")
    assert (models.options.widths, models.options.passages) == ((32, 16), 8)
    assert (models.options.query_prompt, models.options.document_prompt) == ("query: ", "")
    assert ModelOptions().read("auto").precision == ModelOptions().read(None).precision == "fp32"
    with pytest.raises(ConfigError, match="--widths 3x: write whole numbers"):
        ModelOptions(encoder="b", widths="3x").read("fp32")
    with pytest.raises(ConfigError, match="--precision int4: not one of fp32"):
        ModelOptions().read("int4")
