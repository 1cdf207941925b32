"""What a model on disk is, whatever its format."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantverdict.artifacts.checkpoint_read import Checkpoint, Weight, named_bits, open_checkpoint, pickles_in
from quantverdict.artifacts.gguf import inspect_gguf
from quantverdict.artifacts.kinds import is_folder, require_model_folder
from quantverdict.artifacts.lineage_tokenizer import checkpoint_settings, files_sha256, folder_facts, folder_files
from quantverdict.artifacts.packings import raw, widened
from quantverdict.artifacts.safetensors_read import TensorLocation
from quantverdict.artifacts.settings import identity_sha256, rendered, tokens_sha256
from quantverdict.errors import ArtifactError
from quantverdict.records import Artifact

# What a safetensors checkpoint is: its identity, true bits per weight, tensor types, chat template, tokenizer.
#
# Read with neither torch nor the safetensors package: full precision, AWQ, GPTQ and compressed-tensors, in one file or
# in parts. Two checkpoints are one build where `identity_sha256` says so: config.json may differ in what its writer
# happened to note.

_CHUNK = 1 << 22
_BESIDES = (
    "config.json", "generation_config.json", "quantize_config.json", "quant_config.json", "chat_template.jinja",
    "chat_template.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "hf_quant_config.json",
)  # fmt: skip
"""Files that belong to a checkpoint besides its weights."""
_TENSORS, _BLOCKS, _BLOCK = 12, 96, 32


def inspect_checkpoint(folder: Path) -> Artifact:
    """Read a checkpoint: its folder, or its one .safetensors file.

    Bits per weight count every stored bit (packed integers, scales, zero points, column orders, matrices left wide)
    over the weights that they stand for. `sha256` is over the sha256 of every file of the checkpoint, config.json
    without what names its maker's machine.

    Raises:
        ArtifactError: a missing, truncated or corrupt file, or packed weights of an unknown kind.
    """
    found = open_checkpoint(folder)
    if found.pickles:
        return _inspect_pickles(found)
    weights = found.weights
    beside = [found.folder / name for name in _BESIDES if (found.folder / name).is_file()]
    with ThreadPoolExecutor(2) as pool:
        files = pool.submit(_files_sha256, found, beside)
        stored = [piece for weight in weights for piece in weight.parts.values()]
        data = pool.submit(_weights_sha256, [*stored, *found.cache_scales])
        sha256, weights_sha256 = files.result(), data.result()
    matrices = [weight for weight in weights if sum(extent > 1 for extent in weight.shape) > 1]
    read = folder_files(found.folder)
    facts, settings = folder_facts(read), checkpoint_settings(found, read)
    template, special = facts.chat_template, facts.special_tokens
    read_as = settings | {"tokenizer": facts.sha256}
    return Artifact(
        path=str(folder),
        format="safetensors",
        sha256=sha256,
        weights_sha256=weights_sha256,
        file_bytes=sum(len(file.data) for file in found.files) + sum(path.stat().st_size for path in beside),
        n_params=sum(weight.n_elements for weight in weights),
        bpw=_bits_per_weight(folder, weights),
        bpw_quantized=_bits_per_weight(folder, matrices or weights),
        tensor_types=_by_count(weight.type_name for weight in weights),
        fallbacks={},
        architecture=str(found.text_config.get("model_type") or found.config.get("model_type") or ""),
        name=_name(found),
        chat_template=template,
        tokenizer_sha256=files_sha256(found.folder) if facts.tokens is None else facts.sha256,
        dequantized_from=_low_bit_grid(matrices),
        special_tokens=special,
        identity_sha256=identity_sha256(weights_sha256, read_as, rendered(template, special)),
        tokens_sha256=tokens_sha256(read_as),
        unread=found.unread,
    )


def _inspect_pickles(found: Checkpoint) -> Artifact:
    """What the files beside a pickle say, and its size; it is hashed and not opened."""
    beside = [found.folder / name for name in _BESIDES if (found.folder / name).is_file()]
    read = folder_files(found.folder)
    facts, settings = folder_facts(read), checkpoint_settings(found, read)
    read_as = settings | {"tokenizer": facts.sha256}
    files = {path.name: _file_sha256(path) for path in found.pickles}
    weights = hashlib.sha256("".join(f"{name} {one}\n" for name, one in files.items()).encode()).hexdigest()
    texts = [f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path in beside]
    n_params, how = pickled_params(found)
    bits = 8 * found.nbytes / n_params
    return Artifact(
        path=str(found.path),
        format="pickle",
        sha256=hashlib.sha256("".join([weights, *texts]).encode()).hexdigest(),
        weights_sha256=weights,
        file_bytes=found.nbytes + sum(path.stat().st_size for path in beside),
        n_params=n_params,
        bpw=bits,
        bpw_quantized=bits,
        tensor_types={"pickle": len(files)},
        fallbacks={},
        architecture=str(found.text_config.get("model_type") or ""),
        name=_name(found),
        chat_template=facts.chat_template,
        tokenizer_sha256=files_sha256(found.folder) if facts.tokens is None else facts.sha256,
        dequantized_from=None,
        special_tokens=facts.special_tokens,
        identity_sha256=identity_sha256(weights, read_as, rendered(facts.chat_template, facts.special_tokens)),
        tokens_sha256=tokens_sha256(read_as),
        unread=f"{found.unread}; {how}",
    )


def _file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def pickled_params(found: Checkpoint) -> tuple[int, str]:
    """About how many weights a pickle holds, and how that is known."""
    described = described_params(found.text_config)
    if described is not None:
        return described, "its bits are its size over the weights that its configuration describes"
    dtype = str(found.text_config.get("torch_dtype") or found.text_config.get("dtype") or "")
    bits = named_bits(found.quantization) or (32 if "float32" in dtype else 16)
    return max(
        1, round(8 * found.nbytes / bits)
    ), f"its weights are its size over the {bits:g} bits of its configuration"


_LIKE_LLAMA = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "gemma", "gemma2", "gemma3",
               "gemma3_text", "phi3", "olmo", "olmo2", "granite", "smollm3")  # fmt: skip


def described_params(config: Mapping[str, object]) -> int | None:
    """About how many weights a model of the llama family has, by its configuration; None for another."""
    keys = ("hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size", "num_attention_heads")
    numbers = [config.get(key) for key in keys]
    if config.get("model_type") not in _LIKE_LLAMA or not all(type(one) is int and one > 0 for one in numbers):
        return None
    width, layers, vocabulary, inner, heads = (int(str(one)) for one in numbers)
    given = [config.get(key) for key in ("num_key_value_heads", "head_dim", "moe_intermediate_size")]
    kv, size, expert = (one if type(one) is int else usual
                        for one, usual in zip(given, (heads, width // heads, inner), strict=True))  # fmt: skip
    many = next((one for key in ("num_local_experts", "num_experts") if type(one := config.get(key)) is int), 0)
    ffn = 3 * width * expert * many + width * many if many else 3 * width * inner
    attention = 2 * width * size * (heads + kv)
    tables = vocabulary * width * (1 if config.get("tie_word_embeddings") else 2)
    return tables + layers * (attention + ffn + 2 * width) + width


def _bits_per_weight(path: Path, weights: Sequence[Weight]) -> float:
    count = sum(weight.n_elements for weight in weights)
    if not count:
        raise ArtifactError("holds no weights", file=path, expected="a model")
    return 8 * sum(weight.nbytes for weight in weights) / count


def _by_count(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])))


def _name(found: Checkpoint) -> str:
    """The folder's name; a snapshot in the hub's cache is named after its repository."""
    folder = found.folder.resolve()
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.removeprefix("models--").replace("--", "/")
    return folder.name


def _weights_sha256(stored: Iterable[TensorLocation]) -> str:
    """Over name, shape, type and data of every stored tensor, in the order of their names."""
    digest = hashlib.sha256()
    for piece in sorted(stored, key=lambda item: item.tensor.name):
        tensor = piece.tensor
        data = _span_sha256(piece, tensor.start, tensor.start + tensor.nbytes)
        shape = ",".join(str(extent) for extent in tensor.shape)
        digest.update(f"{len(tensor.name)}:{tensor.name} {shape} {tensor.dtype} {data}\n".encode())
    return digest.hexdigest()


def _span_sha256(piece: TensorLocation, start: int, end: int) -> str:
    digest = hashlib.sha256()
    with memoryview(piece.file.data) as view:
        for at in range(start, end, _CHUNK):
            digest.update(view[at : min(at + _CHUNK, end)])
    return digest.hexdigest()


def _files_sha256(found: Checkpoint, beside: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in sorted(found.files, key=lambda item: item.path.name):
        whole = hashlib.sha256(file.data).hexdigest()
        digest.update(f"{file.path.name} {whole}\n".encode())
    for path in beside:
        data = _config_bytes(found.config) if path.name == "config.json" else path.read_bytes()
        digest.update(f"{path.name} {hashlib.sha256(data).hexdigest()}\n".encode())
    return digest.hexdigest()


def _config_bytes(config: Mapping[str, object]) -> bytes:
    """config.json without the folder it was loaded from and its quantiser's notes, which name temporary folders."""
    kept = {key: value for key, value in config.items() if key != "_name_or_path"}
    quantization = kept.get("quantization_config")
    if isinstance(quantization, dict):
        kept["quantization_config"] = {key: value for key, value in quantization.items() if key != "meta"}
    return json.dumps(kept, sort_keys=True).encode()


