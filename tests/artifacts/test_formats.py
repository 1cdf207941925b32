"""Formats that others make: `inspect` says what each is and what it could not read, and none stops a study."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest

from quantverdict.artifacts.builds import artifact_json, prepare_builds
from quantverdict.artifacts.discovery import build_lines, discover
from quantverdict.artifacts.gguf import describe
from quantverdict.artifacts.gguf_read import other_type
from quantverdict.artifacts.inspect import described_params, inspect_artifact
from quantverdict.artifacts.kinds import unrunnable
from quantverdict.artifacts.lineage import compare
from quantverdict.artifacts.weights import open_weights
from quantverdict.bundle.prompts import study_tasks, whole_tasks
from quantverdict.config import load_study
from quantverdict.errors import ArtifactError
from quantverdict.planning.preflight import check_study
from quantverdict.registry import BACKENDS

RNG = np.random.default_rng(3)
ROWS, WIDTH = 32, 64
"""Of the one matrix of each checkpoint: large beside nothing, so that its scales show in the bits."""
NAME = "model.layers.0.mlp.up_proj"
NORM = {"model.norm.weight": np.ones(WIDTH, np.float16)}
E4M3 = "F8_E4M3"


def octets(*shape: int) -> np.ndarray:
    return RNG.integers(0, 120, shape, dtype=np.uint8)


def halves(*shape: int) -> np.ndarray:
    return RNG.uniform(0.01, 0.1, shape).astype(np.float16)


def bnb(kind: str) -> dict[str, object]:
    state = {"quant_type": kind, "blocksize": 64, "dtype": "float16", "shape": [ROWS, WIDTH]}
    text = np.frombuffer(json.dumps(state).encode(), np.uint8)
    return {
        f"{NAME}.weight": octets(ROWS * WIDTH // 2, 1),
        f"{NAME}.weight.absmax": np.ones(ROWS * WIDTH // 64, np.float32),
        f"{NAME}.weight.quant_map": np.linspace(-1, 1, 16, dtype=np.float32),
        f"{NAME}.weight.quant_state.bitsandbytes__{kind}": text,
    }


def scaled(dtype: str, scale: object, leaf: str = "weight_scale", **more: object) -> dict[str, object]:
    value = octets(ROWS, WIDTH)
    values = value.astype(np.int8) if dtype == "I8" else value
    made = {f"{NAME}.weight": (dtype, values), f"{NAME}.{leaf}": scale}
    return made | {f"{NAME}.{name}": item for name, item in more.items()}


COUNT = ROWS * WIDTH
SCALAR = np.ones((), np.float32)
KINDS: dict[str, tuple[dict[str, object], dict[str, object], str, float]] = {
    "gpt-oss": (
        {
            "model.layers.0.mlp.experts.gate_up_proj_blocks": octets(2, ROWS, 2, 16),
            "model.layers.0.mlp.experts.gate_up_proj_scales": octets(2, ROWS, 2),
        },
        {"quantization_config": {"quant_method": "mxfp4"}},
        "MXFP4", 4.25,
    ),
    "bitsandbytes nf4": (
        bnb("nf4"), {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "BNB-NF4 g64",
        4 + (32 * COUNT / 64 + 16 * 32 + 8 * len(bnb("nf4")[f"{NAME}.weight.quant_state.bitsandbytes__nf4"])) / COUNT,
    ),
    "bitsandbytes int8": (
        {f"{NAME}.weight": octets(ROWS, WIDTH).astype(np.int8), f"{NAME}.SCB": np.ones(ROWS, np.float32),
         f"{NAME}.weight_format": np.zeros((), np.uint8)},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
        "BNB-INT8 rows", 8 + (32 * ROWS + 8) / COUNT,
    ),
    "HQQ": (
        {f"{NAME}.W_q": octets(COUNT // 128, 64), f"{NAME}.scale": halves(COUNT // 64, 1),
         f"{NAME}.zero": halves(COUNT // 64, 1), f"{NAME}.shape": np.array([ROWS, WIDTH])},
        {"quantization_config": {"quant_method": "hqq", "quant_config": {"weight_quant_params":
                                                                         {"nbits": 4, "group_size": 64}}}},
        "HQQ-4 g64", 4 + (2 * 16 * COUNT / 64 + 128) / COUNT,
    ),
    "torchao": (
        {f"{NAME}._weight_qdata": octets(ROWS, WIDTH // 2), f"{NAME}._weight_scale": halves(ROWS, 2),
         f"{NAME}._weight_zero_point": halves(ROWS, 2)},
        {"quantization_config": {"quant_method": "torchao", "quant_type": {"default": {"_type":
                                                                                       "Int4WeightOnlyConfig"}}}},
        "TORCHAO-4", 5.0,
    ),
    "MLX": (
        {f"{NAME}.weight": RNG.integers(0, 2**32, (ROWS, WIDTH // 8), dtype=np.uint32),
         f"{NAME}.scales": halves(ROWS, 2), f"{NAME}.biases": halves(ROWS, 2)},
        {"quantization": {"group_size": 32, "bits": 4}}, "MLX-4 g32", 5.0,
    ),
    "EXL2": (
        {f"{NAME}.q_weight": RNG.integers(0, 2**30, (WIDTH * 5 // 32, ROWS), dtype=np.int32),
         f"{NAME}.q_scale": RNG.integers(0, 99, (2, ROWS // 8), dtype=np.int32),
         f"{NAME}.q_scale_max": halves(2), f"{NAME}.q_groups": np.zeros(4, np.int16),
         f"{NAME}.q_invperm": np.arange(WIDTH, dtype=np.int32)},
        {"quantization_config": {"quant_method": "exl2", "bits": 5.0}},
        "EXL2-5", 5 + (32 * 2 * ROWS // 8 + 32 + 64 + 32 * WIDTH) / COUNT,
    ),
    "EXL3": (
        {f"{NAME}.trellis": np.zeros((WIDTH // 16, ROWS // 16, 48), np.int16), f"{NAME}.suh": halves(WIDTH),
         f"{NAME}.svh": halves(ROWS)},
        {"quantization_config": {"quant_method": "exl3", "bits": 3.0}}, "EXL3-3", 3 + 16 * (ROWS + WIDTH) / COUNT,
    ),
    "an unknown packing": (
        {f"{NAME}.weight": octets(ROWS, WIDTH // 2)}, {"quantization_config": {"quant_method": "new", "bits": 4}},
        "U8, packing not known", 4.0,
    ),
    "FP8 by tensor": (scaled(E4M3, SCALAR, input_scale=SCALAR), {}, "FP8 tensor", 8 + 64 / COUNT),
    "FP8 by channel": (
        scaled(E4M3, np.ones((ROWS, 1), np.float32)), {}, "FP8 rows", 8 + 32 * ROWS / COUNT,
    ),
    "FP8 by block": (
        scaled(E4M3, np.ones((2, 4), np.float32), "weight_scale_inv"),
        {"quantization_config": {"quant_method": "fp8", "weight_block_size": [16, 16]}}, "FP8 16x16",
        8 + 32 * 8 / COUNT,
    ),
    "W8A8": (scaled("I8", np.ones((ROWS, 1), np.float32)), {}, "INT8 rows", 8 + 32 * ROWS / COUNT),
    "NVFP4 by llm-compressor": (
        {f"{NAME}.weight_packed": octets(ROWS, WIDTH // 2), f"{NAME}.weight_scale": (E4M3, octets(ROWS, WIDTH // 16)),
         f"{NAME}.weight_global_scale": np.ones(1, np.float32)}, {}, "NVFP4", 4.5 + 32 / COUNT,
    ),
    "MXFP4 by llm-compressor": (
        {f"{NAME}.weight_packed": octets(ROWS, WIDTH // 2), f"{NAME}.weight_scale": octets(ROWS, WIDTH // 32)}, {},
        "MXFP4", 4.25,
    ),
    "FP4 by ModelOpt": (
        {f"{NAME}.weight": octets(ROWS, WIDTH // 2), f"{NAME}.weight_scale": (E4M3, octets(ROWS, WIDTH // 16)),
         f"{NAME}.weight_scale_2": SCALAR, f"{NAME}.input_scale": SCALAR},
        {"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}}, "NVFP4", 4.5 + 64 / COUNT,
    ),
}  # fmt: skip
"""Tensors, configuration, the type's name, and bits a weight of the matrix."""
UNCOUNTED = ("torchao", "an unknown packing")
READABLE = ("FP8 by tensor", "FP8 by channel", "FP8 by block", "W8A8", "NVFP4 by llm-compressor",
            "MXFP4 by llm-compressor", "FP4 by ModelOpt", "MLX", "gpt-oss", "bitsandbytes nf4",
            "bitsandbytes int8")  # fmt: skip


