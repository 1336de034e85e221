"""The model card: README.md beside a trained model's weights, in the form of the Hugging Face hub.

Made from what the stage has in hand, so the same training writes the same card: no date, no path of this machine.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Literal

from pipeline.artifacts import Artifact, Input
from pipeline.models.bi_encoder import BiEncoder
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.text import counted
from pipeline.tokens import PairTemplate

Role = Literal["teacher", "ranker", "plain student", "encoder"]

WHAT = {
    "teacher": "A cross-encoder that reads a query and a document together and scores how well they fit. It is the "
    "teacher: large, slow, there for others to learn from.",
    "ranker": "A shallow cross-encoder that reads a query and a document together and scores how well they fit; "
    "distilled from a deeper teacher.",
    "plain student": "A shallow cross-encoder that reads a query and a document together and scores how well they fit; "
    "trained without a teacher, for comparison.",
    "encoder": "A bi-encoder that turns a text into one short vector of unit length. The cosine of a query's and a "
    "document's vector says how well they fit.",
}
"""Role of a model → what it is, for its card."""

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
"""The form of a model's name on a hub."""

LICENCE = """The licence is yours to state: it depends on the terms of the base model and of the data named above.
Add `license:` to the head of this file before you publish it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingRecord:
    """A training as the card of its model tells it: base, inputs, settings and metrics."""

    base: Artifact | str
    """The model that the training started from: an artifact, a hub name, a package or a folder."""
    inputs: Mapping[str, Input]
    """The stage's inputs by name, `data` and `pairs` among them; the card names those that are artifacts."""
    config: Mapping[str, Any]
    """The stage's config, as plain values."""
    metrics: Mapping[str, Any]
    """The training's metrics."""
    measure: str
    """The metric that is the quality on the valid queries."""

    @property
    def artifacts(self) -> dict[str, Artifact]:
        """The inputs that are artifacts, by name."""
        return {name: item for name, item in self.inputs.items() if isinstance(item, Artifact)}


