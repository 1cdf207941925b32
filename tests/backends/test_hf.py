"""Transformers: a tiny random checkpoint for what the backend does, the demo's GGUF for what it shares with llama.cpp.

Most tests hold the engine in this process; two hold the backend, whose process is its own.
"""

from __future__ import annotations

import json
import math
import shutil
import signal
import sys
from dataclasses import replace
from importlib.util import find_spec
from statistics import median

import pytest

from quantverdict.artifacts.quantize import make_level
from quantverdict.backends.base import Decoding, Placement
from quantverdict.backends.checkpoint_tokenizer import CheckpointTokenizer
from quantverdict.backends.hf import TransformersBackend, TransformersEngine
from quantverdict.errors import EngineError
from quantverdict.records import Prompt
from quantverdict.stages.kld import kld

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.engine,
    pytest.mark.xdist_group("transformers"),
    pytest.mark.filterwarnings("default"),  # what these libraries warn of is theirs
]

QUESTIONS = [
    "the capital",
    "what is a primary colour?",
    "is water wet? yes or no",
    "Paris",
    "red, blue and",
    "x",
    "no or",
]
SHORT = Decoding(max_new_tokens=12)
CHOICES = (" Paris", " red, blue", "x", " yes or no")


def ask(text, *, name="x", choices=()):
    return Prompt("task", name, text, None, "sha", tuple(choices))


PROMPTS = [ask(text, name=str(i)) for i, text in enumerate(QUESTIONS)]


def what_counts(completions):
    return [replace(completion, ttft_ms=None) for completion in completions]


@pytest.fixture(autouse=True)
def threads():
    """The engine sets the threads of its process; here that is the tests'."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def load(path, parallel=4, context=256):
    return TransformersEngine(path, Placement(parallel=parallel, threads=1, context=context))


@pytest.fixture(scope="module")
def engine(tiny_checkpoint):
    return load(tiny_checkpoint)


@pytest.fixture(scope="module")
def answers(engine):
    return what_counts(engine.complete(PROMPTS, SHORT))


@pytest.fixture
def changed(tiny_checkpoint, tmp_path):
    """A copy of the checkpoint with other settings in one of its JSON files."""

    folder = tmp_path / "changed"
    shutil.copytree(tiny_checkpoint, folder)

    def copy(file, **settings):
        path = folder / file
        path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | settings))
        return folder

    return copy


def next_logits(engine, tokens):
    with torch.inference_mode():
        return engine._model(torch.tensor([tokens])).logits[0].double().log_softmax(-1)


def test_answers_are_those_of_one_greedy_token_after_another(engine, answers):
    """Reference: each prompt alone, without padding and without a cache."""
    stops = engine._tokenizer.stops
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        tokens = list(engine._tokenizer.ids(prompt))
        start = len(tokens)
        while len(tokens) - start < SHORT.max_new_tokens:
            token = int(next_logits(engine, tokens)[-1].argmax())
            if token in stops:
                break
            tokens.append(token)
        assert (answer.prompt_tokens, answer.output_tokens) == (start, len(tokens) - start)
        assert answer.text == engine._tokenizer.text(tokens[start:])
        assert answer.finish == ("length" if len(tokens) - start == SHORT.max_new_tokens else "stop")
    assert len({answer.text for answer in answers}) > 3


@pytest.mark.parametrize("parallel", [1, 3, 16])
def test_the_batch_changes_no_answer_and_its_order_is_kept(tiny_checkpoint, answers, parallel):
    other = load(tiny_checkpoint, parallel=parallel)
    assert what_counts(other.complete(PROMPTS, SHORT)) == answers
    assert what_counts(other.complete(PROMPTS[::-1], SHORT))[::-1] == answers


def test_log_probabilities_are_those_of_the_tokens_one_after_another(engine):
    """Of one token and of several, beside an answer and alone; reference: prompt and choice alone, in float64."""
    asked = [replace(prompt, choices=CHOICES) for prompt in PROMPTS]
    beside, alone = engine.complete(asked, SHORT), engine.complete(asked, Decoding(max_new_tokens=0))
    lengths = set()
    for prompt, one, other in zip(asked, beside, alone, strict=True):
        job = engine._tokenizer.job(prompt, 0, 256)
        expected = []
        for choice in job.choices:
            log_p = next_logits(engine, [*job.prompt, *choice])
            places = enumerate(choice, len(job.prompt) - 1)
            expected.append(math.fsum(float(log_p[place, token]) for place, token in places))
            lengths.add(min(len(choice), 2))
        assert one.choice_logprobs == pytest.approx(expected, abs=1e-4)
        assert other.choice_logprobs == pytest.approx(expected, abs=1e-4)
        assert (other.text, other.output_tokens, other.ttft_ms) == ("", 0, None)
    assert lengths == {1, 2}


def test_choices_change_no_answer(engine, answers):
    scored = engine.complete([replace(prompt, choices=CHOICES) for prompt in PROMPTS], SHORT)
    assert [replace(answer, choice_logprobs=None, ttft_ms=None) for answer in scored] == answers


def test_a_choice_that_melts_into_the_prompt_follows_its_tokens(engine):
    """` Pari` + `s` has a token `is`, but after the prompt's own tokens only `s` can come."""
    whole = engine._tokenizer.job(ask(" Paris"), 0, 256).prompt
    job = engine._tokenizer.job(ask(" Pari", choices=["s"]), 0, 256)
    assert whole[: len(job.prompt)] != job.prompt
    assert engine._tokenizer.text(job.choices[0]) == "s"


