"""The language of a collection, over short texts in many languages written for this test, and what is chosen by it."""

import random
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from flows import data_look, init, init_recipe, languages, quickstart
from flows.ready_made import ReadyMadeModels
from pipeline import recipe as recipes
from pipeline.artifacts import Artifact
from tests.flows.world import write_tiny_world

TEXTS = {
    "english": ["A sharp knife for bread and vegetables.", "The kettle switches itself off when the water boils."],
    "german": ["Ein scharfes Messer für Brot und Gemüse.", "Der Wasserkocher schaltet sich ab, wenn das Wasser kocht."],
    "french": ["Un couteau pour le pain et les légumes.", "La bouilloire s'éteint quand l'eau commence à bouillir."],
    "spanish": ["Un cuchillo afilado para el pan y las verduras.", "El hervidor se apaga solo cuando hierve el agua."],
    "italian": ["Un coltello affilato per il pane e le verdure.", "Il bollitore si spegne quando l'acqua bolle."],
    "portuguese": ["Uma faca afiada para o pão e os legumes.", "A chaleira desliga-se quando a água começa a ferver."],
    "dutch": ["Een scherp mes voor brood en groenten.", "De waterkoker slaat af zodra het water kookt."],
    "swedish": ["En vass kniv för bröd och grönsaker.", "Vattenkokaren stänger av sig själv när vattnet kokar."],
    "danish": ["En skarp kniv til brød og grøntsager.", "Elkedlen slukker af sig selv, når vandet koger."],
    "finnish": ["Terävä veitsi leivälle ja vihanneksille.", "Vedenkeitin sammuu itsestään, kun vesi kiehuu."],
    "polish": ["Ostry nóż do chleba i warzyw.", "Czajnik wyłącza się sam, kiedy woda się zagotuje."],
    "hungarian": ["Éles kés kenyérhez és zöldségekhez.", "A vízforraló magától kikapcsol, amikor felforr a víz."],
    "turkish": ["Ekmek ve sebze için keskin bir bıçak.", "Su kaynadığında su ısıtıcısı kendiliğinden kapanır."],
    "russian": ["Острый нож для хлеба и овощей.", "Чайник выключается сам, когда вода закипает."],
    "greek": ["Ένα κοφτερό μαχαίρι για ψωμί και λαχανικά.", "Ο βραστήρας κλείνει μόνος του όταν βράζει το νερό."],
    "arabic": ["سكين حادة لتقطيع الخبز والخضروات.", "تنطفئ الغلاية وحدها عندما يغلي الماء."],
    "hindi": ["रोटी और सब्ज़ियों के लिए एक तेज़ चाकू।", "पानी उबलते ही केतली अपने आप बंद हो जाती है।"],
    "cjk": ["一把切面包和蔬菜的锋利的刀。", "水开了以后水壶会自动断电。"],
    "japanese": ["パンと野菜を切るよく切れるナイフです。", "お湯が沸くとケトルの電源が自動で切れます。"],
    "korean": ["빵과 채소를 자르는 날카로운 칼입니다.", "물이 끓으면 주전자가 저절로 꺼집니다."],
    "other": ["Гострий ніж для хліба та овочів.", "Чайник вимикається сам, коли закипає вода."],
}
"""Language → texts in it; Ukrainian, which has no stemmer, is other."""


@pytest.mark.parametrize("expected", TEXTS)
def test_the_language_of_a_collection_is_that_of_most_of_its_texts(expected: str) -> None:
    assert languages.language(pd.Series(TEXTS[expected])) == expected
    few_of_others = [texts[0] for name, texts in TEXTS.items() if name not in ("cjk", "japanese", "korean", expected)]
    mixed = TEXTS[expected] * 60 + few_of_others
    random.Random(1).shuffle(mixed)
    assert languages.language(pd.Series(mixed)) == expected


def test_the_order_of_the_texts_decides_nothing() -> None:
    """Two thirds of the letters are English, one third is Chinese; each text is as long as is read of it."""
    english = [" ".join(TEXTS["english"] * 6)] * 2400
    chinese = ["".join(TEXTS["cjk"] * 20)] * 1200
    for texts in (english + chinese, chinese + english):
        assert languages.language(pd.Series(texts)) == "cjk"


def test_a_collection_of_many_languages_or_of_no_letters_has_none() -> None:
    spoken = [text for name, texts in TEXTS.items() if name in ("german", "polish", "turkish") for text in texts * 60]
    assert languages.language(pd.Series(spoken)) == "other"
    assert languages.language(pd.Series(["", "123", "4.5 × 6"])) == "other"


def test_every_stemmer_is_known_by_its_language_and_every_language_to_the_classifier() -> None:
    import Stemmer

    untold = {"porter", "dutch_porter", "yiddish"}  # Two are other stemmers of English and Dutch.
    assert set(languages.STEMMERS.values()) == set(Stemmer.algorithms()) - untold
    assert set(languages.STEMMERS) <= set(languages._identifier().nb_classes)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> data_look.Look:
    folder = tmp_path_factory.mktemp("small") / "tiny"
    write_tiny_world(folder)
    return replace(data_look.look(str(folder)), minilm=True)


@pytest.mark.parametrize("cuda", [False, True])
@pytest.mark.parametrize("language", TEXTS)
def test_the_recipe_has_the_stemmer_of_the_language_and_a_base_that_reads_it(
    language: str, cuda: bool, seen: data_look.Look, tmp_path: Path
) -> None:
    text = init_recipe.recipe(replace(seen, language=language, cuda=cuda), "own")
    (tmp_path / "own.toml").write_text(text, encoding="utf-8")
    recipe = recipes.load(tmp_path / "own.toml", [])
    stemmed = language not in ("cjk", "japanese", "korean", "other")
    assert recipe.index.language == (language if stemmed else "")
    reads = {True: {"english": "FacebookAI/roberta-large", "cjk": "hfl/chinese-roberta-wwm-ext-large"}, False: {}}
    if language != "english" and not cuda:
        assert recipe.teacher.base == "scratch"
        assert "reads English alone" in text
        assert init_recipe.MULTILINGUAL_SMALL in text
    else:
        expected = init_recipe.MINILM if not cuda else reads[True].get(language, "FacebookAI/xlm-roberta-large")
        assert recipe.teacher.base == expected


def test_german_documents_get_a_german_recipe(tmp_path: Path) -> None:
    table = tmp_path / "bewertet.csv"
    rows = [f"Messer {n},{text},{n % 2}" for n in range(30) for text in TEXTS["german"]]
    table.write_text("\n".join(["query,title,grade", *(row.replace(", wenn", " wenn") for row in rows)]) + "\n")
    seen, text = init.write(str(table), tmp_path / "own.toml")
    assert seen.language == "german"
    assert "the texts look German" in text
    assert recipes.load(tmp_path / "own.toml", []).index.language == "german"


@pytest.mark.parametrize(("language", "warned"), [("english", False), ("german", True), ("cjk", True)])
def test_a_quickstart_takes_the_stemmer_and_warns_of_an_english_encoder(
    language: str, warned: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pipeline.export.sample.document_texts", lambda _: TEXTS[language])
    documents: Artifact = None  # type: ignore[assignment]
    with caplog.at_level("WARNING"):
        config = quickstart._index_config(documents, ReadyMadeModels(encoder=quickstart.MINILM))
    assert config.language == ("" if language == "cjk" else language)
    assert ("do not look English" in caplog.text) is warned
    caplog.clear()
    quickstart._index_config(documents, ReadyMadeModels(encoder="a/folder"))
    assert not caplog.messages
