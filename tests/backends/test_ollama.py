"""The Ollama backend against a server that speaks its documented protocol, with faults."""

from dataclasses import replace

import pytest

from quantverdict.backends.base import Decoding, Placement, Service
from quantverdict.backends.ollama import OllamaBackend
from quantverdict.errors import EngineError
from quantverdict.records import Prompt

SHORT = Decoding(max_new_tokens=12)
DIGEST = "f" * 64


def prompt(text="<s>hello", *, name="0", choices=()):
    return Prompt("t", name, "the turn", text, "", tuple(choices))


def tokens_of(text, *, start):
    """How many: `<s>` is one, and so is every other character."""
    return len(text.replace("<s>", "!")) + start


class Model:
    """What the scripted Ollama has: a model that puts a start token or does not."""

    def __init__(self):
        self.start, self.words, self.logprobs = True, ["<unk>", "<s>"], None

    def generate(self, body):
        reply = {
            "model": body["model"], "created_at": "2024-01-01T00:00:00Z", "response": "fine", "done": True,
            "done_reason": "stop", "total_duration": 9_000_000, "load_duration": 1_000_000, "eval_duration": 4_000_000,
            "prompt_eval_count": tokens_of(body["prompt"], start=self.start), "prompt_eval_duration": 2_500_000,
            "eval_count": 5,
        }  # fmt: skip
        if body.get("logprobs") and self.logprobs:
            top = [{"token": token, "logprob": value} for token, value in self.logprobs.items()]
            reply["logprobs"] = [{**top[0], "bytes": [65], "top_logprobs": top}]
        return reply

    def chat(self, body):
        reply = self.generate(body | {"prompt": body["messages"][0]["content"]})
        return reply | {"message": {"role": "assistant", "content": reply.pop("response")}}

    def show(self, body):
        return {
            "parameters": 'stop                           "<|im_end|>"\ntemperature 0.7',
            "template": "{{ .Prompt }}",
            "details": {"format": "gguf", "family": "llama", "parameter_size": "134M", "quantization_level": "Q4_K_M"},
            "model_info": {
                "general.architecture": "llama", "llama.context_length": 8192, "tokenizer.ggml.bos_token_id": 1,
                "tokenizer.ggml.tokens": self.words if body.get("verbose") else None,
            },
        }  # fmt: skip


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def ollama(scripted, model):
    scripted.routes |= {
        "/api/version": lambda _: {"version": "0.12.11"},
        "/api/tags": lambda _: {"models": [{"name": "smollm2:latest", "model": "smollm2:latest", "digest": DIGEST}]},
        "/api/show": model.show,
        "/api/generate": model.generate,
        "/api/chat": model.chat,
    }
    return scripted


@pytest.fixture
def open_it(scripted):
    opened = []

    def start(model="smollm2", parallel=2, context=512, **settings):
        service = Service(scripted.url, model, **{"retries": 2, "timeout_s": 5.0, **settings})
        opened.append(OllamaBackend(service, Placement(parallel=parallel, context=context)))
        return opened[-1]

    yield start
    for backend in opened:
        backend.close()


def test_an_answer_with_its_counts_and_its_time(ollama, open_it):
    (found,) = open_it().complete([prompt()], SHORT)
    assert (found.text, found.finish) == ("fine", "stop")
    assert (found.prompt_tokens, found.output_tokens) == (6, 4)
    assert found.ttft_ms == 3.5
    assert (found.prompt_ids_sha256, found.choice_logprobs) == (None, None)


def test_a_request_is_raw_greedy_and_has_room_for_the_prompt(ollama, open_it):
    open_it().complete([prompt("hello")], Decoding(max_new_tokens=9, seed=7))
    body = ollama.asked("/api/generate")[-1]
    assert body["options"] == {
        "temperature": 0.0, "seed": 7, "num_predict": 9, "num_ctx": 512, "repeat_penalty": 1.0,
        "presence_penalty": 0.0, "frequency_penalty": 0.0,
    }  # fmt: skip
    expected = {"model": "smollm2:latest", "prompt": "hello", "raw": True, "stream": False, "truncate": False}
    assert expected.items() <= body.items()


