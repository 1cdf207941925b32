"""What compressed-tensors stores of a small matrix in each of its formats, and what it reads back.

`python tests/artifacts/compressed_tensors_values.py` writes tests/data/compressed_tensors.json again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[1] / "data" / "compressed_tensors.json"
_FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "FP8 tensor": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"}),
    "FP8 rows": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
    "FP8 4x32": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [4, 32]}),
    "INT8 rows": ("int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"}),
    "INT8 tensor": ("int-quantized", {"num_bits": 8, "type": "int", "strategy": "tensor"}),
    "INT4 g32": ("pack-quantized", {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}),
    "NVFP4": ("nvfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}),
    "MXFP4": ("mxfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}),
    "FP8 g32": ("mxfp8-quantized", {"num_bits": 8, "type": "float", "strategy": "group", "group_size": 32}),
}
ROWS, WIDTH = 8, 64


def stored_and_read() -> dict[str, dict[str, Any]]:
    """Type name to the tensors (dtype, shape, bytes in hex) of one matrix, and its values as they are read back."""
    import torch
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    draw = torch.Generator().manual_seed(7)
    weight = torch.randn(ROWS, WIDTH, generator=draw) * torch.rand(ROWS, 1, generator=draw)
    found = {}
    for name, (form, given) in _FORMATS.items():
        scales = {"NVFP4": torch.float8_e4m3fn, "MXFP4": torch.uint8, "FP8 g32": torch.uint8}.get(name)
        args = QuantizationArgs(**given, symmetric=True, scale_dtype=scales)
        state = {"weight": weight.clone()}
        if name == "NVFP4":
            state["weight_global_scale"] = generate_gparam(weight.min(), weight.max())
        group, block = given.get("group_size") or WIDTH, given.get("block_structure")
        if block:
            parts = weight.reshape(ROWS // block[0], block[0], WIDTH // block[1], block[1]).transpose(1, 2).flatten(2)
        else:
            parts = weight.reshape(1, -1) if given["strategy"] == "tensor" else weight.reshape(ROWS, -1, group)
        state["weight_scale"], _ = calculate_qparams(
            parts.amin(-1), parts.amax(-1), args, global_scale=state.get("weight_global_scale")
        )
        scheme = QuantizationScheme(targets=["Linear"], weights=args, format=form)
        compressor = BaseCompressor.get_value_from_registry(form)
        stored = compressor.compress(state, scheme)
        values = compressor.decompress(dict(stored), scheme)["weight"]
        tensors = {
            leaf: [
                str(value.dtype),
                list(value.shape),
                value.detach().contiguous().view(torch.uint8).numpy().tobytes().hex(),
            ]
            for leaf, value in stored.items()
            if isinstance(value, torch.Tensor)
        }
        found[name] = {"tensors": tensors, "values": values.float().numpy().tobytes().hex(), "format": form}
    return found


if __name__ == "__main__":
    FILE.write_text(json.dumps(stored_and_read(), indent=1) + "\n", encoding="utf-8")
