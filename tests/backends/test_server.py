"""The server backend against a real llama.cpp server, and against scripted servers of other kinds with faults."""

import math
import subprocess
import sys
import threading
from dataclasses import replace
from importlib.util import find_spec

import pytest

from quantverdict.backends.base import Decoding, Placement, Service, hash_ids
from quantverdict.backends.llamacpp import LlamaCppBackend
from quantverdict.backends.server import ServerBackend
from quantverdict.errors import EngineError
from quantverdict.records import Prompt, Turn

real = [
    pytest.mark.engine,
    pytest.mark.xdist_group("engine"),
    pytest.mark.skipif(find_spec("xllamacpp") is None, reason="the llamacpp extra is not installed"),
]
TURN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
SHORT = Decoding(max_new_tokens=8)
QUESTIONS = ["What is the capital of France?", "Repeat: 你好 😀 ñ", "What is 2+2?", "Write one sentence about the sea."]

SERVE = """
import os, sys
os.environ.update(OMP_WAIT_POLICY="passive")
import xllamacpp
settings = xllamacpp.CommonParams()
settings.model.path, settings.n_parallel, settings.n_ctx = sys.argv[1], 2, 2 * 512
settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
settings.verbosity, settings.fit_params, settings.cache_ram_mib = 0, False, 0
server = xllamacpp.Server(settings)
print(server.listening_address, flush=True)
sys.stdin.read()
os._exit(0)  # the server's own threads never end
"""


def prompt(text, *, name="x", choices=()):
    return Prompt("task", name, text, TURN.format(text), "sha", tuple(choices))


PROMPTS = [prompt(text, name=str(i)) for i, text in enumerate(QUESTIONS)]


def what_counts(completions):
    """All of a completion but its timing."""
    return [replace(completion, ttft_ms=None) for completion in completions]


