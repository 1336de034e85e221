import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from index import inventory, vector_matrix, vectors
from index.document_reader import content_digest
from pipeline import artifacts
from pipeline.artifacts import Artifact
from pipeline.errors import ArtifactError, SchemaError

Embed = Callable[[Sequence[str]], np.ndarray]


class Counting:
    """An embedder that remembers which texts it was given."""

    def __init__(self, embed: Embed, fail_at: int | None = None) -> None:
        self.embed, self.fail_at = embed, fail_at
        self.texts: list[str] = []

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        if self.fail_at is not None and len(self.texts) >= self.fail_at:
            raise KeyboardInterrupt
        self.texts += texts
        return self.embed(texts)


def content(artifact: Artifact) -> tuple[bytes, list[dict[str, object]]]:
    return vector_matrix.read(artifact)[:].tobytes(), pq.read_table(artifact.file("rows.parquet")).to_pylist()


@pytest.mark.parametrize("seed", range(8))
def test_any_changes_end_in_what_a_fresh_embedding_gives(
    seed: int, tmp_path: Path, make_data: Callable[..., Artifact], embed: Embed
) -> None:
    rng = np.random.default_rng(seed)
    texts = [f"text {number}" for number in rng.integers(0, 40, size=30)]  # Some are equal.
    ids = [f"x{number}" for number in range(30)]
    artifact: Artifact | None = None
    for round_ in range(5):
        data = make_data(texts, columns={"doc_id": ids})
        counting, before = Counting(embed), set()
        if artifact is not None:
            before = {row["content"] for row in pq.read_table(artifact.file("rows.parquet")).to_pylist()}
        artifact = vectors.make(
            tmp_path / "changed",
            vectors.DocumentEncoder("encoder", counting),
            data=data,
            previous=[artifact] if artifact else [],
        )
        fresh = vectors.make(tmp_path / f"fresh{round_}", vectors.DocumentEncoder("encoder", embed), data=data)
        assert content(artifact) == content(fresh)
        assert artifact.fingerprint == fresh.fingerprint
        np.testing.assert_array_equal(vector_matrix.read(artifact)[:], embed(texts))
        new = {text for text in texts if content_digest(text) not in before}
        assert sorted(counting.texts) == sorted(new)
        assert artifact.metrics["embedded"] == len(new)
        assert artifact.metrics["reused"] == sum(content_digest(text) in before for text in texts)

        for row in sorted(rng.choice(len(texts), size=5, replace=False).tolist(), reverse=True):
            del texts[row], ids[row]
        for row in rng.choice(len(texts), size=4, replace=False):
            texts[row] = f"changed {rng.integers(0, 60)}"
        for number in range(int(rng.integers(0, 8))):
            row = int(rng.integers(0, len(texts) + 1))
            texts.insert(row, f"new {rng.integers(0, 60)}")
            ids.insert(row, f"y{round_}.{number}")


def test_another_encoder_embeds_all_again(tmp_path: Path, make_data: Callable[..., Artifact], embed: Embed) -> None:
    data = make_data(["a", "b", "a"])
    first = vectors.make(tmp_path, vectors.DocumentEncoder("one", embed), data=data)
    counting = Counting(lambda texts: -embed(texts))
    second = vectors.make(tmp_path, vectors.DocumentEncoder("two", counting), data=data, previous=[first])
    assert counting.texts == ["a", "b"]
    np.testing.assert_array_equal(vector_matrix.read(second)[:], -vector_matrix.read(first)[:])
    assert second.manifest.config["encoder_digest"] == "two"


def test_title_and_text_are_embedded_as_models_read_them(
    tmp_path: Path, make_data: Callable[..., Artifact], embed: Embed
) -> None:
    counting = Counting(embed)
    vectors.make(
        tmp_path,
        vectors.DocumentEncoder("e", counting),
        data=make_data(["text", "", "c"], columns={"title": ["title", "b", ""]}),
    )
    assert counting.texts == ["title\ntext", "b", "c"]


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from index import inventory, vector_matrix, vectors
from pipeline import artifacts
vectors.BATCH, vectors.SHARD_S = 10, 0.0
calls = 0
def embed(texts):
    global calls
    calls += 1
    if calls == {killed_at}:
        os.kill(os.getpid(), signal.SIGKILL)
    seeds = [int(text.split()[1]) for text in texts]
    made = np.array([np.random.default_rng(seed).normal(size=8) for seed in seeds])
    return made / np.linalg.norm(made, axis=1, keepdims=True)
