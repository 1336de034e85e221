"""Known methods to compress a ranker, each as a change of the recipe: the rows of `relevance study`.

A method changes only what comes after the teacher, so that a study trains one teacher. A new method is one
entry in `METHODS`.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.config import Augmentation, RankerConfig, Recipe, weights_of
from pipeline.errors import ConfigError
from pipeline.models import width_pruning
from pipeline.models.base_models import ModelShape
from pipeline.training import ranker as ranker_stage
from pipeline.training import ranker_chain, ranker_shape

PLAIN, DISTILLED = "plain", "distilled"
"""The student without a teacher, which is the baseline, and the ranker as the recipe has it."""

HARD = ranker_shape.HARD
"""The beginning of the names of weights of losses on grades."""

GENERAL_TOKENS = 1_000_000
"""Tokens of the texts that a student's layers learn from the base before they learn to rank."""

AUGMENTED = 4.0
"""Augmented pairs for each labelled one where the recipe has no unlabelled ones, whose number they take otherwise."""

WHOLE: dict[str, Any] = {
    "intermediate": 0,
    "feed_forward_rank": 0,
    "embedding_rank": 0,
    "int8_share": 0.0,
    "max_tokens": 0,
    "prune_vocabulary": False,
}
"""The keys of the ranker's section that make it smaller or cheaper beside its depth, as they do neither."""

Change = Callable[[Recipe, ModelShape], Recipe]


@dataclass(frozen=True, slots=True)
class Method:
    """A known method to train a small ranker."""

    name: str
    summary: str
    change: Change
    """The recipe and the shape of the model that the ranker is cut from → the recipe of this method.

    Raises `ConfigError` where the method cannot apply.
    """
    source: str = ""
    """The paper."""
    from_teacher: bool = True
    """Whether the ranker learns from the teacher's scores."""


