# ruff: noqa: E501 - templates as they are written
"""The sandbox renders real chat templates and refuses, in bounded work, what a hostile one tries."""

import contextlib
import re
import subprocess
import sys
from pathlib import Path

import jinja2
import psutil
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from quantverdict.errors import TaskError
from quantverdict.tasks import chat as templates
from quantverdict.tasks.chat import render_template, template_fields
from quantverdict.tasks.template_worker import MADE

CHATML = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are helpful.<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""

CHATML_TOOLS = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are helpful.' }}
    {%- endif %}
    {{- "\\n\\n# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}{{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' ~ message.content ~ '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif message.tool_calls|length != 1 %}
        {{- raise_exception("one tool-call at a time") }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if message['role'] == 'assistant' -%}{%- set role = 'model' -%}{%- else -%}{%- set role = message['role'] -%}{%- endif -%}
    {{ '<start_of_turn>' + role + '\\n' }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}{%- if item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}{%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""

THINKING = """{%- set ns = namespace(last=messages|length - 1, seen=false) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if not ns.seen and message.role == "user" and not message.content.startswith('<tool_response>') %}
        {%- set ns.seen = true %}{%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'system' %}{%- continue %}{%- endif %}
    {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
    {%- generation %}{{- message.role ~ ':' ~ content ~ (' <last>' if loop.index0 == ns.last else '') ~ '\\n' }}{%- endgeneration %}
{%- endfor %}
{%- macro show(items) %}{% for key, value in items|items %}{{ key }}={{ value }}{{ ", " if not loop.last }}{% endfor %}{% endmacro %}
{{- show({'a': 1, 'b': [2]}) }}
{{- messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join(' & ') }}
"""

ASK = [{"role": "user", "content": " Hi <b>&'é "}]
SYSTEM = {"role": "system", "content": "Be brief."}
CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "now", "arguments": {"zone": "UTC"}}}]}
ANSWER = {"role": "tool", "content": "12:00"}


def chat(template, messages, **extra):
    variables = {"messages": messages, "add_generation_prompt": True, "bos_token": "<s>", "eos_token": "</s>", **extra}
    return render_template(template, variables, where="model.gguf")


def test_chatml_adds_its_own_system_turn():
    assert chat(CHATML, ASK) == (
        "<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\n Hi <b>&'é <|im_end|>\n<|im_start|>assistant\n"
    )


