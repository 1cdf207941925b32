"""How much memory a build will need, from its header alone: weights, KV cache for a context, and the engine's own.

An estimate: a run measures the peak. The cache is that of full attention; layers with a sliding window need less.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantverdict.artifacts.checkpoint_read import open_checkpoint
from quantverdict.artifacts.gguf_read import TYPE_BY_NAME, Gguf, open_gguf
from quantverdict.artifacts.inspect import is_checkpoint, model_path
from quantverdict.errors import ArtifactError
from quantverdict.registry import BACKENDS

CACHE_TYPES = tuple(name.upper() for name in BACKENDS["llamacpp"].capabilities.cache_types)
"""Types that llama.cpp may keep keys and values in."""
_PROGRAM = 66_000_000
"""Of the engine's process beside weights, cache and buffers."""
_BATCH = 512
"""Tokens that are computed at once: buffers of activations are for so many."""
_PAGE = 256
"""The cache has room for a multiple of so many tokens."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What a build is estimated to hold for one sequence, in bytes.

    Attributes:
        weights: all of them, as they are stored.
        cache: keys and values of `context` tokens.
        engine: its program and its buffers.
    """

    weights: int
    cache: int
    engine: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.engine


@dataclass(frozen=True, slots=True)
class Needs:
    """What each build of a study is estimated to hold, and for what.

    Attributes:
        builds: by BASE_MODEL/QUANT; None where nothing is known of its file.
        limit: the study's `max_memory`, in bytes; None where it has none.
    """

    context: int
    cache_type: str
    builds: Mapping[str, Memory | None]
    limit: int | None

    def lines(self) -> list[str]:
        """As a person reads it; nothing where there is no build."""
        if not any(self.builds.values()):
            return []
        head = f"memory, estimated for one sequence of {self.context} tokens with keys and values in {self.cache_type}"
        width = max(26, *(len(name) for name in self.builds))
        return [
            head,
            f"{'build':{width}}{'MB':>8}{'weights':>9}{'cache':>8}{'engine':>8}",
            *map(self._line(width), self.builds),
        ]

    def _line(self, width: int) -> Callable[[str], str]:
        def line(name: str) -> str:
            one = self.builds[name]
            if one is None:
                return f"{name:{width}} unknown"
            over = "  over max_memory" if self.limit is not None and one.total > self.limit else ""
            parts = f"{one.weights / 1e6:>9.0f}{one.cache / 1e6:>8.0f}{one.engine / 1e6:>8.0f}"
            return f"{name:{width}}{one.total / 1e6:>8.0f}{parts}{over}"

        return line


@dataclass(frozen=True, slots=True)
class _Shape:
    """What the cache and the buffers of a decoder depend on.

    Attributes:
        values: numbers that one token keeps, keys and values of all layers.
        width, inner: of the hidden state, and of the feed-forward layer.
    """

    values: tuple[int, int]
    width: int
    inner: int


def memory_of(path: Path, context: int, cache_types: tuple[str, str] = ("F16", "F16")) -> Memory:
    """What a GGUF file or a checkpoint will hold for one sequence of `context` tokens.

    Args:
        cache_types: of keys and of values, of `CACHE_TYPES`.

    Raises:
        ArtifactError: it is no model, or its header does not say how large the cache is.
    """
    found = model_path(path)
    return (
        _checkpoint_memory(found, context, cache_types)
        if is_checkpoint(found)
        else gguf_memory(found, context, cache_types)
    )


def gguf_memory(path: Path, context: int, cache_types: tuple[str, str] = ("F16", "F16")) -> Memory:
    """`memory_of` a GGUF file."""
    model = open_gguf(path)
    weights = sum(tensor.nbytes for tensor in model.tensors)
    return made_memory(path, weights, context, cache_types)


def made_memory(path: Path, weights: int, context: int, cache_types: tuple[str, str] = ("F16", "F16")) -> Memory:
    """What a level that is made of a GGUF file will hold, given about how large its weights are."""
    return _memory(weights, _gguf_shape(open_gguf(path)), context, cache_types)


def _checkpoint_memory(path: Path, context: int, cache_types: tuple[str, str]) -> Memory:
    model = open_checkpoint(path)
    config = model.text_config
    layers, heads, width, inner = (
        _whole(config.get(key), path, key)
        for key in ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size")
    )
    kv = config.get("num_key_value_heads")
    size = config.get("head_dim")
    each = (kv if isinstance(kv, int) else heads) * (size if isinstance(size, int) else width // heads)
    shape = _Shape((layers * each, layers * each), width, inner)
    weights = sum(weight.nbytes for weight in model.weights) or model.nbytes
    return _memory(weights, shape, context, cache_types)


def _gguf_shape(model: Gguf) -> _Shape:
    name = model.text("general.architecture") or ""
    layers, width = (
        _whole(model.integer(f"{name}.{key}"), model.path, f"{name}.{key}")
        for key in ("block_count", "embedding_length")
    )
    heads = _each_layer(model, f"{name}.attention.head_count", layers)
    kv = _each_layer(model, f"{name}.attention.head_count_kv", layers, heads)
    usual = width // max(1, *heads)
    sizes = [model.integer(f"{name}.attention.{key}_length") or usual for key in ("key", "value")]
    inner = max(_each_layer(model, f"{name}.feed_forward_length", layers, [4 * width] * layers))
    return _Shape((sum(kv) * sizes[0], sum(kv) * sizes[1]), width, inner)


def _each_layer(model: Gguf, key: str, layers: int, default: Sequence[int] | None = None) -> list[int]:
    """A number of each layer: some files have one for all, some a list."""
    value = model.get(key)
    if isinstance(value, list):
        numbers = [number for number in value if isinstance(number, int)]
        if len(numbers) == layers:
            return numbers
    if isinstance(value, int):
        return [value] * layers
    if default is None:
        raise ArtifactError("is not given", file=model.path, field=key, expected="a number, or one for each layer")
    return list(default)


def _whole(value: object, path: Path, key: str) -> int:
    if not isinstance(value, int) or value < 1:
        raise ArtifactError("is not given", file=path, field=key, expected="a whole number")
    return value


def _memory(weights: int, shape: _Shape, context: int, cache_types: tuple[str, str]) -> Memory:
    tokens = -(-context // _PAGE) * _PAGE
    kinds = [TYPE_BY_NAME[name] for name in cache_types]
    cache = sum(tokens * count * kind.size // kind.block for count, kind in zip(shape.values, kinds, strict=True))
    buffers = 4 * _BATCH * (6 * shape.width + 2 * shape.inner) + 2 * _BATCH * tokens
    return Memory(weights, cache, _PROGRAM + buffers)