def _ranker(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe with these keys of its section ranker changed."""
    return dataclasses.replace(recipe, ranker=dataclasses.replace(recipe.ranker, plain=False, **changes))


def _only(**weights: float) -> Change:
    """The recipe whose ranker learns from its teacher by these losses alone; those on grades stay."""

    def change(recipe: Recipe, _: ModelShape) -> Recipe:
        without_teacher = {name: 0.0 for name in weights_of(recipe.ranker) if not name.startswith(HARD)}
        changed = _ranker(recipe, **without_teacher | {f"{name}_weight": weight for name, weight in weights.items()})
        if weights.get("hidden") and not changed.ranker.matches_states:
            raise ConfigError("the recipe's ranker has one layer, whose states are not compared with the teacher's")
        return changed

    return change


def _softened(temperature: float) -> Change:
    return lambda recipe, source: _ranker(_only(soft=1.0)(recipe, source), temperature=temperature)


def _with(**changes: Any) -> Change:
    return lambda recipe, _: _ranker(recipe, **changes)


def _first_layers(recipe: Recipe, source: ModelShape) -> Recipe:
    return _keeping(recipe, source, tuple(range(1, recipe.ranker.depth + 1)))


def _last_layers(recipe: Recipe, source: ModelShape) -> Recipe:
    kept = recipe.ranker.depth
    return _keeping(recipe, source, tuple(range(source.layers - kept + 1, source.layers + 1)))


def _keeping(recipe: Recipe, source: ModelShape, layers: tuple[int, ...]) -> Recipe:
    """The recipe whose ranker is cut to these layers.

    Raises:
        ConfigError: it is cut to them as it is.
    """
    if layers == ranker_shape.kept(recipe.ranker, source.layers):
        raise ConfigError(f"the recipe's ranker is cut to layers {', '.join(map(str, layers))} already")
    return _ranker(recipe, keep_layers=layers)


def _general(recipe: Recipe, _: ModelShape) -> Recipe:
    return _ranker(recipe, base=ranker_stage.FROM_BASE, general_tokens=GENERAL_TOKENS)


def _depth(layers: int) -> Change:
    def change(recipe: Recipe, source: ModelShape) -> Recipe:
        if not layers < source.layers:
            raise ConfigError(
                f"the model that the ranker is cut from has {source.layers} layers, so {layers} compress nothing"
            )
        if layers == recipe.ranker.depth:
            raise ConfigError(f"the recipe's ranker has {layers} layers already")
        return _ranker(recipe, layers=layers, keep_layers=(), layer_map=())

    return change


def _teaching(recipe: Recipe, layers: int, **changes: Any) -> RankerConfig:
    """The section `ranker` of a model of this depth that stands between the teacher and the ranker.

    It learns as the ranker does, and what makes the ranker small beside its depth is left out.
    """
    alone: dict[str, Any] = {"keep_layers": (), "layer_map": (), "hidden_weight": 0.0, "plain": False}
    return dataclasses.replace(recipe.ranker, layers=layers, **WHOLE | alone | changes)


def _taught_depth(recipe: Recipe) -> int:
    """Number of layers of the teacher, which the recipe's assistants do not change."""
    return next(ranker_chain.cuts(recipe)).teacher.layers


def _assistant(recipe: Recipe, _: ModelShape) -> Recipe:
    kept, depth = recipe.ranker.depth, _taught_depth(recipe)
    between = (depth + kept) // 2
    if not kept < between < depth:
        raise ConfigError(f"no depth lies between the ranker's {kept} layers and its teacher's {depth}")
    ranker = _ranker(recipe, hidden_weight=0.0, keep_layers=(), layers=kept, teachers=1)
    return dataclasses.replace(ranker, assistants=(_teaching(recipe, between),))


def _born_again(recipe: Recipe, _: ModelShape) -> Recipe:
    first = dataclasses.replace(recipe.ranker, hidden_weight=0.0, plain=False)
    again = dataclasses.replace(first, keep_layers=(), layers=first.depth, teachers=1)
    return dataclasses.replace(recipe, assistants=(first,), ranker=again)


def _noisy_student(recipe: Recipe, _: ModelShape) -> Recipe:
    """The recipe whose teacher is trained again, with noise, on its own scores of all pairs, and then teaches."""
    noise: dict[str, Any] = {"base": ranker_stage.FROM_BASE, "dropout": 0.1, "mutual_weight": 0.0, "general_tokens": 0}
    own = _ranker(recipe, teachers=1)
    return dataclasses.replace(own, assistants=(_teaching(recipe, _taught_depth(recipe), **noise),))


def _inner_relations(recipe: Recipe, _: ModelShape) -> Recipe:
    last = list(ranker_chain.cuts(recipe))[-1]
    layer = max(1, round(0.75 * last.teacher.layers))
    if layer == last.teacher.layers:
        raise ConfigError(f"of the teacher's {layer} layers the one at three quarters is the last")
    return _ranker(recipe, relation_weight=1.0, relation_layer=layer)


def _feed_forward(share: float) -> Change:
    def change(recipe: Recipe, source: ModelShape) -> Recipe:
        units = max(1, int(source.intermediate * share))
        width_pruning.check(units, source.intermediate, shared=source.shared)
        return _ranker(recipe, intermediate=units)

    return change


def _all_layers(recipe: Recipe, source: ModelShape) -> Recipe:
    """The recipe with a ranker of all layers, narrow enough in the feed-forward part to cost no more than its own.

    Raises:
        ConfigError: all layers cannot be had at that cost.
    """
    own = recipe.ranker
    if own.depth in (1, source.layers):
        raise ConfigError(
            f"the recipe's ranker has {own.depth} layers, whose cost leaves no room to trade units for more"
        )
    cost = ranker_shape.products(source, own.depth, own.intermediate or source.intermediate)
    units = ranker_shape.units_within(source, source.layers, cost)
    if units < ranker_shape.MULTIPLE:
        raise ConfigError(f"attention of all {source.layers} layers alone costs more than the recipe's ranker")
    width_pruning.check(units, source.intermediate, shared=source.shared)
    return _ranker(recipe, layers=source.layers, keep_layers=(), layer_map=(), intermediate=units)


def _teachers(count: int) -> Change:
    """The recipe whose first student learns from this many teachers."""

    def change(recipe: Recipe, _: ModelShape) -> Recipe:
        if not recipe.assistants:
            return _ranker(recipe, teachers=count)
        first = dataclasses.replace(recipe.assistants[0], teachers=count)
        return dataclasses.replace(_ranker(recipe), assistants=(first, *recipe.assistants[1:]))

    return change


def _factors(share: float) -> Change:
    """The recipe whose feed-forward matrices keep this share of their numbers."""

    def change(recipe: Recipe, source: ModelShape) -> Recipe:
        units = recipe.ranker.intermediate or source.intermediate
        rank = max(1, int(share * source.hidden * units / (source.hidden + units)))
        return _ranker(recipe, feed_forward_rank=rank)

    return change


def _narrow_embeddings(recipe: Recipe, source: ModelShape) -> Recipe:
    return _ranker(recipe, embedding_rank=max(1, source.hidden // 4))


def _tokens(count: int) -> Change:
    def change(recipe: Recipe, _: ModelShape) -> Recipe:
        most = recipe.ranker.max_tokens or recipe.teacher.max_tokens
        if count >= most:
            raise ConfigError(f"the ranker reads no more than {most} tokens as it is")
        if count <= recipe.teacher.max_query_tokens + 4:
            raise ConfigError(
                f"queries of up to {recipe.teacher.max_query_tokens} tokens leave no room for a document in {count}"
            )
        return _ranker(recipe, max_tokens=count)

    return change


def _unlabelled(ratio: float) -> Change:
    def change(recipe: Recipe, _: ModelShape) -> Recipe:
        if recipe.candidates.unlabelled == ratio:
            raise ConfigError(f"the recipe has {ratio:g} unlabelled pairs for a labelled one already")
        return dataclasses.replace(recipe, candidates=dataclasses.replace(recipe.candidates, unlabelled=ratio))

    return change


def _augmented(*kinds: Augmentation, beside: bool = False) -> Change:
    """The recipe with augmented pairs: as many as it has unlabelled ones, in their place or beside them."""

    def change(recipe: Recipe, _: ModelShape) -> Recipe:
        if beside and not recipe.candidates.unlabelled:
            raise ConfigError("the recipe has no unlabelled pairs that augmented ones could stand beside")
        ratio = recipe.candidates.unlabelled or AUGMENTED
        kept = recipe.candidates.unlabelled if beside else 0.0
        augmented = dataclasses.replace(recipe.candidates, unlabelled=kept, augmented=ratio, augmentation=kinds)
        return dataclasses.replace(recipe, candidates=augmented)

    return change


_HINTON = "Hinton et al. 2015, arXiv:1503.02531"
_TAYLOR = "TextPruner, ACL 2022, arXiv:2203.15996"
_SVD = "Ben Noach and Goldberg, AACL 2020"
_Q8 = "Zafrir et al. 2019, arXiv:1910.06188"
_TINY = "Jiao et al. 2020, arXiv:1909.10351"
_TANG = "Tang et al. 2019, arXiv:1903.12136"
_NOISY = "Xie et al. 2020, arXiv:1911.04252"
_PATIENT = "Sun et al. 2019, arXiv:1908.09355"

METHODS = (
    Method(PLAIN, "trained on grades alone, cut from the teacher's base", lambda r, _: r, from_teacher=False),
    Method(DISTILLED, "the recipe's ranker", lambda r, _: r),
    Method("init-first", "cut from the first layers", _first_layers, _PATIENT),
    Method("init-last", "cut from the last layers", _last_layers, _PATIENT),
    Method("init-base", "cut from the teacher's base, not from the teacher", _with(base=ranker_stage.FROM_BASE)),
    Method("general", "cut from the base, which first teaches its layers the texts", _general, "arXiv:1910.01108"),
    Method("depth-1", "one layer", _depth(1), _PATIENT),
    Method("depth-2", "two layers", _depth(2), _PATIENT),
    Method("depth-4", "four layers", _depth(4), _PATIENT),
    *(
        Method(
            f"soft-T{temperature}", f"soft targets alone, temperature {temperature}", _softened(temperature), _HINTON
        )
        for temperature in (1, 2, 5, 10, 20)
    ),
    Method("logit-mse", "squared error of the scores", _only(logit=1.0), "Ba and Caruana, NeurIPS 2014"),
    Method("margin-mse", "squared error of score differences", _only(margin=1.0), "arXiv:2010.02666"),
    Method("listwise-kl", "KL of the softmax over a query's documents", _only(listwise=1.0), "Cao et al., ICML 2007"),
    Method("infonce", "the teacher's best document against the others", _only(infonce=1.0), "arXiv:1807.03748"),
    Method("patient-kd", "soft targets and first-token states", _only(soft=1.0, hidden=1.0), _PATIENT),
    Method("distilbert", "soft targets and cosine of token states", _only(soft=1.0, cosine=1.0), "arXiv:1910.01108"),
    Method(
        "tinybert",
        "soft targets, attention, token states and embeddings",
        _only(soft=1.0, attention=1.0, token_hidden=1.0, embedding=1.0),
        _TINY,
    ),
    Method(
        "minilm-last",
        "relations of the last layer",
        _with(relation_weight=1.0, relation_layer=0),
        "Wang et al. 2020, arXiv:2002.10957",
    ),
    Method(
        "minilm-inner",
        "relations of the layer at three quarters",
        _inner_relations,
        "Wang et al. 2021, arXiv:2012.15828",
    ),
    Method("mutual", "two students learn from each other", _with(mutual_weight=1.0), "Zhang et al. 2018"),
    Method("assistant", "a teacher assistant of middle depth", _assistant, "Mirzadeh et al. 2020, arXiv:1902.03393"),
    Method("born-again", "a second student learns from the first", _born_again, "Furlanello et al., ICML 2018"),
    Method("noisy-student", "the teacher learns its own scores with dropout, then teaches", _noisy_student, _NOISY),
    *(
        Method(f"feed-forward-{part}", f"{part} % of the feed-forward units", _feed_forward(part / 100), _TAYLOR)
        for part in (75, 50, 25)
    ),
    Method("all-layers", "all layers, with feed-forward units for the ranker's cost", _all_layers, _TAYLOR),
    *(
        Method(
            f"low-rank-{part}",
            f"feed-forward matrices as two factors, {part} % of the numbers",
            _factors(part / 100),
            _SVD,
        )
        for part in (50, 25)
    ),
    Method("low-rank-embeddings", "embeddings of a quarter of the width, and a matrix", _narrow_embeddings, _SVD),
    Method("int8-aware", "rounded to int8 in the last quarter of the training", _with(int8_share=0.25), _Q8),
    Method("int8-aware-all", "rounded to int8 in all of the training", _with(int8_share=1.0), _Q8),
    *(Method(f"tokens-{count}", f"at most {count} tokens", _tokens(count)) for count in (32, 48, 96)),
    *(Method(f"teachers-{count}", f"the mean score of {count} teachers", _teachers(count)) for count in (2, 3)),
    Method("small-vocabulary", "tokens of the corpus alone", _with(prune_vocabulary=True), "Abdaoui et al. 2020"),
    Method("augmented-words", "augmented pairs, words replaced, for unlabelled ones", _augmented("replace"), _TINY),
    Method("augmented-parts", "the same, words dropped and parts of texts", _augmented("drop", "ngram"), _TANG),
    Method("augmented-beside", "the first beside the unlabelled pairs", _augmented("replace", beside=True), _TINY),
    Method("unlabelled-0", "labelled pairs alone", _unlabelled(0.0)),
    Method("unlabelled-16", "sixteen unlabelled pairs for a labelled one", _unlabelled(16.0)),
)


def by_name(name: str) -> Method:
    """The known method of this name.

    Raises:
        ConfigError: there is none; names those that there are.
    """
    for method in METHODS:
        if method.name == name:
            return method
    raise ConfigError(f"study.methods: no method is called '{name}'; known are {', '.join(m.name for m in METHODS)}")