def test_chatml_with_tools_writes_json_without_html_escapes():
    tool = {"type": "function", "function": {"name": "now", "description": "the <time> & 'place' é"}}
    text = chat(CHATML_TOOLS, [SYSTEM, *ASK, CALL, ANSWER], tools=[tool])
    assert '{"type": "function", "function": {"name": "now", "description": "the <time> & \'place\' é"}}' in text
    assert text.startswith("<|im_start|>system\nBe brief.\n\n# Tools\n<tools>\n{")
    assert '<tool_call>\n{"name": "now", "arguments": {"zone": "UTC"}}\n</tool_call><|im_end|>\n' in text
    assert text.endswith(
        "<|im_start|>user\n<tool_response>\n12:00\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


def test_chatml_with_tools_renders_without_any():
    assert chat(CHATML_TOOLS, ASK).startswith("<|im_start|>user\n Hi")


def test_llama3_has_the_fixed_date_and_trims():
    assert chat(LLAMA3, [SYSTEM, *ASK]) == (
        "<s><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi <b>&'é<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_gemma_renders_text_and_parts_alike():
    parts = [{"role": "user", "content": [{"type": "text", "text": ASK[0]["content"]}]}]
    assert chat(GEMMA, ASK) == chat(GEMMA, parts)
    assert chat(GEMMA, ASK) == "<s><start_of_turn>user\nHi <b>&'é<end_of_turn>\n<start_of_turn>model\n"


@pytest.mark.parametrize(
    ("messages", "reason"), [([SYSTEM, *ASK], "System role not supported"), ([*ASK, *ASK], "must alternate")]
)
def test_what_a_template_raises_is_the_refusal(messages, reason):
    with pytest.raises(TaskError, match=reason):
        chat(GEMMA, messages)


def test_namespace_slices_macros_loop_controls_and_generation_blocks():
    messages = [
        SYSTEM,
        *ASK,
        {"role": "assistant", "content": "<think>no</think>\nyes"},
        {"role": "user", "content": "ok"},
    ]
    assert chat(THINKING, messages) == "user: Hi <b>&'é \nassistant:yes\nuser:ok <last>\na=1, b=[2] Hi <b>&'é  & ok"


@pytest.mark.parametrize("template", [CHATML, CHATML_TOOLS, LLAMA3, GEMMA])
@pytest.mark.parametrize(
    "messages", [ASK, [*ASK, {"role": "assistant", "content": "a\n"}, {"role": "user", "content": ""}]]
)
def test_bounds_change_no_character(template, messages):
    """The same text as Jinja's own sandbox without bounds, set up as chat templates expect."""
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    plain.globals["strftime_now"] = lambda pattern: "26 Jul 2024"
    expected = plain.from_string(template).render(
        messages=messages, add_generation_prompt=True, bos_token="<s>", eos_token="</s>"
    )
    assert chat(template, messages) == expected


def test_the_demo_models_own_template_renders(demo_gguf):
    gguf = pytest.importorskip("gguf")
    field = gguf.GGUFReader(demo_gguf).fields["tokenizer.chat_template"]
    source = bytes(field.parts[field.data[0]]).decode()
    assert chat(source, ASK) == jinja2.Template(source).render(messages=ASK, add_generation_prompt=True)


def test_blocks_are_trimmed_and_one_newline_at_the_end_is_dropped():
    source = "{% if x %}\n  {% set y = 1 %}\nA: {{ x }}\n{% endif %}\nend\n\n"
    assert render_template(source, {"x": "b"}, where="f") == "A: b\nend\n"


def test_a_missing_variable_is_refused_when_strict_and_empty_when_not():
    assert render_template("<{{ gone }}>", {}, where="f") == "<>"
    with pytest.raises(TaskError, match=r"^f: template refused: 'gone' is undefined"):
        render_template("<{{ gone }}>", {}, where="f", strict=True)


def test_tojson_takes_an_indent():
    assert render_template("{{ x | tojson(indent=2) }}", {"x": {"a": [1]}}, where="f") == '{\n  "a": [\n    1\n  ]\n}'


PUBLIC = {
    "str.format": "{{ '{}:{a!r:>4}'.format('x', a=1) }}",
    "format_map": "{{ '{x}'.format_map({'x': 2}) }}",
    "percent": "{{ '%s and %05.1f%%' % ('a', 3) }}",
    "percent by name": "{{ '%(a)s-%(a)s' % {'a': 'x'} }}",
    "percent in a loop": "{% for x in [1, 2] %}{% set y = x %}{{ '%d;' % y }}{% endfor %}",
    "format filter": "{{ '%s'|format('x') }}",
    "indent": "{{ 'a\nb\n\nc'|indent(2) }}{{ 'a\nb'|indent('> ', true) }}",
    "round": "{{ 12345.678|round(2) }} {{ 123456|round }} {{ 2.1|round(method='ceil') }}",
    "sum": "{{ [1, 2.5]|sum }} {{ [{'n': {'m': 1}}, {'n': {'m': 2}}]|sum(attribute='n.m') }} {{ [[1], [2]]|sum(start=[]) }}",
    "replace in a loop": "{% for x in ['a b'] %}{% set y = x %}{{ y.replace(' ', '_') }}{% endfor %}",
    "join in a loop": "{% for x in [['a', 'b']] %}{% set y = x %}{{ ', '.join(y) }}{% endfor %}",
    "paddings": "{{ 'x'.ljust(3) }}{{ 'x'.rjust(3) }}{{ 'x'.center(3) }}{{ '7'.zfill(3) }}{{ 'x'|center(5) }}",
    "batch and slice": "{{ [1, 2, 3]|batch(2, 0)|list }} {{ [1, 2, 3]|slice(2)|list }}",
    "copies": "{% set d = dict(a=1) %}{{ d.copy() }} {{ [1].copy() }} {{ dict.fromkeys(['a'], 0) }}",
    "cycler and joiner": "{% set j = joiner(', ') %}{% set c = cycler('a', 'b') %}{% for i in range(3) %}{{ j() }}{{ c.next() }}{% endfor %}",
    "other tests of text": "{{ 'a'.isascii() }}{{ '1'.isdecimal() }}{{ 'aba'.rindex('a') }}{{ (2.0).is_integer() }}",
    "truncate, wordcount, escape": "{{ 'some long text here'|truncate(9) }}{{ 'a b'|wordcount }}{{ '<a>'|e }}",
    "beyond floats": "{{ 1e999 }} {{ -1e999 }} {{ 'nan'|float }}",
    "replace of the loop's own": "{% for x in ['a b'] %}{{ x.replace(' ', '_') }}{{ ','.join(x.split()) }}{% endfor %}",
    "named characters": "{{ '\\N{BULLET}' }}{% set é = 1 %}{{ é }}",
    "pprint, wordwrap, xmlattr": "{{ [{'a': 'x' * 90}]|pprint }}{{ 'a b c'|wordwrap(3) }}{{ {'a': 1}|xmlattr }}",
    "safe": "{{ '<b>'|safe }}{{ ('<b>'|safe) ~ '<i>' }}{{ '<b>{}'|safe }}",
    "compared": "{% set x = (1, (2, 3)) %}{{ x == 1 }}{{ x }}",
    "what is not iterable": "{% for x in tools or [] %}{% endfor %}{{ 'ab'|list }}{{ {'b': 1, 'a': 2}|dictsort }}",
    "none": "{{ tools is none }}{{ tools is not none and tools|length }}{{ documents is defined }}",
    "mixed places": "{{ '{} {0}'.format(1) if false else 'ok' }}",
}


@pytest.mark.parametrize("name", PUBLIC)
def test_what_public_templates_use_is_as_jinja_has_it(name):
    """The same text as the sandbox that Transformers renders in, which has no bounds on sizes."""
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    given = {"tools": None, "documents": None}
    expected = plain.from_string(PUBLIC[name]).render(**given)
    assert render_template(PUBLIC[name], given, where="f") == expected


def test_a_number_beyond_floats_is_one_line():
    """Jinja computes it beforehand and writes `inf` into its code, which is then a name that nothing has."""
    with pytest.raises(TaskError, match=r"^f: template refused: makes a number beyond what a float holds; expected"):
        render_template("{{ 'inf'|float|int }}", {}, where="f")


def test_a_date_is_the_same_in_every_run():
    assert render_template("{{ strftime_now('%Y-%m-%d') }}", {}, where="f") == "2024-07-26"


def test_template_fields_are_the_names_from_outside():
    source = "{% set a = b %}{{ a }} {{ c.d }} {% for e in range(2) %}{{ e }}{% endfor %}"
    assert template_fields(source, where="f") == {"b", "c"}


def test_a_syntax_error_names_its_line():
    with pytest.raises(TaskError, match=r"f: template refused: .*\(template line 2\)"):
        template_fields("a\n{% if %}", where="f")


def test_a_long_prompt_is_not_a_bomb():
    text = "word " * 100_000
    assert chat(LLAMA3, [{"role": "user", "content": text}]).count("word") == 100_000


def doubling(start, step, before="", after=""):
    return f"{{% set ns = namespace(x={start}) %}}{before}{{% for i in range(99) %}}{step}{{% endfor %}}{after or '{{ ns.x }}'}"


def setting(start, value, **rest):
    return doubling(start, f"{{% set ns.x = {value} %}}", **rest)


DOUBLING = {
    "concat": setting("'ab'", "ns.x ~ ns.x"),
    "plus": setting("'ab'", "ns.x + ns.x"),
    "list plus": setting("[1]", "ns.x + ns.x"),
    "shared lists": setting("1", "[ns.x, ns.x]"),
    "shared tuples, compared": setting("1", "(ns.x, ns.x)", after="{% set a = ns.x %}{{ a == a[0] }}{{ a }}"),
    "shared dicts": setting("1", "dict(a=ns.x, b=ns.x)"),
    "shared views": setting("dict(a=1)", "dict(a=ns.x.items(), b=ns.x.items())"),
    "dict literals": setting("1", "{'a': ns.x, 'b': ns.x}"),
    "varargs": doubling("(1,)", "{{ m(ns.x, ns.x) }}", before="{% macro m() %}{% set ns.x = varargs %}{% endmacro %}"),
    "kwargs": doubling(
        "(1,)", "{{ m(a=ns.x, b=ns.x) }}", before="{% macro m() %}{% set ns.x = kwargs %}{% endmacro %}"
    ),
    "macro output": setting("'ab'", "m(ns.x)", before="{% macro m(t) %}{{ t }}{{ t }}{% endmacro %}"),
    "set block": doubling("'ab'", "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}"),
    "filter block": doubling(
        "'a'", "{% set ns.x %}{% filter replace('a', ns.x) %}{{ ns.x }}aa{% endfilter %}{% endset %}"
    ),
    "replace": setting("'aa'", "ns.x|replace('a', ns.x)"),
    "replace method": setting("'aa'", "ns.x.replace('a', ns.x)"),
    "join": setting("'aa'", "[ns.x, ns.x]|join(ns.x)"),
    "join method": setting("'aa'", "ns.x.join(ns.x)"),
    "squares": setting("9", "ns.x * ns.x"),
}
NESTED = "{% for a in range(99999) %}{% for b in range(99999) %}X{% endfor %}{% endfor %}"
ATTACKS = {
    "nested loops": NESTED.replace("X", ""),
    "nested loops with text": NESTED.replace("X", "text" * 1000),
    "nested loops with comparing": "{% set x = range(99999)|list %}"
    + NESTED.replace("X", "{% if -1 in x %}{% endif %}"),
    "text in a set block": "{% set x %}" + NESTED.replace("X", "text" * 1000) + "{% endset %}",
    "loop over filtered": NESTED.replace("range(99999) %}X", "range(99999)|map('string')|select %}X"),
    "range": "{{ range(10**12)|list }}",
    "many ranges": "{% for a in range(99999) %}{% set x = range(99999)|list %}{% endfor %}",
    "string times": "{{ 'a' * 10**10 }}",
    "times string": "{{ 10**10 * 'a' }}",
    "list times": "{{ ([1] * 10**10)|length }}",
    "list of long text times": "{{ (['" + "a" * 1000 + "'] * 100000)|string|length }}",
    "power": "{{ 9**(9**9) }}",
    "center": "{{ 'a'|center(10**9) }}",
    "center method": "{{ 'a'.center(10**9) }}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "zfill": "{{ 'a'.zfill(10**9) }}",
    "expandtabs": "{{ '\\t'.expandtabs(10**9) }}",
    "indent": "{{ 'a\\nb'|indent(10**9) }}",
    "batch": "{{ [1]|batch(10**9, 0)|list }}",
    "slice filter": "{{ [1]|slice(10**9)|list }}",
    "format": "{{ '{:1000000000}'.format(1) }}",
    "format filter": "{{ '%1000000000d'|format(1) }}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "format, many": "{{ ('{0}' * 100000).format('x' * 1000)|length }}",
    "format, width from a value": "{{ '{:{w}}'.format(1, w=10**9) }}",
    "format, class": "{{ '{0.__class__}'.format(1) }}",
    "format, class by item": "{{ '{0[__class__]}'.format('') }}",
    "format_map, class": "{{ '{x.__class__}'.format_map({'x': 1}) }}",
    "format filter, many": "{{ ('%(a)s' * 100000)|format(a='x' * 1000)|length }}",
    "percent, width from a value": "{{ '%*d' % (10**9, 1) }}",
    "percent, precision": "{{ '%.1000000000f' % 1.5 }}",
    "percent, brackets in a name": "{{ '%(a(b))1000000000d' % {'a(b)': 1} }}",
    "percent, many": "{{ (('%(a)s' * 100000) % {'a': 'x' * 1000})|length }}",
    "indent, text": "{{ ('a\n' * 100000)|indent('x' * 1000) }}",
    "indent, long text": "{{ 'a\nb'|indent('x' * 100000) }}",
    "sum of tuples": "{{ ([(1,)] * 100000)|sum(start=()) }}",
    "sum of text": "{{ ['a', 'b']|sum(start='') }}",
    "fromkeys": "{% for i in range(99999) %}{% set x = dict.fromkeys(range(99999)) %}{% endfor %}",
    "random": "{{ [1, 2]|random }}",
    "strftime": "{{ strftime_now('%1000000000d') }}",
    "to_bytes": "{{ (1).to_bytes(10**10, 'big') }}",
    "round": "{{ 1.5|round(10**9, 'ceil') }}",
    "lipsum": "{{ lipsum(10**9) }}",
    "folded replace": "{{ '" + "a" * 40000 + "'|replace('a', '" + "b" * 20000 + "')|length }}",
    "search from the right": "{{ ('a' * 900000).rfind('ab' + 'a' * 400000) }}",
    "strip": "{{ ('a' * 500000).strip('b' * 500000 ~ 'a') }}",
    "trim": "{{ ('a' * 500000)|trim('b' * 500000 ~ 'a') }}",
    "hexadecimal": "{{ ('f' * 900000)|int(0, 16) // ('f' * 400000)|int(0, 16) }}",
    "slices": "{% set x = 'a' * 100000 %}" + "".join(f"{{% set x{i} = x[1:] %}}" for i in range(2000)),
    "tojson": "{% set ns = namespace(x=range(9999)|list) %}{% for i in range(300) %}{% set ns.x = [ns.x] %}{% endfor %}"
    "{{ ns.x|tojson(indent=16) }}",
    "tojson indent": "{{ [1]|tojson(indent=10**9) }}",
    "sum of lists": "{{ ([[1]] * 100000)|sum(start=[]) }}",
    "macro recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "macro tree": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "block recursion": "{% block a %}{{ self.a() }}{% endblock %}",
    "recursive loop": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "namespace in itself": "{% set ns = namespace() %}{% set ns.x = [ns] %}{{ ns.x|tojson }}",
    "deep parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep blocks": "{% for x in [1] %}" * 200 + "{% endfor %}" * 200,
    "many blocks": "{% if messages is defined %}" * 300 + "{% endif %}" * 300,
    "long chain of filters": "{{ 'a'" + "|upper" * 10000 + " }}",
    "long chain of fields": "{{ messages" + ".a" * 40000 + " }}",
    "long sum": "{{ " + "+".join(["1"] * 20000) + " }}",
    "long source": "a" * 100_001,
    "huge literal": "{{ " + "9" * 6000 + " }}",
    "class": "{{ ''.__class__ }}",
    "class by item": "{{ ''['__class__'] }}",
    "class by attr": "{{ ''|attr('__class__') }}",
    "class by map": "{{ ['']|map(attribute='__class__')|list }}",
    "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__ }}",
    "macro function": "{% macro m() %}{% endmacro %}{{ m._func }}",
    "context": "{{ self._TemplateReference__context }}",
    "range class": "{{ range.__globals__ }}",
    "namespace class": "{{ namespace.__init__.__globals__ }}",
    "mutation": "{{ messages.append(1) }}",
    "unbound mutation": "{{ dict.update(messages, a=1) }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import '/etc/passwd' as x %}",
    "from import": "{% from '/etc/passwd' import x %}",
    "extends": "{% extends '/etc/passwd' %}",
    "open": "{{ open('/etc/passwd') }}",
    "division": "{{ 1 / 0 }}",
    "bad call": "{{ 'a'.join(1, 2, 3) }}",
} | {f"doubling {name}": source for name, source in DOUBLING.items()}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused(name, monkeypatch):
    """What would run on is ended by its bounds, or with its worker: the refusal is the proof."""
    monkeypatch.setattr(templates, "CPU_SECONDS", 0.3)
    with pytest.raises(TaskError, match=r"^task\.yaml: template refused: "):
        render_template(ATTACKS[name], {"messages": []}, where="task.yaml")


def test_the_bound_is_for_the_whole_rendering():
    """Just within it renders; more of the same does not."""
    text = "a" * (MADE // 8)
    assert len(render_template("{{ x }}" * 8, {"x": text}, where="f")) == len(text) * 8
    with pytest.raises(TaskError, match="makes too much text or too many steps"):
        render_template("{% for i in range(30) %}{{ x }}{% endfor %}", {"x": text}, where="f")


@pytest.mark.parametrize(
    ("within", "beyond", "problem"),
    [
        ("{{ ('a' * 2000000)|length }}", "{{ ('a' * 3000000)|length }}", "makes too much"),
        ("{{ (2 ** 1024) % 7 }}", "{{ (2 ** 5000) % 7 }}", "makes too large a number"),
        ("{{ '%1000d' % 1 }}", "{{ '%1001d' % 1 }}", "formats to more than 1000"),
        ("{{ '{:1000}'.format(1) }}", "{{ '{:1001}'.format(1) }}", "formats to more than 1000"),
        ("{{ 'a'|center(1000) }}", "{{ 'a'|center(1001) }}", "asks for more than 1000"),
        ("{{ 'a'.ljust(1000) }}", "{{ 'a'.ljust(1001) }}", "asks for more than 1000"),
        ("{{ range(100000)|length }}", "{{ range(100001)|length }}", "Range too big"),
        ("{{ [1]|tojson(indent=16) }}", "{{ [1]|tojson(indent=17) }}", "tojson indents by at most 16"),
    ],
)
def test_a_bound_is_where_it_is_said_to_be(within, beyond, problem):
    assert render_template(within, {}, where="f")
    with pytest.raises(TaskError, match=rf"^f: template refused: {problem}"):
        render_template(beyond, {}, where="f")


def test_one_worker_serves_templates_until_one_of_them_ends_it(monkeypatch):
    """A refusal inside the sandbox keeps the worker; what runs on takes it along, and the next template has another."""
    monkeypatch.setattr(templates, "CPU_SECONDS", 0.1)
    assert render_template("{{ x }}", {"x": "a"}, where="f") == "a"
    (first,) = templates._workers
    with pytest.raises(TaskError):
        render_template("{{ ''.__class__ }}", {}, where="f")
    assert templates._workers == [first]
    with pytest.raises(TaskError, match="makes too much text or too many steps"):
        render_template(ATTACKS["nested loops"], {}, where="f")
    assert not first.runs
    assert render_template("{{ x }}", {"x": "b"}, where="f") == "b"
    assert templates._workers != [first]


def test_one_rendering_leaves_nothing_for_the_next():
    source = "{{ x is defined }}{% set x = 1 %}{% set ns = namespace(a=y) %}{{ ns.a }}"
    assert [render_template(source, {"y": y}, where="f") for y in "ab"] == ["Falsea", "Falseb"]


@pytest.mark.skipif(sys.platform != "linux", reason="the system's limits are Linux's here")
def test_the_worker_can_open_no_file():
    """Were a template to leave the sandbox, it would find nothing to open, in reading or by a program it starts."""
    render_template("a", {}, where="f")
    (worker,) = templates._workers
    limits = Path(f"/proc/{worker.pid}/limits").read_text()
    assert re.search(r"^Max open files +3 +3 ", limits, re.MULTILINE)
    assert re.search(r"^Max file size +0 +0 ", limits, re.MULTILINE)


def test_the_worker_ends_with_the_program(tmp_path):
    """Also where the program is killed and closes nothing itself."""
    code = (
        "import os; from quantverdict.tasks import chat as templates; templates.render_template('a', {}, where='f');"
        "print(templates._workers[0].pid, flush=True); os.abort()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode != 0
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(done.stdout)).wait(timeout=30)
    assert not psutil.pid_exists(int(done.stdout))


def test_no_template_is_rendered_in_this_process():
    """The program itself imports no Jinja."""
    code = (
        "import sys; from quantverdict.tasks.chat import render_template;"
        "print(render_template('{{ x }}', {'x': 1}, where='f'), 'jinja2' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("1 False\n", "")
