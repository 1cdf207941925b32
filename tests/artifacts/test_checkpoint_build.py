"""AWQ and GPTQ builds: what is refused, made once, kept only when it answers, and said when a tool fails."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from quantverdict.artifacts import checkpoint_build, quantizer_script
from quantverdict.artifacts.checkpoint_build import (
    RECORD,
    checkpoint_of_gguf,
    folder_sha256,
    group_size_for,
    make_checkpoint,
    quantize_checkpoint_levels,
    quantizer_python,
    run_script,
)
from quantverdict.artifacts.checkpoint_read import open_checkpoint
from quantverdict.artifacts.lineage import compare
from quantverdict.artifacts.sources import cache_dir
from quantverdict.config import QuantizeConfig
from quantverdict.errors import ArtifactError, EngineError, QuantverdictError

FEW = QuantizeConfig(samples=2, sequence_length=32)
FAKE = """
import json, os, sys
from pathlib import Path
settings = json.loads(Path(sys.argv[1]).read_text())
calls = Path(__file__).with_name("calls.jsonl")
with calls.open("a") as file:
    file.write(json.dumps(settings) + "\\n")
behave = Path(__file__).with_name(settings["action"] + ".py")
if behave.exists():
    exec(behave.read_text())
if settings["action"] != "prove":
    (Path(settings["out"]) / "model.safetensors").write_bytes(b"made")
Path(sys.argv[2]).write_text(json.dumps({"device": "cpu"}))
"""
"""Stands for the script that runs in the quantiser's environment: notes what it was asked and does as it is told."""

Rows = Mapping[str, tuple[int, ...]]


def write_checkpoint(
    folder: Path, shapes: Rows, config: Mapping[str, object] | None = None, fill: bytes = b"\0"
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    header, start = {}, 0
    for name, shape in shapes.items():
        size = 4
        for extent in shape:
            size *= extent
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, start + size]}
        start += size
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + fill * start)
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "llama"}), encoding="utf-8")
    return folder


def layers(*lengths: int) -> Rows:
    """Matrices with rows of these lengths, beside an embedding and a head that no group size divides."""
    named = {f"model.layers.{number}.mlp.up_proj.weight": (2, length) for number, length in enumerate(lengths)}
    kept = {"model.embed_tokens.weight": (3, 7), "lm_head.weight": (3, 7), "model.norm.weight": (7,)}
    return named | kept


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "base", layers(128, 64))


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a stand-in for the quantiser's script; what lies in it as ACTION.py is done at that action."""
    folder = tmp_path / "fake"
    folder.mkdir()
    (folder / "script.py").write_text(FAKE, encoding="utf-8")
    monkeypatch.setattr(checkpoint_build, "SCRIPT", folder / "script.py")
    monkeypatch.setattr(checkpoint_build, "quantizer_python", lambda *_: Path(sys.executable))
    return folder


def calls(fake: Path) -> list[dict[str, object]]:
    file = fake / "calls.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.mark.parametrize(
    ("lengths", "size"), [((128, 256), 128), ((576, 1536), 64), ((576, 96), 32), ((1024, 64), 64), ((32,), 32)]
)
def test_the_largest_group_that_divides_every_row_is_taken(lengths: tuple[int, ...], size: int, tmp_path: Path) -> None:
    assert group_size_for(write_checkpoint(tmp_path / "base", layers(*lengths)), None) == size


def test_a_group_size_of_the_users_is_taken_if_it_divides_the_rows(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "base", layers(576, 96))
    assert group_size_for(folder, 48) == 48
    with pytest.raises(ArtifactError) as caught:
        group_size_for(folder, 64)
    assert str(caught.value) == (
        f"{folder}: group_size: groups of 64 weights do not divide the rows of model.layers.1.mlp.up_proj (96); "
        "expected one of 32"
    )


def test_rows_that_no_group_divides_are_named(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "base", layers(100, 100, 100, 100, 100))
    with pytest.raises(ArtifactError, match=r"up_proj \(100\), .* and 2 more; expected rows that 32 divides"):
        group_size_for(folder, None)


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, struct.pack("<Q", 4) + b"[1] ", struct.pack("<Q", 2) + b"{}"])
def test_a_damaged_checkpoint_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "base", layers(64))
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"base"):
        group_size_for(folder, None)


