"""Compute an importance matrix: how much each column of a weight counts on a text, as llama.cpp's tool computes it.

The model reads the text in windows, and of every product of a weight with activations the squares of the activations
are summed, column by column; of experts over the tokens that each was asked. It runs in a process of its own: what
llama.cpp does not expect ends a process.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantverdict.artifacts.gguf import file_sha256, open_model
from quantverdict.artifacts.gguf_read import TYPE_BY_NAME
from quantverdict.artifacts.quantize import TensorEntry, header_bytes, text_field, uint32_field, write_padded
from quantverdict.artifacts.sources import cache_dir, written_whole
from quantverdict.backends.base import physical_cores
from quantverdict.backends.llama_engine import Foreign, Library, open_library
from quantverdict.errors import ArtifactError, EngineError, QuantverdictError, os_reason

WINDOW = 512
"""Tokens that are read together; a shorter rest of the text is left out."""
_LEAST_ROWS = 16
"""Products with fewer rows are left out, as llama.cpp's tool leaves them out."""
_RECIPE = "1"
"""Part of the cache's key; raise it when the same model and text would give other sums."""
_ARRAY, _STRING, _ALIGNMENT = 9, 8, 32
_TENSOR = """
struct ggml_tensor {
    int type; void * buffer; int64_t ne[4]; size_t nb[4]; int op; int32_t op_params[16]; int32_t flags;
    struct ggml_tensor * src[10]; struct ggml_tensor * view_src; size_t view_offs; void * data; char name[64];
    void * extra; char padding[8];
};
typedef bool (*ggml_eval_callback)(struct ggml_tensor * tensor, bool ask, void * data);
const char * ggml_op_name(int op);
"""
Floats = NDArray[np.float32]


@dataclass
class _Sums:
    """Sums of squares (experts, columns) and rows (experts,) of one weight."""

    squares: Floats
    rows: NDArray[np.int64]


@dataclass
class _Collector:
    """Takes the activations of each product as it is computed."""

    ffi: Foreign
    product: int
    by_expert: int
    found: dict[str, _Sums] = field(default_factory=dict)

    def take(self, tensor: Foreign, ask: bool) -> bool:
        """Whether a product is wanted, then, once it is computed, add it up."""
        weight, activations = tensor.src[0], tensor.src[1]
        if ask:
            if tensor.op == self.by_expert:
                return True
            if tensor.op != self.product or activations.ne[1] < _LEAST_ROWS or activations.type != 0:
                return False
            return self._name(weight).startswith("blk.")
        name, columns = self._name(weight), activations.ne[0]
        experts = weight.ne[2] if tensor.op == self.by_expert else 1
        sums = self.found.setdefault(name, _Sums(np.zeros((experts, columns), np.float32), np.zeros(experts, np.int64)))
        values = self._values(activations, np.float32)
        if tensor.op == self.by_expert:
            chosen = self._values(tensor.src[2], np.int32)[0, 0]
            self._add_experts(sums, np.asarray(values[0], np.float32), np.asarray(chosen, np.int32))
        else:
            self._add(sums, 0, np.asarray(values.reshape(-1, columns), np.float32))
        return True

    def _add_experts(self, sums: _Sums, values: Floats, chosen: NDArray[np.int32]) -> None:
        """`values` (tokens, experts asked or 1, columns), `chosen` (tokens, experts asked)."""
        for place in range(chosen.shape[1]):
            rows = values[:, place % values.shape[1]]
            for expert in np.unique(chosen[:, place]).tolist():
                self._add(sums, expert, rows[chosen[:, place] == expert])

    @staticmethod
    def _add(sums: _Sums, expert: int, rows: Floats) -> None:
        """Row after row in 32 bits, as llama.cpp's tool adds."""
        squares = np.concatenate([sums.squares[expert][None, :], rows * rows])
        sums.squares[expert] = np.add.reduce(squares, axis=0)
        sums.rows[expert] += len(rows)

    def _name(self, weight: Foreign) -> str:
        """Without what a backend puts around it: CUDA0#blk.0.attn_k.weight#0."""
        name: str = self.ffi.string(weight.name).decode(errors="replace")
        return name.split("#")[1] if name.count("#") else name

    def _values(self, tensor: Foreign, dtype: type[np.generic]) -> NDArray[np.generic]:
        """A tensor's values, the last extent first, as they lie in memory."""
        extents, steps = list(tensor.ne), list(tensor.nb)
        size = sum((extent - 1) * step for extent, step in zip(extents, steps, strict=True)) + steps[0]
        flat = np.frombuffer(self.ffi.buffer(tensor.data, size), np.uint8)
        return np.ndarray(extents[::-1], dtype, flat, 0, steps[::-1])


