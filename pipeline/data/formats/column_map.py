"""The map of a table's columns: its keys, the columns that a table has, and the map that fits them best."""

import difflib
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from itertools import islice, zip_longest
from pathlib import Path

from pipeline.data.clicks import impressions
from pipeline.data.formats import document_lists, nested, parquet_reader, separated_files, tables, text_files
from pipeline.errors import MissingError, SchemaError
from pipeline.text import COMPRESSED, read_lines, refuse_old_line_ends

JSON_LINES = (".jsonl", ".ndjson", ".json")
"""File name endings of files with one JSON object a line."""
SUFFIXES = (".csv", ".tsv", ".tab", *JSON_LINES, ".parquet")
"""File name endings of tables, all in lower case."""
SPREADSHEETS = (".xlsx", ".xls", ".ods")
"""File name endings of spreadsheets."""
FIRST_LINES = 1000
"""Number of JSON lines whose keys are the columns of their table; a later key may still be mapped."""
NEAR = 0.75
"""Similarity by `difflib`, from 0 to 1, from which one name may be a misspelling of another."""
DELIMITERS = (",", "\t", ";", "|")
"""Separators of columns that a text file is tried with."""
ROLES = ("query_id", "query", "doc_id", "title", "text", "grade", "split", "source")
"""Keys of a map of columns that have a meaning; any other keeps a column of the documents."""

SYNONYMS: Mapping[str, tuple[str, ...]] = {
    role: tuple(names.split())
    for role, names in {
        "query": """
            query search_term search_terms search keyword keywords question search_query query_text q query_string
            user_query raw_query search_phrase search_text search_keyword search_string question_text 查询 查询词 搜索词
            检索词 关键词 关键字 搜索关键词 查询语句 问题 查詢 搜尋詞 關鍵字 問題
            suchbegriff suchanfrage suchwort requête consulta""",
        "title": """
            title product_title name product_name headline subject document_title doc_title page_title article_title
            passage_title item_title item_name post_title review_title listing_title 标题 商品名称 商品标题
            题目 名称 品名 商品名 产品名称 文章标题 网页标题 文档标题 標題 名稱 商品名稱
            titel bezeichnung artikelname artikelbezeichnung produktname titre título""",
        "text": """
            text body description content product_description passage document abstract contents document_text
            passage_text doc_text page_content body_text body_html full_text content_text chunk_text answer_text
            post_content item_description long_description review_body product_desc 正文 内容 描述 商品描述
            文本 全文 详情 商品详情 文章内容 网页内容 內容 內文
            beschreibung artikelbeschreibung produktbeschreibung descripción""",
        "grade": """
            grade relevance label rating stars score judgment judgement gain median_relevance relevance_label
            relevance_score relevance_grade relevance_judgment graded_relevance relevancy rel is_relevant relevant
            esci_label star_rating 相关性 相关度 评分
            相关程度 是否相关 得分 分数 打分 等级 标签 標籤 相關性 相關度 評分
            bewertung relevanz pertinence relevancia""",
        "query_id": """
            query_id qid topic_id question_id search_query_id query_no
            查询编号 查询id 问题编号 问题id 查詢編號""",
        "doc_id": """
            doc_id docid docno pid _id product_id product_uid product_sku corpus_id passage_id sentence_id document_id
            item_id sku asin article_id page_id post_id answer_id object_id entity_id listing_id 文档编号 商品编号
            文档id 商品id 文章编号 文章id 网页编号 产品编号 货号 商品編號 文件編號
            artikelnummer artikelnr produktnummer 编号 編號 id""",
        "split": "split",
        "positive": "positive positives positive_passage positive_passages positive_document pos",
        "negative": "negative negatives negative_passage negative_passages negative_document hard_negative neg",
        "position": "position rank pos result_position result_rank rang platz 位置 排名 名次 展示位置",
        "clicked": """
            clicked click is_click is_clicked was_clicked click_bool klick geklickt angeklickt 点击 是否点击 點擊
            是否點擊""",
        "session": "session session_id 会话 会话id 会话编号",
        "time": "time timestamp event_time datetime date_time 时间 点击时间 时间戳 時間",
    }.items()
}
"""Usual names of each kind of column, the likeliest first; those of one meaning in another spelling are left out."""

OTHER_NAMES: Mapping[str, tuple[str, ...]] = {
    "query": ("query1", "sentence1", "anchor", "topic"),
    "text": (
        "query2",
        "sentence2",
        "sentence",
        "answer",
        "reply",
        "context",
        "article",
        "chunk",
        "snippet",
        "summary",
        "答案",
        "回答",
        "摘要",
        "简介",
    ),
    "grade": ("is_best", "is_selected", "similarity", "similarity_score", "是否最佳"),
    "doc_id": ("uuid", "guid", "uid", "isbn", "handle", "chunk_id"),
}
"""Names that a column of a kind may have where none has a usual name. As keys of a map they keep such a column."""

