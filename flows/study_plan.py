"""The plan of a study: which methods to compress the ranker take part, each checked before the first training."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flows import comparisons, shape_search, student_pairs, training
from flows.runner import Runner
from pipeline import recipe as recipes
from pipeline.artifacts import Artifact
from pipeline.config import CandidatesConfig, Recipe, weights_of
from pipeline.errors import ConfigError, InputError
from pipeline.evaluation.study import row_name
from pipeline.training.compression import DISTILLED, HARD, METHODS, PLAIN, Method, by_name

FREE = ("ranker", "assistants", "external_teacher")
"""Sections that a variant may change; of `candidates` it may change the keys of UNGRADED."""

UNGRADED = ("unlabelled", "augment", "title_queries")
"""Beginnings of the keys of `candidates` that decide on unlabelled and augmented pairs alone."""

SEARCHED = "searched"
"""Name of the method whose depth and width the shape search chooses (`shape_search`)."""


@dataclass(frozen=True, slots=True)
class StudyMethod:
    """One method of training the ranker, ready to run: known, a variant of the recipe, or the shape search's."""

    name: str
    summary: str
    """A line that says what is done to the ranker."""
    source: str
    """The paper; empty for a variant of the recipe."""
    recipe: Recipe
    """The study's recipe, changed so that its ranker is trained by this method."""
    from_teacher: bool = True
    """Whether the ranker learns from the teacher's scores; else from grades alone."""
    tried: tuple[Artifact, ...] = ()
    """Rankers that the shape search trained to find this method."""


@dataclass(frozen=True, slots=True)
class StudyPlan:
    """The methods of a study, and the known methods that cannot apply to the recipe's models."""

    methods: tuple[StudyMethod, ...]
    refused: Mapping[str, str]
    """Name → reason."""


def plan(recipe: Recipe) -> StudyPlan:
    """The methods that the recipe's section `study` asks for, each checked against the models' configs.

    Raises:
        ConfigError: a method or variant that the recipe names is unknown, cannot apply, or would need a teacher of its
            own; the message names it.
        MissingError: a model or file that a variant names is not there.
    """
    from pipeline.training import preflight, ranker_chain

    _refuse_shared_names(recipe)
    own = _exported(recipe)
    with recipes.named("export", "study"):
        preflight.check_bases(own)
        preflight.check_students(own, checked=own)
    _check_plain(recipe)
    wanted = recipe.study.methods
    methods: list[StudyMethod] = []
    refused: dict[str, str] = {}
    for known in METHODS if not wanted else [*METHODS[:2], *map(by_name, wanted)]:
        if any(method.name == known.name for method in methods):
            continue
        try:
            methods.append(_unlike(methods, _applied(recipe, known)))
        except ConfigError as error:
            if wanted:
                raise ConfigError(f"study.methods '{known.name}': {error}") from error
            refused[known.name] = str(error)
    for variant in recipe.study.variants:
        try:
            changed = recipes.changed(recipe, variant.set)
            method = checked(recipe, StudyMethod(variant.name, " ".join(variant.set), "", changed))
            methods.append(_unlike(methods, method))
        except InputError as error:
            raise type(error)(f"study.variants '{variant.name}': {error}") from error
    for shape in shape_search.shapes(recipe, ranker_chain.source_shape(recipe)) if recipe.study.search_cost else ():
        try:
            checked(recipe, of_shape(recipe, shape))
        except ConfigError as error:
            raise ConfigError(f"study.search_cost, {shape.layers} layers × {shape.units} units: {error}") from error
    return StudyPlan(tuple(methods), refused)


def _check_plain(recipe: Recipe) -> None:
    """Checks that the plain student, which every study begins with, can be trained.

    Raises:
        ConfigError: it would learn nothing, or cannot be cut from the teacher's base.
    """
    from pipeline.training import ranker_chain

    if not any(weight for name, weight in weights_of(recipe.ranker).items() if name.startswith(HARD)):
        raise ConfigError(
            "ranker: every hard_…_weight is 0, and the plain student, which a study holds the others against, learns "
            "from grades alone; give one a weight"
        )
    ranker_chain.check_plain(recipe)


def _refuse_shared_names(recipe: Recipe) -> None:
    """Checks that each variant has a name of its own, also beside the known methods that take no part.

    Raises:
        ConfigError: it has the name that another row of the table has, or would have.
    """
    methods = [*(method.name for method in METHODS), SEARCHED, *(variant.name for variant in recipe.study.variants)]
    rows = [row_name(name, precision) for name in methods for precision in recipe.study.precisions]
    rows += [comparisons.BM25, comparisons.TEACHER]
    for variant in recipe.study.variants:
        if any(rows.count(row_name(variant.name, precision)) > 1 for precision in recipe.study.precisions):
            raise ConfigError(
                f"study.variants '{variant.name}': a known method or another row of the table has this name; rename it"
            )


