"""Prefect keeps the parameters and states of runs in its database: no password gets there."""

from pathlib import Path
from typing import Any

import pytest

from flows import prefect_flows
from pipeline.errors import ConfigError, RelevanceError
from pipeline.secrets import holds_password

SECRETS = [
    "postgresql://shop:hunter2@db/shop?table=articles",
    'data.sources=[{path="mysql://shop:hunter2@db/shop"}]',
    "mssql+pyodbc://?odbc_connect=Driver%3Dx%3BPWD%3Dhunter2",
    "postgresql://db/shop?sslpassword=hunter2",
    "postgresql://shop:hunter2${REST}@db/shop",
    "host=db user=shop password=hunter2",
]
NAMED = ["postgresql://shop:${SHOP_PASSWORD}@db/shop", "postgresql://db/shop?password=${SHOP_PASSWORD}", "shop.csv"]
FLOWS: dict[str, tuple[Any, dict[str, Any]]] = {
    "retrain": (prefect_flows.retrain, {"recipe": Path("a.toml"), "overrides": [], "workspace": Path("w")}),
    "report": (prefect_flows.report, {"judgments": "a", "workspace": Path("w"), "release": "", "baseline": ""}),
    "reindex": (prefect_flows.reindex, {"documents": ["a"], "workspace": Path("w"), "overrides": []}),
}


def filled(parameters: dict[str, Any], name: str, value: str) -> dict[str, Any]:
    """The parameters with this value in the place of one of them."""
    return {**parameters, name: [value] if isinstance(parameters[name], list) else value}


CASES = [
    (flow, name)
    for flow, (_, parameters) in FLOWS.items()
    for name, value in parameters.items()
    if not isinstance(value, Path)
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize(("name", "parameter"), CASES)
def test_no_flow_runs_or_is_deployed_with_a_password(name: str, parameter: str, secret: str) -> None:
    flow, parameters = FLOWS[name]
    given = filled(parameters, parameter, secret)
    with pytest.raises(ConfigError, match=r"write \$\{NAME\} in its place") as refused:
        flow(**given)
    assert "hunter2" not in str(refused.value)
    with pytest.raises(ConfigError):
        flow(*given.values())
    with pytest.raises(ConfigError):
        flow.to_deployment("any", parameters=given)


@pytest.mark.parametrize("value", NAMED)
@pytest.mark.parametrize(("name", "parameter"), CASES)
def test_the_name_of_a_variable_is_deployed(name: str, parameter: str, value: str) -> None:
    flow, parameters = FLOWS[name]
    assert not holds_password(value)
    deployed = flow.to_deployment("any", parameters=filled(parameters, parameter, value))
    assert value in str(deployed.parameters[parameter])


def test_the_error_of_a_library_shows_no_password() -> None:
    match = r"OSError: cannot open postgresql://shop:\*\*\*@db"
    with pytest.raises(RelevanceError, match=match) as shown, prefect_flows._no_passwords_in_errors():
        raise OSError("cannot open postgresql://shop:hunter2@db")
    assert shown.value.__cause__ is None
    with pytest.raises(OSError, match="no such host"), prefect_flows._no_passwords_in_errors():
        raise OSError("no such host")