def test_a_checkpoints_own_sampling_and_penalties_are_not_used(changed, answers):
    folder = changed(
        "generation_config.json", do_sample=True, temperature=5.0, top_k=3, repetition_penalty=9.0, num_beams=3,
        no_repeat_ngram_size=1, suppress_tokens=list(range(3, 250)), min_new_tokens=9, max_length=20,
        begin_suppress_tokens=[5], forced_eos_token_id=2,
    )  # fmt: skip
    assert what_counts(load(folder).complete(PROMPTS, SHORT)) == answers


def test_every_end_token_a_checkpoint_names_ends_an_answer(changed, engine, answers):
    longest = max(answers, key=lambda answer: answer.output_tokens)
    prompt = PROMPTS[answers.index(longest)]
    job = engine._tokenizer.job(prompt, 12, 256)
    fifth = engine._batches.answer([job], SHORT, 256, lambda *_: None, engine._tokenizer.text)[0].tokens[4]
    folder = changed("generation_config.json", eos_token_id=[2, fifth])
    stopping = load(folder)
    assert stopping._tokenizer.stops == tuple(sorted({0, 2, fifth}))  # 0 is known by its text
    (answer,) = stopping.complete([prompt], SHORT)
    assert answer.finish == "stop"
    assert answer.output_tokens < longest.output_tokens
    assert longest.text.startswith(answer.text)


def test_an_answer_ends_where_the_context_ends(tiny_checkpoint, answers):
    """Each prompt at its own length, whatever else is in the batch."""
    context = max(answer.prompt_tokens for answer in answers) + 2
    for answer, whole in zip(load(tiny_checkpoint, context=context).complete(PROMPTS, SHORT), answers, strict=True):
        assert answer.prompt_tokens + answer.output_tokens <= context
        assert answer.output_tokens == min(whole.output_tokens, context - answer.prompt_tokens)
        assert whole.text.startswith(answer.text)


def test_a_prompt_that_does_not_fit_is_named_before_anything_runs(engine):
    reports = []
    with pytest.raises(EngineError, match=r"task/long: the prompt's \d+ tokens do not fit a context of 256"):
        engine.complete([*PROMPTS, ask("wet " * 400, name="long")], SHORT, lambda *report: reports.append(report))
    assert not reports


@pytest.mark.parametrize(("text", "reason"), [("", "has no tokens"), ("half a pair: \udc80", "not valid Unicode")])
def test_a_prompt_that_cannot_be_read_is_named(engine, text, reason):
    with pytest.raises(EngineError, match=f"^task/odd: .*{reason}"):
        engine.complete([ask(text, name="odd")], SHORT)


def test_the_start_token_is_put_once_where_it_is_wanted(changed, engine):
    from tokenizers import Tokenizer, processors

    bare, written = ask("Paris"), ask("<|endoftext|>Paris")
    ids = engine._tokenizer.ids(bare)
    assert engine._tokenizer.ids(written) == (0, *ids)
    file = str(changed("config.json") / "tokenizer.json")
    wanting = Tokenizer.from_file(file)
    wanting.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    wanting.save(file)
    asking = CheckpointTokenizer(changed("config.json", bos_token_id=0))
    assert asking.ids(bare) == asking.ids(written) == (0, *ids)
    assert asking.job(ask("Paris", choices=[" is"]), 1, 256).choices == (engine._tokenizer.ids(ask(" is")),)
    assert asking.piece(0) == "<|endoftext|>"


