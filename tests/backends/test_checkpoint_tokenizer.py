"""Tokenizers of checkpoints whose files are hostile or broken, read in the program's own process."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from quantverdict.backends.base import Placement
from quantverdict.backends.checkpoint_tokenizer import CheckpointTokenizer, LibraryErrors
from quantverdict.backends.open import open_backend
from quantverdict.errors import EngineError

READ = """
import sys
from pathlib import Path
from quantverdict.backends.checkpoint_tokenizer import CheckpointTokenizer
from quantverdict.errors import EngineError
try:
    CheckpointTokenizer(Path(sys.argv[1]))
except EngineError as error:
    sys.stderr.write(str(error))
"""
NEEDS_CODE = "its files name code of their own (auto_map, modules.json), which is never run"


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def change(file: Path, **keys: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))


@pytest.fixture
def evil(checkpoint, plant_code) -> Path:
    """A model of a type that Transformers does not know, with the code that would define it."""
    plant_code(checkpoint)
    names = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.EvilModel"}
    change(checkpoint / "config.json", model_type="evil", architectures=["EvilModel"], auto_map=names)
    names = {"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]}
    change(checkpoint / "tokenizer_config.json", tokenizer_class="EvilTokenizer", auto_map=names)
    return checkpoint


def test_a_checkpoints_own_code_never_runs_whatever_is_typed(evil):
    """`yes | quantverdict run` ran it; without an input the question stood on stdout, before the document of --json."""
    command = [sys.executable, "-c", READ, str(evil)]
    done = subprocess.run(command, input="yes\n" * 100, capture_output=True, text=True, check=True)
    assert not (evil / "mark").exists()
    assert done.stdout == ""
    # Its tokenizer's own files are those of a class that is built in, so it may be read; the model below may not.
    assert "\n" not in done.stderr
    assert done.stderr == "" or NEEDS_CODE in done.stderr


def test_a_model_that_needs_its_own_code_is_refused_in_one_line(evil):
    with pytest.raises(EngineError) as told:
        open_backend("transformers", evil, Placement(threads=1))
    assert NEEDS_CODE in str(told.value)
    assert str(evil) in str(told.value)
    assert "\n" not in str(told.value)
    assert not (evil / "mark").exists()


def test_a_model_that_transformers_knows_is_run_without_the_code_beside_it(evil):
    change(evil / "config.json", model_type="llama", architectures=["LlamaForCausalLM"])
    change(evil / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    backend = open_backend("transformers", evil, Placement(threads=1))
    backend.close()
    assert not (evil / "mark").exists()


def test_weights_that_a_checkpoint_lacks_are_not_made_up(checkpoint):
    """Transformers fills them with random numbers and goes on."""
    from safetensors.torch import load_file, save_file

    found = load_file(checkpoint / "model.safetensors")
    del found["model.layers.1.mlp.up_proj.weight"]
    save_file(found, checkpoint / "model.safetensors", {"format": "pt"})
    with pytest.raises(EngineError, match=r"the weights lack model\.layers\.1\.mlp\.up_proj\.weight, 1 in all"):
        open_backend("transformers", checkpoint, Placement(threads=1))


@pytest.mark.parametrize(
    "text", ["", "[1]", '{"version": "1.', '{"version": "1.0"}', "null", '{"model": {"type": "?"}}']
)
def test_a_broken_tokenizer_is_said_in_one_line(checkpoint, text):
    (checkpoint / "tokenizer.json").write_text(text)
    with pytest.raises(EngineError) as told:
        CheckpointTokenizer(checkpoint)
    assert str(told.value).startswith(f"{checkpoint}: its tokenizer ")
    assert "\n" not in str(told.value)


def test_a_checkpoint_without_a_tokenizer_is_refused(checkpoint):
    """Transformers makes up one of special tokens alone for some classes."""
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (checkpoint / name).unlink(missing_ok=True)
    with pytest.raises(EngineError, match=r"its tokenizer (has no words|cannot be read)"):
        CheckpointTokenizer(checkpoint)


def test_errors_of_this_program_and_interruptions_pass_through():
    for error in (EngineError("own"), KeyboardInterrupt(), SystemExit(3), StopIteration()):
        with pytest.raises(type(error)) as told, LibraryErrors("what"):
            raise error
        assert told.value is error
