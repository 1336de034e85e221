"""Teachers and students of unlike families: scores always, states by projection, and refusals before training."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, processors
from transformers import AutoModel, AutoModelForSequenceClassification, XLNetConfig

from pipeline.config import RankerConfig, ScratchConfig
from pipeline.errors import ConfigError, MissingError
from pipeline.models import base_models, model_files, tokenizers
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.training import ranker, ranker_shape, teacher, teacher_scores
from pipeline.training.pretrain import new_model
from pipeline.training.tasks import vocabulary
from tests.pipeline.training.test_stages import CANDIDATES, RANKER, TEACHER, tables
from tests.small_models import tokenizer as small_tokenizer
from tests.small_models import write_base
from tests.tables import stage

SHAPE: dict[str, Any] = {"layers": 2, "hidden": 32, "heads": 4, "intermediate": 48, "vocab_size": 320}


def xlnet(folder: Path, words: Any) -> Path:
    """A small XLNet, whose special tokens stand after the pair."""
    plain = Tokenizer.from_str(words.backend_tokenizer.to_str())
    ends = [("[SEP]", words.sep_token_id), ("[CLS]", words.cls_token_id)]
    plain.post_processor = processors.TemplateProcessing(
        single="$A [SEP] [CLS]:2", pair="$A [SEP] $B:1 [SEP]:1 [CLS]:2", special_tokens=ends
    )
    words._tokenizer = plain
    torch.manual_seed(3)
    sizes = {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48, "pad_token_id": words.pad_token_id}
    AutoModel.from_config(XLNetConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def test_xlnet_scores_and_states_are_those_of_transformers(tmp_path: Path) -> None:
    base = xlnet(tmp_path / "base", small_tokenizer())
    model = CrossEncoder.start(base, thresholds=[0.0], max_tokens=32, max_query_tokens=8, seed=1).eval()
    (tmp_path / "saved").mkdir()
    model.save(tmp_path / "saved")
    hub = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved" / "model").eval()
    ids, types = model.template.assemble([5, 6, 7], [8, 9, 10, 11])
    other_ids, other_types = model.template.assemble([5], [9])
    wide = len(ids) - len(other_ids)
    batch = (
        torch.tensor([ids, other_ids + [0] * wide]),
        torch.tensor([types, other_types + [0] * wide]),
        torch.tensor([[1] * len(ids), [1] * len(other_ids) + [0] * wide]),
    )
    with torch.no_grad():
        reading = model.read(*batch, first=(1, 2))
        for row, (own_ids, own_types) in enumerate(((ids, types), (other_ids, other_types))):
            hub_types = torch.tensor([[*own_types[:-1], 2]])
            output = hub(input_ids=torch.tensor([own_ids]), token_type_ids=hub_types, output_hidden_states=True)
            assert torch.allclose(reading.scores[row], output.logits[0, 0], atol=1e-5)
            assert torch.allclose(reading.first[row, 1], output.hidden_states[2][0, -1], atol=1e-5)


def teach(tmp_path: Path, of_teacher: str, of_student: str, config: RankerConfig) -> tuple[Any, Any]:
    """The artifacts of a teacher and of a student of other families, on texts that both can learn."""
    data_tables, pair_table = tables()
    data, pairs = stage(tmp_path, "data", data_tables), stage(tmp_path, "pairs", {"pairs": pair_table})
    texts = [*data_tables["documents"]["text"].to_pylist(), *data_tables["queries"]["text"].to_pylist()]

    def base(family: str) -> Path:
        folder = tmp_path / f"base-{family}"
        scratch = ScratchConfig(family="bert" if family == "xlnet" else family, **SHAPE)  # type: ignore[arg-type]
        words = vocabulary.train(texts, scratch)
        if family == "xlnet":
            return xlnet(folder, words)
        new_model(folder, scratch, words, 7)
        return folder

    settings = replace(TEACHER, max_tokens=48, max_query_tokens=12)
    large = teacher.make(tmp_path, settings, CANDIDATES, data=data, pairs=pairs, base=str(base(of_teacher)))
    config = replace(config, base=str(base(of_student)))
    layers, width = ranker.taught_by(config, large)
    scores = teacher_scores.make(tmp_path, teacher=large, data=data, pairs=pairs, layers=layers, width=width)
    small = ranker.make(tmp_path, config, CANDIDATES, data=data, pairs=pairs, teacher=large, teacher_scores=scores)
    return large, small


@pytest.mark.parametrize(("of_teacher", "of_student"), [("xlnet", "bert"), ("roberta", "modernbert")])
def test_a_student_learns_from_a_teacher_of_another_family(tmp_path: Path, of_teacher: str, of_student: str) -> None:
    config = replace(RANKER, hidden_weight=0.5)
    large, small = teach(tmp_path, of_teacher, of_student, config)
    assert large.metrics["ndcg@10"] > 0.95
    assert small.metrics["ndcg@10"] > 0.95
    assert small.metrics["layer_map"] == [1]
    history = small.metrics["history"]
    assert history[-1]["hidden"] < history[0]["hidden"] or len(history) == 1
    assert CrossEncoder.load(small.path).model.config.model_type == of_student


UNSERVABLE_LOSSES: dict[str, tuple[Callable[[], RankerConfig], str]] = {
    "relation_weight": (
        lambda: RankerConfig(hidden_weight=0.0, relation_weight=1.0),
        r"ranker\.relation_weight: a xlnet",
    ),
    "attention_weight": (lambda: RankerConfig(hidden_weight=0.0, attention_weight=1.0), r"ranker\.attention_weight"),
    "layers": (lambda: RankerConfig(hidden_weight=0.0, layers=1), r"ranker\.layers: no layers of a xlnet model"),
}


@pytest.mark.parametrize("case", UNSERVABLE_LOSSES)
def test_a_loss_that_a_family_cannot_serve_is_refused_by_its_key(tmp_path: Path, case: str) -> None:
    make, message = UNSERVABLE_LOSSES[case]
    shape = base_models.shape(xlnet(tmp_path, small_tokenizer()))
    with pytest.raises(ConfigError, match=message):
        ranker_shape.cut(replace(make(), layers=make().layers if case == "layers" else 2), shape, shape)


def _config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace("{", "{" + "".join(f'"{k}": {v}, ' for k, v in values.items()), 1))


UNSAFE_FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "holds no model.safetensors"),
    "pickled": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        r"\.bin, a format that",
    ),
    "own code": (lambda folder: _config(folder, auto_map='{"AutoModel": "modeling.My"}'), "auto_map names code"),
    "more tokens": (
        lambda folder: (folder / "config.json").write_text(
            (folder / "config.json").read_text().replace('"vocab_size": 21', '"vocab_size": 20')
        ),
        "has 21 tokens, and config.json 20 embeddings",
    ),
}


@pytest.mark.parametrize("case", UNSAFE_FOLDERS)
def test_a_folder_that_cannot_be_read_safely_is_refused(tmp_path: Path, case: str) -> None:
    change, message = UNSAFE_FOLDERS[case]
    base = write_base(tmp_path / "base", "electra")
    model_files.check_files(base)
    change(base)
    with pytest.raises((ConfigError, MissingError), match=message):
        model_files.check_files(base)


def test_a_teacher_of_no_family_is_read_by_its_own_forward_pass(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Funnel has no adapter: its own scores come out, and the limits are said once."""
    from transformers import FunnelConfig

    words = small_tokenizer()
    torch.manual_seed(4)
    sizes: dict[str, Any] = {"d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 48, "block_sizes": [1, 1]}
    config = FunnelConfig(
        vocab_size=len(words), num_decoder_layers=1, pad_token_id=0, max_position_embeddings=64, **sizes
    )
    AutoModelForSequenceClassification.from_config(config).base_model.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    models = [
        CrossEncoder.start(tmp_path, thresholds=[0.0], max_tokens=32, max_query_tokens=8, seed=1).eval() for _ in "ab"
    ]
    warnings = [record.getMessage() for record in caplog.records if "it can only teach" in record.getMessage()]
    assert len(warnings) == 1
    ids, types = models[0].template.assemble([5, 6], [7, 8, 9])
    given = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.int64)}
    with torch.no_grad():
        expected = models[0].model(**given, token_type_ids=torch.tensor([types])).logits[0, 0]
        score = models[0](given["input_ids"], torch.tensor([types]), given["attention_mask"])
    assert torch.allclose(score[0], expected, atol=1e-6)
    assert tokenizers.positions(models[0].model.config) == 64
