"""What a GGUF is: its identity, true bits per weight, tensor types, chat template, and how it came to be."""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from mmap import mmap
from pathlib import Path

from quantverdict.artifacts.gguf_mix import MAIN_TYPE_BY_FILE_TYPE, is_quantizable
from quantverdict.artifacts.gguf_read import TYPE_BY_NAME, Gguf, Tensor, open_gguf, part_of
from quantverdict.artifacts.kinds import is_folder, require_model_folder, require_model_gguf
from quantverdict.artifacts.settings import gguf_settings, identity_sha256, rendered, tokens_sha256
from quantverdict.errors import ArtifactError, count_of
from quantverdict.records import Artifact

TENSOR_TYPES_KEY = "quantverdict.tensor_types"
"""Metadata key of a made level: the types that were given by name, as PATTERN=TYPE."""
DEQUANTIZED_KEY = "quantverdict.dequantized_from"
"""Metadata key of a made level: the low-bit type its source was stored in."""

_CHUNK = 1 << 22


def inspect_gguf(path: Path) -> Artifact:
    """Read a GGUF file.

    Raises:
        ArtifactError: it, or a part of it, is missing, no GGUF, truncated or corrupt; or it is no language model.
    """
    model = open_model(path)
    with ThreadPoolExecutor(2) as pool:
        whole = pool.submit(file_sha256, model)
        weights = pool.submit(_weights_sha256, model)
        sha256, weights_sha256 = whole.result(), weights.result()
    matrices = [tensor for tensor in model.tensors if tensor.n_dims > 1]
    settings, template, special = gguf_settings(model), model.text("tokenizer.chat_template"), _special_tokens(model)
    return Artifact(
        path=str(model.path),
        format="gguf",
        sha256=sha256,
        weights_sha256=weights_sha256,
        file_bytes=model.nbytes,
        n_params=sum(tensor.n_elements for tensor in model.tensors),
        bpw=_bits_per_weight(model.tensors),
        bpw_quantized=_bits_per_weight(matrices or model.tensors),
        tensor_types=_by_count(tensor.type.name for tensor in model.tensors),
        fallbacks=_fallbacks(model),
        architecture=model.text("general.architecture") or "",
        name=model.text("general.name") or "",
        chat_template=template,
        tokenizer_sha256=_tokenizer_sha256(model),
        dequantized_from=dequantized_from(model),
        calibration=_calibration(model),
        special_tokens=special,
        identity_sha256=identity_sha256(weights_sha256, settings, rendered(template, special)),
        tokens_sha256=tokens_sha256(settings),
        unread=_unread(model),
    )


def _unread(model: Gguf) -> str:
    """The tensors of types that llama.cpp does not have: where they end is known, and not what is in them."""
    others = _by_count(tensor.type.name for tensor in model.tensors if not tensor.type.known)
    bits = "their bits are counted from where their data lie in the file"
    return f"{_counts(others)} tensors, of types that llama.cpp does not have: {bits}" if others else ""


def open_model(path: Path) -> Gguf:
    """`open_gguf`, for what must be a whole language model."""
    if is_folder(path):
        require_model_folder(path)
    model = open_gguf(path)
    require_model_gguf(model)
    if not model.tensors:
        raise ArtifactError("holds no tensors", file=path, expected="a model")
    return model


def dequantized_from(model: Gguf) -> str | None:
    """The low-bit type that the weights went through before: as recorded when it was made, else as the data show."""

    from quantverdict.artifacts.grid import low_bit_grid

    return model.text(DEQUANTIZED_KEY) or low_bit_grid(model)


def describe(artifact: Artifact) -> list[str]:
    """What `quantverdict inspect` prints, a line each."""
    template, part = artifact.chat_template, part_of(Path(artifact.path).name)
    rows = {
        "file": artifact.path if part is None else f"{artifact.path}, the first of {part[2]} parts",
        "model": f"{artifact.name or 'unnamed'} ({artifact.architecture or 'no architecture'})",
        "sha256": artifact.sha256,
        "weights sha256": artifact.weights_sha256,
        "identity sha256": f"{artifact.identity_sha256}: of all that changes an answer",
        "size": f"{artifact.file_bytes:,} bytes, {artifact.n_params:,} weights",
        "bits per weight": f"{artifact.bpw:.3f} over all tensors, {artifact.bpw_quantized:.3f} over the matrices",
        "tensor types": _counts(artifact.tensor_types),
        "chat template": "none: prompts go in as plain text" if template is None else f"{len(template):,} characters",
        "special tokens": ", ".join(f"{name} {text!r}" for name, text in artifact.special_tokens.items()) or "none",
        "tokenizer sha256": artifact.tokenizer_sha256,
    }
    if artifact.unread:
        rows["not read"] = artifact.unread
    if artifact.calibration:
        rows["calibration"] = artifact.calibration
    if artifact.fallbacks:
        count = sum(artifact.fallbacks.values())
        verb = "is" if count == 1 else "are"
        rows["fallbacks"] = (
            f"{count_of(count, 'matrix', 'matrices')} ({_counts(artifact.fallbacks)}) {verb} not in the type this "
            "level is named after: their rows are not a multiple of 256, so llama.cpp stores them in another one"
        )
    if artifact.dequantized_from:
        rows["dequantised"] = (
            f"the weights went through {artifact.dequantized_from} before: this is not the original model, and "
            "levels near that grid look better than they are"
        )
    return [f"{label:<16} {_one_line(text)}" for label, text in rows.items()]