@pytest.fixture(scope="module")
def address(demo_gguf):
    """Where a llama.cpp server answers for the demo model; it ends with this module."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(demo_gguf)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(20)
        process.stdout.close()


@pytest.fixture(scope="module")
def backend(address):
    opened = ServerBackend(Service(address, ""), Placement(parallel=1, context=512))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def embedded(demo_gguf):
    """The same file in the embedded engine."""
    opened = LlamaCppBackend(demo_gguf, Placement(parallel=1, threads=1, context=512))
    yield opened
    opened.close()


class TestRealServer:
    pytestmark = real

    def test_a_second_call_gives_the_same_answers(self, backend):
        first = backend.complete(PROMPTS[:2], SHORT)
        assert what_counts(backend.complete(PROMPTS[:2], SHORT)) == what_counts(first)
        assert all(answer.text and answer.ttft_ms > 0 for answer in first)

    def test_its_prompts_are_the_embedded_engines_tokens(self, backend, embedded):
        asked = [*PROMPTS, Prompt("t", "bare", "", "Hello wor", ""), Prompt("t", "space", "", "  Two  spaces\n", "")]
        ours, theirs = (each.complete(asked, Decoding(max_new_tokens=1)) for each in (embedded, backend))
        assert [answer.prompt_ids_sha256 for answer in theirs] == [answer.prompt_ids_sha256 for answer in ours]
        assert [answer.prompt_tokens for answer in theirs] == [answer.prompt_tokens for answer in ours]

    def test_the_end_token_is_not_counted(self, backend, embedded):
        asked, decoding = [prompt("What is 2+2?")], Decoding(max_new_tokens=200)
        ((answer,), (same,)) = (each.complete(asked, decoding) for each in (backend, embedded))
        assert (answer.text, answer.finish, answer.output_tokens) == (same.text, "stop", same.output_tokens)

    def test_a_cut_answer_says_so(self, backend):
        (answer,) = backend.complete([prompt("Count from 1 to 1000.")], Decoding(max_new_tokens=5))
        assert (answer.finish, answer.output_tokens) == ("length", 5)

    def test_an_answer_ends_where_the_studys_context_ends(self, address):
        small = ServerBackend(Service(address, ""), Placement(parallel=1, context=64))
        (answer,) = small.complete([prompt("Count from 1 to 1000.")], Decoding(max_new_tokens=256))
        small.close()
        assert (answer.prompt_tokens + answer.output_tokens, answer.finish) == (64, "length")

    def test_a_prompt_that_does_not_fit_is_named(self, backend):
        with pytest.raises(EngineError, match=r"^task/long: the prompt's 6\d\d tokens do not fit a context of 512"):
            backend.complete([prompt("word " * 600, name="long")], SHORT)
        assert backend.complete(PROMPTS[:1], SHORT)

    def test_a_server_with_less_context_than_asked_for_is_refused(self, address):
        with pytest.raises(EngineError, match="512 tokens of context; expected at least 2048: start it with more"):
            ServerBackend(Service(address, ""), Placement())

    def test_a_model_it_does_not_have_is_refused_with_what_it_has(self, address):
        with pytest.raises(EngineError, match=r"has no model 'gpt-5'; it has .*SmolLM2"):
            ServerBackend(Service(address, "gpt-5"), Placement(context=512))

    def test_choices_are_scored_as_by_the_embedded_engine(self, backend, embedded):
        """Frequent, rare and long ones, in order; the two sum in another order, so the last digits differ."""
        choices = (" Paris", " Paris is", "The", "Xylophone", "The capital")
        ((found,), (same,)) = (
            each.complete([prompt(QUESTIONS[0], choices=choices)], Decoding(max_new_tokens=0))
            for each in (backend, embedded)
        )
        assert found.choice_logprobs == pytest.approx(same.choice_logprobs, abs=0.01)
        assert (found.text, found.output_tokens, found.finish) == ("", 0, "length")

    def test_a_choice_that_melts_into_the_prompt_is_scored_by_itself(self, backend, embedded):
        asked = [Prompt("t", "0", "", "Hello wor", "", ("ld",))]
        ((found,), (same,)) = (each.complete(asked, Decoding(max_new_tokens=0)) for each in (backend, embedded))
        assert found.choice_logprobs == pytest.approx(same.choice_logprobs, abs=0.01)

    def test_choices_change_no_answer(self, backend):
        asked = [prompt(text, name=str(i), choices="AB") for i, text in enumerate(QUESTIONS[:2])]
        scored = backend.complete(asked, SHORT)
        plain = [replace(completion, choice_logprobs=None) for completion in what_counts(scored)]
        assert plain == what_counts(backend.complete(PROMPTS[:2], SHORT))
        assert all(0 < math.fsum(map(math.exp, answer.choice_logprobs)) < 1 for answer in scored)

    def test_several_at_once_keep_their_order(self, address):
        several = ServerBackend(Service(address, ""), Placement(parallel=8, context=512))
        reports = []
        answers = several.complete(PROMPTS, SHORT, lambda *report: reports.append(report))
        asked = [hash_ids(several.tokenizer.ids(prompt)) for prompt in PROMPTS]
        several.close()
        assert [answer.prompt_ids_sha256 for answer in answers] == asked
        assert [finished for finished, _ in reports] == [1, 2, 3, 4]
        assert reports[-1][1] == sum(answer.output_tokens for answer in answers)

    def test_its_tokenizer_shows_pieces(self, backend):
        ids = backend.tokenizer.ids(PROMPTS[0])
        assert "".join(map(backend.tokenizer.piece, ids)) == PROMPTS[0].chat
        assert backend.tokenizer.piece(ids[0]) == "<|im_start|>"

    def test_without_chat_text_the_servers_template_is_used(self, backend):
        (answer,) = backend.complete([replace(PROMPTS[0], chat=None)], SHORT)
        assert answer.text
        assert answer.prompt_ids_sha256 is None
        assert answer.prompt_tokens > 10

    def test_the_identity_says_engine_model_and_how_it_was_asked(self, backend):
        expected = {
            "engine": "llama.cpp server", "model_type": "Q4_1", "slots": 2, "server_context": 512, "context": 512,
            "prompts": "token ids", "choices": "next token", "parallel": 1, "output_tokens": "without the end token",
        }  # fmt: skip
        assert expected.items() <= dict(backend.identity).items()
        assert "127.0.0.1" not in str(dict(backend.identity))

    @pytest.mark.parametrize("text", ["", "half a pair: \udc80"])
    def test_a_prompt_that_cannot_be_read_is_named(self, backend, text):
        with pytest.raises(EngineError, match=r"^task/odd: "):
            backend.complete([Prompt("task", "odd", "", text, "")], SHORT)

    def test_no_prompts_no_answers(self, backend):
        assert backend.complete([], SHORT) == []


BOS = 7
WORDS = {"<s>": BOS}


def ids_of(text, *, special):
    """Tokens of the scripted servers: `<s>`, and one for every other character."""
    ids, rest = ([BOS], text) if special else ([], text)
    while rest:
        word = "<s>" if rest.startswith("<s>") else rest[0]
        ids.append(WORDS.get(word, ord(word[0])))
        rest = rest[len(word) :]
    return ids


def answer(text="fine", finish="stop", prompt_tokens=1, **more):
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": len(text) + 1}
    return {"choices": [{"text": text, "finish_reason": finish, "logprobs": None}], "usage": usage, **more}


def vllm_completion(body):
    """Echoes the prompt's log-probabilities where asked: -token/1000 each."""
    ids = body["prompt"] if isinstance(body["prompt"], list) else ids_of(body["prompt"], special=True)
    reply = answer(prompt_tokens=len(ids))
    if body.get("echo"):
        told = [None] + [-token / 1000 for token in ids[1:]] + [-0.5]
        reply["choices"][0]["logprobs"] = {"token_logprobs": told, "tokens": [], "top_logprobs": []}
    return reply


