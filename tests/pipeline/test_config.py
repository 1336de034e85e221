import contextlib
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from pydantic.dataclasses import dataclass

from pipeline import recipe as recipes
from pipeline import recipe_schema
from pipeline.config import LoopConfig, Recipe
from pipeline.config_checks import DOCUMENTED, added
from pipeline.errors import ConfigError, MissingError

BUILT_IN = sorted((Path(__file__).parents[2] / "flows" / "recipes").glob("*.toml"))


def _load(tmp_path: Path, text: str, *overrides: str) -> Recipe:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return recipes.load(path, overrides)


def test_values_and_defaults(tmp_path: Path) -> None:
    recipe = _load(tmp_path, '[ranker]\nlayers = 3\ntemperature = 4\n[data]\nsources = [{ path = "a" }]')
    assert recipe.name == "mine"
    assert recipe.ranker.layers == 3
    assert isinstance(recipe.ranker.temperature, float)
    assert recipe.data.sources[0].format == "auto"
    assert recipe.encoder == Recipe().encoder


@pytest.mark.parametrize("path", BUILT_IN, ids=lambda path: path.stem)
def test_built_in_recipes_load_and_survive_a_manifest(path: Path) -> None:
    recipe = recipes.load(path)
    assert recipes.parse(Recipe, recipes.to_dict(recipe) | {}) == recipe


def test_overrides(tmp_path: Path) -> None:
    recipe = _load(
        tmp_path,
        "[ranker]\nlayers = 3",
        "ranker.layers=2",
        "teacher.loop.epochs=0.5",
        "teacher.base=scratch",
        "ranker.keep_layers=[1, 3]",
        "ranker.plain=false",
    )
    assert recipe.ranker.layers == 2
    assert recipe.teacher.loop.epochs == 0.5
    assert recipe.teacher.base == "scratch"
    assert recipe.ranker.keep_layers == (1, 3)
    assert recipe.ranker.plain is False


def test_an_override_with_a_table_leaves_the_other_keys_of_its_section(tmp_path: Path) -> None:
    text = "[ranker]\nlayers = 3\n[ranker.loop]\nseed = 5\nepochs = 2.5"
    recipe = _load(tmp_path, text, "ranker={temperature=4, loop={seed=6}}")
    assert recipe == _load(tmp_path, text, "ranker.temperature=4", "ranker.loop.seed=6")
    assert (recipe.ranker.layers, recipe.ranker.loop.epochs) == (3, 2.5)
    assert recipes.changed(recipe, ["ranker={temperature=5}"]) == recipes.changed(recipe, ["ranker.temperature=5"])


