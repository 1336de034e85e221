import ast
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from pipeline import recipe, text
from pipeline.errors import ConfigError, MissingError, SchemaError
from pipeline.releases import Pointer, Releases
from pipeline.tokens import PairTemplate, TextTemplate

BERT = PairTemplate(before=(101,), between=(102,), after=(102,), max_tokens=16, max_query_tokens=6)
ROBERTA = PairTemplate(before=(0,), between=(2, 2), after=(2,), document_type=0, max_tokens=16, max_query_tokens=6)


def test_pair_of_each_family() -> None:
    assert BERT.assemble([7, 8], [9]) == ([101, 7, 8, 102, 9, 102], [0, 0, 0, 0, 1, 1])
    assert ROBERTA.assemble([7, 8], [9]) == ([0, 7, 8, 2, 2, 9, 2], [0] * 7)


@given(query=st.lists(st.integers(5, 9), max_size=30), document=st.lists(st.integers(10, 19), max_size=30))
def test_query_is_kept_and_document_gets_the_rest(query: list[int], document: list[int]) -> None:
    ids, types = BERT.assemble(query, document)
    assert len(ids) == len(types) <= BERT.max_tokens
    kept_query = [token for token in ids if 5 <= token <= 9]
    kept_document = [token for token in ids if 10 <= token <= 19]
    assert kept_query == query[:6]
    assert kept_document == document[: BERT.document_room(len(query))]
    if len(ids) < BERT.max_tokens:
        assert kept_document == document


@given(st.integers(0, 40), st.integers(0, 40), st.integers(5, 30))
def test_the_longer_text_is_cut_as_tokenizers_cut_it(query: int, document: int, max_tokens: int) -> None:
    words = Tokenizer(models.WordLevel({"q": 5, "d": 6, "[CLS]": 1, "[SEP]": 2}, unk_token="d"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    words.enable_truncation(max_tokens, strategy="longest_first")
    template = PairTemplate(
        before=(1,), between=(2,), after=(2,), max_tokens=max_tokens, max_query_tokens=1, longest_first=True
    )
    expected = words.encode(" ".join("q" * query), " ".join("d" * document))
    # The service knows no text beyond `max_tokens`; of two such texts the document counts as the longer.
    known = min(query, max_tokens), min(document, max_tokens)
    if query > document and min(known) == max_tokens:
        expected = words.encode(" ".join("q" * document), " ".join("d" * query))
    assert template.assemble([5] * known[0], [6] * known[1]) == (expected.ids, expected.type_ids)
    assert PairTemplate.from_dict(template.to_dict()) == template
    assert "longest_first" not in BERT.to_dict()


def test_templates_survive_json_and_refuse_no_room() -> None:
    assert PairTemplate.from_dict({**BERT.to_dict(), "before": [101]}) == BERT
    single = TextTemplate(before=(101,), after=(102,), max_tokens=4)
    assert TextTemplate.from_dict(single.to_dict()) == single
    assert single.assemble([1, 2, 3]) == [101, 1, 2, 102]
    with pytest.raises(ConfigError, match="leave no room"):
        PairTemplate(before=(1,), between=(2,), after=(2,), max_tokens=9, max_query_tokens=6)


def test_clean_and_fault() -> None:
    assert text.clean("a\x00b") == "a b"
    assert text.clean("caf\u00e9 \ud800!") == "caf\u00e9 \ufffd!"
    assert text.clean("\U0001f600") == "\U0001f600"
    assert text.fault("fine") is None
    assert "NUL" in str(text.fault("a\x00"))
    assert "surrogate" in str(text.fault("\ud800"))
    assert "1,000,001" in str(text.fault("a" * 1_000_001))


@given(st.text())
def test_cleaned_text_is_valid_unicode_without_faults(value: str) -> None:
    cleaned = text.clean(value)
    cleaned.encode("utf-8")
    assert text.fault(cleaned) is None


def test_normalise() -> None:
    assert text.normalise("  \uff28\uff45llo\u3000 WORLD\n") == "hello world"
    assert text.normalise("Stra\u00dfe") == "strasse"


def test_document_text() -> None:
    assert text.document_text("t", "b") == "t\nb"
    assert text.document_text("", "b") == "b"
    assert text.document_text("t", "") == "t"


@given(
    st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=("Cs",)), max_size=5), max_size=6),
    st.lists(st.sampled_from(["\n", "\r\n"]), min_size=6, max_size=6),
    st.booleans(),
    st.booleans(),
)
@example(["a\u2028b", "c\x85d\x0ce", "f\rg\x1ch"], ["\n", "\r\n", "\n"], True, True)
def test_lines_end_at_line_feeds_alone_and_the_byte_order_mark_goes(
    bodies: list[str], ends: list[str], marked: bool, ended: bool
) -> None:
    """The reference is slow: bodies are kept beside the file that is written from them."""
    bodies = [body.removesuffix("\r") for body in bodies]
    written = "".join(map("".join, zip(bodies, ends, strict=False)))
    if bodies and not ended:
        written = written[: -len(ends[len(bodies) - 1])]
    expected = bodies if ended or not bodies or bodies[-1] else bodies[:-1]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lines.txt"
        path.write_bytes(b"\xef\xbb\xbf" * marked + written.encode())
        if marked or not written.startswith("\ufeff"):
            assert text.read_text(path) == written
            assert text.split_lines(text.read_text(path)) == expected
            expected_lines = [(number, body) for number, body in enumerate(expected, start=1) if body.strip()]
            assert list(text.read_lines(path)) == expected_lines


