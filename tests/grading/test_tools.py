"""Calls of tools: what is read as a call, and which arguments are the same."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantverdict.errors import TaskError
from quantverdict.grading.tools import Call, calls_in, calls_match, same_value, score_tool_call
from quantverdict.tasks.catalog import Item
from quantverdict.tasks.taskfile import read_task

TOOLS = [
    {"name": "get_weather", "parameters": {"properties": {"city": {}, "unit": {"default": "celsius"}, "days": {}}}}
]
SCHEMAS = {"get_weather": TOOLS[0], "stop": {"name": "stop"}}
PARIS = [Call("get_weather", {"city": "Paris"})]


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "get_weather", "arguments": {"city": "Paris"}}',
        '[{"name": "get_weather", "arguments": {"city": "Paris"}}]',
        '{"name": "get_weather", "arguments": "{\\"city\\": \\"Paris\\"}"}',
        '{"tool": "get_weather", "parameters": {"city": "Paris"}}',
        '{"function": {"name": "get_weather", "arguments": {"city": "Paris"}}}',
        '{"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}',
        '{"tool_calls": [{"name": "get_weather", "args": {"city": "Paris"}}]}',
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>',
        '```json\n[{"name": "get_weather", "arguments": {"city": "Paris"}}]\n```',
        'Sure, I call it: {"name": "get_weather", "arguments": {"city": "Paris"}}',
        '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}}]',
        '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris"}}',
        'get_weather(city="Paris")',
        "[get_weather(city='Paris')]",
        "print(get_weather(city='Paris'))",
    ],
)
def test_a_call_is_read_in_its_usual_shapes(text):
    assert calls_in(text, ("get_weather",)) == PARIS


@pytest.mark.parametrize(
    "text",
    ["[]", "", "I call get_weather.", "get_weather", "get_weather('Paris')", '{"name": "get_weather", "arguments": 3}',
     '{"city": "Paris"}', "{", "[[", "get_weather(city=open('x'))", '{"name": 3, "arguments": {}}'],
)  # fmt: skip
def test_what_is_no_call_is_none(text):
    assert calls_in(text, ("get_weather",)) == []


@pytest.mark.parametrize(
    ("found", "wanted", "same"),
    [
        ("Paris", "paris ", True), ("Paris", "Lyon", False), (3, 3.0, True), ("3", 3, False), (True, 1, False),
        (1, True, False), (True, True, True), (None, None, True), (None, 0, False), ([1, "a"], [1, "A"], True),
        ([1], [1, 2], False), ({"a": 1}, {"a": 1.0}, True), ({"a": 1}, {"b": 1}, False),
        ("x", {"any_of": ["y", "x"]}, True), ("z", {"any_of": ["y", "x"]}, False), ([], [], True), ("", None, False),
    ],
)  # fmt: skip
def test_arguments_that_are_the_same(found, wanted, same):
    assert same_value(found, wanted) is same


@pytest.mark.parametrize(
    ("found", "right"),
    [
        ([("get_weather", {"city": "Paris"})], True),
        ([("get_weather", {"city": "Paris", "unit": "celsius"})], True),
        ([("get_weather", {"city": "Paris", "unit": "kelvin"})], False),
        ([("get_weather", {"city": "Paris", "country": "France"})], False),
        ([("get_weather", {})], False),
        ([("other", {"city": "Paris"})], False),
        ([("get_weather", {"city": "Paris"})] * 2, False),
        ([], False),
    ],
)
def test_a_default_may_be_given_and_nothing_else(found, right):
    assert calls_match([Call(*one) for one in found], PARIS, SCHEMAS) is right


def test_a_default_that_is_wanted_may_be_left_out():
    wanted = [Call("get_weather", {"city": "Paris", "unit": "celsius"})]
    assert calls_match(PARIS, wanted, SCHEMAS)
    assert not calls_match(PARIS, [Call("get_weather", {"city": "Paris", "days": 2})], SCHEMAS)


def test_calls_may_come_in_any_order_and_none_is_a_right_answer():
    two = [Call("get_weather", {"city": "Paris"}), Call("stop", {})]
    assert calls_match(two[::-1], two, SCHEMAS)
    assert not calls_match(two[:1], two, SCHEMAS)
    item = Item("1", {"tools": json.dumps(TOOLS), "reference": "[]"})
    said = "[]", "No tool fits.", 'get_weather(city="x")'
    assert [next(score_tool_call(None, item, None, text)).value for text in said] == [1.0, 1.0, 0.0]
    assert next(score_tool_call(None, item, None, " ")).value is None


@given(st.text(max_size=300))
def test_any_text_holds_calls_or_none(text):
    assert all(isinstance(call, Call) for call in calls_in(text, ("get_weather", "f")))


TASK = "name: t\ntask_type: tool_calls\nprompt_template: x\nsamples:\n  - {id: a, tools: TOOLS, reference: REFERENCE}\n"


@pytest.mark.parametrize(
    ("tools", "reference", "told"),
    [
        ("'no'", "'[]'", "5: samples.0.tools: is no JSON list of tools"),
        ("""'[{"parameters": {}}]'""", "'[]'", "samples.0.tools: is no JSON list of tools"),
        ("""'[{"name": "f"}]'""", "'{}'", "samples.0.reference: is no JSON list of calls"),
        ("""'[{"name": "f"}]'""", """'[{"name": "f"}]'""", "samples.0.reference: is no JSON list of calls"),
        ("""'[{"name": "f"}]'""", """'[{"name": "g", "arguments": {}}]'""", "calls 'g', which is none of its tools"),
    ],
)
def test_a_wrong_item_is_told_by_its_line(tmp_path, tools, reference, told):
    (tmp_path / "t.yaml").write_text(TASK.replace("TOOLS", tools).replace("REFERENCE", reference))
    with pytest.raises(TaskError) as error:
        read_task(tmp_path / "t.yaml")
    assert told in str(error.value)
    assert "\n" not in str(error.value)
