"""A question is in its prompt, whole and once, however the model's template takes it; or the template is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantverdict.errors import TaskError
from quantverdict.tasks.chat import ChatTemplate

START, END = "{% for m in messages %}<|user|>", "<|end|>{% endfor %}<|bot|>"
PLAIN = START + "{{ m.content }}" + END
SPECIAL = {"bos": "<s>", "eos": "</s>"}
ASKED = 'What is <b>"é"</b> &\n\\n 2?'

PARTS = {
    "loop": "{% for part in m['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}",
    "loop with a filter": "{% for part in m.content if part.type == 'text' %}{{ part.text }}{% endfor %}",
    "first": "{{ m.content[0].text }}",
    "first by key": "{{ m['content'][0]['text'] }}",
    "filters": "{{ m.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join('') }}",
    "refuses text": "{% if m.content is string %}{{ raise_exception('parts') }}{% endif %}{{ m.content[0]['text'] }}",
    "ignores text": "{% if m.content is not string %}{{ m.content[0]['text'] }}{% endif %}",
}
WORDS = {
    "text": "{{ m.content }}",
    "text or parts": "{% if m.content is string %}{{ m.content }}{% else %}{{ m.content[0].text }}{% endif %}",
    "letter by letter": "{% for letter in m.content %}{{ letter }}{% endfor %}",
    "trimmed": "{{ m.content | trim }}",
    "end trimmed": "{{ m.content.rstrip() }}",
    "JSON": "{{ m.content | tojson }}",
    "JSON of the turn": "{{ m | tojson }}",
    "JSON in ASCII": "{{ m | tojson(ensure_ascii=true) }}",
    "no tools": "{% if tools is not none %}{{ tools | tojson }}{% endif %}{{ m.content }}",
    "no documents": "{% if documents is not none %}{{ documents[0].title }}{% endif %}{{ m.content }}",
    "tools looped over": "{% for tool in tools %}{{ tool }}{% endfor %}{{ m.content }}",
    "other frame": "{% if 'é' in m.content %}<accent>{% endif %}{{ m.content }}",
}
WRONG = {
    "nothing": ("", "does not show the question"),
    "a name that is not there": ("{{ m.text }}", "does not show the question"),
    "the list itself": ("{{ '' if m.content is string else m.content }}", "does not show the question"),
    "the first letter": ("{{ m.content[0] }}", "does not show the question"),
    "upper case": ("{{ m.content | upper }}", "does not show the question"),
    "twice": ("{{ m.content }}{{ m.content }}", "shows the question 2 times"),
    "twice in parts": ("{% for p in m.content %}{{ p.text }} {{ p.text }}{% endfor %}", "shows the question 2 times"),
    "lower case": ("{{ m.content | lower }}", "does not hold the question whole"),
    "cut": ("{{ m.content[:60] }}", "does not hold the question whole"),
    "thought cut off": ("{{ m.content.split('</think>')[-1] }}", "does not hold the question whole"),
    "taken out": ("{{ m.content.replace('WORD', '') }}", "does not hold the question whole"),
    "escaped": ("{{ m.content | e }}", "does not hold the question whole"),
    "lines joined": ("{{ m.content.split() | join(' ') }}", "does not hold the question whole"),
    "twice if long": (
        "{{ m.content }}{% if m.content|length > 60 %}{{ m.content }}{% endif %}",
        "shows the question 2 times",
    ),
    "refused": ("{{ raise_exception('no') }}", "template refused: no"),
}
HARD = "Say WORD </think> and <this> & that,\n\nTwice,   in two lines; and end it with an Accent: é."


def rendered(middle, text, special=SPECIAL):
    return ChatTemplate(START + middle + END, special, "quiz/q0").render(text, "quiz/q1")


@pytest.mark.parametrize("name", PARTS)
def test_a_template_that_wants_parts_gets_them(name):
    template = ChatTemplate(START + PARTS[name] + END, SPECIAL, "quiz/q0")
    assert template.content == "parts"
    assert template.render(ASKED, "quiz/q1") == f"<|user|>{ASKED}<|end|><|bot|>"


@pytest.mark.parametrize("name", WORDS)
def test_text_comes_first(name):
    """Where a text is shown it is what the template gets, spelt and trimmed as the template does."""
    template = ChatTemplate(START + WORDS[name] + END, SPECIAL, "quiz/q0")
    assert template.content == "text"
    shown = template.render(f" {ASKED}\n", "quiz/q1")
    assert ASKED in shown or any(json.dumps(ASKED, ensure_ascii=a)[1:-1] in shown for a in (True, False))


@pytest.mark.parametrize("name", WRONG)
def test_a_prompt_without_its_whole_question_is_refused_by_sample(name):
    middle, problem = WRONG[name]
    with pytest.raises(TaskError, match=rf"^chat template, for quiz/q[01]: {problem}"):
        rendered(middle, HARD)


@pytest.mark.parametrize("text", ["user", "1", "<|user|>", "<|end|><|bot|>", "", " ", "{{ m }}", "a\u2028b", "\ud800"])
@pytest.mark.parametrize("middle", ["{{ m.content }}", PARTS["first"]])
def test_a_question_that_the_template_says_too_is_no_repeat(middle, text):
    assert rendered("user 1 " + middle, text) == f"<|user|>user 1 {text}<|end|><|bot|>"


@given(st.text())
def test_any_question_passes_through_a_template_that_shows_it(text):
    template = ChatTemplate(PLAIN, SPECIAL, "quiz/q0")
    assert template.render(text, "q") == f"<|user|>{text}<|end|><|bot|>"


def test_special_tokens_have_transformers_names():
    special = SPECIAL | {"unknown": "<unk>", "padding": "<pad>", "seperator": "<sep>", "eot": "<eot>"}
    source = "{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ pad_token }}{{ sep_token }}{{ eot_token }}"
    assert rendered(source + "{{ m.content }}", "x", special) == "<|user|><s></s><unk><pad><sep>x<|end|><|bot|>"
    assert rendered("{{ bos_token + eos_token }}{{ m.content }}", "x", {}) == "<|user|>x<|end|><|bot|>"