JUDGED = frozenset({"grade", "clicked", "positive"})
"""Keys of a map of which one shows that a table's rows judge documents."""
DESCRIBED_OR_JUDGED = JUDGED | {"title", "text"}
"""Keys of a map of which one shows that a table's rows are documents, or say something of documents."""

_ID = re.compile(r"(.*?)_*ids?")
"""A name that ends in id, and what stands before it."""
_BARE_IDS = frozenset(("id", "uid", "uuid", "guid", "编号", "編號"))
_LANGUAGES = """
    ar bg bn ca cs cz da de el en es et eu fa fi fr ga gl he hi hu hy it ja ko lt lv nl pl pt ro ru sr sv th tr uk ur
    vi zh
"""
"""Languages that Solr or Elasticsearch analyze by rules of their own; `id` and `no` in a name mean something else."""
_WRAPPER = re.compile(r"^(?:_source|fields|data|record|passages)\.")
"""Begin of a path that says nothing of its field: Elasticsearch exports a document as {"_id": …, "_source": {…}}."""
_TYPE_OR_LANGUAGE = re.compile(rf"_(?:(?:t|s|txt|str|ws)(?:_[a-z]{{2}})?|{'|'.join(_LANGUAGES.split())})$")
"""Ending of a name by which Solr and Elasticsearch tell a field's type or language: title_txt_en, body_t, title_de."""


def roles(keys: Collection[str]) -> tuple[str, ...]:
    """The keys of a map of columns that have a meaning; some have one beside `clicked` or `positive` alone."""
    logged = impressions.ROLES if "clicked" in keys else ()
    listed = document_lists.ROLES if "positive" in keys else ()
    return (*ROLES, *logged, *listed)


def role_meant(key: str, known: Collection[str]) -> str:
    """The role, one of those known, that a key looks like a misspelling or another name of; empty for any other key."""
    usual = [role for role, names in SYNONYMS.items() if key in names]
    return usual[0] if usual else _nearest(key, known)


def files_of(path: Path) -> list[Path]:
    """The table files that a path means: itself, those of a folder, or those that match its last part.

    A folder without tables means those of the folders in it, as data sets of the hub have them in `data/` or `train/`.
    """
    if path.is_file():
        return [path] if path.suffix.lower() in SUFFIXES else []
    if not path.is_dir():
        return _tables(tables.data_files(path.parent, path.name))
    below = [file for file in tables.data_files(path, "*/*") if not file.parent.name.startswith(".")]
    return _tables(tables.data_files(path, "*")) or _tables(below)


def left_out(path: Path) -> list[str]:
    """The names in a folder of tables that look like data and are not read: compressed files, spreadsheets, folders.

    A compressed table beside its unpacked one is no loss, nor is a folder whose tables are read.
    """
    if not path.is_dir() or not (read := _tables(tables.data_files(path, "*"))):
        return []
    names = {file.name for file in read}
    beside = [file for file in tables.data_files(path, "*") if file.name not in names]
    packed = [file for file in beside if file.suffix.lower() in COMPRESSED and file.stem not in names]
    unread = [file for file in packed if Path(file.stem).suffix.lower() in SUFFIXES]
    unread += [file for file in beside if file.suffix.lower() in (".zip", *SPREADSHEETS)]
    below = {file.parent.name for file in _tables(tables.data_files(path, "*/*"))}
    folders = sorted(f"{name}/" for name in below if not name.startswith("."))
    return [*sorted(file.name for file in unread), *folders]


def refuse_dangling(path: Path) -> None:
    """Raises MissingError for a folder in which a table is a link to a file that is not there."""
    links = tables.dangling_links(path) if path.is_dir() else []
    gone = [link for link in links if link.suffix.lower() in SUFFIXES]
    if gone:
        raise MissingError(
            f"{gone[0]}: is a link to {gone[0].readlink()}, which is not there; mend the link, or move it out of the "
            "folder"
        )


def _tables(files: Sequence[Path]) -> list[Path]:
    return [file for file in files if file.suffix.lower() in SUFFIXES]


def suggest(names: Sequence[str]) -> dict[str, str]:
    """The likeliest of these names for each key of a map of columns; each name is used once."""
    forms = [(name, name) for name in names]
    for name in names:
        bare = _WRAPPER.sub("", name.strip().casefold())
        forms += [(bare, name), (_TYPE_OR_LANGUAGE.sub("", bare), name)]
    spelt: dict[str, str] = {}
    words: dict[str, int] = {}
    for form, name in forms:
        spelt.setdefault(_spelling(form), name)
        words.setdefault(_spelling(form), _words(form))
    best: dict[str, str] = {}
    for role in SYNONYMS:
        match = _match(role, {form: words[form] for form in spelt if spelt[form] not in best.values()})
        if match:
            best[role] = spelt[match]
    if "clicked" in best and "positive" in best:
        best.setdefault("position", best.pop("positive"))  # Both may be called pos.
    if {"query", "positive", "negative"} <= set(best) and "grade" not in best:
        return {role: best[role] for role in ("query", "query_id", "positive", "negative") if role in best}
    best = {role: name for role, name in best.items() if role not in document_lists.ROLES}
    if "query" in best and not DESCRIBED_OR_JUDGED & set(best) and is_bare_id(best.get("doc_id", "")):
        row_id = best.pop("doc_id")  # A table of queries alone has no document for it to name.
        best.setdefault("query_id", row_id)
    if "grade" in best or not {"position", "clicked"} <= set(best):
        return {role: name for role, name in best.items() if role not in impressions.ROLES}
    return {role: name for role, name in best.items() if role != "split" and (role != "time" or "session" in best)}


