"""What the hosted judges send and make of each reply, without their packages: a client of the test stands for each.

`test_hosted` does the same by the real clients, where they are installed.
"""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest

from quantverdict.backends.base import Placement, Service
from quantverdict.errors import EngineError
from quantverdict.judges import label_model
from quantverdict.judges.label_model import Target, declined, open_label_model
from quantverdict.records import Completion, Prompt

LABELS = ("FULL_REFUSAL", "COMPLIANCE")
CLASSES = {"anthropic": "Anthropic", "openai": "OpenAI"}


class ClientError(Exception):
    pass


class StatusError(ClientError):
    def __init__(self, status, message):
        super().__init__(message)
        self.status_code = status


class Client:
    """Takes the settings, keeps every request, and gives or raises what the test says next."""

    def __init__(self, **settings):
        self.settings, self.requests, self.replies, self.closed = settings, [], [], 0
        self.messages = SimpleNamespace(create=self.create)
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self.create))

    def create(self, **request):
        self.requests.append(request)
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def close(self):
        self.closed += 1


@pytest.fixture(params=["anthropic", "openai"])
def kind(request):
    return request.param


@pytest.fixture
def hosted(monkeypatch):
    """Opens the judge of a kind; its client is `.client` of what comes back."""
    for name, of in CLASSES.items():
        module = ModuleType(name)
        vars(module).update({of: Client, f"{of}Error": ClientError, "APIStatusError": StatusError})
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(label_model, "version", lambda package: f"{package} 9")
    monkeypatch.setenv("OUR_KEY", " sk-secret ")

    def start(kind, temperature=None, parallel=1, url="http://here"):
        service = Service(url, "some-model", api_key_env="OUR_KEY", timeout_s=7.0, retries=3)
        return open_label_model(Target(kind, None, service, Placement(parallel), temperature))

    return start


def prompt(number=0):
    return Prompt("refusal", f"q{number}", f"text {number}", None, "0", LABELS)


def called(*blocks, reason="tool_use"):
    content = [SimpleNamespace(type=kind, input=given) for kind, given in blocks]
    return SimpleNamespace(content=content, stop_reason=reason, usage=SimpleNamespace(input_tokens=90, output_tokens=7))


def chat(content, refusal=None, usage=(90, 7)):
    said = None if usage is None else SimpleNamespace(prompt_tokens=usage[0], completion_tokens=usage[1])
    message = SimpleNamespace(content=content, refusal=refusal)
    return SimpleNamespace(choices=[SimpleNamespace(message=message)], usage=said)


def reply_of(kind, label):
    return called(("tool_use", {"label": label})) if kind == "anthropic" else chat(json.dumps({"label": label}))


@pytest.mark.parametrize(
    ("reply", "text", "finish"),
    [
        (called(("tool_use", {"label": "COMPLIANCE"})), "COMPLIANCE", "stop"),
        (called(("text", {"label": "FULL_REFUSAL"}), ("tool_use", {"label": "COMPLIANCE"})), "COMPLIANCE", "stop"),
        (called(("tool_use", {"label": "COMPLIANCE"}), ("tool_use", {"label": "X"})), "COMPLIANCE", "stop"),
        (called(("tool_use", {"other": "X"}), reason="max_tokens"), "", "the model ended by max_tokens"),
        (called(("tool_use", "COMPLIANCE"), reason="end_turn"), "", "the model ended by end_turn"),
        (called(("text", {"label": "COMPLIANCE"}), reason="refusal"), "", "the model ended by refusal"),
        (called(reason="refusal"), "", "the model ended by refusal"),
    ],
)
def test_the_label_of_the_first_tool_call_is_anthropics_answer(hosted, reply, text, finish):
    judge = hosted("anthropic")
    judge._client.replies = [reply]
    assert judge.choose([prompt()]) == [Completion(text, finish, 90, 7)]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (chat('{"label": "COMPLIANCE"}'), Completion('{"label": "COMPLIANCE"}', "stop", 90, 7)),
        (chat("", "I will not say"), Completion("", "the model declined: I will not say", 90, 7)),
        (chat(None, "no"), Completion("", "the model declined: no", 90, 7)),
        (chat(None), Completion("", "the reply has no text", 90, 7)),
        (chat("yes", usage=None), Completion("yes", "stop", 0, 0)),
        (SimpleNamespace(choices=[], usage=None), Completion("", "the reply has no text", 0, 0)),
    ],
)
def test_the_message_is_openais_answer_and_a_refusal_says_why(hosted, reply, expected):
    judge = hosted("openai")
    judge._client.replies = [reply]
    assert judge.choose([prompt()]) == [expected]


