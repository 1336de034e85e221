"""Masked pre-training on a small corpus of two languages, from nothing and from given weights."""

import json
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from pipeline import artifacts, schema
from pipeline.artifacts import Artifact, Staging
from pipeline.config import LoopConfig, PretrainConfig, ScratchConfig
from pipeline.errors import ConfigError, TrainingError
from pipeline.models import base_models, model_folders
from pipeline.training import pretrain
from pipeline.training.loop import batches
from pipeline.training.tasks import masked_lm, vocabulary
from pipeline.training.tasks.masked_lm import MaskedChunk, MaskedTask
from pipeline.training.tasks.masked_model import MaskedModel

SCRATCH = ScratchConfig(layers=2, hidden=32, heads=2, intermediate=64, positions=40, vocab_size=400)
CONFIG = PretrainConfig(
    scratch=SCRATCH,
    max_tokens=32,
    loop=LoopConfig(learning_rate=3e-3, epochs=4.0, tokens_per_batch=512, evaluations=2, precision="fp32"),
)
ANIMALS = ("horse", "mouse", "eagle", "whale", "tiger", "snake")
FOODS = ("grass", "cheese", "rabbits", "plankton", "deer", "eggs")
PLACES = ("prairie", "cellar", "mountains", "ocean", "jungle", "desert")


def texts(count: int, seed: int = 0) -> list[str]:
    """Sentences whose words follow from one another, so that there is something to guess."""
    rng = random.Random(seed)
    documents = []
    for _ in range(count):
        n = rng.randrange(len(ANIMALS))
        english = f"The {ANIMALS[n]} eats {FOODS[n]} and lives in the {PLACES[n]} for {rng.randint(2, 30)} years."
        documents.append(rng.choice((english, f"第{n}种动物喜欢吃东西，住在很远的地方。", f"{english} {english}")))
    return documents


def data(workspace: Path, documents: Sequence[str]) -> Artifact:
    ids = [f"d{n}" for n in range(len(documents))]
    judged = [
        {"query_id": f"q{n}", "doc_id": doc, "grade": n % 3, "source": "human", "split": schema.SPLITS[n % 5 % 3]}
        for n, doc in enumerate(ids)
    ]
    tables: Mapping[str, list[dict[str, Any]]] = {
        "documents": [
            {"doc_id": doc, "title": f"Title {n}", "text": text}
            for n, (doc, text) in enumerate(zip(ids, documents, strict=True))
        ],
        "queries": [{"query_id": f"q{n}", "text": f"who eats what {n}"} for n in range(len(ids))],
        "judgments": judged,
    }

    def build(staging: Staging) -> Mapping[str, Any]:
        for name, rows in tables.items():
            schema.write(pa.Table.from_pylist(rows), staging.folder / f"{name}.parquet", name)
        return {}

    return artifacts.make(workspace, "data", version=1, config={"texts": list(documents)}, inputs={}, build=build)


def task_of(workspace: Path, config: PretrainConfig, documents: Sequence[str]) -> MaskedTask:
    corpus = pretrain.read_corpus(data(workspace, documents), config.loop.seed)
    folder = workspace / "start"
    tokenizer = vocabulary.train([*corpus.documents, *corpus.queries], config.scratch)
    pretrain.new_model(folder, config.scratch, tokenizer, seed=1)
    return MaskedTask(MaskedModel.start(folder, config), corpus, config)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    workspace = tmp_path_factory.mktemp("pretrained")
    config = replace(CONFIG, loop=replace(CONFIG.loop, epochs=8.0))
    return pretrain.make(workspace, config, "scratch", data=data(workspace, texts(300)))


def test_held_out_words_are_guessed_better_after(pretrained: Artifact) -> None:
    metrics = pretrained.metrics
    assert metrics["masked_loss"] < 0.6 * metrics["masked_loss before"]
    assert metrics["masked_accuracy"] > 2 * metrics["masked_accuracy before"]
    assert metrics["held_out"] == 15


