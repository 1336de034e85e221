"""The artifacts that the teacher and the students of a recipe learn from."""

from dataclasses import dataclass

from flows.indexing import SearchableCorpus
from pipeline.artifacts import Artifact


@dataclass(frozen=True, kw_only=True, slots=True)
class FirstStage:
    """The search that comes ahead of a ranker: BM25 and the encoder over the data's documents."""

    trained: Artifact
    """The encoder as it was trained."""
    encoder: Artifact
    """Its exported bundle."""
    corpus: SearchableCorpus


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherInputs:
    """The artifacts that the teacher of a recipe is trained on."""

    data: Artifact
    lexical: Artifact
    """Lexical index of the data's documents."""
    bm25_run: Artifact
    """BM25 run of all judged queries."""
    pairs: Artifact
    """Graded (query, document) pairs that the teacher is trained on."""
    base: Artifact | str
    """The model that the teacher starts from: a `pretrained` artifact, or a name."""
    first_stage: FirstStage | None = None
    """The search whose documents the pairs have too, or whose scores a student's targets are joined with; None where
    the recipe sets neither `candidates.encoder_negatives` nor a student's `fused_teacher`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingInputs(TeacherInputs):
    """The artifacts that the students of a recipe are trained on."""

    teacher: Artifact
    ranker_pairs: Artifact
    """The graded pairs and, where the recipe wants them, unlabelled and augmented ones: what rankers are trained on."""
    teacher_scores: Artifact
    """Scores of `ranker_pairs` by the teacher, by several of them on average, or by the external one."""
    ranker_teacher: Artifact
    """The model that the ranker is distilled from: the last assistant, or the teacher where there is none."""
    ranker_teacher_scores: Artifact
    """Scores of `ranker_pairs` that the ranker learns from: those of `ranker_teacher`; with `ranker.bm25_teacher`
    joined with BM25, with `ranker.fused_teacher` with the scores of the first stage."""