def test_text_that_follows_keeps_its_space(engine):
    tokens = engine._tokenizer.ids(ask(" Paris is"))
    assert engine._tokenizer.text(tokens) == "".join(map(engine._tokenizer.piece, tokens)) == " Paris is"


def test_special_tokens_that_structure_an_answer_are_kept_and_others_are_not(changed):
    """The marks of a turn and of a thought would otherwise run into the answer; padding says nothing."""
    reader = CheckpointTokenizer(changed("config.json"))
    reader._tokenizer.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]", "<|pad_me|>"]})
    folder = changed("config.json")
    reader._tokenizer.save_pretrained(folder)
    saved = CheckpointTokenizer(folder)
    begin, end, silent = saved._tokenizer.convert_tokens_to_ids(["[THINK]", "[/THINK]", "<|pad_me|>"])
    tokens = saved.ids(ask(" Paris is"))
    assert saved.text((silent, *tokens, silent)) == " Paris is"
    assert saved.text((begin, *tokens, end, silent, *tokens)) == "[THINK] Paris is[/THINK] Paris is"
    assert saved.text((*tokens, 2, 1, *tokens)) == " Paris is<|im_end|><|im_start|> Paris is"


def no_memory_above(engine, rows, monkeypatch):
    model = engine._model
    whole, forward = model.generate, model.forward

    def generate(**options):
        if len(options["input_ids"]) > rows:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return whole(**options)

    def forward_some(*args, **options):
        if len(options["input_ids"]) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(*args, **options)

    monkeypatch.setattr(model, "generate", generate)
    monkeypatch.setattr(model, "forward", forward_some)


def test_out_of_memory_halves_the_batch_and_goes_on(tiny_checkpoint, answers, monkeypatch):
    asked = [replace(prompt, choices=CHOICES) for prompt in PROMPTS]
    engine = load(tiny_checkpoint, parallel=7)
    expected = engine.complete(asked, SHORT)
    no_memory_above(engine, 2, monkeypatch)
    reports = []
    found = engine.complete(asked, SHORT, lambda *report: reports.append(report))
    assert [replace(answer, choice_logprobs=None, ttft_ms=None) for answer in found] == answers
    for one, other in zip(found, expected, strict=True):
        assert one.choice_logprobs == pytest.approx(other.choice_logprobs, abs=1e-4)
    halved = engine.measured["halved"]
    assert halved >= 3  # 7 = 3 + 4 = (1 + 2) + (2 + 2), and the choices
    assert reports == sorted(reports)
    engine.complete(asked, SHORT)
    assert engine.measured["halved"] == 2 * halved  # the next batch starts whole: it depends on itself alone


def test_one_prompt_that_does_not_fit_the_memory_is_an_error(tiny_checkpoint, monkeypatch):
    engine = load(tiny_checkpoint)
    no_memory_above(engine, 0, monkeypatch)
    with pytest.raises(EngineError, match="out of memory with a single prompt"):
        engine.complete(PROMPTS, SHORT)


def test_a_build_that_fails_at_its_first_token_is_refused_when_it_is_opened(tiny_checkpoint, monkeypatch):
    """As a GPTQ build does whose groups do not divide its rows: it is saved and loaded without a word."""
    from transformers import LlamaForCausalLM

    def forward(*_, input_ids=None, attention_mask=None, **__):
        raise RuntimeError("expect K to be divisible by qGroupSize, got K:576, qGroupSize:128")

    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    with pytest.raises(EngineError, match=r"loads, and fails at its first token: RuntimeError: .*qGroupSize:128"):
        load(tiny_checkpoint)


def test_weights_that_are_no_numbers_are_refused(tiny_checkpoint, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "nan"
    shutil.copytree(tiny_checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = math.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(EngineError, match=r"first token: .*not finite"):
        load(folder)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot be loaded"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"12"), "cannot be loaded"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer cannot be read"),
        (shutil.rmtree, "no such file or folder"),
    ],
)
def test_a_damaged_checkpoint_is_refused_with_its_path(changed, damage, reason):
    folder = changed("config.json")
    damage(folder)
    with pytest.raises(EngineError, match=rf"changed.*{reason}"):
        load(folder)


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_a_missing_package_is_named_with_what_installs_it(tiny_checkpoint, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EngineError, match=r"pip install 'quantverdict\[transformers\]'"):
        load(tiny_checkpoint)


def test_a_tokenizer_leaves_logging_as_it_was(tiny_checkpoint):
    from transformers.utils import logging

    before = logging.get_verbosity()
    CheckpointTokenizer(tiny_checkpoint)
    assert logging.get_verbosity() == before