def test_a_new_model_starts_from_the_frequencies_and_another_from_its_head(tmp_path: Path) -> None:
    task = task_of(tmp_path, CONFIG, texts(300))
    ids = task.documents.ids
    shares = np.bincount(ids) / len(ids)
    entropy = -float(np.log(shares[ids]).mean())
    assert entropy < 0.8 * np.log(len(task.model.hub_tokenizer))
    assert task.measure().loss == pytest.approx(entropy, rel=0.05)
    decoder: Any = task.model.model.get_output_embeddings()  # type: ignore[no-untyped-call]
    head = decoder.bias.detach().clone()
    task.model.expect(np.ones(len(head), dtype=np.int64))
    assert torch.equal(decoder.bias, head)


def test_the_folder_opens_with_transformers(pretrained: Artifact) -> None:
    folder = model_folders.folder(pretrained)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(["The horse eats", "动物"], ["grass", "地方"], return_tensors="pt", padding=True)
    states = AutoModel.from_pretrained(folder).eval()(**inputs).last_hidden_state
    assert states.shape[:2] == inputs["input_ids"].shape
    assert states.shape[2] == SCRATCH.hidden
    with base_models.quiet():
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    assert model.config.hidden_dropout_prob == 0.1  # Off in pre-training, not in what is handed on.


def test_what_is_saved_is_what_was_trained(tmp_path: Path) -> None:
    task = task_of(tmp_path, CONFIG, texts(40))
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    task.model.save(tmp_path / "saved")
    ids = torch.tensor([[2, 7, 9, 11, 3]])
    expected = task.model.model.base_model(input_ids=ids).last_hidden_state
    states = AutoModel.from_pretrained(tmp_path / "saved").eval()(input_ids=ids).last_hidden_state
    torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["bert", "roberta", "albert"])
def test_given_weights_are_learned_further_and_keep_their_pooler(tmp_path: Path, family: Any) -> None:
    source = data(tmp_path, texts(60))
    short = replace(CONFIG, scratch=replace(SCRATCH, family=family), loop=replace(CONFIG.loop, epochs=1.0))
    first = pretrain.make(tmp_path, short, "scratch", data=source)
    second = pretrain.make(tmp_path, short, str(first.path), data=source)
    assert second.manifest.inputs["base"] == base_models.StartingModel.of(str(first.path)).input.digest
    before, after = (load_file(artifact.file("model/model.safetensors")) for artifact in (first, second))
    assert before.keys() == after.keys()
    assert any(name.startswith("pooler") for name in before)
    for name, value in before.items():
        assert torch.equal(value, after[name]) == name.startswith("pooler"), name


def test_a_killed_pretraining_goes_on_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, loop=replace(CONFIG.loop, epochs=1.0, checkpoint_s=0.0, evaluations=1))
    documents = texts(80)
    straight = pretrain.make(tmp_path / "straight", config, "scratch", data=data(tmp_path / "straight", documents))
    loss, calls = MaskedTask.loss, []

    def killed(task: MaskedTask, chunk: MaskedChunk) -> Any:
        calls.append(chunk)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return loss(task, chunk)

    source = data(tmp_path / "killed", documents)
    monkeypatch.setattr(MaskedTask, "loss", killed)
    with pytest.raises(KeyboardInterrupt):
        pretrain.make(tmp_path / "killed", config, "scratch", data=source)
    done = len(calls)
    again = pretrain.make(tmp_path / "killed", config, "scratch", data=source)
    assert again.metrics["steps"] == straight.metrics["steps"] == len(calls) - done + 3
    assert again.fingerprint == straight.fingerprint
    for name in ("masked_loss before", "masked_loss", "masked_accuracy", "history"):
        assert again.metrics[name] == straight.metrics[name]
    for name in ("model/model.safetensors", "model/tokenizer.json", "model/config.json"):
        assert again.manifest.files[name] == straight.manifest.files[name]


def test_only_documents_and_training_queries_are_read(tmp_path: Path) -> None:
    corpus = pretrain.read_corpus(data(tmp_path, texts(40)), seed=3)
    train = [n for n in range(40) if n % 5 % 3 == 0]
    assert corpus.queries == [f"who eats what {n}" for n in train]
    answers = {(corpus.queries[query], int(document)) for query, document in corpus.pairs}
    assert answers == {(f"who eats what {n}", n) for n in train if n % 3 > 0}
    assert len(corpus.documents) == 40
    assert len(corpus.held_out) == 2