def _counts(types: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in types.items())


def _one_line(text: str) -> str:
    """Metadata are somebody else's text: no line ends, no terminal control."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _bits_per_weight(tensors: tuple[Tensor, ...] | list[Tensor]) -> float:
    return 8 * sum(tensor.nbytes for tensor in tensors) / sum(tensor.n_elements for tensor in tensors)


def _by_count(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])))


def _fallbacks(model: Gguf) -> Mapping[str, int]:
    """Matrices whose rows do not fit the type that the file's level is named after, by the type they have instead."""
    file_type = model.integer("general.file_type")
    main = None if file_type is None else MAIN_TYPE_BY_FILE_TYPE.get(file_type)
    if main is None:
        return {}
    block = TYPE_BY_NAME[main].block
    return _by_count(item.type.name for item in model.tensors if is_quantizable(item) and item.shape[0] % block)


def file_sha256(model: Gguf) -> str:
    """sha256 of the file; of a split model over those of its parts, in their order, a line each."""
    parts = [_sha256(part, 0, len(part)) for part in model.parts]
    return parts[0] if len(parts) == 1 else hashlib.sha256("".join(f"{one}\n" for one in parts).encode()).hexdigest()


def _sha256(data: mmap, start: int, end: int) -> str:
    digest = hashlib.sha256()
    with memoryview(data) as view:
        for at in range(start, end, _CHUNK):
            digest.update(view[at : min(at + _CHUNK, end)])
    return digest.hexdigest()


def _weights_sha256(model: Gguf) -> str:
    """Over name, shape, type and data of every tensor, in the order of their names."""
    digest = hashlib.sha256()
    for tensor in sorted(model.tensors):
        data = _sha256(model.parts[tensor.part], tensor.start, tensor.start + tensor.nbytes)
        shape = ",".join(str(extent) for extent in tensor.shape)
        digest.update(f"{len(tensor.name)}:{tensor.name} {shape} {tensor.type.name} {data}\n".encode())
    return digest.hexdigest()


def _tokenizer_sha256(model: Gguf) -> str:
    """Over every `tokenizer.ggml.*` field: vocabulary, types, scores, merges, special tokens, pre-tokeniser."""
    digest = hashlib.sha256()
    for key in sorted(model.fields):
        if key.startswith("tokenizer.ggml."):
            field = model.fields[key]
            digest.update(key.encode() + struct.pack("<IQ", field.kind, field.end - field.start))
            digest.update(model.data[field.start : field.end])
    return digest.hexdigest()


def _calibration(model: Gguf) -> str:
    """What its importance matrix was and which types were given by name, as the file says; that it has no importance
    matrix where so few bits need one; else empty."""
    named = model.text(TENSOR_TYPES_KEY)
    mix = "" if not named else f"types by name: {named}"
    return "; ".join(part for part in (_importance(model), mix) if part)


def _importance(model: Gguf) -> str:
    said = {key: model.get(f"quantize.imatrix.{key}") for key in ("dataset", "file", "chunks_count", "entries_count")}
    if any(value is not None for value in said.values()):
        chunks = "" if said["chunks_count"] is None else f", {said['chunks_count']} chunks"
        entries = "" if said["entries_count"] is None else f", {count_of(int(str(said['entries_count'])), 'tensor')}"
        return f"importance matrix of {said['dataset'] or said['file'] or 'a text that is not named'}{chunks}{entries}"
    few = [tensor for tensor in model.tensors if tensor.type.name.startswith(("IQ1_", "IQ2_", "IQ3_"))]
    return "no importance matrix is recorded: so few bits lose more without one" if few else ""


def _special_tokens(model: Gguf) -> dict[str, str]:
    """`bos`, `eos`, `padding`, ... to their text, where their ids are in the vocabulary."""
    tokens = model.get("tokenizer.ggml.tokens")
    found: dict[str, str] = {}
    if not isinstance(tokens, list):
        return found
    for key in model.fields:
        name = key.removeprefix("tokenizer.ggml.").removesuffix("_token_id")
        number = model.integer(key) if key == f"tokenizer.ggml.{name}_token_id" else None
        if number is not None and 0 <= number < len(tokens):
            found[name] = str(tokens[number])
    return found