made = vectors.make(Path(sys.argv[1]), vectors.DocumentEncoder("e", embed), data=artifacts.load(Path(sys.argv[2])))
print(calls, made.metrics["embedded"], made.metrics["resumed"])
"""


def test_a_killed_embedding_loses_one_shard_and_ends_the_same(
    tmp_path: Path, make_data: Callable[..., Artifact]
) -> None:
    data = make_data([f"text {row % 90}" for row in range(100)])

    def go(workspace: str, killed_at: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", KILLED.format(killed_at=killed_at), str(tmp_path / workspace), str(data.path)]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)

    for killed_at in (4, 3):  # Of 9 batches: after 3, then after 2 more.
        assert go("killed", killed_at).returncode == -signal.SIGKILL
    assert not list((tmp_path / "killed" / "artifacts" / "vectors").glob("*/manifest.json"))
    # 5 batches are done, 50 texts in rows 0 to 49 and, as the texts repeat, 90 to 99; 4 are left.
    assert go("killed", -1).stdout.split() == ["4", "40", "60"]
    assert go("whole", -1).stdout.split() == ["9", "90", "0"]
    killed, uninterrupted = (
        next((tmp_path / name / "artifacts" / "vectors").glob("*/")) for name in ("killed", "whole")
    )
    for name in ("vectors.npy", "rows.parquet"):
        assert (killed / name).read_bytes() == (uninterrupted / name).read_bytes()
    assert not list((tmp_path / "killed" / "artifacts" / "vectors").glob("*.checkpoint"))


def test_a_damaged_shard_is_embedded_again(
    tmp_path: Path,
    make_data: Callable[..., Artifact],
    embed: Embed,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(vectors, "BATCH", 5)
    monkeypatch.setattr(vectors, "SHARD_S", 0.0)
    data = make_data([f"text {row}" for row in range(30)])
    with pytest.raises(KeyboardInterrupt):
        vectors.make(tmp_path, vectors.DocumentEncoder("e", Counting(embed, fail_at=20)), data=data)
    first, second, third, fourth = sorted((tmp_path / "artifacts" / "vectors").glob("*.checkpoint/*.npz"))
    damaged = bytearray(first.read_bytes())
    damaged[400] ^= 1
    first.write_bytes(damaged)
    second.write_bytes(second.read_bytes()[:100])
    third.write_bytes(b"")
    counting = Counting(embed)
    artifact = vectors.make(tmp_path, vectors.DocumentEncoder("e", counting), data=data)
    assert counting.texts == [f"text {row}" for row in [*range(15), *range(20, 30)]]
    np.testing.assert_array_equal(vector_matrix.read(artifact)[:], embed([f"text {row}" for row in range(30)]))
    assert sum("not a readable shard" in message for message in caplog.messages) == 3
    assert not fourth.exists()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda matrix: np.where(np.arange(len(matrix))[:, None] == 1, np.nan, matrix), "document 'd1' has length nan"),
        (lambda matrix: np.where(np.arange(len(matrix))[:, None] == 2, 0, matrix), "document 'd2' has length 0.0"),
        (lambda matrix: matrix * np.inf, "d0"),
        (lambda matrix: matrix * 1.01, "3 of 3"),
        (lambda matrix: matrix[:2], r"\(2, 16\) for 3 documents"),
        (lambda matrix: matrix[0], r"\(16,\) for 3"),
    ],
)
def test_vectors_that_are_not_unit_vectors_are_refused(
    spoil: Callable[[np.ndarray], np.ndarray],
    reason: str,
    tmp_path: Path,
    make_data: Callable[..., Artifact],
    embed: Embed,
) -> None:
    with np.errstate(invalid="ignore"), pytest.raises(ArtifactError, match=reason):
        vectors.make(
            tmp_path, vectors.DocumentEncoder("e", lambda texts: spoil(embed(texts))), data=make_data(["a", "b", "c"])
        )


def test_a_width_that_changes_under_one_digest_is_refused(
    tmp_path: Path, make_data: Callable[..., Artifact], embed: Embed
) -> None:
    first = vectors.make(tmp_path, vectors.DocumentEncoder("e", embed), data=make_data(["a"]))
    with pytest.raises(ArtifactError, match="8 dimensions now and gave 16 before"):
        vectors.make(
            tmp_path,
            vectors.DocumentEncoder("e", lambda texts: np.eye(8)[: len(texts)]),
            data=make_data(["a", "b"]),
            previous=[first],
        )


def test_no_documents_are_an_error(tmp_path: Path, make_data: Callable[..., Artifact], embed: Embed) -> None:
    with pytest.raises(SchemaError, match="no document"):
        vectors.make(tmp_path, vectors.DocumentEncoder("e", embed), data=make_data([]))


def test_all_earlier_vectors_of_an_encoder_are_reused(
    tmp_path: Path, make_data: Callable[..., Artifact], embed: Embed, caplog: pytest.LogCaptureFixture
) -> None:
    """A large corpus shrinks and then changes by one document at a time: one document is embedded at a time."""
    texts = [f"text {row}" for row in range(60)]
    vectors.make(tmp_path, vectors.DocumentEncoder("e", embed), data=make_data(texts))
    texts = texts[:10]
    for change in range(4):
        texts[change] = f"changed {change}"
        counting, known = Counting(embed), vectors.earlier(tmp_path, "e")
        last = vectors.make(tmp_path, vectors.DocumentEncoder("e", counting), data=make_data(texts), previous=known)
        assert counting.texts == [f"changed {change}"]
    newest = max(last.path.rglob("vectors.npy"), key=lambda path: path.stat().st_mtime_ns)
    assert newest.stat().st_nlink == 1  # No other artifact shares it.
    newest.write_bytes(b"damaged")
    counting = Counting(embed)
    vectors.make(
        tmp_path,
        vectors.DocumentEncoder("e", counting),
        data=make_data([*texts, "new"]),
        previous=vectors.earlier(tmp_path, "e"),
    )
    assert sorted(counting.texts) == ["changed 3", "new"]
    assert any("not reused" in message for message in caplog.messages)


def test_a_round_embeds_anew_beside_the_earlier_ones(
    tmp_path: Path, make_data: Callable[..., Artifact], embed: Embed
) -> None:
    data = make_data(["a", "b"])
    first = vectors.make(tmp_path, vectors.DocumentEncoder("e", embed), data=data)
    assert vectors.next_round(vectors.earlier(tmp_path, "e")) == 1
    second = vectors.make(
        tmp_path, vectors.DocumentEncoder("e", lambda texts: -embed(texts)), data=data, embedding_round=1
    )
    assert second.fingerprint != first.fingerprint
    assert first.file("vectors.npy").exists()
    known = vectors.earlier(tmp_path, "e")
    assert vectors.last_round(known, data) == 1
    later = vectors.make(tmp_path, vectors.DocumentEncoder("e", embed), data=make_data(["b", "c"]), previous=known)
    assert np.array_equal(vector_matrix.read(later)[:][0], vector_matrix.read(second)[:][1])


def before_segments(artifact: Artifact) -> Artifact:
    """The artifact as it was written before vectors had segments: without digests.npy."""
    folder = artifact.path.with_name(f"{artifact.path.name}.old")
    artifact.path.rename(folder)
    for name in ("digests.npy", artifacts.MANIFEST):
        (folder / name).unlink()
    return artifacts.seal(folder, artifact.manifest, artifact.path)


@pytest.mark.parametrize("old", [False, True], ids=["segments", "before-segments"])
def test_a_small_change_writes_its_own_vectors_alone(
    old: bool, tmp_path: Path, make_data: Callable[..., Artifact], embed: Embed
) -> None:
    texts = [f"text {row}" for row in range(50)]
    first = vectors.make(tmp_path, vectors.DocumentEncoder("e", embed), data=make_data(texts))
    if old:
        first = before_segments(first)
        assert sorted(first.manifest.files) == ["rows.parquet", "vectors.npy"]
    texts = ["new", *texts[:7], *texts[8:][::-1]]
    second = vectors.make(tmp_path, vectors.DocumentEncoder("e", embed), data=make_data(texts), previous=[first])
    figures = {name: second.metrics[name] for name in ("segments", "tombstones", "rewritten", "embedded", "reused")}
    assert figures == {"segments": 2, "tombstones": 1, "rewritten": 1, "embedded": 1, "reused": 49}
    large, small = sorted(second.path.rglob("vectors.npy"), key=lambda path: -path.stat().st_size)
    assert large.samefile(first.file("vectors.npy"))
    assert np.load(small).shape == (1, 16)
    np.testing.assert_array_equal(vector_matrix.read(second)[:], embed(texts))
    assert inventory.indexed(second) == 50
    assert [(item.documents, item.live) for item in inventory.segments_of(second)] == [(50, 49), (1, 1)]
    third = vectors.make(
        tmp_path, vectors.DocumentEncoder("e", embed), data=make_data(texts[1:]), previous=[second, first]
    )
    assert (third.metrics["embedded"], third.metrics["rewritten"]) == (0, 0)
    assert (
        third.fingerprint
        == vectors.make(tmp_path / "fresh", vectors.DocumentEncoder("e", embed), data=make_data(texts[1:])).fingerprint
    )


def test_parts_of_a_matrix_of_segments_are_those_of_one_array(
    tmp_path: Path, make_data: Callable[..., Artifact], embed: Embed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_matrix, "BLOCK", 7)
    texts = [f"text {row}" for row in range(50)]
    first = vectors.make(tmp_path, vectors.DocumentEncoder("e", embed), data=make_data(texts))
    texts = [*texts[9:30][::-1], "new", *texts[30:]]
    matrix = vector_matrix.read(
        vectors.make(tmp_path, vectors.DocumentEncoder("e", embed), data=make_data(texts), previous=[first])
    )
    expected = embed(texts)
    assert isinstance(matrix, vector_matrix.SegmentedMatrix)
    assert (matrix.shape, matrix.size, len(matrix), matrix.ndim) == (expected.shape, expected.size, len(expected), 2)
    for chosen in (slice(None), slice(5, 20), slice(40, 99), slice(None, None, 3)):
        np.testing.assert_array_equal(matrix[chosen], expected[chosen])
    rng = np.random.default_rng(7)
    for shape in ((0,), (6,), (3, 4)):
        rows = rng.integers(-len(expected), len(expected), shape)
        np.testing.assert_array_equal(matrix[rows], expected[rows])
    direction = rng.standard_normal(16).astype(np.float32)
    np.testing.assert_allclose(matrix @ direction, expected @ direction, rtol=1e-5, atol=1e-6)


def all_vectors(artifact: Artifact) -> np.ndarray:
    """All vectors, after the digests of their texts were read too."""
    vector_matrix.stored_segments(artifact)
    return vector_matrix.read(artifact)[:]


def test_a_cut_in_any_file_of_vectors_in_segments_is_refused_by_name(
    tmp_path: Path, make_data: Callable[..., Artifact], embed: Embed, resealed: Callable[..., Path]
) -> None:
    texts = [f"text {row}" for row in range(50)]
    first = vectors.make(tmp_path, vectors.DocumentEncoder("e", embed), data=make_data(texts))
    second = vectors.make(
        tmp_path, vectors.DocumentEncoder("e", embed), data=make_data([*texts, "new"]), previous=[first]
    )
    for name in [name for name in second.manifest.files if name.endswith((".npy", ".json"))]:

        def cut(folder: Path, name: str = name) -> None:
            content = (folder / name).read_bytes()
            (folder / name).unlink()
            (folder / name).write_bytes(content[: len(content) // 2])

        changed = artifacts.load(resealed(second, cut), vectors.KIND)
        with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
            all_vectors(changed)
