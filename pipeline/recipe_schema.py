"""JSON Schemas of recipes: one for editors, which complete and check a TOML file, and one for the forms of Prefect."""

from typing import Any

from pydantic import TypeAdapter

from pipeline.config import Recipe

NOT_IN_A_FORM = ("name", "ablation", "study", "schedule")
"""Keys of a recipe that decide nothing about the models of a retraining."""


def schema() -> dict[str, Any]:
    """The JSON Schema of a recipe; an editor completes and checks a TOML file by it."""
    closed: dict[str, Any] = _closed(TypeAdapter(Recipe).json_schema())
    return closed


def _closed(schema: Any) -> Any:
    """The schema with unknown keys of a section refused, as `recipe.parse` refuses them."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(item) for key, item in schema.items()}
    return closed | {"additionalProperties": False} if "properties" in schema and "type" in schema else closed


def form() -> dict[str, Any]:
    """The JSON Schema of changes that are laid over a recipe, as `recipe.load` takes them.

    It has no defaults, as an untouched field of a form keeps the recipe's own value, and no references, as pydantic
    does not resolve those of a schema that a type brings along. An unknown key is refused with the list of known ones.
    """
    schema = TypeAdapter(Recipe).json_schema()
    sections = {name: item for name, item in schema["properties"].items() if name not in NOT_IN_A_FORM}
    definitions = schema["$defs"]
    complete: dict[str, Any] = _optional({**schema, "properties": sections}, definitions)
    return {key: item for key, item in complete.items() if key != "$defs"}


def _optional(schema: Any, definitions: dict[str, Any]) -> Any:
    """The schema with its references resolved and its defaults left out."""
    if isinstance(schema, list):
        return [_optional(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        section = definitions[schema["$ref"].rpartition("/")[2]]
        schema = section | {key: item for key, item in schema.items() if key != "$ref"}
    plain = {key: _optional(item, definitions) for key, item in schema.items() if key not in ("default", "properties")}
    if "properties" in schema:
        properties = schema["properties"]
        # The key as a recipe has it, in place of a class's name or of the key in capitals.
        plain["properties"] = {
            name: _optional(item, definitions) | {"title": name} for name, item in properties.items()
        }
        plain["propertyNames"] = {"enum": list(properties)}
    return plain