@pytest.fixture
def write_kind(tmp_path: Path, write_checkpoint: Callable[..., Path]) -> Callable[[str], Path]:
    def write(kind: str) -> Path:
        tensors, config, _, _ = KINDS[kind]
        config = {"model_type": "llama", "hidden_size": WIDTH, "num_hidden_layers": 1} | config
        return write_checkpoint(tmp_path / "model", tensors | NORM, config=config)

    return write


@pytest.mark.parametrize("kind", KINDS)
def test_each_format_is_named_with_its_true_bits_and_what_could_not_be_read(
    kind: str, write_kind: Callable[[str], Path]
) -> None:
    """Packed values count as what they stand for: two 4-bit ones a byte, by expert, in words without gaps."""
    found = inspect_artifact(write_kind(kind))
    _, _, name, bits = KINDS[kind]
    matrix = 2 * ROWS * 64 if kind == "gpt-oss" else COUNT
    assert found.tensor_types == {name: 1, "F16": 1}
    assert found.n_params == matrix + WIDTH
    assert found.bpw_quantized == pytest.approx(bits, abs=1e-9)
    assert bool(found.unread) == (kind in UNCOUNTED)
    lines = describe(found)
    assert any(line.startswith("not read") and "counted by their bytes" in line for line in lines) == (
        kind in UNCOUNTED
    )
    assert ("unread" in artifact_json(found)) == (kind in UNCOUNTED)