def test_a_build_is_made_proved_and_then_reused(source: Path, fake: Path, tmp_path: Path) -> None:
    said: list[str] = []
    made = make_checkpoint(source, "GPTQ", FEW, tmp_path / "cache", said.append)
    assert [call["action"] for call in calls(fake)] == ["quantize", "prove"]
    assert said == ["making GPTQ of base: groups of 64, 2 samples"]
    assert make_checkpoint(source, "GPTQ", FEW, tmp_path / "cache", said.append) == made
    assert len(calls(fake)) == 2
    assert len(said) == 1


def test_the_record_says_from_what_and_how(source: Path, fake: Path, tmp_path: Path) -> None:
    made = make_checkpoint(source, "AWQ", FEW, tmp_path / "cache")
    record = json.loads((made / RECORD).read_text(encoding="utf-8"))
    expected = {"level": "AWQ", "group_size": 64, "source": "base", "source_sha256": folder_sha256(source)}
    expected |= {"calibration": "default", "samples": 2, "sequence_length": 32, "files": {"model.safetensors": 4}}
    assert record | expected == record
    assert record["tool"].startswith("llmcompressor ")
    assert str(tmp_path) not in (made / RECORD).read_text(encoding="utf-8")


def test_each_thing_that_decides_a_build_gives_it_a_folder_of_its_own(source: Path, fake: Path, tmp_path: Path) -> None:
    text = tmp_path / "own.txt"
    text.write_text("words of my own", encoding="utf-8")
    ways = [FEW.model_copy(update=change) for change in (
        {}, {"group_size": 32}, {"samples": 3}, {"sequence_length": 33}, {"calibration": "safety", "samples": 4},
        {"calibration": "default", "samples": 4}, {"calibration": str(text)},
    )]  # fmt: skip
    folders = [make_checkpoint(source, "GPTQ", how, tmp_path / "cache") for how in ways]
    folders.append(make_checkpoint(source, "AWQ", FEW, tmp_path / "cache"))
    text.write_text("other words", encoding="utf-8")
    folders.append(make_checkpoint(source, "GPTQ", ways[-1], tmp_path / "cache"))
    write_checkpoint(source, layers(128, 64), fill=b"\1")
    folders.append(make_checkpoint(source, "GPTQ", FEW, tmp_path / "cache"))
    assert len(set(folders)) == len(folders)


def test_a_build_that_lost_bytes_is_made_again(source: Path, fake: Path, tmp_path: Path) -> None:
    made = make_checkpoint(source, "GPTQ", FEW, tmp_path / "cache")
    (made / "model.safetensors").write_bytes(b"ma")
    assert make_checkpoint(source, "GPTQ", FEW, tmp_path / "cache") == made
    assert (made / "model.safetensors").read_bytes() == b"made"


REASON = "ValueError: no matches found for keys: {'re:.*o_proj$'}"


