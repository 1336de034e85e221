"""Trains an encoder on the texts of a data set by masked language modelling, for the teacher to start from.

Its first weights are a given model's, or new ones (`scratch`: a new vocabulary and a new model). It learns from
documents, and from training queries packed with the documents that they were answered by, as the cross-encoder will see
them. A few documents are held out, to measure on.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedConfig, PreTrainedTokenizerBase

from pipeline import schema, text
from pipeline.artifacts import Artifact, Staging
from pipeline.config import PretrainConfig, ScratchConfig
from pipeline.data import splits
from pipeline.models import base_models
from pipeline.models.families import family_of
from pipeline.recipe import to_dict
from pipeline.stage import Stage
from pipeline.training.loop import scoring
from pipeline.training.loop.loop import train
from pipeline.training.tasks import vocabulary
from pipeline.training.tasks.masked_lm import MaskedCorpus, MaskedTask
from pipeline.training.tasks.masked_model import MaskedModel

STAGE = Stage("pretrained", version=1, inputs={"data": "data"}, section="pretrain", title="pre-training")

SCRATCH = "scratch"
"""The base that means a new model."""

HELD_OUT_SHARE, HELD_OUT_MOST = 0.05, 400
"""The share of the documents that are held out for measurement, and the largest number of them."""


@STAGE
def make(workspace: Path, config: PretrainConfig, base: str, *, data: Artifact) -> Artifact:
    """The `pretrained` artifact: `model/`, an encoder and its tokenizer as AutoModel and AutoTokenizer open them.

    The metrics tell how well masked tokens of held-out documents are guessed, before and after: `masked_accuracy`
    (share guessed right) and `masked_loss` (nats a token). A new model begins by guessing each token by its frequency.

    Args:
        base: what `model_folders.folder` takes, or `scratch`.

    Raises:
        MissingError: the base model cannot be had.
        ConfigError: the base is no encoder that can guess masked tokens, or has too few positions.
        TrainingError: no text to learn from, or the loss is not a number.
    """

    start = None if base == SCRATCH else base_models.StartingModel.of(base)

    def build(staging: Staging) -> Mapping[str, Any]:
        corpus = read_corpus(data, config.loop.seed)
        folder = staging.folder / "model"
        if start is not None:
            with start.opened(staging) as given:
                return learn(staging, corpus, given)
        tokenizer = vocabulary.train([*corpus.documents, *corpus.queries], config.scratch)
        new_model(folder, config.scratch, tokenizer, config.loop.seed)
        return learn(staging, corpus, folder)

    def learn(staging: Staging, corpus: MaskedCorpus, given: Path) -> Mapping[str, Any]:
        model = MaskedModel.start(given, config)
        model.to(scoring.device())
        task = MaskedTask(model, corpus, config)
        before = task.measure()
        progress = train(
            model, task, config.loop, label="pre-training", checkpoint=staging.checkpoint, began=staging.began
        )
        after = task.measure()
        model.save(staging.folder / "model")
        return {
            "masked_loss before": round(before.loss, 4),
            "masked_loss": round(after.loss, 4),
            "masked_accuracy before": round(before.accuracy, 4),
            "masked_accuracy": round(after.accuracy, 4),
            "held_out": len(task.held_out),
            "vocabulary": len(model.hub_tokenizer),
            **progress.metrics("masked_log_likelihood", task.unit),
        }

    settings = to_dict(config)
    if start is not None:
        del settings["scratch"]
    inputs = {"data": data, "base": start.input if start else SCRATCH}
    return STAGE.make(workspace, config=settings, inputs=inputs, build=build)


def read_corpus(data: Artifact, seed: int) -> MaskedCorpus:
    """The documents, training queries and their relevant pairs of a `data` artifact; some documents are held out."""
    table = schema.read(data.file("documents.parquet"), "documents")
    doc_ids, titles, bodies = (table.column(name).to_pylist() for name in ("doc_id", "title", "text"))
    documents = [text.document_text(title, body) for title, body in zip(titles, bodies, strict=True)]
    judgments = pq.read_table(
        data.file("judgments.parquet"), columns=["query_id", "doc_id", "grade"], filters=[("split", "==", "train")]
    )
    query_ids, answer_ids, grades = (judgments.column(name).to_pylist() for name in ("query_id", "doc_id", "grade"))
    table = schema.read(data.file("queries.parquet"), "queries")
    known = dict(zip(table.column("query_id").to_pylist(), table.column("text").to_pylist(), strict=True))
    query_of = {query: number for number, query in enumerate(dict.fromkeys(query_ids))}
    document_of = {document: number for number, document in enumerate(doc_ids)}
    pairs = dict.fromkeys(
        (query_of[query], document_of[document])
        for query, document, grade in zip(query_ids, answer_ids, grades, strict=True)
        if grade > 0
    )
    count = min(HELD_OUT_MOST, math.ceil(len(doc_ids) * HELD_OUT_SHARE))
    shares = [splits.share(seed, doc_id, "held out") for doc_id in doc_ids]
    held_out = sorted(range(len(doc_ids)), key=lambda number: (shares[number], number))[:count]
    return MaskedCorpus(
        documents,
        [known[query] for query in query_of],
        np.array(list(pairs), dtype=np.int64).reshape(-1, 2),
        np.array(sorted(held_out), dtype=np.int64),
    )


def new_model(folder: Path, config: ScratchConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
    """Writes an untrained encoder and its tokenizer as a transformers folder, the same for the same seed."""
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.intermediate,
        "max_position_embeddings": config.positions,
        "pad_token_id": tokenizer.pad_token_id,
    }
    fields = family_of(config.family).new_config(shape, tokenizer, config.embedding)
    model_config: PreTrainedConfig = CONFIG_MAPPING[config.family](**fields)
    with base_models.quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        AutoModel.from_config(model_config).save_pretrained(folder)  # type: ignore[no-untyped-call]
        tokenizer.save_pretrained(folder)