@pytest.mark.parametrize("kind", KINDS)
def test_each_format_is_listed_and_has_a_lineage_without_an_error(
    kind: str, write_kind: Callable[[str], Path], write_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """Against an unquantised model of another's weights: what cannot be decoded cannot be told, never `same`."""
    folder = write_kind(kind)
    shape = (2, 64, ROWS) if kind == "gpt-oss" else (ROWS, WIDTH)
    name = "model.layers.0.mlp.experts.gate_up_proj" if kind == "gpt-oss" else f"{NAME}.weight"
    wide = {name: RNG.normal(size=shape).astype(np.float16)}
    base = write_checkpoint(tmp_path / "base", wide | NORM, config={"model_type": "llama"})
    found = compare(base, folder)
    assert found.verdict in ("different", "cannot_tell")
    check = next(check for check in found.checks if check.name == "quantised weights")
    assert check.verdict == ("different" if kind in READABLE else "cannot_tell")
    assert kind in READABLE or "cannot be read as" in check.reason
    builds, left = discover([str(folder)])
    assert (len(builds), left) == (1, [])
    assert builds[0].counted == (kind not in UNCOUNTED)
    assert builds[0].level or kind == "an unknown packing"


def test_scales_of_the_cache_are_no_weights_but_change_what_the_build_is(
    tmp_path: Path, write_checkpoint: Callable[..., Path]
) -> None:
    scales = {f"model.layers.0.self_attn.{name}_scale": np.full(1, 0.5, np.float32) for name in "kv"}
    plain = inspect_artifact(write_checkpoint(tmp_path / "plain", scaled("I8", SCALAR) | NORM))
    other = inspect_artifact(write_checkpoint(tmp_path / "kv", scaled("I8", SCALAR) | NORM | scales))
    assert (other.n_params, other.bpw, other.tensor_types) == (plain.n_params, plain.bpw, plain.tensor_types)
    assert other.weights_sha256 != plain.weights_sha256


@pytest.mark.parametrize(("rows", "columns", "scale", "blocks"), [(576, 300, (5, 3), 128), (64, 64, (4, 2), 0)])
def test_blocks_that_do_not_come_out_are_the_stated_ones_or_powers_of_two(
    rows: int, columns: int, scale: tuple[int, int], blocks: int, tmp_path: Path, write_checkpoint: Callable[..., Path]
) -> None:
    """576 rows in 5 blocks are blocks of 128, the last one cut; the value of each is its own scale's."""
    scales = np.arange(1, 1 + scale[0] * scale[1], dtype=np.float32).reshape(scale)
    tensors = {f"{NAME}.weight": (E4M3, np.full((rows, columns), 0x38, np.uint8)), f"{NAME}.weight_scale_inv": scales}
    weights = open_weights(write_checkpoint(tmp_path / "m", tensors | NORM))
    high, wide = (blocks, blocks) if blocks else (rows // scale[0], columns // scale[1])
    expected = np.repeat(np.repeat(scales, high, axis=0)[:rows], wide, axis=1)[:, :columns]
    np.testing.assert_array_equal(weights.values(f"{NAME}.weight"), expected)


def test_the_four_bits_of_bitsandbytes_are_decoded_upper_half_first(
    tmp_path: Path, write_checkpoint: Callable[..., Path]
) -> None:
    """Written out value by value, as its documentation has it: flattened, blocks of 64, a table of 16."""
    tensors = bnb("nf4")
    tensors[f"{NAME}.weight.absmax"] = RNG.uniform(0.5, 2, COUNT // 64).astype(np.float32)
    found = open_weights(write_checkpoint(tmp_path / "m", tensors | NORM)).values(f"{NAME}.weight").reshape(-1)
    packed = np.asarray(tensors[f"{NAME}.weight"]).reshape(-1)
    for at in range(0, COUNT, 37):
        code = packed[at // 2] >> 4 if at % 2 == 0 else packed[at // 2] & 15
        expected = np.float32(tensors[f"{NAME}.weight.quant_map"][code]) * tensors[f"{NAME}.weight.absmax"][at // 64]
        assert found[at] == expected


def test_experts_of_gpt_oss_are_decoded_as_transformers_decodes_them(
    tmp_path: Path, write_checkpoint: Callable[..., Path]
) -> None:
    torch = pytest.importorskip("torch")
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    tensors, config, _, _ = KINDS["gpt-oss"]
    blocks, scales = (np.asarray(value) for value in tensors.values())
    folder = write_checkpoint(tmp_path / "m", tensors | NORM, config={"model_type": "gpt_oss"} | config)
    ours = open_weights(folder).values("model.layers.0.mlp.experts.gate_up_proj")
    theirs = mxfp4.convert_moe_packed_tensors(torch.tensor(blocks), torch.tensor(scales), dtype=torch.float32)
    np.testing.assert_array_equal(ours, theirs.numpy())


def rounded_to_fp4(weights: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Two numbers a byte at the nearest level, and powers of two as exponents plus 127: MXFP4 by the book."""
    table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
    parts = weights.reshape(len(weights), -1, group)
    exponents = np.ceil(np.log2(np.abs(parts).max(axis=-1) / 6)).astype(int)
    apart = np.abs(parts[..., None] / 2.0 ** exponents[..., None, None] - table)
    codes = np.argmin(apart, axis=-1).reshape(weights.shape).astype(np.uint8)
    return codes[:, ::2] | codes[:, 1::2] << 4, (exponents + 127).astype(np.uint8)


@pytest.mark.parametrize(("change", "verdict"), [(0.0, "same"), (0.02, "different")])
def test_a_build_in_fp4_comes_from_its_source_and_from_no_changed_one(
    change: float, verdict: str, tmp_path: Path, write_checkpoint: Callable[..., Path]
) -> None:
    """Every value at the nearest of levels that are no equal steps apart; a change of 2 % puts some off."""
    rng = np.random.default_rng(8)
    weights = rng.normal(0, 0.05, (64, 256))
    packed, scales = rounded_to_fp4(weights + change * 0.05 * rng.normal(size=weights.shape), 32)
    made = {f"{NAME}.weight_packed": packed, f"{NAME}.weight_scale": scales}
    norm = {"model.norm.weight": np.ones(256, np.float16)}
    base = write_checkpoint(tmp_path / "base", {f"{NAME}.weight": weights.astype(np.float32)} | norm)
    found = compare(base, write_checkpoint(tmp_path / "made", made | norm))
    check = next(one for one in found.checks if one.name == "quantised weights")
    assert check.verdict == verdict, check.reason
    assert change or (found.resolution is not None and found.resolution < 0.01)


DATA = Path(__file__).parents[1] / "data" / "compressed_tensors.json"
DTYPES = {
    "torch.float8_e4m3fn": (E4M3, np.uint8), "torch.int8": ("I8", np.int8), "torch.uint8": ("U8", np.uint8),
    "torch.float32": ("F32", np.float32), "torch.int32": ("I32", np.int32), "torch.int64": ("I64", np.int64),
}  # fmt: skip


@pytest.mark.parametrize("name", json.loads(DATA.read_text(encoding="utf-8")))
def test_values_are_those_that_compressed_tensors_reads_back(
    name: str, tmp_path: Path, write_checkpoint: Callable[..., Path]
) -> None:
    """One matrix in each of its formats, with the bytes that it stored and the floats that it decoded."""
    kept = json.loads(DATA.read_text(encoding="utf-8"))[name]
    tensors = {}
    for leaf, (dtype, shape, text) in kept["tensors"].items():
        known, item = DTYPES[dtype]
        tensors[f"{NAME}.{leaf}"] = (known, np.frombuffer(bytes.fromhex(text), item).reshape(shape))
    scheme = {"config_groups": {"group_0": {"weights": {"block_structure": [4, 32]}}}} if "x" in name else {}
    config = {"model_type": "llama", "quantization_config": {"quant_method": "compressed-tensors"} | scheme}
    folder = write_checkpoint(tmp_path / "m", tensors | NORM, config=config)
    assert inspect_artifact(folder).tensor_types == {name: 1, "F16": 1}
    weights = open_weights(folder)
    expected = np.frombuffer(bytes.fromhex(kept["values"]), np.float32).reshape(8, 64)
    within = 2.0**-7 if name == "NVFP4" else 1e-6  # the package decodes it in bfloat16
    np.testing.assert_allclose(weights.values(f"{NAME}.weight"), expected, rtol=within, atol=0)
    rows = weights.handles[f"{NAME}.weight"].read(np.arange(8))
    assert rows is not None
    assert rows.step is not None
    assert (rows.values <= rows.high * (1 + 1e-6)).all()
    assert (rows.values >= rows.low * (1 + 1e-6)).all()


def test_the_kept_values_are_what_the_package_still_gives() -> None:
    pytest.importorskip("compressed_tensors")
    spec = spec_from_file_location("values", Path(__file__).with_name("compressed_tensors_values.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.stored_and_read() == json.loads(DATA.read_text(encoding="utf-8"))


# Pickles


LLAMA = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 100, "intermediate_size": 128,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "n_params"), [(LLAMA, 86_848), ({"model_type": "bloom", "dtype": "float32"}, 25_000)]
)
def test_a_pickle_is_never_opened_and_its_size_says_its_bits(
    config: dict[str, object], n_params: int, tmp_path: Path
) -> None:
    """Its content would be refused by whatever reads one."""
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "pytorch_model.bin").write_bytes(b"c__builtin__\nexit\n(tR." + bytes(100_000 - 22))
    found = inspect_artifact(tmp_path)
    assert (found.format, found.n_params, found.bpw) == ("pickle", n_params, 800_000 / n_params)
    assert "pickle, which is not opened" in found.unread
    builds, _ = discover([str(tmp_path)])
    assert [one.counted for one in builds] == [False]
    assert f"~{round(800_000 / n_params, 2):g}" in build_lines(builds, [])[1]
    lineage = compare(tmp_path, tmp_path)
    assert lineage.verdict == "cannot_tell"


def test_described_weights_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**{k: v for k, v in LLAMA.items() if k != "model_type"})
        )
    assert described_params(LLAMA) == sum(item.numel() for item in model.parameters())


# GGUF


def with_types(path: Path, numbers: dict[str, int], source: Path) -> Path:
    """A file whose tensors have other type numbers, with the bytes that they had."""
    data = bytearray(source.read_bytes())
    for name, number in numbers.items():
        at = data.index(struct.pack("<Q", len(name)) + name.encode()) + 8 + len(name)
        (dims,) = struct.unpack_from("<I", data, at)
        struct.pack_into("<I", data, at + 4 + 8 * dims, number)
    path.write_bytes(data)
    return path


OTHERS = {"blk.0.ffn_up.weight": 144, "blk.0.ffn_down.weight": 344, "blk.0.attn_q.weight": 500}


def test_types_of_other_programs_are_named_and_counted_by_where_they_end(
    tiny_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    """An IQ4_KS, a repacked one and a number that nobody has yet, in a file that llama.cpp cannot load."""
    base = tiny_gguf(tmp_path / "base.gguf")
    path = with_types(tmp_path / "other.gguf", OTHERS, base)
    found, plain = inspect_artifact(path), inspect_artifact(base)
    assert {name: found.tensor_types[name] for name in ("IQ4_KS", "IQ4_KS_R4", "TYPE_500")} == {
        "IQ4_KS": 1, "IQ4_KS_R4": 1, "TYPE_500": 1,
    }  # fmt: skip
    assert found.bpw == plain.bpw
    assert "1 IQ4_KS" in found.unread
    lineage = compare(base, path)
    assert lineage.verdict == "cannot_tell"
    assert "cannot be read as" in lineage.reason
    builds, _ = discover([str(path)])
    assert [one.counted for one in builds] == [False]


@pytest.mark.parametrize(
    ("number", "name"),
    [(137, "IQ2_K"), (141, "IQ6_K"), (158, "IQ1_KT"), (210, "Q2_K_R4"), (202, "Q4_0_R8"), (337, "IQ2_K_R4"),
     (43, "TYPE_43"), (1023, "TYPE_1023"), (1024, None), (-1, None)],
)  # fmt: skip
def test_type_numbers_have_ik_llama_cpps_names(number: int, name: str | None) -> None:
    found = other_type(number)
    assert (None if found is None else found.name) == name


@pytest.mark.parametrize(
    ("file_type", "level"),
    [(38, "MXFP4_MOE"), (39, "NVFP4"), (40, "Q1_0"), (41, "Q2_0"), (145, "IQ4_KS"), (777, "IQ4_KSS")],
)
def test_file_types_of_newer_programs_are_named_else_the_file_names_the_level(
    file_type: int,
    level: str,
    tiny_gguf: Callable[..., Path],
    tiny_tensors: Callable[..., dict[str, tuple[tuple[int, ...], list[float]]]],
    tmp_path: Path,
) -> None:
    """A file of four bits a weight in a type that nobody knows."""
    few = {name: (shape, values[: len(values) // 8]) for name, (shape, values) in tiny_tensors().items()}
    base = tiny_gguf(tmp_path / "base.gguf", {"general.file_type": (4, file_type)}, few)
    path = with_types(tmp_path / "some-IQ4_KSS.gguf", dict.fromkeys(few, 500), base)
    assert inspect_artifact(path).bpw < 5
    builds, _ = discover([str(path)])
    assert (builds[0].level, builds[0].says) == (level, "name" if file_type == 777 else "header")


# In a study


STUDY = """
study: formats
tasks: [starter_choice, starter_harmful]
models:
  - name: m
    family: Llama
    baseline: FP16
    variants:
      - {quant: FP16, source: {path: base}, backend: transformers}
      - {quant: other, source: {path: other}, backend: transformers}
"""


@pytest.mark.parametrize(
    ("kind", "why"),
    [("EXL3", "ExLlamaV3"), ("EXL2", "ExLlamaV2"), ("MLX", "MLX"), ("bitsandbytes nf4", None), ("gpt-oss", None),
     ("an unknown packing", None)],
)  # fmt: skip
def test_a_build_that_no_engine_here_loads_is_one_line_and_the_others_go_on(
    kind: str, why: str | None, tmp_path: Path, write_kind: Callable[[str], Path], write_checkpoint: Callable[..., Path]
) -> None:
    write_kind(kind).rename(tmp_path / "other")
    write_checkpoint(tmp_path / "base", {f"{NAME}.weight": halves(ROWS, WIDTH)} | NORM)
    (tmp_path / "study.yaml").write_text(STUDY, encoding="utf-8")
    study = load_study(tmp_path / "study.yaml")
    notes = [note for note in check_study(study, study_tasks(study, whole_tasks(study))) if "left out" in note]
    assert len(notes) == (0 if why is None else 1)
    builds = prepare_builds(study)
    failures = {build.cell.quant: build.failure for build in builds}
    assert failures["FP16"] is None
    assert (failures["other"] is None) == (why is None)
    assert why is None or (why in str(failures["other"]) and "\n" not in str(failures["other"]))


def test_a_baseline_that_no_engine_here_loads_is_refused(
    tmp_path: Path, write_kind: Callable[[str], Path], write_checkpoint: Callable[..., Path]
) -> None:
    write_kind("MLX").rename(tmp_path / "base")
    write_checkpoint(tmp_path / "other", {f"{NAME}.weight": halves(ROWS, WIDTH)} | NORM)
    (tmp_path / "study.yaml").write_text(STUDY, encoding="utf-8")
    with pytest.raises(ArtifactError, match="MLX reads"):
        prepare_builds(load_study(tmp_path / "study.yaml"))


def test_the_embedded_engine_refuses_types_that_llama_cpp_lacks_and_a_server_is_not_judged(
    tiny_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    found = inspect_artifact(with_types(tmp_path / "o.gguf", OTHERS, tiny_gguf(tmp_path / "base.gguf")))
    assert "IQ4_KS" in str(unrunnable("gguf", found.tensor_types, BACKENDS["llamacpp"]))
    assert unrunnable("gguf", found.tensor_types, BACKENDS["server"]) is None
    assert unrunnable("gguf", ["Q4_K", "F32"], BACKENDS["llamacpp"]) is None