def test_a_wrong_byte_is_named_by_line_and_position(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo \xff\n")
    with pytest.raises(SchemaError, match=r"line 2, byte 12: 0xff is not UTF-8"):
        list(text.read_lines(path))
    with pytest.raises(MissingError, match="no such file"):
        list(text.read_lines(tmp_path / "absent.txt"))


@pytest.mark.parametrize(
    ("content", "encoding", "reading"),
    [
        ("Suchbegriff;Bezeichnung\nGießkanne;Bosch Gießkanne für Zimmerpflanzen\n", "WINDOWS-1252", "Gießkanne;Bosch"),
        ("GRÖSSE ÄÖÜ ÜBERGRÖSSE", "WINDOWS-1252", "GRÖSSE ÄÖÜ"),
        ("déjà vu; élève; été; café", "WINDOWS-1252", "déjà vu; élève;"),
        ("搜索词,标题,相关度\n三江汇流是哪三江,三水森林公园,0\n", "GB18030", "搜索词,标题,相关度"),
        ("query,title\niPhone 12 手机,苹果 iPhone 12 手机壳\n", "GB18030", "手机,苹果 iPhone"),
    ],
)
def test_the_command_for_another_encoding_says_how_it_reads(
    tmp_path: Path, content: str, encoding: str, reading: str
) -> None:
    path = tmp_path / "words.csv"
    path.write_bytes(content.encode(encoding))
    with pytest.raises(SchemaError, match=rf"iconv -f {encoding} -t UTF-8 \S+ > \S+`") as refused:
        list(text.read_lines(path))
    assert f"by which this place reads '{reading}" in str(refused.value)


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        ("красный кухонный нож, большая ложка и вилка", "WINDOWS-1251"),
        ("красный кухонный нож, большая ложка и вилка", "KOI8-R"),
        ("κόκκινο μαχαίρι κουζίνας και κουτάλι", "WINDOWS-1253"),
        ("סכין מטבח אדומה וכף", "WINDOWS-1255"),
        ("سكين مطبخ حمراء وملعقة", "WINDOWS-1256"),
        ("มีดทำครัวสีแดง", "CP874"),
        ("赤い包丁とスプーンのセットです", "SHIFT_JIS"),
        ("赤い包丁とスプーンのセットです", "EUC-JP"),
        ("紅色的廚房刀具和湯匙的組合", "BIG5"),
        ("빨간색 부엌칼과 숟가락 세트입니다", "EUC-KR"),
    ],
)
def test_a_text_of_another_script_is_shown_in_its_own_encoding_among_others(
    tmp_path: Path, content: str, encoding: str
) -> None:
    path = tmp_path / "words.csv"
    path.write_bytes(f"query\n{content}\n".encode(encoding))
    with pytest.raises(SchemaError, match="not UTF-8") as refused:
        list(text.read_lines(path))
    assert f"by {encoding} '{content[: text.SHOWN_BYTES].rstrip()}" in str(refused.value)


def test_no_code_splits_texts_by_another_rule() -> None:
    """`splitlines` ends lines at U+2028, NEL and form feed too; `text.split_lines` is the reader of lines."""
    root = Path(text.__file__).parents[1]
    files = [file for name in ("pipeline", "index", "serving", "flows") for file in (root / name).rglob("*.py")]
    assert len(files) > 100
    calls = [
        f"{file.relative_to(root)}:{node.lineno}"
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("splitlines", "readlines")
    ]
    assert calls == []


def test_a_recipe_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "marked.toml"
    path.write_bytes(b"\xef\xbb\xbfname = 'marked'\r\n")
    assert recipe.load(path).name == "marked"


def test_a_reason_with_any_line_separator_stays_one_line_of_history(tmp_path: Path) -> None:
    pointer = Pointer(
        release="a" * 64, generation=1, previous=None, changed="now", action="promote", reason="a\u2028b\x85c\x0cd"
    )
    (tmp_path / "releases").mkdir()
    path = Releases(tmp_path).root / "history.jsonl"
    path.write_text(json.dumps(asdict(pointer), ensure_ascii=False) + "\n", encoding="utf-8")
    assert Releases(tmp_path).history() == [pointer]


@pytest.mark.parametrize(
    ("count", "noun", "verb", "expected"),
    [
        (0, "row", "", "0 rows"),
        (1, "judged query", "are", "1 judged query is"),
        (2, "judged query", "are", "2 judged queries are"),
        (1234, "key", "have", "1,234 keys have"),
        (1, "query", "stand", "1 query stands"),
    ],
)
def test_a_count_its_noun_and_its_verb_agree(count: int, noun: str, verb: str, expected: str) -> None:
    assert text.counted(count, noun, verb) == expected