def test_each_draw_of_a_prompt_has_a_seed_of_its_own(ollama, open_it):
    draws = [replace(prompt("hello"), draw=draw) for draw in range(3)]
    open_it().complete(draws, Decoding(max_new_tokens=9, temperature=0.7, seed=7))
    sent = [body["options"] for body in ollama.asked("/api/generate")[-3:]]
    assert sorted((options["seed"], options["temperature"]) for options in sent) == [(7, 0.7), (8, 0.7), (9, 0.7)]


@pytest.mark.parametrize(("puts", "sent"), [(True, "hello"), (False, "<s>hello")])
def test_the_start_token_is_put_once(ollama, open_it, model, puts, sent):
    model.start = puts
    (found,) = open_it().complete([prompt("<s>hello")], SHORT)
    assert ollama.asked("/api/generate")[-1]["prompt"] == sent
    assert found.prompt_tokens == 6


def test_without_chat_text_its_own_template_is_used(ollama, open_it):
    (found,) = open_it().complete([Prompt("t", "0", "the turn", None, "")], SHORT)
    assert found.text == "fine"
    assert ollama.asked("/api/chat")[-1]["messages"] == [{"role": "user", "content": "the turn"}]


def test_the_identity_says_which_build_and_how(ollama, open_it):
    assert dict(open_it().identity) == {
        "engine": "ollama", "version": "0.12.11", "model": "smollm2:latest", "digest": DIGEST, "format": "gguf",
        "quantization": "Q4_K_M", "parameters": 'stop "<|im_end|>"; temperature 0.7', "prompts": "text",
        "output_tokens": "without the end token", "parallel": 2, "context": 512,
    }  # fmt: skip


@pytest.mark.parametrize(("prompt_tokens", "answer_tokens"), [(512, 1), (600, 3), (510, 12)])
def test_a_prompt_that_was_cut_is_an_error(ollama, open_it, model, prompt_tokens, answer_tokens):
    backend = open_it()
    counts = {"prompt_eval_count": prompt_tokens, "eval_count": answer_tokens}
    ollama.routes["/api/generate"] = lambda body: model.generate(body) | counts
    with pytest.raises(EngineError, match=r"^t/0: .*in a context of 512: something was cut"):
        backend.complete([prompt()], SHORT)


def test_an_answer_that_fills_the_context_is_whole(ollama, open_it, model):
    backend = open_it()
    counts = {"prompt_eval_count": 511, "eval_count": 1, "done_reason": "length"}
    ollama.routes["/api/generate"] = lambda body: model.generate(body) | counts
    (found,) = backend.complete([prompt()], SHORT)
    assert (found.finish, found.output_tokens) == ("length", 1)


def test_a_model_with_less_context_than_asked_for_is_refused(ollama, open_it):
    with pytest.raises(EngineError, match=r"smollm2:latest has a context of 8192 tokens.*expected 9000"):
        open_it(context=9000)


def test_choices_are_scored_where_all_are_among_the_likeliest(ollama, open_it, model):
    model.logprobs = {"A": -0.1, " B": -2.5, "C": -7.0}
    found = open_it().complete([prompt(choices="CA"), prompt(choices=("A", " B")), prompt(choices="AB")], SHORT)
    assert [completion.choice_logprobs for completion in found] == [(-7.0, -0.1), (-0.1, -2.5), None]
    assert ollama.asked("/api/generate")[-1]["options"]["num_predict"] in (1, 12)


def test_a_release_that_tells_no_log_probabilities_has_no_choices(ollama, open_it):
    assert open_it().complete([prompt(choices="AB")], SHORT)[0].choice_logprobs is None


