"""The map that is guessed from names of columns, on the tables of public data sets and of exports of search engines."""

from pathlib import Path

import pytest

from pipeline.config import SourceConfig
from pipeline.data import sources
from pipeline.data.formats.column_advice import judged_or_described
from pipeline.data.formats.column_map import ROLES, role_meant, suggest

TABLES: dict[str, tuple[str, str]] = {
    "BEIR, corpus": ("_id,title,text,metadata", "title=title text=text doc_id=_id"),
    "BEIR, qrels": ("query-id,corpus-id,score", "grade=score query_id=query-id doc_id=corpus-id"),
    "ir_datasets, qrels": ("query_id,doc_id,relevance,iteration", "grade=relevance query_id=query_id doc_id=doc_id"),
    "MS MARCO, passages": ("qid,pid,query,passage", "query=query text=passage query_id=qid doc_id=pid"),
    "MS MARCO, documents": ("docid,url,title,body", "title=title text=body doc_id=docid"),
    "Anserini": ("id,contents", "text=contents doc_id=id"),
    "Amazon ESCI": (
        "example_id,query,query_id,product_id,product_locale,esci_label,split,product_title,product_description",
        "query=query title=product_title text=product_description grade=esci_label query_id=query_id "
        "doc_id=product_id split=split",
    ),
    "Home Depot": (
        "id,product_uid,product_title,search_term,relevance",
        "query=search_term title=product_title grade=relevance doc_id=product_uid",
    ),
    "WANDS": ("query_id,product_id,label", "grade=label query_id=query_id doc_id=product_id"),
    "WikiQA": (
        "QuestionID,Question,DocumentID,DocumentTitle,SentenceID,Sentence,Label",
        "query=Question title=DocumentTitle text=Sentence grade=Label query_id=QuestionID doc_id=SentenceID",
    ),
    "WikiQA as a data set of the hub": (
        "question_id,question,document_title,answer,label",
        "query=question title=document_title text=answer grade=label query_id=question_id",
    ),
    "KUAKE-QQR": ("id,query1,query2,label", "query=query1 text=query2 grade=label doc_id=id"),
    "Baoxianzhidao": ("title,question,reply,is_best", "query=question title=title text=reply grade=is_best"),
    "STS benchmark": ("sentence1,sentence2,score", "query=sentence1 text=sentence2 grade=score"),
    "reviews": ("asin,review_title,review_body,stars", "title=review_title text=review_body grade=stars doc_id=asin"),
    "Algolia": ("objectID,name,description,popularity,_tags", "title=name text=description doc_id=objectID"),
    "Elasticsearch": ("_id,_index,_score,title_en,content", "title=title_en text=content doc_id=_id"),
    "Solr": ("id,title_t,content_txt_en,price_f,_version_", "title=title_t text=content_txt_en doc_id=id"),
    "Quepid": (
        "Case Name,Query Text,Doc ID,Title,Rating",
        "query=Query Text title=Title grade=Rating doc_id=Doc ID",
    ),
    "Shopify": ("Handle,Title,Body (HTML),Vendor", "title=Title text=Body (HTML) doc_id=Handle"),
    "camel case": ("searchTerm,productName,starRating", "query=searchTerm title=productName grade=starRating"),
    "queries of a database": ("id,query", "query=query query_id=id"),
    "queries with a row number": ("id,query_id,query_text,created_at", "query=query_text query_id=query_id"),
    "queries of MongoDB": ("_id,question", "query=question query_id=_id"),
    "a log of clicks": ("id,query,position,clicked", "query=query doc_id=id position=position clicked=clicked"),
    "triplets of sentence-transformers": (
        "anchor,positive,negative",
        "query=anchor positive=positive negative=negative",
    ),
    "BGE": ("query,pos,neg", "query=query positive=pos negative=neg"),
    "triplets with a title": (
        "query_id,query,title,text,positive,negative",
        "query=query query_id=query_id positive=positive negative=negative",
    ),
    "positions called pos": ("query,title,pos,click,negative", "query=query title=title clicked=click position=pos"),
    "parts of speech": ("query,title,pos,grade", "query=query title=title grade=grade"),
    "MS MARCO as a data set of the hub": (
        "answers,passages.is_selected,passages.passage_text,passages.url,query,query_id,query_type",
        "query=query text=passages.passage_text grade=passages.is_selected query_id=query_id",
    ),
    "Label Studio": (
        "annotation_id,annotator,created_at,description,id,lead_time,product_id,query,relevance,title,updated_at",
        "query=query title=title text=description grade=relevance doc_id=product_id",
    ),
    "Chinese": ("查询,标题,正文,相关性", "query=查询 title=标题 text=正文 grade=相关性"),
    "Chinese shop": (
        "搜索词,商品编号,商品标题,描述,相关度",
        "query=搜索词 title=商品标题 text=描述 grade=相关度 doc_id=商品编号",
    ),
    "Chinese titles alone": ("编号,题目,摘要", "title=题目 text=摘要 doc_id=编号"),
    "Chinese web pages": (
        "关键词,网页编号,题目,得分",
        "query=关键词 title=题目 grade=得分 doc_id=网页编号",
    ),
    "Chinese answers": ("问题,文章编号,是否最佳", "query=问题 grade=是否最佳 doc_id=文章编号"),
    "Chinese clicks": (
        "关键字,文章编号,位置,是否点击,时间,会话",
        "query=关键字 doc_id=文章编号 position=位置 clicked=是否点击 session=会话 time=时间",
    ),
    "Chinese shop in traditional characters": (
        "關鍵字,商品編號,商品名稱,內容,評分",
        "query=關鍵字 title=商品名稱 text=內容 grade=評分 doc_id=商品編號",
    ),
    "German shop": (
        "Suchbegriff,Artikelnummer,Bezeichnung,Beschreibung,Bewertung",
        "query=Suchbegriff title=Bezeichnung text=Beschreibung grade=Bewertung doc_id=Artikelnummer",
    ),
    "French": ("Requête,Titre,Description,Pertinence", "query=Requête title=Titre text=Description grade=Pertinence"),
    "Spanish": (
        "Consulta,Título,Descripción,Relevancia",
        "query=Consulta title=Título text=Descripción grade=Relevancia",
    ),
}
"""Source → the names of its columns, and the map that fits them."""