def test_progress_is_told_in_running_totals(engine, answers):
    reports = []
    engine.complete(PROMPTS, SHORT, lambda *report: reports.append(report))
    assert reports == sorted(reports)
    assert reports[-1] == (len(PROMPTS), sum(answer.output_tokens for answer in answers))


def test_sampling_is_refused_and_no_prompts_are_no_answers(engine):
    with pytest.raises(EngineError, match="greedily"):
        engine.complete(PROMPTS, Decoding(temperature=0.7))
    assert engine.complete([], SHORT) == []


def test_a_compressed_tensors_checkpoint_runs_and_says_so(tiny_checkpoint, tmp_path):
    """8-bit weights, written by the library whose format it is."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationArgs as Args
    from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme, apply_quantization_config
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    scheme = QuantizationScheme(targets=["Linear"], weights=Args(num_bits=8, strategy="channel"))
    settings = QuantizationConfig(
        config_groups={"all": scheme}, ignore=["lm_head"], quantization_status="compressed", format="int-quantized"
    )
    apply_quantization_config(model, settings)
    for module in model.modules():
        if hasattr(module, "weight_scale"):
            module.weight_scale.data = module.weight.abs().amax(1, keepdim=True) / 127
            module.weight_zero_point.data.zero_() if hasattr(module, "weight_zero_point") else None
    compressor = ModelCompressor.from_pretrained_model(model)
    folder = tmp_path / "w8"
    shutil.copytree(tiny_checkpoint, folder)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)
    engine = load(folder)
    assert engine.identity["quantization"] == "compressed-tensors"
    assert engine.complete(PROMPTS, SHORT)[0].output_tokens > 0


# The backend: the same engine in a process of its own


@pytest.fixture(scope="module")
def backend(tiny_checkpoint):
    backend = TransformersBackend(tiny_checkpoint, Placement(parallel=4, threads=1, context=256))
    yield backend
    backend.close()


def test_the_backend_gives_what_the_engine_gives(backend, engine, answers, capfd):
    assert what_counts(backend.complete(PROMPTS, SHORT)) == answers
    assert dict(backend.identity) == dict(engine.identity)
    expected = {"engine": "transformers", "dtype": "float32", "device": "cpu", "threads": 1, "stops": "0 2"}
    assert expected.items() <= dict(backend.identity).items()
    assert backend.usage.cpu_seconds > 0
    assert backend.usage.peak_memory_bytes > 50_000_000
    assert backend.usage.halved == 0
    with pytest.raises(EngineError, match="task/x"):  # and a refused batch leaves it as it was
        backend.complete([ask("wet " * 400)], SHORT)
    assert what_counts(backend.complete(PROMPTS[:1], SHORT)) == answers[:1]
    assert capfd.readouterr() == ("", "")


def test_a_process_that_dies_is_an_error_with_its_reason(backend):
    """The last test of this backend."""
    backend._worker.process.send_signal(signal.SIGKILL)
    with pytest.raises(EngineError, match=r"Transformers worker was killed by SIGKILL \(out of memory\?\)"):
        backend.complete(PROMPTS, SHORT)
    with pytest.raises(EngineError, match="closed"):
        backend.complete(PROMPTS, SHORT)
    backend.close()


# The demo model: the same file on two engines

TURN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
ODD = [
    "In 1234 there  12\n\n", "don't I'LL Ünï 你好 😀\r\n\t x  ", "a1b22  333   x\n\n\n  y", "½ Ⅳ ² ٣٤", "\n", " lead",
    "<|im_start|>user <repo_name> x", "``` def f(x):\n\treturn x**2  # no\n```", "1,234.5 + 6 = ?\u00a0x\u200b.",
]  # fmt: skip


@pytest.fixture(scope="module")
def llama(demo_gguf):
    if find_spec("xllamacpp") is None:
        pytest.skip("the llamacpp extra is not installed")
    from quantverdict.backends.llama_engine import LlamaEngine, open_library

    return LlamaEngine(open_library("xllamacpp"), demo_gguf, 1)


@pytest.fixture(scope="module")
def demo_tokenizer(demo_gguf):
    return CheckpointTokenizer(demo_gguf)


def test_a_gguf_files_tokens_and_ends_are_llama_cpps(llama, demo_tokenizer):
    for text in ODD:
        ids = llama.tokenize(text, start=True)
        assert list(demo_tokenizer.ids(ask(text))) == ids
        assert demo_tokenizer.text(ids) == llama.detokenize(ids)
    assert demo_tokenizer.stops == tuple(token for token in range(llama.n_vocab) if llama.is_end(token))


def test_a_gguf_file_answers_alike_in_any_batch_and_as_in_llama_cpp(llama, demo_gguf, tmp_path):
    """Against llama.cpp's F16 of the same weights, which differs by its rounding alone."""
    from quantverdict.backends.llamacpp import LlamaCppBackend

    placement = Placement(parallel=8, threads=1, context=256)
    texts = ["What is the capital of France?", "Name a primary colour.", "Is water wet?", "Say hello in Spanish: 12  3"]
    asked = [
        Prompt("t", str(i), text, TURN.format(text), "", (" A", " Paris", " in the north"))
        for i, text in enumerate(texts)
    ]
    f16 = LlamaCppBackend(make_level(demo_gguf, "FP16", tmp_path / "f16.gguf"), placement)
    theirs = f16.complete(asked, SHORT)
    f16.close()
    backend = TransformersBackend(demo_gguf, placement)
    together = backend.complete(asked, SHORT)
    alone = [backend.complete([prompt], SHORT)[0] for prompt in asked]
    backend.close()
    assert [answer.text for answer in alone] == [answer.text for answer in together]
    for ours, other in zip(together, theirs, strict=True):
        assert ours.prompt_ids_sha256 == other.prompt_ids_sha256
        assert ours.text == other.text
        assert ours.choice_logprobs == pytest.approx(other.choice_logprobs, abs=0.05)