def test_an_answer_of_nothing_is_an_answer(ollama, open_it, model):
    backend = open_it()

    def nothing(body):
        reply = model.generate(body) | {"response": ""}
        del reply["eval_count"]
        return reply

    ollama.routes["/api/generate"] = nothing
    (found,) = backend.complete([prompt()], SHORT)
    assert (found.text, found.finish, found.output_tokens) == ("", "stop", 0)


def test_answers_keep_the_order_of_prompts(ollama, open_it):
    reports = []
    asked = [prompt("x" * (i + 1), name=str(i)) for i in range(9)]
    found = open_it(parallel=4).complete(asked, SHORT, lambda *report: reports.append(report))
    assert [completion.prompt_tokens for completion in found] == list(range(2, 11))
    assert reports == [(i, 4 * i) for i in range(1, 10)]
    assert ollama.most_at_once <= 4


def test_models_it_does_not_have_are_refused(ollama, open_it):
    with pytest.raises(EngineError, match=r"/api/tags: the server has no model 'other'; it has smollm2:latest"):
        open_it(model="other")
    ollama.routes["/api/tags"] = lambda _: {"models": []}
    with pytest.raises(EngineError, match=r"/api/tags: the server has no model$"):
        open_it()


@pytest.mark.parametrize("fault", [(500, {}, {}), (429, {}, {"Retry-After": "0"}), "slow", "drop", "hang up"])
def test_what_passes_changes_no_answer(ollama, open_it, short_waits, fault):
    backend = open_it(timeout_s=0.3)
    expected = backend.complete([prompt()], SHORT)
    ollama.fail("/api/generate", fault, fault)
    assert backend.complete([prompt()], SHORT) == expected


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ((500, {"error": "llama runner process has terminated"}, {}), "500 Internal Server Error: llama runner"),
        ((503, {"error": "server busy"}, {}), "503 Service Unavailable: server busy"),
        ((400, {"error": "the input length exceeds the context length"}, {}), "400 Bad Request: the input length"),
        ((404, {"error": "model 'smollm2' not found"}, {}), "404 Not Found: model 'smollm2' not found"),
        ((200, {"error": "an error was encountered"}, {}), "200 with an error: an error was encountered"),
        ("slow", "no answer within 0.3 s"),
        ("broken", "the answer is not valid JSON"),
        ("drop", "the connection broke"),
        ("hang up", "the connection broke"),
        ((200, {"response": "fine", "done": True}, {}), "not the reply that was expected: done_reason: Field required"),
        ((200, {"response": "", "done": True, "done_reason": "load"}, {}), "prompt_eval_count: Field required"),
        (
            (200, {"response": "", "done": True, "done_reason": "load", "prompt_eval_count": 0}, {}),
            "finished by 'load'; expected one of stop, length",
        ),
        ((200, {"done": True, "done_reason": "stop", "prompt_eval_count": 3}, {}), "reply has no text"),
        (
            (200, {"response": "x", "done": True, "done_reason": "stop", "prompt_eval_count": 3}, {}),
            "a text of no tokens",
        ),
    ],
)
def test_what_does_not_pass_is_an_error_and_never_an_answer(ollama, open_it, short_waits, fault, reason):
    backend = open_it(timeout_s=0.3)
    ollama.fail("/api/generate", *[fault] * 4)  # a kept connection that hangs up costs no try
    with pytest.raises(EngineError, match=f"^t/0: .*{reason}") as error:
        backend.complete([prompt()], SHORT)
    assert "\n" not in str(error.value)


def test_a_thought_that_ollama_splits_off_stands_beside_the_answer(ollama, model, open_it):
    ollama.routes["/api/chat"] = lambda body: {
        **(reply := model.chat(body)), "message": {**reply["message"], "thinking": "Let me see."},
    }  # fmt: skip
    (found,) = open_it().complete([Prompt("t", "x", "the turn", None, "")], Decoding(max_new_tokens=8))
    assert found.reasoning == "Let me see."
