"""Maps that are typed on the command line are read back as written, and slips of a keyboard are named."""

import pytest

from pipeline.data.formats import option_text
from pipeline.errors import ConfigError


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("query=关键词，title=题目,grade=得分", "query=关键词,title=题目,grade=得分"),
        ("query＝关键词", "query=关键词"),
        ("query＝关键词，title＝题目", "query=关键词,title=题目"),
    ],
)
def test_full_width_signs_of_a_keyboard_are_named_with_what_to_type(typed: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"full-width.*type .{meant}"):
        option_text.parse_columns(typed)


def test_full_width_signs_within_a_name_stay() -> None:
    assert option_text.parse_labels("好，很好=2,不好=0") == {"好，很好": 2, "不好": 0}
    assert option_text.parse_columns("title=标题（中文）") == {"title": "标题（中文）"}