def _low_bit_grid(matrices: Sequence[Weight]) -> str | None:
    """The commonest low-bit grid of sampled matrices, as `grid.low_bit_grid`; None where any matrix is quantised."""
    from quantverdict.artifacts.grid import WIDE as GRID_WIDE
    from quantverdict.artifacts.grid import tensor_grid

    wide = [item for item in matrices if item.packing == "wide" and item.shape[-1] >= _BLOCK]
    if not wide or len(wide) < len(matrices):
        return None
    found: Counter[int | None] = Counter()
    for weight in wide[:: max(1, len(wide) // _TENSORS)]:
        piece = weight.parts[weight.main]
        if piece.tensor.dtype in GRID_WIDE:
            with np.errstate(all="ignore"):  # what is no number is left out
                found[tensor_grid(_stretches(piece), piece.tensor.dtype)] += 1
    plain = found.pop(None, 0)
    return f"{found.most_common(1)[0][0]}-bit" if found.total() > plain else None


def _stretches(piece: TensorLocation) -> NDArray[np.float64]:
    """Up to 96 stretches (n, 32) along the rows of a matrix, spread evenly over it."""
    length = piece.tensor.shape[-1]
    stored = raw(piece).reshape(-1, length)
    whole = length // _BLOCK
    places = np.unique(np.linspace(0, stored.shape[0] * whole - 1, _BLOCKS).astype(np.int64))
    columns = (places % whole * _BLOCK)[:, None] + np.arange(_BLOCK)
    blocks = widened(stored[(places // whole)[:, None], columns], piece.tensor.dtype).astype(np.float64)
    return blocks[np.isfinite(blocks).all(axis=1)]


def inspect_artifact(path: Path) -> Artifact:
    """Read a GGUF file or a safetensors checkpoint (its folder, or its .safetensors file).

    Raises:
        ArtifactError: it is missing, corrupt, or of neither format.
    """
    found = model_path(path)
    return inspect_checkpoint(found) if is_checkpoint(found) else inspect_gguf(found)


def model_path(path: Path) -> Path:
    """`path`; for a folder that holds one GGUF file and no checkpoint, that file.

    Raises:
        ArtifactError: a folder with neither, or with something that is no language model.
    """
    if not is_folder(path) or any(path.glob("*.safetensors")) or any(path.glob("*.safetensors.index.json")):
        return path
    if not any(path.glob("*.gguf")) and pickles_in(path):
        return path
    require_model_folder(path)
    found = sorted(path.glob("*.gguf"))
    if len(found) != 1:
        problem = f"holds {len(found)} GGUF files" if found else "holds no model"
        raise ArtifactError(problem, file=path, expected="a safetensors checkpoint, or one GGUF file")
    return found[0]


def is_checkpoint(path: Path) -> bool:
    """Whether a path is read as a checkpoint; any other file is read as a GGUF, whatever its name."""
    return path.is_dir() or path.suffix == ".safetensors"
