"""The bound of each training of a recipe, for a person who asks how long a retraining takes."""

from pipeline.config import Recipe
from pipeline.config_training import LoopConfig
from pipeline.progress import duration
from pipeline.training import general, pretrain, ranker_chain


def trainings(recipe: Recipe) -> list[tuple[str, LoopConfig]]:
    """Name and loop of each training of the recipe, in the order of the stages."""
    students = ranker_chain.students(recipe)
    loops = []
    if recipe.pretrain.enabled or pretrain.SCRATCH in (recipe.teacher.base, *(student.base for _, student in students)):
        loops.append(("pretrain", recipe.pretrain.loop))
    loops += [("teacher", recipe.teacher.loop)] * students[0][1].teachers
    for name, student in students:
        if student.general_tokens:
            loops.append((f"general distillation of {name}", general.loop_of(recipe.pretrain, student.general_tokens)))
        loops.append((name, student.loop))
    if recipe.ranker.plain:
        loops.append(("plain student", recipe.ranker.loop))
    return [*loops, *[("encoder", recipe.encoder.loop)] * recipe.encoder.mining.rounds]


def summary(recipe: Recipe) -> str:
    """A sentence on the time of a retraining: a bound in minutes where each training has one in seconds."""
    loops = trainings(recipe)
    bounds = ", ".join(f"{name} {_bound(loop)}" for name, loop in loops)
    rest = "scoring pairs, export, indexing and the report come on top and grow with pairs and documents"
    if all(loop.max_seconds for _, loop in loops):
        return f"training takes at most {duration(sum(loop.max_seconds for _, loop in loops))} ({bounds}); {rest}"
    return f"training is bounded by: {bounds}; without max_seconds no time can be told; {rest}"


def _bound(loop: LoopConfig) -> str:
    bounds = [f"{loop.max_seconds:g} s"] if loop.max_seconds else []
    bounds += [f"{loop.max_tokens:,} tokens"] if loop.max_tokens else []
    return " or ".join(bounds) or f"{loop.epochs:g} epochs"