def test_held_out_documents_are_not_learned_from_and_others_once_an_epoch(tmp_path: Path) -> None:
    task = task_of(
        tmp_path, replace(CONFIG, loop=replace(CONFIG.loop, tokens_per_batch=200, chunk_tokens=80)), texts(60)
    )
    held_out = set(task.document[task.held_out].tolist())
    for epoch in range(2):
        steps = task.plan(epoch)
        examples = np.concatenate([chunk.examples for step in steps for chunk in step.chunks])
        assert sorted(examples) == sorted(task.train)
        assert not held_out & set(task.document[examples].tolist())
        for step in steps:
            assert {chunk.masked for chunk in step.chunks} == {
                sum(int(task.masked[chunk.examples].sum()) for chunk in step.chunks)
            }
            assert step.tokens <= 200 + task.config.max_tokens
            assert max(len(chunk.examples) * int(task.lengths[chunk.examples].max()) for chunk in step.chunks) <= 80
    assert [step.examples for step in task.plan(0)] == [step.examples for step in task.plan(0)]
    assert [step.tokens for step in task.plan(0)] != [step.tokens for step in task.plan(1)]


def test_every_epoch_reads_another_part_of_a_long_document(tmp_path: Path) -> None:
    words = " ".join(random.Random(5).choice(ANIMALS + FOODS) for _ in range(90))
    task = task_of(tmp_path, CONFIG, [*texts(30), words])
    [example] = [n for n in task.train if task.document[n] == 30 and task.query[n] < 0]
    document = task.documents[30]
    assert len(document) > 60
    starts = set()
    for epoch in range(8):
        [start] = [
            int(chunk.starts[np.flatnonzero(chunk.examples == example)[0]])
            for step in task.plan(epoch)
            for chunk in step.chunks
            if example in chunk.examples
        ]
        ids, _, flags = task._input(int(example), start)
        assert ids[1:-1] == document[start : start + 30]
        assert flags == [False, *[True] * 30, False]
        starts.add(start)
    assert len(starts) > 4


def test_the_loss_is_that_of_transformers_for_the_same_masks(tmp_path: Path) -> None:
    task = task_of(tmp_path, CONFIG, texts(40))
    example = next(int(n) for n in task.train if task.query[n] >= 0)  # A packed pair, with its segments.
    seen: list[Any] = []
    forward = task.model.forward
    task.model.forward = lambda inputs, chosen, **how: seen.append((inputs, chosen)) or forward(inputs, chosen, **how)  # type: ignore
    torch.manual_seed(4)
    loss, logs = task.loss(
        MaskedChunk(np.array([example]), np.array([0]), int(task.masked[example]), int(task.lengths[example]))
    )
    [([inputs], [chosen])] = seen
    ids, types, _ = task._input(example, 0)
    assert inputs.token_type_ids.tolist() == [types]
    labels = torch.tensor([ids]).masked_fill(~chosen, -100)
    output = task.model.model(
        input_ids=inputs.input_ids,
        token_type_ids=inputs.token_type_ids,
        attention_mask=inputs.attention_mask,
        labels=labels,
    )
    assert loss.item() == pytest.approx(output.loss.item(), rel=1e-5)
    right = (output.logits.argmax(-1) == labels)[chosen].float().mean()
    assert float(logs["accuracy"]) == pytest.approx(float(right))


