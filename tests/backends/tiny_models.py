"""Random models of architectures that llama.cpp runs, small enough to be made by a test."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

WIDTH, VOCABULARY, LAYERS, HEAD = 64, 260, 2, 32
_FEED = 128


def _vocabulary(writer: gguf.GGUFWriter) -> None:
    tokens = [b"<unk>", b"<s>", b"</s>", *(f"<0x{byte:02X}>".encode() for byte in range(256)), b"\xe2\x96\x81"]
    kinds = [2, 3, 3, *[6] * 256, 1]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def _attention(layer: int) -> dict[str, tuple[int, ...]]:
    names = {"attn_q": WIDTH, "attn_k": WIDTH, "attn_v": WIDTH, "attn_output": WIDTH}
    return {f"blk.{layer}.{name}.weight": (width, WIDTH) for name, width in names.items()}


def _feed_forward(layer: int) -> dict[str, tuple[int, ...]]:
    shapes = {"ffn_gate": (_FEED, WIDTH), "ffn_up": (_FEED, WIDTH), "ffn_down": (WIDTH, _FEED)}
    return {f"blk.{layer}.{name}.weight": shape for name, shape in shapes.items()} | {
        f"blk.{layer}.ffn_norm.weight": (WIDTH,)
    }


def _mamba(writer: gguf.GGUFWriter) -> dict[str, tuple[int, ...]]:
    inner, state, rank, kernel = 2 * WIDTH, 16, 4, 4
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_ssm_conv_kernel(kernel)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(state)
    writer.add_ssm_time_step_rank(rank)
    shapes: dict[str, tuple[int, ...]] = {"output_norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        own = {
            "attn_norm.weight": (WIDTH,), "ssm_in.weight": (2 * inner, WIDTH), "ssm_conv1d.weight": (inner, kernel),
            "ssm_conv1d.bias": (inner,), "ssm_x.weight": (rank + 2 * state, inner), "ssm_dt.weight": (inner, rank),
            "ssm_dt.bias": (inner,), "ssm_a": (inner, state), "ssm_d": (inner,), "ssm_out.weight": (WIDTH, inner),
        }  # fmt: skip
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in own.items()}
    return shapes


def _lfm2(writer: gguf.GGUFWriter) -> dict[str, tuple[int, ...]]:
    """Short convolutions in one layer, attention in the other: a hybrid."""
    writer.add_feed_forward_length(_FEED)
    writer.add_head_count(WIDTH // HEAD)
    writer.add_head_count_kv([0, WIDTH // HEAD])
    writer.add_shortconv_l_cache(3)
    writer.add_rope_freq_base(10_000.0)
    shapes = {
        "token_embd_norm.weight": (WIDTH,), "blk.0.attn_norm.weight": (WIDTH,), "blk.1.attn_norm.weight": (WIDTH,),
        "blk.0.shortconv.conv.weight": (WIDTH, 3), "blk.0.shortconv.in_proj.weight": (3 * WIDTH, WIDTH),
        "blk.0.shortconv.out_proj.weight": (WIDTH, WIDTH), "blk.1.attn_q_norm.weight": (HEAD,),
        "blk.1.attn_k_norm.weight": (HEAD,),
    }  # fmt: skip
    return shapes | _attention(1) | _feed_forward(0) | _feed_forward(1)


def _qwen2moe(writer: gguf.GGUFWriter) -> dict[str, tuple[int, ...]]:
    """Mixture of experts."""
    experts, feed = 4, 64
    writer.add_feed_forward_length(_FEED)
    writer.add_head_count(WIDTH // HEAD)
    writer.add_head_count_kv(WIDTH // HEAD)
    writer.add_expert_count(experts)
    writer.add_expert_used_count(2)
    writer.add_expert_feed_forward_length(feed)
    writer.add_expert_shared_feed_forward_length(feed)
    shapes: dict[str, tuple[int, ...]] = {"output_norm.weight": (WIDTH,), "output.weight": (VOCABULARY, WIDTH)}
    for layer in range(LAYERS):
        own = {
            "attn_norm.weight": (WIDTH,), "ffn_norm.weight": (WIDTH,), "ffn_gate_inp.weight": (experts, WIDTH),
            "ffn_gate_exps.weight": (experts, feed, WIDTH), "ffn_up_exps.weight": (experts, feed, WIDTH),
            "ffn_down_exps.weight": (experts, WIDTH, feed), "ffn_gate_inp_shexp.weight": (WIDTH,),
            "ffn_gate_shexp.weight": (feed, WIDTH), "ffn_up_shexp.weight": (feed, WIDTH),
            "ffn_down_shexp.weight": (WIDTH, feed), "attn_q.bias": (WIDTH,), "attn_k.bias": (WIDTH,),
            "attn_v.bias": (WIDTH,),
        }  # fmt: skip
        shapes |= _attention(layer) | {f"blk.{layer}.{name}": shape for name, shape in own.items()}
    return shapes


def _gemma2(writer: gguf.GGUFWriter) -> dict[str, tuple[int, ...]]:
    """A sliding window of 16 tokens in every other layer."""
    writer.add_feed_forward_length(_FEED)
    writer.add_head_count(WIDTH // HEAD)
    writer.add_head_count_kv(WIDTH // HEAD)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_sliding_window(16)
    writer.add_attn_logit_softcapping(50.0)
    writer.add_final_logit_softcapping(30.0)
    shapes: dict[str, tuple[int, ...]] = {"output_norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        norms = ("attn_norm", "post_attention_norm", "post_ffw_norm")
        shapes |= _attention(layer) | _feed_forward(layer)
        shapes |= {f"blk.{layer}.{name}.weight": (WIDTH,) for name in norms}
    return shapes


ARCHITECTURES = {"mamba": _mamba, "lfm2": _lfm2, "qwen2moe": _qwen2moe, "gemma2": _gemma2}


def make_model(path: Path, architecture: str) -> Path:
    """Write a model; equal for equal names."""
    writer, draw = gguf.GGUFWriter(path, architecture), np.random.default_rng(7)
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_layer_norm_rms_eps(1e-5)
    _vocabulary(writer)
    shapes = {"token_embd.weight": (VOCABULARY, WIDTH), **ARCHITECTURES[architecture](writer)}
    for name, shape in shapes.items():
        values = draw.normal(0, 0.3, shape)
        if name.endswith("ssm_a"):
            values = -np.abs(values) - 0.1
        elif "norm" in name:
            values = 1 + values / 3
        writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
