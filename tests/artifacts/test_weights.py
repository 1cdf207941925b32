"""Every weight reads as the numbers it stands for, by one name, whatever the format."""

from __future__ import annotations

import numpy as np
import pytest

from quantverdict.artifacts.checkpoint_read import open_checkpoint
from quantverdict.artifacts.packings import weight_rows
from quantverdict.artifacts.quantize import make_level
from quantverdict.artifacts.weights import open_weights
from quantverdict.errors import ArtifactError

RNG = np.random.default_rng(5)
OUTPUTS, INPUTS, GROUP = 64, 96, 32
NAME = "model.layers.0.mlp.up_proj."


def quantities(bits=4):
    """Whole numbers, zero points and scales of one matrix."""
    numbers = RNG.integers(0, 2**bits, (OUTPUTS, INPUTS))
    zeros = RNG.integers(1, 2**bits, (OUTPUTS, INPUTS // GROUP))
    return numbers, zeros, RNG.uniform(0.001, 0.01, zeros.shape).astype(np.float16)


def expected(numbers, zeros, scales, groups=None):
    groups = np.arange(INPUTS) // GROUP if groups is None else groups
    return (numbers - zeros[:, groups]).astype(np.float32) * scales.astype(np.float32)[:, groups]


def named(parts):
    return {NAME + leaf: value for leaf, value in parts.items()}


def read(folder):
    return open_weights(folder).values(NAME + "weight")


def test_awq_is_read_as_compressed_tensors_reads_it(tmp_path, write_checkpoint, packer):
    torch = pytest.importorskip("torch")
    convert = pytest.importorskip("compressed_tensors.entrypoints.convert.converters.autoawq")
    packing = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    numbers, zeros, scales = quantities()
    parts = named(packer.awq(numbers, zeros, scales))
    ours = read(write_checkpoint(tmp_path / "awq", parts))
    np.testing.assert_array_equal(ours, expected(numbers, zeros, scales))
    converter = convert.AutoAWQConverter(group_size=GROUP)
    theirs = converter.process({name: torch.from_numpy(value.copy()) for name, value in parts.items()})
    whole = packing.unpack_from_int32(theirs[NAME + "weight_packed"], 4, torch.Size((OUTPUTS, INPUTS)))
    shape = torch.Size((OUTPUTS, INPUTS // GROUP))
    centre = packing.unpack_from_int32(theirs[NAME + "weight_zero_point"], 4, shape, packed_dim=0)
    grouped = (whole.reshape(OUTPUTS, -1, GROUP) - centre[..., None]) * theirs[NAME + "weight_scale"].float()[..., None]
    np.testing.assert_array_equal(ours, grouped.reshape(OUTPUTS, INPUTS).numpy())
    converted = {name: value.numpy() for name, value in theirs.items()}
    np.testing.assert_array_equal(ours, read(write_checkpoint(tmp_path / "converted", converted)))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_of_any_width_and_order_of_inputs(tmp_path, write_checkpoint, packer, bits):
    numbers, zeros, scales = quantities(bits)
    groups = RNG.permutation(np.arange(INPUTS) // GROUP)
    parts = packer.gptq(numbers, zeros, scales, groups, bits)
    folder = write_checkpoint(tmp_path / "v1", named(parts))
    np.testing.assert_array_equal(read(folder), expected(numbers, zeros, scales, groups))
    config = {"model_type": "llama", "quantization_config": {"checkpoint_format": "gptq_v2"}}
    parts["qzeros"] = packer.stream(zeros.T, bits)
    folder = write_checkpoint(tmp_path / "v2", named(parts), config=config)
    np.testing.assert_array_equal(read(folder), expected(numbers, zeros, scales, groups))


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_packed_integers_are_read_as_compressed_tensors_reads_them(tmp_path, write_checkpoint, bits, symmetric):
    torch = pytest.importorskip("torch")
    compressors = pytest.importorskip("compressed_tensors.compressors.pack_quantized")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    numbers, zeros, scales = quantities(bits)
    half = 2 ** (bits - 1)
    centre = np.full_like(zeros, half) if symmetric else zeros
    weight = torch.from_numpy(expected(numbers, centre, scales))
    arguments = quantization.QuantizationArgs(num_bits=bits, symmetric=symmetric, group_size=GROUP, strategy="group")
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=arguments)
    state = {"weight": weight, "weight_scale": torch.from_numpy(scales)}
    if not symmetric:
        state["weight_zero_point"] = torch.from_numpy((zeros - half).astype(np.int8))
    compressor = compressors.PackedQuantizationCompressor
    packed = compressor.compress(state, scheme)
    folder = write_checkpoint(tmp_path / "m", named({leaf: value.numpy() for leaf, value in packed.items()}))
    ours = read(folder)
    np.testing.assert_array_equal(ours, weight.numpy())
    theirs = compressor.decompress(packed, scheme)["weight"].float().numpy()
    np.testing.assert_allclose(ours, theirs, rtol=2**-10, atol=1e-9)  # theirs is multiplied in F16


def test_8_bit_floats_are_read_as_torch_reads_them(tmp_path, write_checkpoint):
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    folder = write_checkpoint(tmp_path / "m", {})
    bits = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).reshape(16, 16)
    scale = torch.rand(16, 1)
    tensors = named({"weight": bits, "weight_scale": scale})
    safetensors.save_file(tensors, folder / "model.safetensors")
    weight = open_checkpoint(folder).weights[0]
    np.testing.assert_array_equal(weight_rows(weight, np.arange(16)).values, (bits.float() * scale).numpy())


def test_wide_types_are_read_exactly(tmp_path, write_checkpoint):
    values = RNG.normal(size=(8, 16)).astype(np.float32)
    short = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
    tensors = {"model.a.weight": values, "model.b.weight": ("BF16", short), "model.c.weight": values.astype(np.float16)}
    found = open_weights(write_checkpoint(tmp_path / "m", tensors))
    np.testing.assert_array_equal(found.values("model.a.weight"), values)
    np.testing.assert_array_equal(found.values("model.b.weight"), short)
    np.testing.assert_array_equal(found.values("model.c.weight"), values.astype(np.float16).astype(np.float32))
    with pytest.raises(ArtifactError, match="does not exist"):
        found.values("model.d.weight")


def test_gguf_and_checkpoint_give_the_same_weights_by_the_same_names(tmp_path, made_weights, save_llama, convert_llama):
    """The rows of q and k are in the checkpoint's order again."""
    made = made_weights()
    checkpoint = open_weights(save_llama(tmp_path / "m", made))
    gguf = open_weights(convert_llama(tmp_path / "m.gguf", made))
    assert set(gguf.handles) == set(checkpoint.handles) == set(made)
    for name, values in made.items():
        np.testing.assert_array_equal(gguf.values(name), values.astype(np.float32), err_msg=name)
        np.testing.assert_array_equal(gguf.values(name), checkpoint.values(name), err_msg=name)
        assert gguf.handles[name].shape == values.shape


@pytest.mark.parametrize(
    "kind", ["Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "Q3_K", "Q2_K", "IQ4_NL"]
)
def test_gguf_levels_hold_every_value_and_decode_as_gguf_py_decodes(tmp_path, kind):
    """Values lie between the outermost levels and whole steps above the lowest."""
    gguf = pytest.importorskip("gguf")
    pytest.importorskip("xllamacpp")
    from quantverdict.artifacts.gguf_read import TYPE_BY_NAME, kernels

    values = RNG.standard_t(5, (16, 512)).astype(np.float32)
    data = np.empty((16, 512 // TYPE_BY_NAME[kind].block * TYPE_BY_NAME[kind].size), np.uint8)
    kernels().narrow(TYPE_BY_NAME[kind], values.ctypes.data, data.ctypes.data, 16, 512)
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "other")
    quantization = gguf.GGMLQuantizationType[kind]
    writer.add_tensor("a.weight", data, raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    rows = open_weights(tmp_path / "m.gguf").handles["a.weight"].read(np.arange(16))
    np.testing.assert_allclose(rows.values, gguf.dequantize(data, quantization), rtol=1e-6, atol=1e-7)
    tolerance = 1e-5 * np.abs(rows.values).max()
    assert np.all((rows.values >= rows.low - tolerance) & (rows.values <= rows.high + tolerance))
    if kind == "IQ4_NL":  # unequal steps: the wider one beside each value, of the table in ggml-common.h
        table = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])
        scale = (rows.high - rows.low) / 240
        gaps = np.diff(table)
        place = np.abs(
            rows.values[..., None] / scale[..., None] * np.sign(rows.high + rows.low)[..., None] * -1 - table
        )
        wider = np.maximum(np.append(0, gaps), np.append(gaps, 0))[np.argmin(place, axis=-1)]
        np.testing.assert_allclose(rows.step, wider * scale, rtol=1e-4)
        return
    steps = (rows.values - rows.low) / np.where(rows.step > 0, rows.step, 1)
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)
    levels = np.max((rows.high - rows.low) / np.where(rows.step > 0, rows.step, 1))
    assert round(float(levels)) == {"Q8_0": 254}.get(kind, 2 ** int(kind[1]) - 1)


def test_a_made_level_reads_near_its_source(tmp_path, made_weights, convert_llama):
    pytest.importorskip("xllamacpp")
    made = made_weights()
    source = convert_llama(tmp_path / "m.gguf", made)
    level = open_weights(make_level(source, "Q8_0", tmp_path / "q.gguf"))
    for name, values in made.items():
        difference = np.linalg.norm(level.values(name) - values) / np.linalg.norm(values.astype(np.float32))
        assert difference < 0.01, name


def test_gemma_norms_are_as_they_act(tmp_path, write_checkpoint):
    norm = {"model.layers.0.input_layernorm.weight": np.array([0.5, -0.25], np.float32)}
    config = {"model_type": "gemma3_text"}
    found = open_weights(write_checkpoint(tmp_path / "m", norm, config=config))
    np.testing.assert_array_equal(found.values("model.layers.0.input_layernorm.weight"), [1.5, 0.75])