@pytest.mark.parametrize("temperature", [None, 0.0, 0.5])
def test_a_request_has_the_question_its_labels_and_a_temperature_only_where_one_is_wanted(hosted, kind, temperature):
    judge = hosted(kind, temperature)
    judge._client.replies = [reply_of(kind, "COMPLIANCE")]
    judge.choose([prompt()])
    (request,) = judge._client.requests
    assert (request["model"], request["messages"]) == ("some-model", [{"role": "user", "content": "text 0"}])
    schema = {"type": "object", "properties": {"label": {"type": "string", "enum": list(LABELS)}},
              "required": ["label"], "additionalProperties": False}  # fmt: skip
    rest = {key: value for key, value in request.items() if key not in ("model", "messages")}
    if kind == "anthropic":
        more = {} if temperature is None else {"extra_body": {"temperature": temperature}}
        tool = {"name": "label", "description": "State the label.", "input_schema": schema}
        assert rest == {"max_tokens": 256, "tools": [tool], "tool_choice": {"type": "tool", "name": "label"}, **more}
    else:
        more = {} if temperature is None else {"temperature": temperature, "seed": 42}
        form = {"type": "json_schema", "json_schema": {"name": "label", "strict": True, "schema": schema}}
        assert rest == {"max_completion_tokens": 2048, "response_format": form, **more}
    said = {} if temperature is None else {"temperature": str(temperature)}
    assert judge.identity == {
        "engine": kind, "version": f"{kind} 9", "model": "some-model", **said,
        "reads": "forced tool" if kind == "anthropic" else "JSON schema",
    }  # fmt: skip


def test_the_client_gets_the_key_the_address_and_the_services_patience(hosted, kind):
    settings = {"api_key": "sk-secret", "timeout": 7.0, "max_retries": 3}
    assert hosted(kind)._client.settings == {**settings, "base_url": "http://here"}
    judge = hosted(kind, url="")
    assert judge._client.settings == settings
    judge.close()
    assert judge._client.closed == 1


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_status_of_one_question_declines_it(hosted, kind, status):
    judge = hosted(kind)
    judge._client.replies = [StatusError(status, "no\n way"), reply_of(kind, "COMPLIANCE")]
    first, second = judge.choose([prompt(), prompt(1)])
    assert first == declined("no way") == Completion("", "no way", 0, 0)
    assert "COMPLIANCE" in second.text


@pytest.mark.parametrize(
    "error",
    [StatusError(401, "bad"), StatusError(412, "bad"), StatusError(414, "bad"), StatusError(429, "bad"),
     StatusError(500, "bad"), ClientError("bad")],
)  # fmt: skip
def test_any_other_failure_ends_the_batch_and_names_the_question(hosted, kind, error):
    judge = hosted(kind)
    judge._client.replies = [error]
    with pytest.raises(EngineError, match=f"^{kind}: refusal/q0: bad$"):
        judge.choose([prompt()])


def test_what_an_error_says_is_shown_up_to_300_characters_and_never_the_key(hosted, kind):
    judge = hosted(kind)
    judge._client.replies = [StatusError(400, "x" * 290 + "sk-secret" + "y"), StatusError(400, "z" * 400)]
    first, second = judge.choose([prompt(), prompt(1)])
    assert first.finish == "x" * 290 + "***y"
    assert second.finish == "z" * 300


@pytest.mark.parametrize("key", ["", "  "])
def test_a_blank_key_is_none(hosted, monkeypatch, kind, key):
    monkeypatch.setenv("OUR_KEY", key)
    with pytest.raises(EngineError, match="the environment variable OUR_KEY holds no key"):
        hosted(kind)


def test_a_client_that_is_not_installed_is_named_with_what_installs_it(hosted, monkeypatch, kind):
    monkeypatch.setitem(sys.modules, kind, None)
    with pytest.raises(EngineError, match=rf"the client of {kind} is not installed; expected: pip install"):
        hosted(kind)


def test_questions_are_asked_side_by_side_and_answered_in_their_order(hosted, kind):
    judge = hosted(kind, parallel=3)
    judge._client.create = None
    texts = {f"text {number}": reply_of(kind, f"L{number}") for number in range(8)}
    answer = lambda **request: texts[request["messages"][0]["content"]]  # noqa: E731
    judge._client.messages.create = judge._client.chat.completions.create = answer
    found = judge.choose([prompt(number) for number in range(8)])
    assert [f"L{number}" in one.text for number, one in enumerate(found)] == [True] * 8
    with pytest.raises(KeyError):
        judge.choose([prompt(99)])
