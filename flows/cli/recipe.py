"""Commands on recipes: list, show and schema."""

from pathlib import Path

import typer

from flows.built_in_recipes import RECIPES, recipe_names
from flows.cli import json_output
from flows.cli.options import Json, Recipe, Set, show

app = typer.Typer(help="Lists, resolves and describes recipes.", no_args_is_help=True)


@app.command("list")
def recipe_list(as_json: Json = False) -> None:
    """Built-in recipes, each with the first sentence of its file."""
    from pipeline.text import read_text, split_lines

    summaries = {}
    for name in recipe_names():
        lines = split_lines(read_text(RECIPES / f"{name}.toml"))
        comment = " ".join(line.removeprefix("#").strip() for line in lines[: lines.index(f'name = "{name}"')])
        summaries[name] = comment.split(". ")[0].rstrip(".") + "."
    show(summaries, as_json, "\n".join(f"{name:<10} {about}" for name, about in summaries.items()))


@app.command("show")
def recipe_show(
    recipe: Recipe,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Prints a recipe with all defaults and overrides resolved, as TOML."""
    from pipeline import recipe as recipes

    resolved = recipes.load(Path(recipe), overrides or [])
    if as_json:
        json_output.print_json(recipes.to_dict(resolved, complete=True))
    else:
        print(recipes.to_toml(resolved), end="")


@app.command("schema")
def recipe_schema() -> None:
    """Prints the JSON Schema of recipes, by which an editor completes and checks them.

    Write it to a file and name it in the first line of a recipe: #:schema recipe.schema.json
    """
    from pipeline import recipe_schema

    json_output.print_json(recipe_schema.schema())