def collect(model: Path, text: str, window: int = WINDOW, threads: int = 1) -> tuple[dict[str, _Sums], int]:
    """The sums of a text, and how many windows it gave; in this process.

    Raises:
        EngineError: llama.cpp cannot load or run the model.
        ArtifactError: the text is shorter than a window.
    """
    library = open_library()
    ffi, api = library.ffi, library.api
    ffi.cdef(_TENSOR)
    names = {ffi.string(api.ggml_op_name(number)).decode(): number for number in range(64)}
    collector = _Collector(ffi, names["MUL_MAT"], names["MUL_MAT_ID"])
    callback = ffi.callback("ggml_eval_callback", lambda tensor, ask, _data: collector.take(tensor, ask))
    params = api.llama_model_default_params()
    params.n_gpu_layers, params.use_extra_bufts = 0, False  # repacked weights have other names
    loaded = api.llama_model_load_from_file(str(model).encode(), params)
    if loaded == ffi.NULL:
        raise EngineError(f"{model} cannot be loaded by llama.cpp: {library.reason()}")
    context = _context(library, loaded, callback, window, threads)
    vocabulary = api.llama_model_get_vocab(loaded)
    starts = api.llama_vocab_get_add_bos(vocabulary)
    tokens = _tokens(library, vocabulary, text)
    if len(tokens) < window:
        raise ArtifactError(f"has {len(tokens)} tokens", field="text", expected=f"at least {window}, one window")
    for number in range(len(tokens) // window):
        own = tokens[number * window : (number + 1) * window]
        own[0] = api.llama_vocab_bos(vocabulary) if starts else own[0]
        _read(library, context, own)
    return collector.found, len(tokens) // window


def _context(library: Library, model: Foreign, callback: Foreign, window: int, threads: int) -> Foreign:
    params = library.api.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = params.n_outputs_max_per_seq = window
    params.n_threads = params.n_threads_batch = threads
    params.cb_eval = library.ffi.cast("void *", callback)
    context = library.api.llama_init_from_model(model, params)
    if context == library.ffi.NULL:
        raise EngineError(f"no memory for a window of {window} tokens: {library.reason()}")
    return context


def _tokens(library: Library, vocabulary: Foreign, text: str) -> list[int]:
    data = text.encode()
    room = library.ffi.new("llama_token[]", len(data) + 16)
    count = library.api.llama_tokenize(vocabulary, data, len(data), room, len(data) + 16, True, False)
    return list(room[0 : max(0, count)])


def _read(library: Library, context: Foreign, tokens: list[int]) -> None:
    """One window from an empty memory; logits of every row are wanted, else the last layer is computed for one."""
    api = library.api
    api.llama_memory_clear(api.llama_get_memory(context), True)
    batch = api.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for place, token in enumerate(tokens):
        batch.token[place], batch.pos[place], batch.n_seq_id[place] = token, place, 1
        batch.seq_id[place][0], batch.logits[place] = 0, 1
    failed = api.llama_decode(context, batch)
    api.llama_batch_free(batch)
    if failed:
        raise EngineError(f"llama.cpp cannot read the text: {library.reason()}")


def write_imatrix(path: Path, sums: Mapping[str, _Sums], dataset: str, windows: int, window: int) -> Path:
    """Write a file as llama-imatrix writes it: sums of squares and counts, by name."""
    float32 = TYPE_BY_NAME["F32"]
    entries, blocks = [], []
    for name in sorted(sums):
        experts, columns = sums[name].squares.shape
        entries.append(TensorEntry(f"{name}.in_sum2", (columns, experts), float32))
        entries.append(TensorEntry(f"{name}.counts", (1, experts), float32))
        blocks += [sums[name].squares.tobytes(), sums[name].rows.astype(np.float32).tobytes()]
    named = dataset.encode()
    key = text_field("imatrix.datasets", "").split(struct.pack("<I", _STRING))[0]
    fields = (
        text_field("general.type", "imatrix"),
        key + struct.pack("<IIQQ", _ARRAY, _STRING, 1, len(named)) + named,
        uint32_field("imatrix.chunk_count", windows),
        uint32_field("imatrix.chunk_size", window),
    )
    header = header_bytes(fields, tuple(entries), _ALIGNMENT)
    with written_whole(path, len(header) + sum(len(block) + _ALIGNMENT for block in blocks)) as file:
        file.write(header)
        for block in blocks:
            write_padded(file, block, _ALIGNMENT)
    return path


def compute_imatrix(model: Path, text: Path, out: Path | None = None, window: int = WINDOW) -> Path:
    """The importance matrix of a model on a text, computed once and kept.

    Args:
        model: a GGUF file, as wide as there is.
        text: plain text; its name is recorded.
        out: where to write it; in the cache if not given.

    Raises:
        ArtifactError: a file cannot be read, or the text is shorter than a window.
        EngineError: llama.cpp cannot load or run the model; its reason in one line.
    """
    try:
        data = text.read_bytes()
        data.decode()
    except (OSError, UnicodeDecodeError) as error:
        why = os_reason(error) if isinstance(error, OSError) else "no UTF-8"
        raise ArtifactError(f"cannot be read ({why})", file=text, expected="a text file") from error
    known = f"{file_sha256(open_model(model))[:16]}-{hashlib.sha256(data).hexdigest()[:16]}-{window}-{_RECIPE}"
    place = out or cache_dir() / "imatrix" / f"{known}.gguf"
    if out is not None or not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        _run({"model": str(model), "text": str(text), "out": str(place), "window": window})
    return place


def _run(settings: Mapping[str, object]) -> None:
    """Compute in a process of its own; Ctrl-C ends it too."""
    with tempfile.TemporaryDirectory(prefix="quantverdict-") as folder:
        given = Path(folder) / "settings.json"
        given.write_text(json.dumps(settings), encoding="utf-8")
        done = subprocess.run(  # noqa: S603 - our own words
            [sys.executable, "-P", "-m", "quantverdict.backends.imatrix", str(given)],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
            env={"OMP_WAIT_POLICY": "passive"} | os.environ,
        )  # fmt: skip
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        said = next((line.removeprefix("error: ") for line in reversed(lines) if line.startswith("error: ")), None)
        why = said or (lines[-1] if lines else f"status {done.returncode}")
        raise EngineError(f"the importance matrix cannot be computed: {why[:400]}")


def main(settings_file: str) -> None:
    """What the process does."""
    settings = json.loads(Path(settings_file).read_text(encoding="utf-8"))
    text = Path(settings["text"])
    try:
        sums, windows = collect(
            Path(settings["model"]), text.read_text(encoding="utf-8"), settings["window"], physical_cores()
        )
        write_imatrix(Path(settings["out"]), sums, text.name, windows, settings["window"])
    except QuantverdictError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(1) from error


if __name__ == "__main__":
    main(sys.argv[1])