def _applied(recipe: Recipe, known: Method) -> StudyMethod:
    """A known method, applied to the recipe.

    Raises:
        ConfigError: it cannot apply to the recipe.
    """
    from pipeline.training import ranker_chain

    changed = known.change(recipe, ranker_chain.source_shape(recipe))
    return checked(recipe, StudyMethod(known.name, known.summary, known.source, changed, known.from_teacher))


def _unlike(methods: Sequence[StudyMethod], method: StudyMethod) -> StudyMethod:
    """The method, which none of these trains as.

    Raises:
        ConfigError: one does; two rows of one ranker would make all tests stricter and tell nothing.
    """
    for other in methods:
        if (other.recipe, other.from_teacher) == (method.recipe, method.from_teacher):
            raise ConfigError(f"it trains the ranker as '{other.name}' does; leave one of them out")
    return method


def checked(recipe: Recipe, method: StudyMethod) -> StudyMethod:
    """The method, checked: it shares the study's teacher, and its ranker can be trained and exported.

    Its `ranker.plain`, a second student trained without the teacher, is set to false: a study has that student as a
    method of its own. It is exported in the study's precisions.

    Raises:
        ConfigError: the method would need another teacher than the recipe's, does what the recipe does without it, or
            its ranker cannot be trained or exported.
        MissingError: a model or file that it names is not there.
    """
    from pipeline.training import preflight

    free = {name: getattr(recipe, name) for name in FREE}
    given, wanted = (
        dataclasses.replace(item, candidates=_labelled(item.candidates), **free) for item in (recipe, method.recipe)
    )
    if wanted != given:
        raise ConfigError(
            f"it changes more than {', '.join(FREE)} and the ungraded pairs, so it would have another teacher or "
            "other queries than the rest; run a study of its own"
        )
    own = _exported(method.recipe)
    if own == _exported(recipe) and method.name not in (PLAIN, DISTILLED, SEARCHED):
        raise ConfigError("the recipe's ranker is trained in this way already")
    with recipes.named("export", "study"):
        preflight.check_students(own, checked=recipe)
    return dataclasses.replace(method, recipe=own)


def with_pairs(recipe: Recipe, planned: StudyPlan, run: Runner) -> StudyPlan:
    """The plan with each method whose pairs can be had; makes the labelled and unlabelled ones.

    Raises:
        ConfigError: no unlabelled pair is found for a method or variant that the recipe names, or it learns only how
            documents of one query compare where no query has two.
        SchemaError: the file of an external teacher lacks pairs of a method or variant that the recipe names.
    """
    if recipe.candidates.encoder_negatives:  # The pairs are not known before an encoder has searched.
        return planned
    inputs, methods, refused = training.labelled(recipe, run), [], dict(planned.refused)
    known = {method.name for method in METHODS[2:]}
    for method in planned.methods:
        students = (*method.recipe.assistants, method.recipe.ranker) if method.from_teacher else ()
        try:
            student_pairs.check(method.recipe, students, inputs, run.labelled(method.name))
        except InputError as error:
            if recipe.study.methods or method.name not in known:
                raise type(error)(f"study, '{method.name}': {error}") from error
            refused[method.name] = str(error)
        else:
            methods.append(method)
    return StudyPlan(tuple(methods), refused)


def _exported(recipe: Recipe) -> Recipe:
    """The recipe that trains the ranker alone, without the plain student, and exports it in the study's precisions."""
    ranker = dataclasses.replace(recipe.ranker, plain=False)
    return dataclasses.replace(
        recipe, ranker=ranker, export=dataclasses.replace(recipe.export, precisions=recipe.study.precisions)
    )


def _labelled(config: CandidatesConfig) -> CandidatesConfig:
    """The section `candidates` with its keys of unlabelled and augmented pairs at their defaults."""
    empty = CandidatesConfig()
    names = [field.name for field in dataclasses.fields(config) if field.name.startswith(UNGRADED)]
    return dataclasses.replace(config, **{name: getattr(empty, name) for name in names})


def of_shape(recipe: Recipe, shape: shape_search.StudentShape) -> StudyMethod:
    """The method whose ranker has a shape that the search found."""
    from pipeline.training import ranker_chain

    summary = f"{shape.layers} layers × {shape.units} units, found at {shape.cost:.0%} of the ranker's products"
    changed = dataclasses.replace(recipe, ranker=shape.of(recipe.ranker, ranker_chain.source_shape(recipe)))
    return StudyMethod(SEARCHED, summary, shape_search.SOURCE, changed)


def catalogue(recipe: Recipe | None = None) -> Sequence[Mapping[str, str]]:
    """The known methods: name, summary, source and, with a recipe, why a method cannot apply to it."""
    refused: Mapping[str, str] = {}
    if recipe is not None:
        for name in recipe.study.methods:
            by_name(name)
        refused = plan(dataclasses.replace(recipe, study=dataclasses.replace(recipe.study, methods=()))).refused
    return [
        {"name": item.name, "summary": item.summary, "source": item.source, "refused": refused.get(item.name, "")}
        for item in METHODS
    ]
