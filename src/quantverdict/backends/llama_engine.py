"""One GGUF model in this process: text to tokens, tokens to logits. The interface the batch scheduler works on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quantverdict.backends.llama_library import Library
from quantverdict.backends.marks import is_mark
from quantverdict.errors import EngineError

Logits = npt.NDArray[np.float32]
"""One row a position, one column a token of the vocabulary; overwritten by the next evaluation."""

CHUNK = 512
"""Rows the library computes at once (its n_ubatch)."""
_PAGE = 256


class LlamaEngine:
    """A loaded model and the memory of the sequences that are being decoded.

    Each sequence has a memory of its own (`kv_unified` off), so that what else is decoded beside it cannot change the
    order in which its attention is summed.

    Args:
        repack: lay weights out for speed. A row on its own is then summed in another order than a row among others,
            which only matters where there are others.
        vocab_only: leave the weights where they are: text to tokens and back is all that works.
    """

    def __init__(
        self, library: Library, path: Path, threads: int, *, repack: bool = False, vocab_only: bool = False
    ) -> None:
        self._library, self._ffi, self._api = library, library.ffi, library.api
        self._threads = threads
        self._context: Any = None
        self._memory: Any = None
        self._shape = (0, 0)
        params = self._api.llama_model_default_params()
        params.n_gpu_layers = 0
        params.use_extra_bufts, params.vocab_only = repack, vocab_only
        library.log.clear()
        self._model = self._api.llama_model_load_from_file(str(path).encode(), params)
        if self._model == self._ffi.NULL:
            raise EngineError(f"{path} cannot be loaded by llama.cpp: {library.reason()}")
        self._refuse_architectures(path)
        self._vocab = self._api.llama_model_get_vocab(self._model)
        self.n_vocab: int = self._api.llama_vocab_n_tokens(self._vocab)
        self._batch = self._api.llama_batch_init(CHUNK, 0, 1)
        self._piece = self._ffi.new("char[]", _PAGE)

    def _refuse_architectures(self, path: Path) -> None:
        """Sequences are cut back and copied, which only a memory of keys and values can do."""
        api = self._api
        for test, name in (
            (api.llama_model_has_encoder, "an encoder"),
            (api.llama_model_is_recurrent, "a recurrent state"),
            (api.llama_model_is_hybrid, "a recurrent state in some layers"),
        ):
            if test(self._model):
                raise EngineError(f"{path}: a model with {name} is not supported; expected a decoder-only transformer")

    def tokenize(self, text: str, *, start: bool) -> list[int]:
        """Token ids of a text; special tokens written in it are read as such.

        Args:
            text: any text.
            start: it begins the sequence: the start token is put before it where the model wants one and the text
                does not begin with it already.
        """
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise EngineError(f"a text is not valid Unicode ({error.reason} at {error.start})") from error
        room = len(data) + 8
        ids = self._ffi.new("llama_token[]", room)
        n = self._api.llama_tokenize(self._vocab, data, len(data), ids, room, False, True)
        if n < 0:
            raise EngineError(f"a text of {len(data)} bytes could not be tokenised")
        tokens: list[int] = list(ids[0:n])
        if start and self._api.llama_vocab_get_add_bos(self._vocab):
            first: int = self._api.llama_vocab_bos(self._vocab)
            if first >= 0 and tokens[:1] != [first]:
                tokens.insert(0, first)
        return tokens

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
        params.flash_attn_type = 1
        self._library.log.clear()
        self._context = self._api.llama_init_from_model(self._model, params)
        if self._context == self._ffi.NULL:
            self._context = None
            raise EngineError(f"no memory for {sequences} sequences of {shape[1]} tokens: {self._library.reason()}")
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
        self._api.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def cut(self, sequence: int, length: int) -> None:
        """Forget all but the first `length` tokens of a sequence."""
        if not self._api.llama_memory_seq_rm(self._memory, sequence, length, -1):
            raise EngineError(f"sequence {sequence} could not be cut to {length} tokens")

    def _free_context(self) -> None:
        if self._context is not None:
            self._api.llama_free(self._context)
            self._context, self._shape = None, (0, 0)