def is_bare_id(name: str) -> bool:
    """Whether a column is called `id` (编号, uuid) alone, which names the rows of its own table, whatever these are."""
    return _spelling(name).strip("_") in _BARE_IDS


def _spelling(name: str) -> str:
    """A name by which SearchTerm, search-term, "Search Term" and one in full-width letters are one name.

    A leading underscore stays, as in _score.
    """
    plain = unicodedata.normalize("NFKC", name).strip().casefold()
    return "_" * plain.startswith("_") + re.sub(r"[\W_]+", "", plain)


_SPELLINGS: Mapping[str, tuple[str, ...]] = {
    role: tuple(map(_spelling, (*usual, *OTHER_NAMES.get(role, ())))) for role, usual in SYNONYMS.items()
}
"""The names of each kind of column as `_spelling` has them."""


def _words(name: str) -> int:
    """Number of words of a name, such as search_term or searchTerm; single letters and digits are none."""
    parts = re.sub(r"([a-z\d])([A-Z])", r"\1 \2", unicodedata.normalize("NFKC", name))
    return sum(len(part) > 1 for part in re.split(r"[\W_\d]+", parts))


def _match(role: str, names: Mapping[str, int]) -> str | None:
    """The likeliest of these spellings for a role: a known one, else one almost like the role and of no other.

    A misspelling has no further word: title_url and titleLength are no titles.

    Args:
        names: spelling → number of its words.
    """
    known = next((name for name in _SPELLINGS[role] if name in names), None)
    if known or role in (*impressions.ROLES, *document_lists.ROLES):
        return known
    taken = {name for spellings in _SPELLINGS.values() for name in spellings}
    alike = [name for name, words in names.items() if name not in taken and words <= _words(role)]
    return _nearest(_spelling(role), alike) or None


def _nearest(name: str, names: Collection[str]) -> str:
    """The one of these names that is most likely another spelling of this one; empty where none is.

    A name that ends in "id" is none of one that does not: title_id is no title. Of two that do, what stands before it
    decides: user_id is no query_id, though most letters agree.
    """
    near = difflib.get_close_matches(name, names, max(len(names), 1), NEAR)
    return next((other for other in near if _agree_on_ids(name, other)), "")


def _agree_on_ids(first: str, second: str) -> bool:
    ids = [_ID.fullmatch(name) for name in (first, second)]
    begins = [match[1] for match in ids if match]
    return not begins or (len(begins) == 2 and bool(difflib.get_close_matches(begins[0], begins[1:], 1, NEAR)))


def samples_of(file: Path, wanted: Sequence[str] = ()) -> dict[str, str]:
    """The names of a table's columns, each with its value in the first row; of JSON lines those of the first 1,000.

    The fields of an object, or of a struct in Parquet, are columns called by their paths; see `nested`.

    Args:
        wanted: names that tell the separator of columns, see `delimiter_of`, and objects that are columns themselves.
    """
    suffix = file.suffix.lower()
    if suffix in JSON_LINES or suffix == ".parquet":
        lines = (row for _, row in islice(text_files.json_lines(file), FIRST_LINES)) if suffix in JSON_LINES else None
        values = nested.columns_of(lines or parquet_reader.first_rows(file), wanted)
        return {name: "" if value is None else str(value) for name, value in values.items()}
    names, *rows = separated_files.first_rows(file, delimiter_of(file, wanted), 2) or [[]]
    return dict(zip_longest(names, rows[0] if rows else [], fillvalue=""))


def is_blank(file: Path) -> bool:
    """Whether a table names no column, as an empty file does not; False for one that cannot be read."""
    try:
        return not any(name.strip() for name in samples_of(file))
    except (SchemaError, MissingError):
        return False


def has_later_keys(file: Path) -> bool:
    """Whether this is a file of JSON lines that goes on after those whose keys `samples_of` looks at."""
    if file.suffix.lower() not in JSON_LINES:
        return False
    return next(islice(read_lines(file), FIRST_LINES, None), None) is not None


def delimiter_of(file: Path, wanted: Sequence[str]) -> str:
    """The separator whose first row has most of the wanted names, and then most names; tabs first for .tsv."""
    known = sorted(DELIMITERS, key=lambda delimiter: delimiter != "\t") if file.suffix.lower() != ".csv" else DELIMITERS

    refuse_old_line_ends(file)

    def fit(delimiter: str) -> tuple[int, int]:
        try:
            names = separated_files.header(file, delimiter)
        except SchemaError:
            return (0, 0)
        return len(set(wanted) & set(names)), len(names)

    return max(known, key=fit)