def test_the_distribution_along_an_answer_is_that_of_its_log_probability(tiny_checkpoint):
    """The backend gives what its engine does, over a pipe."""
    asked = ask("the capital", choices=(" of France is Paris",))
    backend = TransformersBackend(tiny_checkpoint, Placement(parallel=2, threads=1, context=64))
    try:
        found = backend.force(asked, asked.choices[0], range(100))
        (scored,) = backend.complete([asked], Decoding(max_new_tokens=0))
        part = backend.force(asked, asked.choices[0], range(1, 3))
    finally:
        backend.close()
    along = sum(float(row[token]) for row, token in zip(found.logits, found.ids, strict=True))
    assert along == pytest.approx(scored.choice_logprobs[0], abs=1e-4)
    assert found.logits.shape == (len(found.ids), 300)
    assert part.logits == pytest.approx(found.logits[1:3], abs=1e-5)


def test_checkpoints_are_read_as_transformers_reads_whole_windows(tiny_checkpoint, tmp_path):
    """Against one forward pass over every whole window, in float64."""
    import transformers

    other = tmp_path / "other"
    shutil.copytree(tiny_checkpoint, other)
    model = transformers.AutoModelForCausalLM.from_pretrained(other, trust_remote_code=False)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    model.save_pretrained(other)
    text = tmp_path / "text.txt"
    text.write_text("what is a primary colour? red, blue and yellow, yes or no, is water wet; " * 12)
    (row,) = kld(tiny_checkpoint, other, text=text, context=64)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_checkpoint, trust_remote_code=False)
    ids = tokenizer(text.read_text(), add_special_tokens=True).input_ids
    ends = [transformers.AutoModelForCausalLM.from_pretrained(one, trust_remote_code=False).double()
            for one in (tiny_checkpoint, other)]  # fmt: skip
    kl, ratio = [], []
    for at in range(0, len(ids) - 63, 64):
        window = torch.tensor([ids[at : at + 64]])
        with torch.no_grad():
            log_p, log_q = (one(window).logits[0, 32:63].log_softmax(-1) for one in ends)
        kl += (log_p.exp() * (log_p - log_q)).sum(-1).tolist()
        ratio += (log_p - log_q).gather(1, window[0, 33:64, None])[:, 0].tolist()
    assert row["tokens"] == len(kl)
    assert row["mean"] == pytest.approx(sum(kl) / len(kl), rel=1e-3)
    assert row["median"] == pytest.approx(median(kl), rel=1e-3)
    assert row["ppl_ratio"] == pytest.approx(math.exp(sum(ratio) / len(ratio)), rel=1e-4)


def test_a_thought_that_the_prompt_opened_has_its_own_limit(engine):
    """Beside it, in the same sub-batch, an answer without one has the answer's."""
    opened = replace(ask("why?"), chat="why? <think>\n")
    limits = Decoding(4, max_reasoning_tokens=9)
    thought, plain = engine.complete([opened, PROMPTS[0]], limits)
    assert thought.output_tokens == 9 or thought.finish == "stop"
    assert plain.output_tokens == 4 or plain.finish == "stop"
    assert max(thought.output_tokens, plain.output_tokens) > 4