@pytest.fixture
def vllm(scripted):
    """A server that speaks as vLLM's documentation says."""
    model = {"id": "org/model", "owned_by": "vllm", "max_model_len": 512, "root": "org/model"}
    scripted.routes |= {
        "/v1/models": lambda _: {"object": "list", "data": [model]},
        "/version": lambda _: {"version": "0.11.0"},
        "/tokenize": lambda body: {"tokens": ids_of(body["prompt"], special=body.get("add_special_tokens", True))},
        "/detokenize": lambda body: {"prompt": "".join(map(chr, body["tokens"]))},
        "/v1/completions": vllm_completion,
        "/v1/chat/completions": lambda _: (
            answer(prompt_tokens=3)
            | {"choices": [{"message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}]}
        ),
    }
    return scripted


@pytest.fixture
def open_it(scripted):
    """Opens backends on the scripted server."""
    opened = []

    def start(model="org/model", parallel=2, context=512, **settings):
        service = Service(scripted.url + "/v1", model, **{"retries": 2, "timeout_s": 5.0, **settings})
        opened.append(ServerBackend(service, Placement(parallel=parallel, context=context)))
        return opened[-1]

    yield start
    for backend in opened:
        backend.close()


class TestVllm:
    def test_ids_are_sent_with_one_start_token(self, vllm, open_it):
        backend = open_it()
        bare, written = Prompt("t", "0", "", "hello", ""), Prompt("t", "1", "", "<s>hello", "")
        first, second = backend.complete([bare, written], SHORT)
        assert first.prompt_ids_sha256 == second.prompt_ids_sha256 == hash_ids([BOS, *map(ord, "hello")])
        assert [body["prompt"] for body in vllm.asked("/v1/completions")[-2:]] == [[BOS, *map(ord, "hello")]] * 2

    def test_a_request_is_greedy_and_free_of_the_models_own_defaults(self, vllm, open_it):
        open_it().complete([Prompt("t", "0", "", "hello", "")], Decoding(max_new_tokens=9, seed=7))
        expected = {"model": "org/model", "max_tokens": 9, "temperature": 0.0, "seed": 7, "repetition_penalty": 1.0}
        assert expected.items() <= vllm.asked("/v1/completions")[-1].items()

    def test_each_draw_of_a_prompt_has_a_seed_of_its_own(self, vllm, open_it):
        draws = [Prompt("t", name, "", "hello", "", (), draw) for name, draw in (("0", 0), ("0#2", 1), ("0#3", 2))]
        open_it().complete(draws, Decoding(max_new_tokens=9, temperature=0.7, seed=7))
        sent = vllm.asked("/v1/completions")[-3:]
        assert sorted((body["seed"], body["temperature"]) for body in sent) == [(7, 0.7), (8, 0.7), (9, 0.7)]

    def test_choices_come_from_the_echo(self, vllm, open_it):
        backend = open_it()
        (found,) = backend.complete([Prompt("t", "0", "", "hello", "", ("A", "BC"))], SHORT)
        assert found.choice_logprobs == pytest.approx((-0.065, -0.066 - 0.067))
        assert backend.identity["choices"] == "echo"

    def test_without_an_echo_there_are_no_choices(self, vllm, open_it):
        vllm.routes["/v1/completions"] = lambda body: answer(prompt_tokens=len(body["prompt"]))
        backend = open_it()
        (found,) = backend.complete([Prompt("t", "0", "", "hello", "", ("A",))], SHORT)
        assert found.choice_logprobs is None
        assert backend.identity["choices"] == "none"

    def test_a_prompt_that_was_cut_is_an_error(self, vllm, open_it):
        backend = open_it()
        vllm.routes["/v1/completions"] = lambda _: answer(prompt_tokens=4)
        with pytest.raises(EngineError, match="t/0: the server read 4 tokens of a prompt that has 6"):
            backend.complete([Prompt("t", "0", "", "hello", "")], SHORT)

    def test_the_identity(self, vllm, open_it):
        expected = {"engine": "vLLM server", "version": "0.11.0", "model": "org/model", "server_context": 512}
        assert expected.items() <= dict(open_it().identity).items()

    def test_a_key_is_sent_and_not_in_the_identity(self, vllm, open_it, monkeypatch):
        monkeypatch.setenv("THE_KEY", "sk-secret")
        backend = open_it(api_key_env="THE_KEY")
        assert {headers["Authorization"] for *_, headers in vllm.requests} == {"Bearer sk-secret"}
        assert "sk-secret" not in str(dict(backend.identity))

    def test_pieces(self, vllm, open_it):
        assert open_it().tokenizer.piece(ord("x")) == "x"

    def test_at_most_parallel_requests_run_at_once(self, vllm, open_it):
        """Each answer waits until as many as allowed have come, so that fewer would hang."""
        backend, together = open_it(parallel=3), threading.Barrier(3, timeout=5)

        def meet(body):
            together.wait()
            return vllm_completion(body)

        vllm.routes["/v1/completions"] = meet
        answers = backend.complete([Prompt("t", str(i), "", "x" * (i + 1), "") for i in range(9)], SHORT)
        assert [found.prompt_tokens for found in answers] == list(range(2, 11))
        assert vllm.most_at_once == 3

    def test_interrupting_a_batch_breaks_off_what_waits(self, vllm, open_it):
        backend = open_it(timeout_s=60)
        vllm.fail("/v1/completions", None, "slow")

        def interrupt(*_):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            backend.complete([Prompt("t", str(i), "", "x", "") for i in range(4)], SHORT, interrupt)
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("quantverdict-ask")]


class TestFaults:
    @pytest.fixture
    def backend(self, vllm, open_it, short_waits):
        return open_it(timeout_s=0.3)

    @pytest.mark.parametrize(
        "fault", [(500, {}, {}), (429, {}, {"Retry-After": "0"}), (503, {}, {}), "slow", "drop", "hang up"]
    )
    def test_what_passes_changes_no_answer(self, vllm, backend, fault):
        asked = [Prompt("t", str(i), "", "hello", "") for i in range(3)]
        expected = backend.complete(asked, SHORT)
        vllm.fail("/v1/completions", fault, fault)
        assert backend.complete(asked, SHORT) == expected

    @pytest.mark.parametrize(
        ("fault", "reason"),
        [
            ((500, {"error": {"message": "CUDA out of memory"}}, {}), "500 Internal Server Error: CUDA out of memory"),
            ((429, {"error": "slow down"}, {}), "429 Too Many Requests: slow down"),
            ((400, {"error": {"message": "too long"}}, {}), "400 Bad Request: too long"),
            ((200, {"error": {"message": "No response (bad request)."}}, {}), "200 with an error: No response"),
            ("slow", "no answer within 0.3 s"),
            ("broken", "the answer is not valid JSON"),
            ("drop", "the connection broke"),
            ("hang up", "the connection broke"),
            ((200, answer() | {"choices": []}, {}), "the reply has no choices"),
            (
                (200, answer() | {"usage": {"prompt_tokens": 1, "completion_tokens": -1}}, {}),
                "usage.completion_tokens: Input",
            ),
            (
                (200, answer() | {"usage": {"prompt_tokens": 1 << 31, "completion_tokens": 1}}, {}),
                "usage.prompt_tokens: Input",
            ),
            ((200, answer() | {"choices": answer()["choices"] * 2}, {}), "the reply has 2 answers; expected one"),
            ((200, answer() | {"choices": [{"finish_reason": "stop"}]}, {}), "the reply has no text"),
            ((200, answer(finish="abort"), {}), "finished by 'abort': it broke off"),
            ((200, answer(finish=5), {}), "choices.0.finish_reason: Input should be a valid string"),
            ((200, {"choices": None, "usage": {}}, {}), "choices: Field required"),
            ((200, {"choices": "no", "usage": {}}, {}), "choices: Input should be"),
        ],
    )
    def test_what_does_not_pass_is_an_error_and_never_an_answer(self, vllm, backend, fault, reason):
        vllm.fail("/v1/completions", *[fault] * 4)  # a kept connection that hangs up costs no try
        with pytest.raises(EngineError, match=rf"^t/0: {vllm.url}/v1/completions: .*{reason}") as error:
            backend.complete([Prompt("t", "0", "", "hello", "")], SHORT)
        assert "\n" not in str(error.value)

    def test_a_failed_batch_leaves_a_backend_that_works(self, vllm, backend):
        vllm.fail("/v1/completions", (400, {}, {}))
        asked = [Prompt("t", str(i), "", "hello", "") for i in range(5)]
        with pytest.raises(EngineError):
            backend.complete(asked, SHORT)
        assert len(backend.complete(asked, SHORT)) == 5

    def test_a_server_without_models_is_refused(self, vllm, open_it):
        vllm.routes["/v1/models"] = lambda _: {"object": "list", "data": []}
        with pytest.raises(EngineError, match=r"/v1/models: the server has no model$"):
            open_it()

    def test_a_wrong_model_name_is_refused(self, vllm, open_it):
        with pytest.raises(EngineError, match="has no model 'org/other'; it has org/model"):
            open_it(model="org/other")

    def test_what_serves_no_openai_api_is_refused(self, scripted, open_it):
        with pytest.raises(EngineError, match="/v1/chat/completions: 404 Not Found: no such path"):
            open_it()


def chat_answer(text="fine", finish="stop", **more):
    return {"choices": [{"message": {"role": "assistant", "content": text} | more, "finish_reason": finish}]}


class TestWhatServersLeaveOut:
    """Optional parts of the API: what is not told is not known, and no reason to stop."""

    ASKED = (Prompt("t", "0", "hello", None, ""),)

    @pytest.fixture
    def plain(self, scripted):
        """A server with chats alone, which counts nothing and has no owner, version or tokenizer."""
        scripted.routes |= {
            "/v1/models": lambda _: {"data": [{"id": "org/model", "owned_by": None, "aliases": None}]},
            "/v1/chat/completions": lambda _: chat_answer(),
        }
        return scripted

    def test_chats_alone_without_counts_and_owner(self, plain, open_it):
        backend = open_it()
        (found,) = backend.complete(self.ASKED, SHORT)
        assert (found.text, found.finish, found.prompt_tokens, found.output_tokens) == ("fine", "stop", None, None)
        assert backend.identity["prompts"] == "the user's turn, in the server's own template"

    def test_a_rendered_prompt_goes_as_the_users_turn_where_only_chats_are_taken(self, plain, open_it):
        open_it().complete([Prompt("t", "0", "hello", TURN.format("hello"), "")], SHORT)
        assert plain.asked("/v1/chat/completions")[-1]["messages"] == [{"role": "user", "content": "hello"}]

    def test_a_conversation_is_sent_as_its_turns(self, plain, open_it):
        said = (("system", "Be brief."), ("user", "a"), ("assistant", "b"), ("user", "c"))
        turns = tuple(Turn(role, content) for role, content in said)
        open_it().complete([Prompt("t", "1", "as text", None, "", messages=turns)], SHORT)
        sent = plain.asked("/v1/chat/completions")[-1]["messages"]
        assert [(one["role"], one["content"]) for one in sent] == list(said)

    def test_no_list_of_models_is_needed_where_the_name_is_given(self, plain, open_it):
        del plain.routes["/v1/models"]
        backend = open_it()
        assert backend.complete(self.ASKED, SHORT)[0].text == "fine"
        assert (backend.identity["engine"], backend.identity["model"]) == ("OpenAI-compatible server", "org/model")
        with pytest.raises(EngineError, match="/v1/models: 404"):
            open_it(model="")

    @pytest.mark.parametrize(
        ("finish", "count", "expected"),
        [
            ("stop", 8, "stop"),
            ("eos", 8, "stop"),
            ("end_turn", 3, "stop"),
            ("EOS_TOKEN", None, "stop"),
            ("whatever", 3, "stop"),
            ("whatever", 8, "length"),
            ("whatever", 8.0, "length"),
            (None, 7, "stop"),
            (None, 8, "length"),
            (None, None, "stop"),
            ("length", None, "length"),
            ("max_tokens", 3, "length"),
            ("MAX_TOKENS", 3, "length"),
            ("tool_calls", 3, "stop"),
            ("content_filter", 3, "withheld"),
            ("SAFETY", None, "withheld"),
        ],
    )
    def test_how_an_answer_ended_by_words_of_any_server(self, plain, open_it, finish, count, expected):
        usage = {"usage": {"prompt_tokens": 12.0, "completion_tokens": count}}
        plain.routes["/v1/chat/completions"] = lambda _: chat_answer(finish=finish) | usage
        (found,) = open_it().complete(self.ASKED, SHORT)
        assert (found.finish, found.prompt_tokens, found.output_tokens) == (expected, 12, count)

    @pytest.mark.parametrize("count", [12.5, -1, "12", True, [12]])
    def test_a_count_that_is_none_is_refused(self, plain, open_it, count):
        usage = {"usage": {"prompt_tokens": count, "completion_tokens": 3}}
        plain.routes["/v1/chat/completions"] = lambda _: chat_answer() | usage
        with pytest.raises(EngineError, match=r"usage\.prompt_tokens"):
            open_it()

    @pytest.mark.parametrize(
        "reply",
        [
            (200, chat_answer("", "content_filter"), {}),
            (200, chat_answer(None, "content_filter"), {}),
            (400, {"error": {"code": "content_filter", "message": "The response was filtered"}}, {}),
            (400, {"error": {"type": "data_inspection_failed", "message": "Input may be inappropriate"}}, {}),
        ],
    )
    def test_one_answer_that_a_filter_keeps_back_is_ungraded_and_the_others_stay(self, plain, open_it, reply):
        backend = open_it()
        plain.fail("/v1/chat/completions", reply)
        found = backend.complete([Prompt("t", str(i), "hello", None, "") for i in range(4)], SHORT)
        assert sorted(one.finish for one in found) == ["stop", "stop", "stop", "withheld"]
        assert [one.text for one in found if one.finish == "stop"] == ["fine"] * 3

    def test_another_error_of_the_same_status_is_no_answer(self, plain, open_it):
        backend = open_it()
        plain.fail("/v1/chat/completions", (400, {"error": {"code": "invalid_request_error", "message": "bad"}}, {}))
        with pytest.raises(EngineError, match="400 Bad Request: bad"):
            backend.complete(self.ASKED, SHORT)

    def test_a_refusal_that_is_split_off_is_the_answer(self, plain, open_it):
        plain.routes["/v1/chat/completions"] = lambda _: chat_answer(None, refusal="I can't help with that.")
        assert open_it().complete(self.ASKED, SHORT)[0].text == "I can't help with that."

    def test_an_answer_of_no_tokens_is_empty_and_one_of_unknown_length_is_an_error(self, plain, open_it):
        backend = open_it()
        plain.routes["/v1/chat/completions"] = lambda _: chat_answer(None) | {"usage": {"completion_tokens": 0}}
        assert backend.complete(self.ASKED, SHORT)[0].text == ""
        plain.routes["/v1/chat/completions"] = lambda _: chat_answer(None)
        with pytest.raises(EngineError, match="the reply has no text"):
            backend.complete(self.ASKED, SHORT)

    def test_text_goes_without_a_start_token_where_the_server_does_not_count(self, plain, open_it):
        plain.routes["/v1/completions"] = lambda _: {"choices": [{"text": "fine", "finish_reason": "stop"}]}
        open_it().complete([Prompt("t", "0", "", "<s>hello", "")], SHORT)
        assert plain.asked("/v1/completions")[-1]["prompt"] == "hello"

    def test_fields_are_renamed_or_left_out(self, plain, open_it):
        backend = open_it(request_fields={"max_tokens": "max_completion_tokens", "seed": None, "temperature": None})
        backend.complete(self.ASKED, SHORT)
        body = plain.asked("/v1/chat/completions")[-1]
        assert body["max_completion_tokens"] == 8
        assert not {"max_tokens", "seed", "temperature"} & body.keys()
        expected = {"request_max_tokens": "max_completion_tokens", "request_seed": "left out"}
        assert expected.items() <= dict(backend.identity).items()


class TestLmStudio:
    """Shows no tokens, answers unknown paths with 200 and an error, and puts the start token itself."""

    @pytest.fixture
    def studio(self, scripted):
        unknown = {"error": "Unexpected endpoint or method. (POST /tokenize)"}
        model = {"id": "smollm2", "object": "model", "owned_by": "organization_owner"}
        listed = {"id": "smollm2", "quantization": "Q4_K_M", "compatibility_type": "gguf", "max_context_length": 8192}
        scripted.routes |= {
            "/v1/models": lambda _: {"data": [model], "object": "list"},
            "/api/v0/models": lambda _: {"data": [listed], "object": "list"},
            "/tokenize": lambda _: unknown,
            "/v1/tokenize": lambda _: unknown,
            "/v1/completions": lambda body: answer(prompt_tokens=len(ids_of(body["prompt"], special=True))),
        }
        return scripted

    def test_prompts_are_text_and_nothing_unknown_is_claimed(self, studio, open_it):
        backend = open_it(model="smollm2")
        (found,) = backend.complete([Prompt("t", "0", "", "hello", "", ("A", "B"))], SHORT)
        assert (found.text, found.prompt_ids_sha256, found.choice_logprobs, found.ttft_ms) == ("fine", None, None, None)
        assert found.output_tokens == 5
        assert backend.tokenizer is None
        expected = {"engine": "LM Studio", "quantization": "Q4_K_M", "prompts": "text", "choices": "none"}
        assert expected.items() <= dict(backend.identity).items()

    def test_the_start_token_is_not_put_twice(self, studio, open_it):
        backend = open_it(model="smollm2")
        asked = [Prompt("t", "0", "", "<s>hello", "")]
        assert backend.complete(asked, SHORT)[0].prompt_tokens == 6
        studio.routes["/v1/completions"] = lambda body: answer(prompt_tokens=len(ids_of(body["prompt"], special=False)))
        assert open_it(model="smollm2").complete(asked, SHORT)[0].prompt_tokens == 6


@pytest.mark.parametrize(
    ("message", "text", "reasoning"),
    [
        ({"content": "hi", "reasoning_content": "hm"}, "hi", "hm"),
        ({"content": "hi", "reasoning": "hm", "reasoning_content": None}, "hi", "hm"),
        ({"content": "hi", "reasoning": "hm", "reasoning_content": "hm"}, "hi", "hm"),
        ({"content": None, "reasoning_content": "hm"}, "", "hm"),
        ({"content": "", "thinking": "hm"}, "", "hm"),
        ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
          {"type": "text", "text": "hi"}]},
         "hi", "hm"),
        ({"content": "hi", "reasoning_content": ""}, "hi", None),
        ({"content": "hi", "reasoning": {"odd": 1}}, "hi", None),
    ],
)  # fmt: skip
def test_reasoning_that_a_server_splits_off_stands_beside_the_answer(vllm, open_it, message, text, reasoning):
    vllm.routes["/v1/chat/completions"] = lambda _: (
        answer(prompt_tokens=3) | {"choices": [{"message": message, "finish_reason": "length"}]}
    )
    turn = Prompt("t", "x", "the turn", None, "")
    (found,) = open_it().complete([turn], Decoding(max_new_tokens=4))
    assert (found.text, found.reasoning, found.finish) == (text, reasoning, "length")


def test_tokens_that_were_spent_before_a_text_began_are_an_empty_answer(vllm, open_it):
    """`null` at the limit of tokens: a server that splits thoughts off and shows none; the cell goes on, ungraded."""
    vllm.routes["/v1/chat/completions"] = lambda _: (
        answer(prompt_tokens=3) | {"choices": [{"message": {"content": None}, "finish_reason": "length"}]}
    )
    (found,) = open_it().complete([Prompt("t", "x", "the turn", None, "")], Decoding(max_new_tokens=4))
    assert (found.text, found.finish) == ("", "length")


def test_a_reply_without_text_and_reasoning_is_still_no_answer(vllm, open_it):
    vllm.routes["/v1/chat/completions"] = lambda _: (
        answer(prompt_tokens=3) | {"choices": [{"message": {"content": None}, "finish_reason": "stop"}]}
    )
    with pytest.raises(EngineError, match="no text"):
        open_it().complete([Prompt("t", "x", "the turn", None, "")], Decoding(max_new_tokens=4))