@pytest.mark.parametrize("family", ["bert", "roberta", "albert"])
@pytest.mark.parametrize("recompute", [False, True])
def test_batches_read_together_have_the_loss_and_gradients_of_each_by_itself(
    tmp_path: Path, family: Any, recompute: bool
) -> None:
    loop = replace(CONFIG.loop, checkpoint_activations=recompute)
    task = task_of(tmp_path, replace(CONFIG, scratch=replace(SCRATCH, family=family), loop=loop), texts(60))
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    chunk = max((chunk for step in task.plan(0) for chunk in step.chunks), key=lambda chunk: len(chunk.examples))
    groups = batches.length_groups(task.lengths[chunk.examples])
    assert len(groups) > 1

    def gradients(loss: torch.Tensor) -> dict[str, torch.Tensor]:
        task.model.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        return {name: weight.grad.clone() for name, weight in task.model.named_parameters() if weight.grad is not None}

    torch.manual_seed(7)
    loss, _ = task.loss(chunk)
    got = gradients(loss)
    torch.manual_seed(7)  # Masks are drawn group by group, so the same ones are drawn again.
    parts = []
    for group in groups:
        part = task.masked_batch(chunk.examples[group], chunk.starts[group])
        shown = part.shown
        labels = torch.full_like(shown.input_ids, -100).masked_scatter(part.chosen, part.wanted)
        types = {"token_type_ids": shown.token_type_ids} if family != "roberta" else {}
        output = task.model.model(
            input_ids=shown.input_ids, attention_mask=shown.attention_mask, labels=labels, **types
        )
        parts.append(output.loss * len(part.wanted) / chunk.masked)
    expected = gradients(sum(parts[1:], parts[0]))
    assert loss.item() == pytest.approx(sum(part.item() for part in parts), rel=1e-5)
    assert set(expected) == set(got)
    for name, value in expected.items():
        assert torch.allclose(value, got[name], atol=1e-5 * max(1.0, float(value.abs().max()))), name


def test_a_step_in_chunks_is_the_same_step(tmp_path: Path) -> None:
    """With all tokens to guess and one fate for all of them, only the division into chunks differs."""
    task = task_of(tmp_path, replace(CONFIG, mask_share=1.0), texts(40))
    task.ordinary = torch.tensor([task.mask_id])
    examples = task.train[:12]
    masks = torch.where  # The tenth that stays would differ with the draw: mask it as well.

    def losses(parts: Sequence[Any]) -> float:
        total, tokens = int(task.masked[examples].sum()), int(task.lengths[examples].sum())
        return sum(float(task.loss(MaskedChunk(part, part * 0, total, tokens))[0].detach()) for part in parts)

    def all_masked(ids: torch.Tensor, content: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return masks(content, task.mask_id, ids), content

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masked_lm, "mask", all_masked)
        assert losses([examples[:5], examples[5:6], examples[6:]]) == pytest.approx(losses([examples]), rel=1e-5)


def test_masks_are_exact_in_number_and_eighty_ten_ten_in_kind() -> None:
    torch.manual_seed(0)
    ids = torch.randint(10, 1000, (200, 50))
    content = torch.rand(ids.shape) < 0.8
    counts = (content.sum(1) * 0.25).round().long()
    shown, chosen = masked_lm.mask(ids, content, counts, mask_id=4, ordinary=torch.arange(1000, 2000))
    assert torch.equal(chosen.sum(1), counts)
    assert not (chosen & ~content).any()
    assert torch.equal(shown[~chosen], ids[~chosen])
    shares = [(shown[chosen] == 4), (shown[chosen] >= 1000), (shown[chosen] == ids[chosen])]
    assert [float(share.float().mean()) for share in shares] == pytest.approx([0.8, 0.1, 0.1], abs=0.03)


@pytest.mark.parametrize("family", ["bert", "roberta", "albert"])
def test_tokenizers_give_texts_back(family: Any) -> None:
    tokenizer = vocabulary.train(texts(200), replace(SCRATCH, family=family, vocab_size=600))
    english, chinese = "the horse eats grass", "动物喜欢吃东西"

    def there_and_back(text: str) -> str:
        return str(tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True))

    assert there_and_back(english) == english
    assert there_and_back(chinese).replace(" ", "") == chinese
    ids = tokenizer(chinese)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    if family != "roberta":
        assert tokenizer.tokenize(f"A{chinese}") == ["a", *chinese]  # Lower-cased, Chinese characters singly.
        assert tokenizer("a", "b")["token_type_ids"] == [0, 0, 0, 1, 1]
        assert tokenizer.convert_ids_to_tokens(list(range(5))) == list(vocabulary.BERT_SPECIALS)
    else:
        assert (
            tokenizer.decode(tokenizer("Émile \U0001f40e")["input_ids"], skip_special_tokens=True) == "Émile \U0001f40e"
        )
        assert tokenizer("a", "b")["input_ids"].count(tokenizer.sep_token_id) == 3


