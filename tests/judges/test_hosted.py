"""The hosted APIs by their real clients and a server on loopback: retries, labels, and a key that shows nowhere."""

import json
import logging

import pytest

from quantverdict.backends.base import Placement, Service
from quantverdict.errors import EngineError
from quantverdict.judges.label_model import Target, open_label_model
from quantverdict.records import Prompt

pytest.importorskip("anthropic")
pytest.importorskip("openai")

KEY = "sk-very-secret"
PATHS = {"anthropic": "/v1/messages", "openai": "/v1/chat/completions"}
AT_ONCE = {"retry-after-ms": "1"}
LABELS = ("FULL_REFUSAL", "COMPLIANCE")


def prompt(text, number=0):
    return Prompt("refusal", f"q{number}", text, None, "0", LABELS)


def told(kind, label):
    """What the API says where the model chose `label`."""
    if kind == "anthropic":
        content = [{"type": "tool_use", "id": "t", "name": "label", "input": {"label": label}}]
        usage = {"input_tokens": 90, "output_tokens": 7}
        frame = {"id": "m", "type": "message", "role": "assistant", "model": "m", "stop_sequence": None}
        return {**frame, "content": content, "stop_reason": "tool_use", "usage": usage}
    message = {"role": "assistant", "content": json.dumps({"label": label}), "refusal": None}
    choice = {"index": 0, "finish_reason": "stop", "message": message, "logprobs": None}
    usage = {"prompt_tokens": 90, "completion_tokens": 7, "total_tokens": 97}
    return {"id": "c", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}


def label_of(body):
    return "FULL_REFUSAL" if "sorry" in body["messages"][0]["content"] else "COMPLIANCE"


@pytest.fixture(params=["anthropic", "openai"])
def kind(request):
    return request.param


@pytest.fixture
def hosted(scripted, monkeypatch, kind):
    """Opens the API of `kind` on the scripted server."""
    monkeypatch.setenv("OUR_KEY", KEY)
    scripted.routes[PATHS[kind]] = lambda body: told(kind, label_of(body))
    url = scripted.url if kind == "anthropic" else scripted.url + "/v1"
    opened = []

    def start(retries=2, temperature=None, **settings):
        service = Service(url, "some-model", api_key_env="OUR_KEY", retries=retries, **settings)
        opened.append(open_label_model(Target(kind, None, service, Placement(4), temperature)))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


def test_each_question_gets_its_label_in_order_and_its_tokens_are_counted(hosted, scripted, kind):
    texts = ["I am sorry", "Sure", "so sorry", "Here"]
    found = hosted().choose([prompt(text, number) for number, text in enumerate(texts)])
    assert ["FULL_REFUSAL" in one.text for one in found] == [True, False, True, False]
    assert {(one.prompt_tokens, one.output_tokens, one.finish) for one in found} == {(90, 7, "stop")}
    assert scripted.most_at_once <= 4


def test_the_reply_is_held_to_the_labels(hosted, scripted, kind):
    hosted().choose([prompt("Sure")])
    (body,) = scripted.asked(PATHS[kind])
    if kind == "anthropic":
        assert body["tool_choice"] == {"type": "tool", "name": "label"}
        schema = body["tools"][0]["input_schema"]
    else:
        assert body["response_format"]["json_schema"]["strict"] is True
        schema = body["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["label"]["enum"] == list(LABELS)
    assert "temperature" not in body
    hosted(temperature=0.0).choose([prompt("Sure")])
    assert scripted.asked(PATHS[kind])[1]["temperature"] == 0


@pytest.mark.parametrize("status", [429, 500, 529])
def test_a_busy_api_is_asked_again(hosted, scripted, kind, status):
    scripted.fail(PATHS[kind], *[(status, {"error": {"type": "busy", "message": "wait"}}, AT_ONCE)] * 2)
    assert "COMPLIANCE" in hosted().choose([prompt("Sure")])[0].text
    assert len(scripted.asked(PATHS[kind])) == 3


@pytest.mark.parametrize("status", [429, 500, 401])
def test_an_api_that_stays_busy_or_refuses_the_key_ends_the_batch_without_showing_the_key(
    hosted, scripted, kind, status, caplog
):
    caplog.set_level(logging.DEBUG)
    said = {"error": {"type": "no", "message": f"not with {KEY}"}}
    scripted.fail(PATHS[kind], *[(status, said, AT_ONCE)] * 3)
    with pytest.raises(EngineError, match=f"^{kind}: refusal/q0: .*{status}") as caught:
        hosted().choose([prompt("Sure")])
    assert KEY not in str(caught.value)
    assert KEY not in caplog.text


def test_a_question_that_is_refused_for_good_is_declined_with_the_reason(hosted, scripted, kind):
    scripted.fail(PATHS[kind], (400, {"error": {"type": "invalid", "message": "against our policy"}}, {}))
    declined = hosted(retries=0).choose([prompt("x")])[0]
    assert (declined.text, "against our policy" in declined.finish) == ("", True)


def test_the_identity_names_the_model_and_no_key_or_address(hosted, scripted):
    found = hosted().identity
    assert found["model"] == "some-model"
    assert KEY not in str(found)
    assert scripted.url not in str(found)


def test_without_a_key_nothing_is_opened(monkeypatch, kind):
    monkeypatch.delenv("NO_KEY", raising=False)
    with pytest.raises(EngineError, match="environment variable NO_KEY holds no key"):
        open_label_model(Target(kind, None, Service("", "m", api_key_env="NO_KEY"), Placement(1)))


def test_the_key_is_in_no_request_but_its_header_and_in_no_log(hosted, scripted, caplog):
    caplog.set_level(logging.DEBUG)
    hosted().choose([prompt("Sure")])
    (_, body, headers) = scripted.requests[0]
    assert KEY in str(headers)
    assert KEY not in str(body)
    assert KEY not in caplog.text