def write(folder: Path, role: Role, model: CrossEncoder | BiEncoder, training: TrainingRecord) -> None:
    """Writes README.md into a saved model's folder.

    Args:
        folder: the folder `model/`.
    """
    parts = (
        _head(role, training.base),
        f"# {role.capitalize()}\n\n{WHAT[role]}\n\n{_shape(model, training.base)}",
        f"## Quality\n\n{_quality(training)}",
        f"## Data\n\n{_data(training.artifacts)}",
        f"## Training\n\n{_training(role, training)}",
        f"## Input\n\n{_input(model)}",
        f"## Use\n\n{_use(model)}",
        f"## Licence\n\n{LICENCE}",
    )
    (folder / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def base_name(base: Artifact | str) -> str:
    """A base as a card may name it: of a folder its last part alone."""
    if isinstance(base, Artifact):
        return f"the {base.manifest.kind} artifact {base.fingerprint[:12]} of this pipeline"
    if _of_hub(base) or base.startswith("package:"):
        return base
    return PurePath(base).name or base


def _of_hub(base: str) -> bool:
    """Whether this is a hub name and not a folder that looks like one, which `model_folders.folder` takes first."""
    return HUB_NAME.fullmatch(base) is not None and not Path(base).exists()


def _head(role: Role, base: Artifact | str) -> str:
    encoder = role == "encoder"
    lines = [
        "library_name: sentence-transformers",
        f"pipeline_tag: {'sentence-similarity' if encoder else 'text-ranking'}",
        "tags:",
        *(
            f"- {tag}"
            for tag in (["sentence-transformers", "feature-extraction"] if encoder else ["cross-encoder", "reranker"])
        ),
        "- search-relevance",
    ]
    if isinstance(base, str) and _of_hub(base):
        lines.append(f"base_model: {json.dumps(base)}")
    return "\n".join(["---", *lines, "---"])


def _shape(model: CrossEncoder | BiEncoder, base: Artifact | str) -> str:
    config = model.model.config
    numbers = sum(parameter.numel() for parameter in model.parameters())
    lines = [
        f"- kind: {config.model_type}, {config.num_hidden_layers} layers, {config.hidden_size} wide, "
        f"{config.vocab_size:,} tokens, {numbers / 1e6:.1f} million parameters",
        f"- started from: {base_name(base)}",
    ]
    if isinstance(model, BiEncoder):
        lines.insert(1, f"- vector: {model.dense.out_features} dimensions, mean of the last states, projected")
    else:
        thresholds = ", ".join(f"{value:.3f}" for value in model.thresholds.tolist())
        lines.insert(
            1, f"- output: a raw score s; P(grade ≥ k) = sigmoid(s − b_k) with b = {thresholds} for k = 1, 2, …"
        )
    return "\n".join(lines)


def _quality(training: TrainingRecord) -> str:
    measure = training.measure
    before, after = training.metrics[f"{measure} before"], training.metrics[measure]
    if before is None or after is None:
        if (training.config.get("loop") or {}).get("evaluations") == 0:
            return "Not measured: the last state of the training is kept, without an evaluation on valid queries."
        return "Not measured: the data has no valid queries."
    return (
        f"{measure} of the judged lists of the valid queries, which no step of the training saw but which chose the "
        f"best state: {after:.4f}, {before:.4f} before training. Judge it on your own test queries before use."
    )


def _data(inputs: Mapping[str, Artifact]) -> str:
    data, pairs = inputs["data"].metrics, inputs["pairs"].metrics
    lines = [f"- {PurePath(name).name} ({form})" for name, form in data.get("sources", {}).items()]
    if "documents" in data:
        lines.append(
            f"- {counted(data['documents'], 'document')}, {counted(data['queries'], 'query')}, "
            f"{counted(data['judgments'], 'judgment')}; "
            + ", ".join(f"grade {grade}: {count:,}" for grade, count in data["grades"].items())
        )
    for split in ("train", "valid"):
        if split in pairs:
            lines.append(
                f"- {split}: {counted(pairs[split]['pairs'], 'pair')} of {counted(pairs[split]['queries'], 'query')}"
            )
    if "unlabelled" in pairs:
        lines.append(
            f"- {counted(pairs['labelled'], 'pair')} with a grade, and {pairs['unlabelled']:,} without that the "
            "teacher scored"
        )
    if "mined" in pairs:
        lines.append(f"- mined negatives: {pairs['kept']:,} of {counted(pairs['queries'], 'query')}")
    return "\n".join(lines) or "Not described by its artifact."


def _training(role: Role, training: TrainingRecord) -> str:
    config, metrics = training.config, training.metrics
    used = {
        name.removesuffix("_weight"): value
        for name, value in config.items()
        if name.endswith("_weight") and value and (role != "plain student" or name.startswith("hard_"))
    }
    lines = [f"- losses and weights: {', '.join(f'{name} {value:g}' for name, value in used.items())}"]
    if metrics.get("pairs"):
        lines.append(f"- {counted(metrics['pairs'], 'pair')}, {metrics['tokens']:,} tokens, {metrics['steps']:,} steps")
    if "vocabulary" in metrics:
        cut = metrics["vocabulary"]
        lines.append(
            f"- vocabulary cut to the corpus: {cut['before']:,} → {cut['after']:,} tokens, "
            f"{cut['bytes_saved'] / 1e6:.1f} MB less"
        )
    lines.append(
        f"- made from: {', '.join(f'{name} {item.fingerprint[:12]}' for name, item in training.artifacts.items())}"
    )
    shown = {**config, "base": base_name(config["base"])} if isinstance(config.get("base"), str) else dict(config)
    text = json.dumps(shown, indent=1, sort_keys=True, ensure_ascii=False)
    return "\n".join(lines) + f"\n\nAll settings of the stage:\n\n```json\n{text}\n```"


def _input(model: CrossEncoder | BiEncoder) -> str:
    if isinstance(model, BiEncoder):
        query, document = model.query_template.max_tokens, model.document_template.max_tokens
        return (
            f"A document is cut to {document} tokens, special tokens included, a query to {query}. "
            f"sentence-transformers knows one limit and cuts both to {document}, so only a longer query gets another "
            "vector there."
        )
    template = model.template
    return (
        f"Query and document together have at most {template.max_tokens} tokens, special tokens included. A query is "
        f"cut to {template.max_query_tokens} tokens and the document to what is left. sentence-transformers and "
        "transformers cut the longer of the two instead. The score there is the same for every query of at most "
        f"{template.shared_query_tokens} tokens, and for one of at most {template.max_query_tokens} when query and "
        "document fit uncut; a longer query can get another score. "
        f"A document is its title, a line break and its text.{_passages(template)}"
    )


def _passages(template: PairTemplate) -> str:
    """A sentence on the passages in which longer documents are read; empty where they are cut."""
    passages = template.passages
    if passages is None:
        return ""
    stride = f"{passages.stride} tokens" if passages.stride else "half a passage"
    length = f"of {passages.tokens} tokens" if passages.tokens else "as long as the query leaves"
    joined = "the maximum" if passages.best == 1 else f"the mean of the best {passages.best}"
    return (
        f" A longer document is read in up to {passages.most} passages {length}, which start {stride} apart; its score "
        f"is {joined} of theirs. Other libraries cut it."
    )


def _use(model: CrossEncoder | BiEncoder) -> str:
    if isinstance(model, BiEncoder):
        return _blocks(
            'model = SentenceTransformer("model")\n'
            'vectors = model.encode(["a query", "a document"])\nprint(vectors[0] @ vectors[1])',
            "from transformers import AutoModel, AutoTokenizer  # the projection is in 2_Dense/model.safetensors\n\n"
            'tokenizer, body = AutoTokenizer.from_pretrained("model"), AutoModel.from_pretrained("model")\n'
            'states = body(**tokenizer("a document", truncation=True, return_tensors="pt")).last_hidden_state\n'
            "pooled = states.mean(1)",
            "from pathlib import Path\n\nfrom pipeline.models.bi_encoder import BiEncoder\n\n"
            'model = BiEncoder.load(Path("."))  # the folder that holds model/ and head.json',
            "SentenceTransformer",
        )
    return _blocks(
        'model = CrossEncoder("model")\nprint(model.predict([("a query", "a document")]))',
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n"
        'tokenizer = AutoTokenizer.from_pretrained("model")\n'
        'model = AutoModelForSequenceClassification.from_pretrained("model")\n'
        'inputs = tokenizer("a query", "a document", truncation=True, return_tensors="pt")\n'
        "print(model(**inputs).logits)",
        "from pathlib import Path\n\nfrom pipeline.models.cross_encoder import CrossEncoder\n\n"
        'model = CrossEncoder.load(Path("."))  # the folder that holds model/ and head.json',
        "CrossEncoder",
    )


def _blocks(library: str, transformers: str, ours: str, name: str) -> str:
    codes = (f"from sentence_transformers import {name}\n\n{library}", transformers, ours)
    return "Where this folder is `model`:\n\n" + "\n\n".join(f"```python\n{code}\n```" for code in codes)
