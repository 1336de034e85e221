"""Teachers from outside: scores from a file on our scale, and the log-odds of a language model's two answers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig, PreTrainedTokenizerFast

from pipeline import schema
from pipeline.artifacts import Artifact
from pipeline.config import EncoderConfig, ExternalTeacherConfig, MiningConfig, RankerConfig, Recipe
from pipeline.config_training import PassagesConfig
from pipeline.errors import ConfigError, MemoryShortageError, MissingError, SchemaError, TrainingError
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.passages import Passages
from pipeline.training import external_teacher, ranker, score_scale, teacher
from pipeline.training.tasks import causal_lm_judge
from pipeline.training.tasks.causal_lm_judge import Judge
from tests.pipeline.training.test_stages import CANDIDATES, FILLERS, RANKER, TEACHER, base_model, tables
from tests.tables import stage

PROMPT = "<s>Query: {query}\nDocument: {document}\nDoes it answer? yes or no.\nAnswer:"


@pytest.fixture
def world(tmp_path: Path) -> tuple[Path, Artifact, Artifact]:
    """A workspace, its data and its pairs: twelve queries, five documents each, of grades 0, 0, 1, 1, 2."""
    queries = [{"query_id": f"q{n}", "text": f"query {n} of many"} for n in range(12)]
    documents = [
        {"doc_id": f"d{n}", "title": f"Title {n}", "text": "some words " * (1 + n % 7) + f"number {n}"}
        for n in range(60)
    ]
    judged = [
        {
            "query_id": f"q{n // 5}",
            "doc_id": f"d{n}",
            "grade": (0, 0, 1, 1, 2)[n % 5],
            "split": "train" if n < 40 else "valid",
            "source": "human",
        }
        for n in range(60)
    ]
    tables = {"queries": queries, "documents": documents, "judgments": judged}
    data = stage(tmp_path, "data", {name: pa.Table.from_pylist(rows) for name, rows in tables.items()})
    pairs = pa.Table.from_pylist([{"row_id": 100 + n, **row} for n, row in enumerate(judged)])
    return tmp_path, data, stage(tmp_path, "pairs", {"pairs": pairs})


def scored(pairs: Artifact) -> pd.DataFrame:
    frame = pd.read_parquet(pairs.file("pairs.parquet"))
    noise = np.random.default_rng(0).normal(size=len(frame))
    return frame.assign(score=(frame["grade"] * 30 + noise * 20 + 500))


def given(workspace: Path, frame: pd.DataFrame) -> ExternalTeacherConfig:
    frame.to_parquet(workspace / "given.parquet", index=False)
    return ExternalTeacherConfig(scores=str(workspace / "given.parquet"))


@pytest.mark.parametrize("keys", [["row_id"], ["query_id", "doc_id"]])
def test_scores_of_a_file_keep_their_order_on_our_scale(
    world: tuple[Path, Artifact, Artifact], keys: list[str]
) -> None:
    workspace, data, pairs = world
    frame = scored(pairs)
    more = pd.DataFrame([{"row_id": 7, "query_id": "q77", "doc_id": "d0", "score": 3.0}])
    shuffled = pd.concat([frame.sample(frac=1, random_state=3), more])[[*keys, "score"]]
    scores_artifact = external_teacher.make(workspace, given(workspace, shuffled), data=data, pairs=pairs, layers=())
    assert scores_artifact.manifest.kind == "teacher_scores"
    assert scores_artifact.metrics["unused rows"] == 1
    scores = schema.read(scores_artifact.file("scores.parquet"), "scores").to_pandas()
    assert scores["row_id"].tolist() == frame["row_id"].tolist()
    slope, shift = np.polyfit(frame["score"], scores["score"], 1)
    np.testing.assert_allclose(frame["score"] * slope + shift, scores["score"], atol=1e-4)
    assert slope > 0
    levels = np.array(json.loads(scores_artifact.file("head.json").read_text(encoding="utf-8"))["thresholds"])
    assert levels.sum() == pytest.approx(0, abs=1e-9)
    # At the maximum of the likelihood as many pairs are expected in each grade as there are (but for the prior).
    train = frame["split"] == "train"
    reach = 1 / (1 + np.exp(levels[None] - scores.loc[train, "score"].to_numpy()[:, None]))
    truth = [(frame.loc[train, "grade"] >= grade).mean() for grade in (1, 2)]
    np.testing.assert_allclose(reach.mean(0), truth, atol=0.02)


def test_the_fit_finds_the_model_that_drew_the_grades() -> None:
    draw = np.random.default_rng(5)
    raw = draw.normal(7.0, 3.0, size=40_000)
    levels = np.array([-0.5, 0.4, 2.0])
    chances = 1 / (1 + np.exp(levels[None] - 0.6 * (raw[:, None] - 7)))
    grades = (draw.random((len(raw), 1)) < chances).sum(1)  # One draw a pair: P(grade ≥ k) falls with k.
    scale = score_scale.fit(raw, grades, np.arange(len(raw)))
    assert scale.slope / scale.deviation == pytest.approx(0.6, rel=0.03)
    centre = levels.mean()
    np.testing.assert_allclose(scale.thresholds, levels - centre, atol=0.04)
    np.testing.assert_allclose(scale.scores(np.array([7.0, 10.0])), [-centre, 1.8 - centre], atol=0.06)


def test_scores_that_separate_the_grades_wholly_and_a_grade_without_pairs_stay_finite() -> None:
    raw = np.repeat([0.0, 1.0, 5.0], 50)
    grades = np.repeat([0, 1, 3], 50)
    scale = score_scale.fit(raw, grades, np.arange(150))
    assert len(scale.thresholds) == 3
    assert (np.diff(scale.thresholds) > 0).all()
    assert 1 < scale.slope < 100


@pytest.mark.parametrize(
    ("raw", "grades", "words"),
    [
        (np.arange(40.0)[::-1], np.repeat([0, 1], 20), "lower grades"),
        (np.ones(40), np.repeat([0, 1], 20), "all 40 training pairs"),
        (np.arange(40.0), np.zeros(40, dtype=np.int64), "above 0"),
    ],
)
def test_scores_that_say_nothing_are_refused(raw: Any, grades: Any, words: str) -> None:
    with pytest.raises(TrainingError, match=words):
        score_scale.fit(raw, grades, np.arange(40))


@pytest.mark.parametrize(("value", "count"), [(0.1, 3), (0.1, 100), (7.7, 7), (1e6 + 0.1, 100)])
def test_equal_scores_are_refused_though_their_mean_is_rounded(value: float, count: int) -> None:
    raw = np.full(count, value)
    assert raw.std() > 0
    with pytest.raises(TrainingError, match=f"all {count} training pairs have the score"):
        score_scale.fit(raw, np.arange(count) % 2, np.arange(count))


def test_faults_of_a_file_are_named(world: tuple[Path, Artifact, Artifact]) -> None:
    workspace, data, pairs = world
    frame = scored(pairs)[["query_id", "doc_id", "score"]]

    def refused(changed: pd.DataFrame, words: str) -> None:
        with pytest.raises(SchemaError, match=words):
            external_teacher.make(workspace, given(workspace, changed), data=data, pairs=pairs, layers=())

    refused(frame.drop(index=[3, 9]), r"2 of 60 pairs, query_id 'q0', doc_id 'd3'")
    refused(frame.assign(score=frame["score"].where(frame.index != 5)), r"row 6: score nan is no finite number \(1 row")
    refused(frame.assign(score=frame["score"].where(frame.index != 5, np.inf)), "row 6: score inf")
    refused(frame.assign(score="high"), r"row 1: score high .*60 rows")
    refused(pd.concat([frame, frame.iloc[[4]]]), r"row 61: a second score for query_id 'q0', doc_id 'd4'")
    refused(frame.rename(columns={"score": "value"}), "no column score")
    refused(frame.rename(columns={"doc_id": "document"}), "no column doc_id")
    refused(frame.rename(columns={"query_id": "row_id"}), "no whole number")
    numbered = scored(pairs).drop(columns=["query_id", "doc_id"]).astype({"row_id": float})
    refused(numbered.replace({"row_id": {107.0: 107.5}}), r"row 8: row_id 107\.5 is no")
    refused(frame.assign(row_id=["1" + "0" * 30] * 60).drop(columns="query_id"), "no whole number")
    categories = frame.astype({"query_id": "category", "doc_id": "category"})
    decoded = external_teacher.make(workspace, given(workspace, categories), data=data, pairs=pairs, layers=())
    assert decoded.metrics["pairs"] == 60
    columns = [frame[name].to_numpy() for name in ("query_id", "doc_id", "score", "score")]
    pq.write_table(pa.table(columns, names=["query_id", "doc_id", "score", "score"]), workspace / "given.parquet")
    config = ExternalTeacherConfig(scores=str(workspace / "given.parquet"))
    with pytest.raises(SchemaError, match="two columns are called 'score'"):
        external_teacher.make(workspace, config, data=data, pairs=pairs, layers=())
    (workspace / "given.parquet").write_text("not Parquet")
    with pytest.raises(SchemaError, match="not a readable Parquet"):
        external_teacher.make(workspace, config, data=data, pairs=pairs, layers=())
    with pytest.raises(MissingError, match="no file"):
        external_teacher.make(
            workspace, ExternalTeacherConfig(scores="nowhere.parquet"), data=data, pairs=pairs, layers=()
        )


def test_unlabelled_lists_are_found_by_the_query_they_were_drawn_for(world: tuple[Path, Artifact, Artifact]) -> None:
    workspace, data, pairs = world
    frame = scored(pairs)
    added = [("unlabelled:0:q3", "d44", "q3"), ("unlabelled:1:q3", "d2", "q3"), ("unlabelled:0:q2", "d44", "q2")]
    rows = [
        {"row_id": 900 + n, "query_id": name, "doc_id": doc, "grade": -1, "split": "unlabelled", "source": "unlabelled"}
        for n, (name, doc, _) in enumerate(added)
    ]
    lists = [{"query_id": name, "text": f"text of {original}", "asked": original} for name, _, original in added]
    all_pairs = pd.concat([frame.drop(columns="score"), pd.DataFrame(rows)])
    tables = {"pairs": pa.Table.from_pandas(all_pairs, preserve_index=False), "queries": pa.Table.from_pylist(lists)}
    more = stage(workspace / "more", "pairs", tables)
    extra = pd.DataFrame(
        [{"query_id": original, "doc_id": doc, "score": 500.0 + 10 * n} for n, (_, doc, original) in enumerate(added)]
    )
    given_rows = pd.concat([frame[["query_id", "doc_id", "score"]], extra])
    scores_artifact = external_teacher.make(workspace, given(workspace, given_rows), data=data, pairs=more, layers=())
    scores = pd.read_parquet(scores_artifact.file("scores.parquet")).set_index("row_id")["score"]
    assert scores[900] < scores[901] < scores[902]
    # They have no grade, so the fit is the same with and without them.
    alone = external_teacher.make(workspace, given(workspace, frame), data=data, pairs=pairs, layers=())
    before = pd.read_parquet(alone.file("scores.parquet")).set_index("row_id")["score"]
    np.testing.assert_allclose(scores[before.index], before, atol=1e-6)
    with pytest.raises(SchemaError, match="1 of 63 pairs, query_id 'q2', doc_id 'd44'"):
        external_teacher.make(workspace, given(workspace, given_rows.iloc[:-1]), data=data, pairs=more, layers=())


def test_states_of_an_outside_teacher_are_refused_before_anything_is_made(
    world: tuple[Path, Artifact, Artifact],
) -> None:
    workspace, data, pairs = world
    with pytest.raises(ConfigError, match="hidden_weight"):
        external_teacher.make(workspace, given(workspace, scored(pairs)), data=data, pairs=pairs, layers=(1, 2))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"scores": "a.parquet", "causal_lm": "b"}, "one teacher"),
        ({"prompt": "Query: {query}"}, r"\{document\} 0 times"),
        ({"prompt": "{query} {query} {document}"}, r"\{query\} 2 times"),
        ({"negative": " yes"}, "two different answers"),
        ({"batch_tokens": 0}, "above 0"),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ExternalTeacherConfig(**values)


def save_model(folder: Path, family: str = "llama") -> Path:
    """A random language model with a byte-level tokenizer that knows a few words."""
    words = Tokenizer(BPE())
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    corpus = [PROMPT.replace("<s>", ""), "Answer: yes", "Answer: no", "some words number query of many Title"] * 5
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    words.train_from_iterator(corpus, trainer)
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=words, bos_token="<s>", eos_token="</s>"
    )
    tokenizer.save_pretrained(folder)
    sizes = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    body = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model_config: Any
    if family == "gpt2":
        model_config = GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.4, **sizes)
    else:
        kind = LlamaConfig if family == "llama" else Gemma2Config
        more = {} if family == "llama" else {"final_logit_softcapping": 3.0, "head_dim": 8}
        model_config = kind(
            **sizes, **body, **more, num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.4
        )
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(model_config).save_pretrained(folder)
    return folder


CONFIG = ExternalTeacherConfig(causal_lm="x", prompt=PROMPT.removeprefix("<s>"), max_tokens=120, max_query_tokens=20)
PAIRS = [("query 3", "some words"), ("many of words", "Title\n" + "some words number " * 9), ("q", "")]
PAIRS += [(f"query {n}", "some words " * n) for n in range(1, 8)]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_log_odds_are_those_of_the_models_own_next_token(tmp_path: Path, family: str) -> None:
    judge = Judge.load(save_model(tmp_path, family), CONFIG)
    together = causal_lm_judge.score_shard(judge, PAIRS)
    for log_odds, (query, document) in zip(together, PAIRS, strict=True):
        prompt = CONFIG.prompt.replace("{query}", query).replace("{document}", document)
        ids = judge.tokenizer(prompt, return_tensors="pt")["input_ids"]
        assert ids.shape[1] <= CONFIG.max_tokens  # Nothing to cut.
        with torch.no_grad():
            chances = judge.model(input_ids=ids).logits[0, -1].log_softmax(-1)
        yes, no = (judge.tokenizer.encode(answer, add_special_tokens=False) for answer in (" yes", " no"))
        assert log_odds == pytest.approx(float(chances[yes[0]] - chances[no[0]]), abs=2e-4)
    assert together.std() > 0.05


CHAT = (
    "<s>{% for turn in messages %}[{{ turn.role }}] {{ turn.content }} {% endfor %}[answer]"
    "{% if not enable_thinking %} none{% endif %}"
)


def test_a_prompt_in_the_folders_chat_template_is_the_prompt_with_its_marks(tmp_path: Path) -> None:
    folder = save_model(tmp_path)
    with pytest.raises(ConfigError, match=r"external_teacher\.chat: .* no chat template"):
        Judge.load(folder, replace(CONFIG, chat=True))
    (folder / "chat_template.jinja").write_text(CHAT, encoding="utf-8")
    judge = Judge.load(folder, replace(CONFIG, chat=True, system="some words"))
    written = f"[system] some words [user] {CONFIG.prompt} [answer] none"
    by_hand = Judge.load(folder, replace(CONFIG, prompt=written))
    assert judge.inputs(PAIRS) == by_hand.inputs(PAIRS)
    scores = causal_lm_judge.score_shard(judge, PAIRS)
    np.testing.assert_array_equal(scores, causal_lm_judge.score_shard(by_hand, PAIRS))
    assert np.abs(scores - causal_lm_judge.score_shard(Judge.load(folder, CONFIG), PAIRS)).max() > 0.01
    with pytest.raises(ConfigError, match=r"external_teacher\.system .* set external_teacher\.chat"):
        replace(CONFIG, system="some words")


def test_a_batch_is_scored_as_one_by_one(tmp_path: Path) -> None:
    folder = save_model(tmp_path)
    judge = Judge.load(folder, CONFIG)
    alone = np.concatenate([causal_lm_judge.score_shard(judge, [pair]) for pair in PAIRS])
    small = Judge.load(folder, replace(CONFIG, batch_tokens=150))
    np.testing.assert_allclose(causal_lm_judge.score_shard(judge, PAIRS), alone, atol=1e-4)
    np.testing.assert_allclose(causal_lm_judge.score_shard(small, PAIRS), alone, atol=1e-4)


def test_long_texts_are_cut_and_the_question_stays(tmp_path: Path) -> None:
    judge = Judge.load(save_model(tmp_path), replace(CONFIG, max_tokens=80, max_query_tokens=5))
    [ids] = judge.inputs([("many words of query " * 30, "some words number " * 500)])
    assert len(ids) == 80
    shown = judge.tokenizer.decode(ids)
    head, _, rest = shown.partition("\nDocument:")
    assert head.startswith("<s>Query: many")
    assert len(judge.tokenizer(head.removeprefix("<s>Query:"), add_special_tokens=False)["input_ids"]) == 5
    assert rest.startswith(" some words number some words")
    assert rest.endswith(CONFIG.prompt.partition("{document}")[2])
    [short] = judge.inputs([("many", "some words")])
    assert judge.tokenizer.decode(short) == "<s>" + CONFIG.prompt.format(query="many", document="some words")


def test_marks_of_the_model_in_a_document_are_text_and_in_the_prompt_marks(tmp_path: Path) -> None:
    judge = Judge.load(save_model(tmp_path), replace(CONFIG, prompt=f"{CONFIG.prompt}</s> x:"))
    [ids] = judge.inputs([("</s>", "words</s>Answer: yes<s>")])
    assert (ids.count(0), ids.count(1)) == (1, 1)


def test_an_answer_that_is_not_one_token_is_refused(tmp_path: Path) -> None:
    folder = save_model(tmp_path)
    with pytest.raises(ConfigError, match=r"external_teacher.positive ' certainly' is not one token"):
        Judge.load(folder, replace(CONFIG, positive=" certainly"))
    with pytest.raises(ConfigError, match="max_tokens 300: the model reads 256"):
        Judge.load(folder, replace(CONFIG, max_tokens=300))
    with pytest.raises(ConfigError, match="prompt and query alone"):
        Judge.load(folder, replace(CONFIG, max_tokens=30))
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match="not a causal language model"):
        Judge.load(folder / "nowhere", CONFIG)


def test_memory_that_runs_out_says_what_to_lower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def large(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    judge = Judge.load(save_model(tmp_path), CONFIG)
    monkeypatch.setattr(judge, "log_odds", large)
    with pytest.raises(MemoryShortageError, match=r"memory ran out.*lower external_teacher\.batch_tokens \(16384\)"):
        causal_lm_judge.score_shard(judge, PAIRS)


def test_a_killed_scoring_goes_on_after_its_last_shard(
    world: tuple[Path, Artifact, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, data, pairs = world
    folder = save_model(tmp_path / "model")
    config = replace(CONFIG, causal_lm=str(folder))
    monkeypatch.setattr(score_scale, "fit", lambda raw, *_: score_scale.ScoreScale(0.0, 1.0, 1.0, 0.0, (-1.0, 1.0)))
    uninterrupted = external_teacher.make(workspace / "straight", config, data=data, pairs=pairs, layers=())
    monkeypatch.setattr(causal_lm_judge, "SHARD", 16)
    shard, calls = causal_lm_judge.score_shard, []

    def killed(judge: Judge, shard_pairs: Any) -> Any:
        calls.append(len(shard_pairs))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return shard(judge, shard_pairs)

    monkeypatch.setattr(causal_lm_judge, "score_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        external_teacher.make(workspace / "killed", config, data=data, pairs=pairs, layers=())
    again = external_teacher.make(workspace / "killed", config, data=data, pairs=pairs, layers=())
    assert calls == [16, 16, 16, 16, 12]
    assert again.fingerprint == uninterrupted.fingerprint
    scores = [
        pd.read_parquet(scores_artifact.file("scores.parquet"))["score"] for scores_artifact in (uninterrupted, again)
    ]
    np.testing.assert_allclose(*scores, atol=1e-4)


def test_a_score_that_is_no_number_stops_the_run(world: tuple[Path, Artifact, Artifact], tmp_path: Path) -> None:
    workspace, data, pairs = world
    folder = save_model(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.nn.init.constant_(model.lm_head.weight, float("nan"))
    model.save_pretrained(folder)
    with pytest.raises(TrainingError, match="score of pair 0 is not a number"):
        external_teacher.make(workspace, replace(CONFIG, causal_lm=str(folder)), data=data, pairs=pairs, layers=())


def test_rounds_of_mining_are_not_mixed_with_an_outside_teacher() -> None:
    mined = EncoderConfig(mining=MiningConfig(rounds=2))
    with pytest.raises(ConfigError, match="mining"):
        Recipe(external_teacher=ExternalTeacherConfig(scores="a.parquet"), encoder=mined)
    assert Recipe(encoder=mined).encoder.mining.rounds == 2


def test_a_recipe_that_needs_an_outside_teachers_states_is_refused_before_its_own_teacher_is_trained() -> None:
    given = ExternalTeacherConfig(scores="a.parquet")
    blind, shallow = RankerConfig(hidden_weight=0.0), RankerConfig(layers=1)
    for refused, section in (((), "ranker"), ((RankerConfig(), blind), r"assistants\[0\]")):
        with pytest.raises(ConfigError, match=rf"^{section}\.hidden_weight is 0\.1.*only scores"):
            Recipe(external_teacher=given, assistants=refused)
    for allowed in (
        Recipe(external_teacher=given, assistants=(blind,)),
        Recipe(external_teacher=given, ranker=shallow),
    ):
        assert allowed.external_teacher.given


def test_names_win_over_the_row_numbers_of_another_table(world: tuple[Path, Artifact, Artifact]) -> None:
    workspace, data, pairs = world
    frame = scored(pairs)
    stale = frame.assign(row_id=frame["row_id"].to_numpy()[::-1])
    right, by_names = (
        external_teacher.make(workspace, given(workspace, scores_table), data=data, pairs=pairs, layers=()).file(
            "scores.parquet"
        )
        for scores_table in (frame[["query_id", "doc_id", "score"]], stale)
    )
    assert pd.read_parquet(by_names).equals(pd.read_parquet(right))


def test_a_language_model_judges_the_passages_that_the_students_read(tmp_path: Path) -> None:
    """Each passage is judged as a document of its own, by a loop; the student learns from the best one."""
    base = base_model(tmp_path / "base")
    short, pair_table = tables()
    texts = [f"{text} {' '.join(FILLERS)} {text}" for text in short["documents"].column("text").to_pylist()]
    long = {**short, "documents": short["documents"].set_column(2, "text", pa.array(texts))}
    data, some = stage(tmp_path, "data", long), pair_table.slice(0, 60)
    settings = replace(TEACHER, passages=PassagesConfig(most=4), loop=replace(TEACHER.loop, epochs=0.5, evaluations=0))
    graded = stage(tmp_path, "pairs", {"pairs": some})
    own = teacher.make(tmp_path, settings, CANDIDATES, data=data, pairs=graded, base=str(base))
    config = replace(CONFIG, causal_lm=str(save_model(tmp_path / "judge")), max_tokens=160)
    judge, reader = Judge.load(Path(config.causal_lm), config), CrossEncoder.load(own.path)
    queries = dict(zip(*(short["queries"].column(name).to_pylist() for name in ("query_id", "text")), strict=True))
    documents = dict(zip(long["documents"].column("doc_id").to_pylist(), texts, strict=True))
    cuts, odds = [], []
    for row in some.to_pylist():
        query, document = queries[row["query_id"]], documents[row["doc_id"]]
        encoded = reader.tokenizer.encode(document, add_special_tokens=False)
        room = reader.template.passage_room(len(reader.tokenizer.encode(query, add_special_tokens=False).ids))
        cuts.append(Passages(most=4).spans(len(encoded.ids), room))
        parts = [document[encoded.offsets[start][0] : encoded.offsets[end - 1][1]] for start, end in cuts[-1]]
        odds.append(causal_lm_judge.score_shard(judge, [(query, part) for part in parts]))
    raw = np.array([scores.max() for scores in odds])
    # Grades that such a judge could have given: it is a random model.
    grades = pa.array(np.searchsorted(np.quantile(raw, [0.4, 0.8]), raw))
    pairs = stage(tmp_path, "pairs", {"pairs": some.set_column(some.column_names.index("grade"), "grade", grades)})
    arguments: dict[str, Any] = {"data": data, "pairs": pairs, "layers": ()}
    artifact = external_teacher.make(tmp_path, config, **arguments, teacher=own)
    assert artifact.metrics["inputs"] == sum(map(len, cuts)) > 2 * artifact.metrics["in_passages"] > 0
    spans = np.load(artifact.file("passages.npy")).tolist()
    for span, known, scores in zip(spans, cuts, odds, strict=True):
        assert scores[known.index(tuple(span))] == pytest.approx(scores.max(), abs=1e-4)
    values = schema.read(artifact.file("scores.parquet"), "scores").to_pandas()["score"]
    assert np.corrcoef(raw, values)[0, 1] == pytest.approx(1, abs=1e-4)
    beginnings = external_teacher.make(tmp_path, config, **arguments)
    assert "passages.npy" not in beginnings.manifest.files
    assert beginnings.fingerprint != artifact.fingerprint
    student = replace(RANKER, hidden_weight=0.0, loop=replace(RANKER.loop, epochs=0.5, evaluations=0))
    small = ranker.make(tmp_path, student, CANDIDATES, data=data, pairs=pairs, teacher=own, teacher_scores=artifact)
    assert CrossEncoder.load(small.path).template.passages == Passages(most=4)
