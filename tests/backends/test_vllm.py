"""vLLM: not run here, for want of a GPU.

A stand-in `vllm` package keeps to vLLM's documented interface: `LLM(...)` with its engine arguments, `SamplingParams`,
`LLM.generate(prompts, sampling_params, use_tqdm=)` on `{"prompt_token_ids": ...}`, and `RequestOutput` with
`outputs[0].token_ids` (the stop token included), `prompt_logprobs` and `metrics`.
"""

from __future__ import annotations

import math
import os
import sys
from importlib.util import find_spec

import pytest

from quantverdict.backends.base import Decoding, Placement, hash_ids
from quantverdict.backends.vllm import VllmBackend, VllmEngine
from quantverdict.errors import EngineError
from quantverdict.records import Prompt

pytestmark = [
    pytest.mark.skipif(find_spec("vllm") is not None, reason="the real vLLM is installed"),
    pytest.mark.xdist_group("transformers"),
    pytest.mark.filterwarnings("default"),  # what these libraries warn of is theirs
]

# Its answer to a prompt: the prompt's last token and those numbered after it; at a stop token it ends.
STAND_IN = """
from dataclasses import dataclass, field
from types import SimpleNamespace

@dataclass
class SamplingParams:
    temperature: float = 1.0
    max_tokens: int = 16
    stop_token_ids: list = field(default_factory=list)
    prompt_logprobs: int | None = None
    detokenize: bool = True

class LLM:
    calls = []

    def __init__(self, model, *, skip_tokenizer_init=False, dtype="auto", max_model_len=None, max_num_seqs=256,
                 seed=None, generation_config="auto", enable_prefix_caching=None, disable_log_stats=True,
                 kv_cache_dtype="auto", trust_remote_code=False):
        assert trust_remote_code is False
        import os
        if os.path.exists(os.path.join(model, "unsupported")):
            raise ValueError("Model architectures ['Tiny'] are not supported for now.")
        self.given = dict(model=model, skip_tokenizer_init=skip_tokenizer_init, dtype=dtype, max_num_seqs=max_num_seqs,
                          generation_config=generation_config, enable_prefix_caching=enable_prefix_caching,
                          kv_cache_dtype=kv_cache_dtype)
        self.max_model_len = max_model_len

    def generate(self, prompts, sampling_params=None, *, use_tqdm=True):
        LLM.calls.append((prompts, sampling_params))
        assert len(prompts) == len(sampling_params)
        return [self.one(p["prompt_token_ids"], s) for p, s in zip(prompts, sampling_params)]

    def one(self, prompt, params):
        assert params.temperature == 0 and not params.detokenize and params.max_tokens >= 1
        if 299 in prompt:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if len(prompt) + 1 > self.max_model_len:
            raise ValueError("The decoder prompt is longer than the maximum model length")
        tokens, reason = [], "length"
        while len(tokens) < params.max_tokens:
            tokens.append((prompt[-1] + len(tokens)) % 300)
            if tokens[-1] in params.stop_token_ids:
                reason = "stop"
                break
        scored = None
        if params.prompt_logprobs is not None:
            scored = [None] + [{t: SimpleNamespace(logprob=-t / 100, rank=1)} for t in prompt[1:]]
        return SimpleNamespace(
            outputs=[SimpleNamespace(token_ids=tuple(tokens), finish_reason=reason, text="")], prompt_logprobs=scored,
            metrics=SimpleNamespace(scheduled_ts=10.0, first_token_ts=10.25),
        )
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """The folder of the stand-in, importable as `vllm` here and, by PYTHONPATH, in another process."""
    package = tmp_path / "site" / "vllm"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(package.parent))
    paths = (str(package.parent), os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    yield package.parent
    sys.modules.pop("vllm", None)


@pytest.fixture
def engine(stand_in, tiny_checkpoint):
    return VllmEngine(tiny_checkpoint, Placement(parallel=3, context=64))


def ask(text, *, name="x", choices=()):
    return Prompt("task", name, text, None, "sha", tuple(choices))


def test_answers_are_the_tokens_before_the_stop_token(engine):
    tokenizer = engine._tokenizer
    assert tokenizer.stops == (0, 2)
    stopping, going = ask("Paris<|endoftext|>"), ask("Paris")
    first, second = engine.complete([stopping, going], Decoding(max_new_tokens=5))
    assert (first.text, first.finish, first.output_tokens) == ("", "stop", 0)
    last = tokenizer.ids(going)[-1]
    assert second.text == tokenizer.text(range(last, last + 5))
    assert (second.finish, second.output_tokens, second.prompt_tokens) == ("length", 5, len(tokenizer.ids(going)))
    assert second.prompt_ids_sha256 == hash_ids(tokenizer.ids(going))
    assert (second.choice_logprobs, second.ttft_ms) == (None, pytest.approx(250))


def test_choices_are_scored_as_the_end_of_a_prompt(engine):
    prompts = [ask("Paris", choices=(" is", "x")), ask("is"), ask("red", choices=(" blue",))]
    found = engine.complete(prompts, Decoding(max_new_tokens=0))
    for prompt, answer in zip(prompts, found, strict=True):
        choices = engine._tokenizer.job(prompt, 0, 64).choices
        expected = [math.fsum(-token / 100 for token in choice) for choice in choices]
        assert answer.choice_logprobs == (pytest.approx(expected) if choices else None)
        assert (answer.text, answer.output_tokens) == ("", 0)
    beside = engine.complete(prompts, Decoding(max_new_tokens=3))
    assert [answer.choice_logprobs for answer in beside] == [answer.choice_logprobs for answer in found]


def test_it_is_told_what_could_change_an_answer(engine, tiny_checkpoint):
    assert engine._llm.given == {
        "model": str(tiny_checkpoint), "skip_tokenizer_init": True, "dtype": "auto", "max_num_seqs": 3,
        "generation_config": "vllm", "enable_prefix_caching": False, "kv_cache_dtype": "auto",
    }  # fmt: skip
    assert {"engine": "vllm", "stops": "0 2", "context": 64}.items() <= dict(engine.identity).items()


def test_an_answer_ends_where_the_context_ends(engine):
    (answer,) = engine.complete([ask("x" * 60)], Decoding(max_new_tokens=50))
    assert answer.prompt_tokens + answer.output_tokens == 64


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        (ask("x" * 70), r"task/x: the prompt's 70 tokens do not fit a context of 64"),
        (ask("x" * 60, choices=["yyyy"]), r"task/x: prompt and choice are 64 tokens; expected fewer"),
    ],
)
def test_a_prompt_that_does_not_fit_is_named_before_anything_runs(engine, prompt, reason):
    before = len(type(engine._llm).calls)
    with pytest.raises(EngineError, match=reason):
        engine.complete([ask("x"), prompt], Decoding(max_new_tokens=2))
    assert len(type(engine._llm).calls) == before


def test_failures_are_errors_with_their_reason(engine, stand_in, tmp_path, tiny_checkpoint):
    broken = engine._tokenizer.piece(299)
    with pytest.raises(EngineError, match="vLLM fails: RuntimeError: CUDA error"):
        engine.complete([ask(broken)], Decoding(max_new_tokens=2))
    with pytest.raises(EngineError, match="greedily"):
        engine.complete([ask("x")], Decoding(temperature=1.0))
    folder = tmp_path / "odd"
    folder.symlink_to(tiny_checkpoint)
    (folder / "unsupported").touch()
    try:
        with pytest.raises(EngineError, match=r"odd cannot be run by vLLM: ValueError: .*not supported"):
            VllmEngine(folder, Placement())
    finally:
        (folder / "unsupported").unlink()


def test_without_the_package_it_says_what_installs_it(tiny_checkpoint):
    with pytest.raises(EngineError, match=r"pip install 'quantverdict\[vllm\]'"):
        VllmEngine(tiny_checkpoint, Placement())


def test_the_backend_runs_it_in_a_process_of_its_own(stand_in, tiny_checkpoint, capfd):
    backend = VllmBackend(tiny_checkpoint, Placement(parallel=3, context=64))
    reports = []
    (answer,) = backend.complete([ask("Paris")], Decoding(max_new_tokens=4), lambda *report: reports.append(report))
    assert answer.output_tokens == 4
    assert backend.usage.peak_memory_bytes > 0
    backend.close()
    assert capfd.readouterr() == ("", "")