@pytest.mark.parametrize("source", TABLES)
def test_usual_names_are_mapped(source: str) -> None:
    names, expected = TABLES[source]
    assert " ".join(f"{role}={name}" for role, name in suggest(names.split(",")).items()) == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("id,query_id,offer_id,grade", "grade=grade query_id=query_id doc_id=offer_id"),
        ("id,query,offer_id,grade", "query=query grade=grade doc_id=offer_id"),
        ("id,query,grade", "query=query grade=grade doc_id=id"),
        ("id,query,query_id,title,grade,brand_id", "query=query title=title grade=grade query_id=query_id doc_id=id"),
    ],
)
def test_a_number_of_judgments_gives_way_to_the_id_of_their_documents(names: str, expected: str) -> None:
    columns = judged_or_described(names.split(","))
    assert " ".join(f"{role}={name}" for role, name in columns.items()) == expected


@pytest.mark.parametrize("names", ["query_id,doc_id,grade", "queryid,docid,rel"])
def test_a_column_of_ids_is_not_the_query(names: str) -> None:
    assert sorted(suggest(names.split(","))) == ["doc_id", "grade", "query_id"]


OTHER_IDS = (
    *("user_id", "UserID", "userid", "store_id", "vendor_id", "brand_id", "category_id", "shop_id", "customer_id"),
    *("account_id", "visitor_id", "rater_id", "judge_id", "annotator_id", "order_id", "group_id", "row_id", "task_id"),
    *("loc_id", "dog_id", "location_id"),
)


@pytest.mark.parametrize("name", OTHER_IDS)
def test_an_id_of_something_else_is_neither_that_of_queries_nor_of_documents(name: str) -> None:
    """Judgments of a user were once those of one query."""
    expected = {"query": "query", "title": "title", "grade": "grade"}
    assert suggest(["query", name, "title", "grade"]) == expected
    assert role_meant(name, ROLES) == ""


@pytest.mark.parametrize("name", ["title_id", "text_id", "TitleID", "grade_id", "split_id", "titleid", "text_ids"])
def test_an_id_is_neither_a_text_nor_a_grade(name: str) -> None:
    """A movie's title_id was once its title, and the text_id of a passage its text."""
    assert name not in suggest(["query", name, "price", "url"]).values()
    assert suggest(["query", name, "body", "relevance"]) == {"query": "query", "text": "body", "grade": "relevance"}
    assert role_meant(name, ROLES) == ""


OTHER_WORDS = (
    *("title_len", "title_url", "titleLength", "Title Score", "query_nr", "query_type", "queryCount", "query time"),
    *("grade_by", "grade_at", "text_len", "split_no", "source_url"),
)


@pytest.mark.parametrize("name", OTHER_WORDS)
def test_a_name_with_a_further_word_is_no_misspelling(name: str) -> None:
    """A page's title_url was once its title, where that stood in a column of an unusual name."""
    assert name not in suggest(["wanted", name, "thing", "price"]).values()


@pytest.mark.parametrize(
    ("name", "role"),
    [("titel", "title"), ("title_x", "title"), ("Titles", "title"), ("qurey", "query"), ("query1", "query")],
)
def test_a_misspelt_name_is_taken_for_its_role(name: str, role: str) -> None:
    assert suggest([name, "price"]) == {role: name}


@pytest.mark.parametrize("name", ["quer_id", "qurey_id", "QueryIds", "query__id", "Query-ID"])
def test_a_misspelt_id_of_queries_is_taken_for_one(name: str) -> None:
    assert suggest(["query", name, "title", "grade"])["query_id"] == name


def test_the_first_of_two_columns_of_one_meaning_is_taken() -> None:
    assert suggest(["title_de", "title_en", "Text", "text_en"]) == {"title": "title_de", "text": "Text"}


def test_an_ending_that_is_no_language_stays_part_of_the_name() -> None:
    names = ["query", "title", "position", "clicked_at", "sorted_by", "rating_is"]
    assert suggest(names) == {"query": "query", "title": "title"}


def test_a_score_of_a_search_engine_is_no_grade() -> None:
    assert suggest(["query", "title", "_score"]) == {"query": "query", "title": "title"}


def test_a_map_may_keep_columns_whose_names_are_only_sometimes_texts(tmp_path: Path) -> None:
    (tmp_path / "shop.csv").write_text("q,name,about\nknife,a knife,cuts\n", encoding="utf-8")
    columns = {"query": "q", "title": "name", "summary": "about"}
    documents = sources.read(SourceConfig(path="shop.csv", columns=columns), tmp_path).documents
    assert documents["summary"].to_pylist() == ["cuts"]