@pytest.mark.parametrize(
    ("action", "behaviour", "reason"),
    [
        (
            "quantize",
            f"Path(sys.argv[2]).write_text(json.dumps({{'error': {REASON!r}}})); sys.exit(1)",
            f"^{REASON[:30]}",
        ),
        ("quantize", "os.kill(os.getpid(), 9)", r"^the quantiser was ended by SIGKILL \(out of memory\?\)$"),
        ("quantize", "print('first'); sys.exit('last word')", "^last word$"),
        ("quantize", "os._exit(3)", "^the quantiser ended with status 3 and said nothing$"),
        (
            "prove",
            "sys.exit('mat1 and mat2')",
            "^the finished build does not answer, so it is not kept: mat1 and mat2$",
        ),
    ],
)
def test_a_failure_gives_the_tools_reason_in_one_line_and_leaves_nothing(
    action: str, behaviour: str, reason: str, source: Path, fake: Path, tmp_path: Path
) -> None:
    (fake / f"{action}.py").write_text(behaviour, encoding="utf-8")
    with pytest.raises(EngineError, match=reason) as caught:
        make_checkpoint(source, "AWQ", FEW, tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache" / "checkpoints").iterdir())


def test_the_script_reports_what_it_raises_in_one_line(tmp_path: Path) -> None:
    """The real script, which needs no package to say that it does not know an action."""
    with pytest.raises(EngineError, match=r"^KeyError: 'dance'$"):
        run_script(Path(sys.executable), {"action": "dance"})


def test_the_script_imports_nothing_of_this_package() -> None:
    assert "quantverdict" not in "".join(
        line for line in checkpoint_build.SCRIPT.read_text(encoding="utf-8").splitlines() if "import" in line
    ).replace("Imports nothing of quantverdict", "")


def test_what_is_quantised_already_is_refused(fake: Path, tmp_path: Path) -> None:
    config = {"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}
    source = write_checkpoint(tmp_path / "base", layers(64), config)
    with pytest.raises(ArtifactError, match=r"base: is quantised already; expected an unquantised checkpoint's folder"):
        make_checkpoint(source, "GPTQ", FEW, tmp_path / "cache")
    (source / "config.json").unlink()
    with pytest.raises(ArtifactError, match=r"config\.json: cannot be read"):
        make_checkpoint(source, "GPTQ", FEW, tmp_path / "cache")
    assert not calls(fake)


def test_levels_are_copied_to_folders_with_the_models_name(source: Path, fake: Path, tmp_path: Path) -> None:
    def made(how: QuantizeConfig = FEW, level: str = "GPTQ") -> Mapping[str, Path]:
        return quantize_checkpoint_levels(source, ["AWQ", level], tmp_path / "out", how, tmp_path / "cache")

    places = {"AWQ": tmp_path / "out" / "base-AWQ", "GPTQ": tmp_path / "out" / "base-GPTQ"}
    assert made() == places
    assert all((place / "model.safetensors").read_bytes() == b"made" for place in places.values())
    assert made() == places
    with pytest.raises(ArtifactError, match="base-AWQ: exists and is another build; expected another --out"):
        made(FEW.model_copy(update={"samples": 3}))
    with pytest.raises(ArtifactError, match="--to: no level 'EXL2'; expected some of AWQ,GPTQ"):
        made(level="EXL2")


def test_gptqmodel_makes_no_awq_builds(source: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="gptqmodel makes AWQ builds on CUDA devices alone; expected tool: llmcomp"):
        make_checkpoint(source, "AWQ", FEW.model_copy(update={"tool": "gptqmodel"}), tmp_path)


def test_gptqmodel_is_given_the_settings_that_were_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Against a stand-in: 4 bits, our groups, our token ids, and no bfloat16 where there is no accelerator."""
    heard: dict[str, object] = {}

    class Model:
        @staticmethod
        def load(source: str, how: object, **options: object) -> type[Model]:
            heard.update(source=source, how=how, options=options)
            return Model

        @staticmethod
        def quantize(samples: object, batch_size: int) -> None:
            heard.update(samples=samples, batch_size=batch_size)

        @staticmethod
        def save(out: str) -> None:
            heard.update(out=out)

    tool = SimpleNamespace(GPTQModel=Model, QuantizeConfig=lambda **settings: settings)
    monkeypatch.setitem(sys.modules, "gptqmodel", tool)
    monkeypatch.setattr(quantizer_script, "_compute_dtype", lambda: "torch.float32")
    monkeypatch.setenv("GPTQMODEL_CPU_WORKERS", "4")
    settings = {"source": "base", "out": "made", "group_size": 64}
    made = quantizer_script._by_gptqmodel(settings, [[5, 6]])
    assert heard == {
        "source": "base",
        "how": {"bits": 4, "group_size": 64},
        "options": {"trust_remote_code": False, "dtype": "torch.float32"},
        "samples": [{"input_ids": [5, 6], "attention_mask": [1, 1]}],
        "batch_size": 1,
        "out": "made",
    }
    assert made["compute_dtype"] == "float32"


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (lambda content: content if isinstance(content, str) else content[0]["text"], "<user>ask<assistant>no"),
        (lambda content: "" if isinstance(content, str) else content[0]["text"], "<user>ask<assistant>no"),
        (lambda content: content[0]["text"], "<user>ask<assistant>no"),
        (lambda content: "", "ask\n\nno\n\n"),
    ],
)
def test_calibration_turns_are_given_as_the_template_shows_them(shown: Callable[..., str], expected: str) -> None:
    """A template that leaves a text out would calibrate on empty turns."""

    class Tokenizer:
        chat_template = "some"

        @staticmethod
        def apply_chat_template(turns: list[dict[str, object]], tokenize: bool) -> str:
            assert not tokenize
            return "".join(f"<{turn['role']}>{shown(turn['content'])}" for turn in turns)

        def __call__(self, text: str, **_: object) -> dict[str, object]:
            return {"input_ids": text}

    ids = quantizer_script._token_ids(Tokenizer(), [["ask", "no"], ["ask", "no"]], 100)
    assert "".join(map(str, ids)) == expected * 2


def installed(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    monkeypatch.setattr(checkpoint_build, "_installed", versions.get)


def test_an_environment_that_has_the_tool_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, **checkpoint_build.TOOLS)
    for tool in checkpoint_build.TOOLS:
        assert quantizer_python(tool, tmp_path) == Path(sys.executable)
    assert not list(tmp_path.iterdir())


def test_gptqmodel_gets_no_environment_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    with pytest.raises(EngineError, match=r"expected it in this one, by: pip install gptqmodel==\S+ optimum$"):
        quantizer_python("gptqmodel", tmp_path)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[str]]]:
    """Answer each command with a pattern's outcome instead of running it; returns the commands given so far."""
    given: list[list[str]] = []

    def answer(outcomes: Mapping[str, tuple[int, str, str]]) -> list[list[str]]:
        def run(command: list[str]) -> subprocess.CompletedProcess[str]:
            given.append(command)
            if "venv" in command:
                python = Path(command[-1]) / "bin" / "python"
                python.parent.mkdir(parents=True)
                python.touch()
            text = " ".join(command)
            code, out, err = next((outcome for part, outcome in outcomes.items() if part in text), (0, "", ""))
            return subprocess.CompletedProcess(command, code, out, err)

        monkeypatch.setattr(checkpoint_build, "_quietly", run)
        return given

    return answer


WORKS = (0, "warning\n" + checkpoint_build.TOOLS["llmcompressor"] + "\n", "")


def test_an_environment_is_made_once_with_the_callers_torch(
    commands: Callable[..., list[list[str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, torch="2.9.0+cpu", llmcompressor="0.1")
    given, said = commands({"import llmcompressor": WORKS}), []
    python = quantizer_python("llmcompressor", tmp_path, said.append)
    assert python.is_relative_to(tmp_path / "environments")
    assert python.exists()
    install = ["-m", "pip", "install", "--quiet"]
    hashed = [*install, "--require-hashes", "--no-deps", "--only-binary=:all:", "-r"]
    assert [command[1:] for command in given[1:4]] == [
        [*hashed, str(checkpoint_build.REQUIREMENTS)],
        [*install, "torch==2.9.0+cpu"],
        ["-m", "pip", "check"],
    ]
    assert len(said) == 1
    assert "making an environment of its own for llmcompressor 0.14.0.1" in said[0]
    count = len(given)
    assert quantizer_python("llmcompressor", tmp_path, said.append) == python
    assert [command[1] for command in given[count:]] == ["-I"]
    assert len(said) == 1


def test_another_build_of_the_same_torch_will_do(
    commands: Callable[..., list[list[str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, torch="2.9.0+cpu")
    given = commands({"import llmcompressor": WORKS, "torch==2.9.0+cpu": (1, "", "ERROR: No matching distribution")})
    assert quantizer_python("llmcompressor", tmp_path).exists()
    assert [command[-1] for command in given if "pip" in command][1:3] == ["torch==2.9.0+cpu", "torch==2.9.0"]


@pytest.mark.parametrize("torch", [None, "2.14.0"])
def test_without_a_torch_here_or_with_the_listed_one_it_comes_by_its_hash_too(
    commands: Callable[..., list[list[str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch: str | None
) -> None:
    installed(monkeypatch, **({} if torch is None else {"torch": torch}))
    given = commands({"import llmcompressor": WORKS})
    quantizer_python("llmcompressor", tmp_path)
    installs = [command for command in given if "install" in command]
    assert [command[-1] for command in installs] == [
        str(checkpoint_build.REQUIREMENTS), str(checkpoint_build.TORCH)
    ]  # fmt: skip
    assert all("--require-hashes" in command for command in installs)


def test_the_lists_pin_every_file_and_name_no_host() -> None:
    """Two packages were pinned by release and some seventy not at all."""
    names = set()
    for file in (checkpoint_build.REQUIREMENTS, checkpoint_build.TORCH):
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
        assert not [line for line in lines if "://" in line or line.startswith("-")]
        for entry in re.split(r"\n(?=\S)", "\n".join(lines)):
            pinned = re.match(r"([a-z0-9-]+)==[\w.]+( ; [^\\]+)? \\\n", entry)
            assert pinned, entry[:80]
            names.add(pinned[1])
            assert re.fullmatch(r"(    --hash=sha256:[0-9a-f]{64}( \\)?\n?)+", entry[pinned.end() :])
    assert {"llmcompressor", "accelerate", "transformers", "torch"} <= names
    assert f"llmcompressor=={checkpoint_build.TOOLS['llmcompressor']} " in checkpoint_build.REQUIREMENTS.read_text()


@pytest.mark.parametrize(
    ("outcomes", "reason"),
    [
        (
            {"-m venv": (1, "", "Error: ensurepip is not available\n")},
            "could not be made: Error: ensurepip is not available",
        ),
        ({"pip": (1, "", "a\nERROR: No room\nERROR: Left\nhint\n")}, "could not be made: Left$"),
        (
            {"pip check": (1, "a 1 has requirement torch<2.14\n", "")},
            "could not be made: a 1 has requirement torch<2.14$",
        ),
        (
            {"import llmcompressor": (1, "", "ImportError")},
            "was made, but llmcompressor 0.14.0.1 cannot be imported in it",
        ),
    ],
)
def test_an_environment_that_cannot_be_made_is_said_in_one_line_and_not_kept(
    outcomes: Mapping[str, tuple[int, str, str]],
    reason: str,
    commands: Callable[..., list[list[str]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed(monkeypatch, torch="2.9.0")
    commands(outcomes)
    with pytest.raises(EngineError, match=reason):
        quantizer_python("llmcompressor", tmp_path)
    assert not list((tmp_path / "environments").iterdir())


WIDTH, FFN, VOCAB = 64, 128, 260


def _byte_sign(value: int) -> str:
    """The sign that stands for a byte in GPT-2's vocabulary, near enough: every byte has one of its own."""
    return chr(value) if 33 <= value <= 126 else chr(256 + value)


def write_llama_gguf(path: Path) -> Path:
    """A whole F16 Llama of one layer with random weights, as gguf-py writes it."""
    gguf = pytest.importorskip("gguf")
    writer, rng = gguf.GGUFWriter(str(path), "llama"), np.random.default_rng(7)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // 4)
    writer.add_vocab_size(VOCAB)
    writer.add_file_type(1)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*(_byte_sign(value) for value in range(256)), "<s>", "</s>", "th", "he"])
    writer.add_token_types([1] * 256 + [3, 3, 1, 1])
    writer.add_token_merges(["t h", "h e"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    half, kv = WIDTH // 2, "blk.0.attn_"
    shapes = {"token_embd": (VOCAB, WIDTH), "output": (VOCAB, WIDTH), f"{kv}q": (WIDTH, WIDTH), f"{kv}k": (half, WIDTH)}
    shapes |= {f"{kv}v": (half, WIDTH), f"{kv}output": (WIDTH, WIDTH), "blk.0.ffn_down": (WIDTH, FFN)}
    shapes |= {"blk.0.ffn_gate": (FFN, WIDTH), "blk.0.ffn_up": (FFN, WIDTH)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng.normal(0, 0.3, shape).astype(np.float16))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", rng.normal(1, 0.1, WIDTH).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_becomes_a_checkpoint_without_rounding(llama: Path) -> None:
    """Matrices keep their F16 and norms their F32 values, bit for bit, and the second call makes nothing."""
    numpy_files, gguf = pytest.importorskip("safetensors.numpy"), pytest.importorskip("gguf")
    file, cache = llama.parents[2] / "tiny.gguf", llama.parents[1]
    stored = numpy_files.load_file(llama / "model.safetensors")
    original = {tensor.name: tensor.data for tensor in gguf.GGUFReader(file).tensors}
    pairs = {"model.embed_tokens": "token_embd", "lm_head": "output", "model.norm": "output_norm"}
    inside = {"mlp.down_proj": "ffn_down", "self_attn.v_proj": "attn_v", "input_layernorm": "attn_norm"}
    pairs |= {f"model.layers.0.{ours}": f"blk.0.{theirs}" for ours, theirs in inside.items()}
    for ours, theirs in pairs.items():
        assert stored[f"{ours}.weight"].dtype == original[f"{theirs}.weight"].dtype, ours
        assert np.array_equal(stored[f"{ours}.weight"], original[f"{theirs}.weight"]), ours
    before = (llama / RECORD).stat().st_mtime_ns
    assert checkpoint_of_gguf(file, cache) == llama
    assert (llama / RECORD).stat().st_mtime_ns == before


def test_a_gguf_file_needs_transformers_to_become_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_llama_gguf(tmp_path / "tiny.gguf")
    installed(monkeypatch)
    with pytest.raises(QuantverdictError, match=r"tiny\.gguf: .*; pip install 'quantverdict\[transformers\]'"):
        checkpoint_of_gguf(file, tmp_path / "cache")


def test_a_gguf_file_that_transformers_cannot_read_is_said_in_one_line(
    write_model: Callable[..., Path], tmp_path: Path
) -> None:
    for package in ("transformers", "accelerate", "torch"):
        pytest.importorskip(package)
    file = write_model(tmp_path / "odd.gguf", arch="rwkv6", layers=1)
    with pytest.raises(EngineError, match="rwkv6") as caught:
        checkpoint_of_gguf(file, tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache" / "checkpoints").iterdir())


@pytest.fixture
def quantizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """llmcompressor in this environment, or in the one of its own that is there already; no test makes one."""
    here = checkpoint_build._installed("llmcompressor") == checkpoint_build.TOOLS["llmcompressor"]
    python = Path(sys.executable) if here else checkpoint_build.own_python("llmcompressor", cache_dir())
    if not python.exists():
        pytest.skip("no environment of llmcompressor's own (quantverdict quantize makes it)")
    monkeypatch.setattr(checkpoint_build, "quantizer_python", lambda *_: python)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random Llama as a checkpoint."""
    for package in ("transformers", "accelerate", "torch"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("llama")
    return checkpoint_of_gguf(write_llama_gguf(folder / "tiny.gguf"), folder / "cache")


@pytest.mark.engine
@pytest.mark.parametrize("level", ["AWQ", "GPTQ"])
def test_a_small_random_model_is_quantised_for_real(level: str, quantizer: None, llama: Path, tmp_path: Path) -> None:
    """Every matrix of the layer becomes packed integers, the rest stays, and the build has answered."""
    numpy_files = pytest.importorskip("safetensors.numpy")
    how = QuantizeConfig(samples=4, sequence_length=32, calibration="safety")
    build = make_checkpoint(llama, level, how, tmp_path / "cache")
    tensors, before = (numpy_files.load_file(folder / "model.safetensors") for folder in (build, llama))
    assert sum(name.endswith("weight_packed") for name in tensors) == 7
    assert {tensors[name].dtype for name in tensors if name.endswith("weight_scale")} == {np.dtype(np.float16)}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert np.array_equal(tensors[name], before[name])
    record = json.loads((build / RECORD).read_text(encoding="utf-8"))
    assert record["group_size"] == 64
    assert record["made"]["tokens"] == 4 * 32
    assert record["proof"]["token"] >= 0


FORMATS = {
    "W4A16": ("INT4", 4.25), "W8A8": ("INT8", 8.0), "FP8_DYNAMIC": ("FP8", 8.0), "NVFP4": ("NVFP4", 4.5),
    "MXFP4": ("MXFP4", 4.25),
}  # fmt: skip


@pytest.mark.engine
@pytest.mark.parametrize("level", FORMATS)
def test_every_other_format_is_made_for_real_and_comes_from_its_source(
    level: str, quantizer: None, llama: Path, tmp_path: Path
) -> None:
    """It has answered; seven matrices are stored in its type and bits; all of them are the source's, rounded."""
    build = make_checkpoint(llama, level, FEW, tmp_path / "cache")
    name, bits = FORMATS[level]
    low = [weight for weight in open_checkpoint(build).weights if weight.packing != "wide"]
    assert [weight.type_name.partition(" ")[0] for weight in low] == [name] * 7
    assert 8 * sum(one.nbytes for one in low) / sum(one.n_elements for one in low) == pytest.approx(bits, abs=0.7)
    lineage = compare(llama, build)
    check = next(one for one in lineage.checks if one.name == "quantised weights")
    assert check.verdict == "same", check.reason


@pytest.mark.parametrize(
    ("level", "group", "samples"),
    [("GPTQ", 64, 2), ("W4A16", 64, 0), ("W8A8", 0, 0), ("FP8_DYNAMIC", 0, 0), ("NVFP4", 16, 2), ("MXFP4", 32, 0)],
)
def test_each_level_has_its_own_group_and_is_calibrated_where_that_counts(
    level: str, group: int, samples: int, source: Path, fake: Path, tmp_path: Path
) -> None:
    make_checkpoint(source, level, FEW, tmp_path / "cache")
    asked = calls(fake)[0]
    assert (asked["level"], asked["group_size"], len(asked["samples"])) == (level, group, samples)


def test_rows_that_a_formats_own_group_does_not_divide_are_named(tmp_path: Path, fake: Path) -> None:
    folder = write_checkpoint(tmp_path / "base", layers(48))
    make_checkpoint(folder, "FP8_DYNAMIC", FEW, tmp_path / "cache")
    make_checkpoint(folder, "NVFP4", FEW, tmp_path / "cache")
    with pytest.raises(ArtifactError, match="groups of 32 weights do not divide"):
        make_checkpoint(folder, "MXFP4", FEW, tmp_path / "cache")


@pytest.mark.parametrize("level", ["AWQ", "W8A8"])
def test_gptqmodel_makes_nothing_but_gptq(level: str, source: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="expected tool: llmcompressor"):
        make_checkpoint(source, level, QuantizeConfig(tool="gptqmodel"), tmp_path / "cache")


def test_the_script_asks_for_integers_by_group_and_for_the_others_by_name() -> None:
    rules = {
        level: quantizer_script._rule({"level": level, "group_size": 32}, ["lm_head"])
        for level in ("AWQ", "GPTQ", "W4A16", "NVFP4", "FP8_DYNAMIC")
    }
    for level in ("AWQ", "GPTQ", "W4A16"):
        weights = rules[level]["config_groups"]["group_0"]["weights"]
        assert (weights["group_size"], weights["symmetric"]) == (32, level != "AWQ")
    assert rules["NVFP4"] == {"targets": ["Linear"], "scheme": "NVFP4", "ignore": ["lm_head"]}
    assert rules["FP8_DYNAMIC"]["scheme"] == "FP8_DYNAMIC"


PHI = """
import sys, torch
from transformers import AutoTokenizer, PhiConfig, PhiForCausalLM
torch.manual_seed(7)
shape = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4, vocab_size=260)
PhiForCausalLM(PhiConfig(**shape, bos_token_id=256, eos_token_id=257)).save_pretrained(sys.argv[2])
AutoTokenizer.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])
"""


@pytest.mark.engine
def test_an_architecture_that_the_tool_cannot_do_fails_with_its_reason(
    quantizer: None, llama: Path, tmp_path: Path
) -> None:
    """Phi's attention and MLP read the same norm: llm-compressor's AWQ has no mapping for that."""
    phi = tmp_path / "phi"
    subprocess.run([sys.executable, "-W", "ignore", "-c", PHI, str(llama), str(phi)], check=True, capture_output=True)
    with pytest.raises(EngineError, match=r"^ValueError: .*v_proj.* no matches found .*o_proj") as caught:
        make_checkpoint(phi, "AWQ", FEW, tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache" / "checkpoints").glob("*AWQ*"))