def test_common_words_are_one_token() -> None:
    tokenizer = vocabulary.train(texts(200), replace(SCRATCH, vocab_size=600))
    assert tokenizer.tokenize("The tiger lives in the jungle") == ["the", "tiger", "lives", "in", "the", "jungle"]


def test_letters_leave_room_for_words_and_rare_ones_go_first() -> None:
    common = [chr(0x4E00 + n) for n in range(150)]
    rare = [chr(0x5E00 + n) for n in range(500)]
    tokenizer = vocabulary.train([*["".join(common)] * 9, "".join(rare), *texts(50)], replace(SCRATCH, vocab_size=400))
    assert len(tokenizer) <= 400
    assert tokenizer.unk_token_id not in tokenizer("".join(common))["input_ids"]
    assert tokenizer.unk_token_id in tokenizer("".join(rare))["input_ids"]


@pytest.mark.parametrize("family", ["bert", "roberta", "albert"])
def test_another_process_trains_the_same_vocabulary(family: Any) -> None:
    """The trainers' hash maps are seeded anew in each process."""
    config = replace(SCRATCH, family=family)
    script = (
        "import json, sys; from pipeline.config import ScratchConfig; from pipeline.training.tasks import vocabulary;"
        "given = json.load(sys.stdin); made = vocabulary.train(given, ScratchConfig(layers=2, hidden=32, heads=2,"
        f"intermediate=64, positions=40, vocab_size=400, family='{family}'));"
        "print(made.backend_tokenizer.to_str())"
    )
    words = [*texts(150), *(" ".join(f"{a}{b}{c}x" for b in "aeiou" for c in "lmnrst") for a in "bcdfgh")]  # Many ties.
    done = subprocess.run(
        [sys.executable, "-c", script], input=json.dumps(words), capture_output=True, text=True, check=True
    )
    here = vocabulary.train(words, config).backend_tokenizer
    assert Tokenizer.from_str(done.stdout).get_vocab() == here.get_vocab()
    assert done.stdout.strip() == here.to_str()


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    source = data(tmp_path, texts(30))
    with pytest.raises(ConfigError, match="40 positions"):
        pretrain.make(tmp_path, replace(CONFIG, max_tokens=64), "scratch", data=source)
    with pytest.raises(TrainingError, match="too few are long enough"):
        task_of(tmp_path / "short", CONFIG, [""])
    with pytest.raises(TrainingError, match="are empty"):
        vocabulary.train(["", ""], SCRATCH)
    with pytest.raises(ConfigError, match="multiple of heads"):
        replace(SCRATCH, heads=3)


@pytest.mark.parametrize("family", ["bert", "roberta", "albert"])
def test_a_saved_model_opens_with_its_own_tokenizer_and_frequencies(tmp_path: Path, family: Any) -> None:
    """AutoTokenizer knows families; a tokenizer of our making must not be turned into the family's usual one."""
    config = replace(CONFIG, scratch=replace(SCRATCH, family=family, embedding=16))
    task = task_of(tmp_path, config, texts(100))
    ids = task.documents.ids
    shares = np.bincount(ids) / len(ids)
    assert task.measure().loss == pytest.approx(-float(np.log(shares[ids]).mean()), rel=0.06)
    task.model.save(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for pair in (("The horse eats", "grass"), ("动物", "住在很远的地方。")):
        assert again(*pair)["input_ids"] == task.model.hub_tokenizer(*pair)["input_ids"]
    body = AutoModel.from_pretrained(tmp_path / "saved")
    assert body.config.model_type == family
    width = body.get_input_embeddings().weight.shape[1]
    assert width == (16 if family == "albert" else SCRATCH.hidden)


def test_a_token_budget_ends_pretraining(tmp_path: Path) -> None:
    source = data(tmp_path, texts(80))
    unbounded, bounded = (
        pretrain.make(
            tmp_path, replace(CONFIG, loop=replace(CONFIG.loop, epochs=3.0, max_tokens=most)), "scratch", data=source
        )
        for most in (0, 1500)
    )
    assert bounded.metrics["steps"] < unbounded.metrics["steps"]
    assert bounded.metrics["steps"] * CONFIG.loop.tokens_per_batch == pytest.approx(1500, abs=600)