@pytest.mark.parametrize("override", ["name=a\nb=2", "ranker.layers=3\nteacher.layers=4"])
def test_an_override_of_several_lines_is_refused(override: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds several lines; give each value a --set of its own"):
        _load(tmp_path, "", override)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[ranker]\nlayer = 3", r"unknown key ranker\.layer; did you mean ranker\.layers\?"),
        ("[rankr]\nlayers = 3", "unknown key rankr; did you mean ranker"),
        (
            '[ranker]\n"l\u0430yers" = 3',
            r"unknown key ranker\.l\u0430yers \(l\\u0430yers\); did you mean ranker\.layers\?",
        ),
        ("[ranker]\nxyzzy = 3", r"unknown key ranker\.xyzzy; known keys: base"),
        ('[ranker]\nlayers = "3"', r"ranker\.layers is '3'; it must be a whole number"),
        ("[ranker]\nlayers = 3.0", r"ranker\.layers is 3\.0; it must be a whole number"),
        ("[ranker]\nlayers = true", r"ranker\.layers is True; it must be a whole number"),
        ("[ranker]\nplain = 1", r"ranker\.plain is 1; it must be true or false"),
        ("ranker = 3", r"ranker is 3; it must be a section \[ranker\]"),
        ('[data]\nsplits = "random"', r"data\.splits is 'random'; it must be one of"),
        ("[data]\nsources = 3", r"data\.sources is 3; it must be a list"),
        ('[data]\nsources = [{ pth = "a" }]', r"unknown key data\.sources\[0\]\.pth; did you mean"),
        ("[ranker]\ntemperature = 0", r"ranker\.temperature is 0.*above 0"),
        ("[data]\nvalid_share = 1.5", r"data\.valid_share is 1\.5; it is a share"),
        ("[data]\nvalid_share = 0.5\ntest_share = 0.5", "leave nothing to train on"),
        ("[gate]\nmargin = nan", r"gate\.margin is nan; it must be a finite number"),
        ("[data]\ntrain_queries = -1", r"data\.train_queries is -1"),
        ('[ablation]\nsets = ["soft", "soft"]', r"ablation\.sets .*twice"),
        ("[[assistants]]\n[[assistants]]\nlayers = 0", r"assistants\[1\]\.layers is 0; it must be above 0"),
        ("[[assistants]]\nsoft_weight = -1", r"assistants\[0\]\.soft_weight is -1"),
        ("[[assistants]]\nloop = { epochs = 0 }", r"assistants\[0\]\.loop\.epochs is 0"),
        ("[teacher]\nloop = { clip_norm = 0 }", r"teacher\.loop\.clip_norm is 0"),
        ('[data]\nsources = [{ format = "csv" }]', r"data\.sources\[0\]\.path is missing"),
        ('[study]\nvariants = [{ name = "a" }]', r"study\.variants\[0\]\.set is missing"),
        (
            "[ranker]\nlayers = 9223372036854775808",
            r"ranker\.layers has 19 digits; it must be at most 922",
        ),
        ('[teacher]\nbase = "a\\u0000b"', r"teacher\.base contains a NUL character"),
        (
            "[teacher]\nloop = { seed = 4294967296 }",
            r"teacher\.loop\.seed is 4294967296; it must be from 0 to 2147",
        ),
        ("[ranker]\npassages = { most = -1 }", r"ranker\.passages\.most is -1"),
        ('[study]\nvariants = [{ name = "a\\nb", set = ["ranker.layers=1"] }]', "a name is one line"),
        (
            '[study]\nvariants = [{ name = "a", set = ["ranker.layers=1", "ranker.layers = 2"] }]',
            "'a': sets ranker.layers twice",
        ),
        ("[data\n", "not valid TOML"),
    ],
)
def test_faults_name_the_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        _load(tmp_path, text)
    assert "mine.toml" in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "ranker.layers",
        "=3",
        "ranker..layers=3",
        "name.layers=3",
        'name="a',
        "name='a",
        'name="a" b',
        "ranker.layers=1\nb=2",
    ],
)
def test_malformed_overrides(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        _load(tmp_path, 'name = "x"', override)


def test_missing_or_binary_recipe(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no such recipe"):
        recipes.load(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        recipes.load(tmp_path / "binary.toml")


@pytest.mark.parametrize("path", BUILT_IN, ids=lambda path: path.stem)
def test_a_recipe_shown_as_toml_loads_as_the_same(path: Path, tmp_path: Path) -> None:
    recipe = recipes.load(path, ['data.sources=[{path="a \\"b\\" \\\\ c", labels={"1 good"=2}, grade_scale=[0, 1.5]}]'])
    assert _load(tmp_path, recipes.to_toml(recipe)) == recipe


def test_old_names_still_work_and_warn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old = _load(tmp_path, '[outside]\nscores = "a.parquet"\n[ablation]\ndoses = [1]\n[ranker]\nhidden_weight = 0.0')
    assert old.external_teacher.scores == "a.parquet"
    assert old.ablation.unlabelled_ratios == (1.0,)
    new = _load(tmp_path, "[ranker]\nhidden_weight = 0.0", "outside.scores=a.parquet", "ablation.doses=[1]")
    assert new == old
    assert sum("external_teacher" in message for message in caplog.messages) == 2
    assert sum("unlabelled_ratios" in message for message in caplog.messages) == 2
    with pytest.raises(ConfigError, match="both are given"):
        _load(tmp_path, '[outside]\nscores = "a"\n[external_teacher]\nscores = "b"')
    caplog.clear()
    assert recipes.parse(Recipe, {"outside": {"max_tokens": 9}}).external_teacher.max_tokens == 9
    assert not caplog.messages  # A release's recipe cannot be rewritten by whoever reads it.


def test_an_added_field_stands_in_a_manifest_only_where_it_is_set() -> None:
    @dataclass(frozen=True, kw_only=True, config=DOCUMENTED)
    class Section:
        old: int = 1
        new: float = added(0.5)

    assert recipes.to_dict(Section()) == {"old": 1}
    assert recipes.to_dict(Section(), complete=True) == {"old": 1, "new": 0.5}
    assert recipes.to_dict({"sections": [Section(new=2)]}) == {"sections": [{"old": 1, "new": 2.0}]}


def test_every_field_is_described_in_the_json_schema() -> None:
    schema = recipe_schema.schema()
    first_words = set()
    for name, section in {**schema["$defs"], "Recipe": schema}.items():
        assert section["additionalProperties"] is False, name
        for field, described in section["properties"].items():
            assert described.get("description"), f"{name}.{field} has no text below it"
            first_words.add(described["description"].split()[0])
    assert not first_words & {"Of", "At", "As", "For", "How", "Nothing", "That", "Those", "What", "Who", "So"}


@pytest.mark.parametrize("path", BUILT_IN, ids=lambda path: path.stem)
def test_the_json_schema_takes_the_built_in_recipes_and_refuses_what_loading_refuses(path: Path) -> None:
    import tomllib

    jsonschema = pytest.importorskip("jsonschema")
    check = jsonschema.Draft202012Validator(recipe_schema.schema())
    tree = tomllib.loads(path.read_text(encoding="utf-8"))
    assert not list(check.iter_errors(tree))
    assert list(check.iter_errors({**tree, "ranker": {"layer": 3}}))
    assert list(check.iter_errors({**tree, "ranker": {"layers": "3"}}))


@pytest.mark.parametrize("path", BUILT_IN, ids=lambda path: path.stem)
def test_a_recipe_given_as_changes_of_an_empty_one_is_that_recipe(path: Path, tmp_path: Path) -> None:
    """The form takes every section that a built-in recipe has, and each value arrives where the file would put it."""
    import tomllib

    jsonschema = pytest.importorskip("jsonschema")
    tree = tomllib.loads(path.read_text(encoding="utf-8"))
    changes = {name: value for name, value in tree.items() if name not in recipe_schema.NOT_IN_A_FORM}
    form = recipe_schema.form()
    check = jsonschema.Draft202012Validator(form)
    for name, section in form["properties"].items():
        keys = {name: section, **section.get("properties", {})}
        assert {key: described["title"] for key, described in keys.items()} == {key: key for key in keys}
    assert not list(check.iter_errors(changes))
    assert not list(check.iter_errors({}))
    (tmp_path / "empty.toml").write_text("", encoding="utf-8")
    own = {name: tree[name] for name in recipe_schema.NOT_IN_A_FORM if name in tree}
    changed = recipes.load(tmp_path / "empty.toml", changes=changes | own)
    assert changed == recipes.load(path)
    assert recipes.load(path, changes={}) == recipes.load(path)


def test_changes_are_laid_over_the_overrides_value_by_value(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[ranker]\nlayers = 3\ntemperature = 4\n[[assistants]]\nlayers = 9", encoding="utf-8")
    changes = {"ranker": {"layers": 2, "temperature": None, "loop": {"epochs": 2}}, "gate": None, "assistants": []}
    recipe = recipes.load(path, ["ranker.layers=4", "ranker.loop.seed=5"], changes)
    assert (recipe.ranker.layers, recipe.ranker.temperature) == (2, 4.0)
    assert (recipe.ranker.loop.epochs, recipe.ranker.loop.seed) == (2.0, 5)
    assert recipe.assistants == ()
    assert recipe.gate == Recipe().gate


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rankr": {"layers": 3}}, r"unknown key rankr; did you mean ranker\?"),
        ({"ranker": {"layer": 3}}, r"unknown key ranker\.layer; did you mean ranker\.layers\?"),
        ({"ranker": {"loop": {"epoch": 3}}}, r"did you mean ranker\.loop\.epochs\?"),
        ({"ranker": {"layers": "3"}}, "ranker.layers is '3'; it must be a whole number"),
        ({"ranker": 3}, r"ranker is 3; it must be a section \[ranker\]"),
        ({"assistants": {"layers": 3}}, "assistants is .*; it must be a list"),
    ],
)
def test_changes_that_no_recipe_has_are_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    path = tmp_path / "mine.toml"
    path.write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        recipes.load(path, changes=changes)
    assert list(jsonschema.Draft202012Validator(recipe_schema.form()).iter_errors(changes))


@pytest.mark.parametrize("value", ["[" * 5000, "9" * 5000, "{a=" * 3000], ids=["brackets", "digits", "tables"])
def test_a_value_that_the_parser_gives_up_on_is_one_message(tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigError, match=r"mine\.toml: not valid TOML"):
        _load(tmp_path, f"[ranker]\nlayers = {value}")
    with pytest.raises(ConfigError, match=r"--set ranker\.layers=.*: not valid TOML"):
        _load(tmp_path, "[ranker]\nlayers = 3", f"ranker.layers={value}")


SECTIONS = {field.name for field in dataclasses.fields(Recipe)}
HOSTILE = ["1" + "0" * 400, "9223372036854775808", "nan", "-inf", '"\\u0000"', '["\\u0000"]', "[[]]", "[{}]", "{a=1}"]
HOSTILE += ["-1", "0", "1e308", "true", '"x"', "[]", "1979-05-27", '{"\\u0000"="x"}']


def _keys(kind: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """The path of each value of a recipe, and its type."""
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        inner = hints[field.name]
        if dataclasses.is_dataclass(inner):
            yield from _keys(inner, f"{where}{field.name}.")
        else:
            yield f"{where}{field.name}", inner


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: value[:20])
def test_no_value_of_any_key_is_more_than_one_line_that_begins_with_a_key(tmp_path: Path, value: str) -> None:
    for key, _ in _keys(Recipe):
        message = f"{key.partition('.')[0]}: taken"
        try:
            _load(tmp_path, "", f"{key}={value}")
        except ConfigError as error:
            message = str(error).removeprefix(f"{tmp_path / 'mine.toml'}: ")
        assert re.split(r"[ .:[]", message)[0] in {*SECTIONS, "unknown"}, (key, message)
        assert "\n" not in message, (key, message)


BELOW_ZERO = {"data.seed", "candidates.seed", "encoder.mining.guard", "export.min_kendall_tau"}
"""Numbers that mean something below 0; of the seeds these two are hashed with a name."""


def test_a_number_below_zero_is_refused_wherever_it_means_nothing(tmp_path: Path) -> None:
    taken = set()
    for key, kind in _keys(Recipe):
        if kind in (int, float):
            with contextlib.suppress(ConfigError):
                _load(tmp_path, "", f"{key}=-1")
                taken.add(key)
    assert taken == BELOW_ZERO


def test_seeds_go_on_from_the_largest_at_the_smallest() -> None:
    loop = LoopConfig(seed=2**31 - 2)
    assert [loop.reseeded(number).seed for number in range(4)] == [2**31 - 2, 2**31 - 1, 0, 1]
