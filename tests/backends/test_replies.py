"""Which contents of a chat reply are an answer."""

import pytest

from quantverdict.backends.replies import Message


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("fine", "fine"),
        ([{"type": "text", "text": "fi"}, {"type": "text", "text": "ne"}], "fine"),
        ([{"type": "thinking", "thinking": "well"}, {"type": "text", "text": "fine"}], "fine"),
        ([], ""),
        ([{"type": "image_url", "image_url": {"url": "x"}}], None),
        ([{"type": "text", "text": "fine"}, {"type": "tool_use", "input": {}}], None),
        ([5], None),
        (None, None),
    ],
)
def test_parts_of_text_are_one_answer_and_a_part_that_is_none_makes_no_answer_of_the_rest(content, text):
    """A picture or a call of a tool would otherwise be an empty answer, or a part of one."""
    assert Message(content=content).text == text
