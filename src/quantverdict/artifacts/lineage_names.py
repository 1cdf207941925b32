"""One name for a weight in every format: the one that a Transformers checkpoint of the model gives it.

llama.cpp's converter renames weights, reorders the rows of q and k for the rotary embedding of the llama family, and
stores Gemma's norms plus one. Names that are not known here stay as they are: two files of one format then still
compare, and across formats such weights are not comparable.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_BLOCK = re.compile(r"blk\.(\d+)\.(.+)\.(weight|bias)")
_MODEL: Mapping[str, str] = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER: Mapping[str, str] = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA = {
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_PHI2 = {"attn_output": "self_attn.dense", "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2"}
_PHI3 = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
_PARTICULAR: Mapping[str, Mapping[str, str]] = {
    "llama": {}, "qwen2": {}, "qwen3": {}, "gemma": {}, "gemma2": _GEMMA, "gemma3": _GEMMA, "phi2": _PHI2,
    "phi3": _PHI3,
}  # fmt: skip
"""What each architecture calls otherwise; an architecture that is not here has names of its own."""
_LESS_ONE = ("gemma", "gemma2", "gemma3", "gemma3_text")
_NOT_WEIGHTS = re.compile(
    r"rope_freqs\.weight|rope_factors_|rotary_emb\.inv_freq|attn_rot_embd|\.masked_bias|\.attn\.bias"
)


def is_weight(name: str) -> bool:
    """Whether a tensor holds weights; tables that follow from the configuration do not."""
    return _NOT_WEIGHTS.search(name) is None


def from_gguf(name: str, architecture: str) -> str:
    """The common name of a GGUF's tensor; the name itself where the architecture or the tensor is not known."""
    particular = _PARTICULAR.get(architecture)
    if particular is None:
        return name
    stem, _, leaf = name.rpartition(".")
    if stem in _MODEL:
        if architecture == "phi2" and stem == "output_norm":
            return f"model.final_layernorm.{leaf}"
        return f"{_MODEL[stem]}.{leaf}"
    match = _BLOCK.fullmatch(name)
    known = match and (particular.get(match[2]) or _LAYER.get(match[2]))
    return f"model.layers.{match[1]}.{known}.{match[3]}" if match and known else name


def from_checkpoint(name: str) -> str:
    """The common name of a checkpoint's weight: that of the language model alone, below `model.`."""
    name = name.replace("language_model.", "").replace("model.model.", "model.")
    return name if name.startswith(("model.", "lm_head.", "blk.")) else f"model.{name}"


def rows_reordered(name: str, architecture: str) -> str | None:
    """Which count of heads llama.cpp's converter reorders a weight's rows by: `q`, `k`, or None where it does not."""
    if architecture != "llama":
        return None
    role = re.search(r"self_attn\.([qk])_proj\.(weight|bias)$", name)
    return role[1] if role else None


def norm_less_one(name: str, model_type: str) -> bool:
    """Whether a checkpoint of this model stores a norm less one, where its GGUF stores it as it acts."""
    return model_type in _LESS_ONE and name.endswith("norm.weight")
