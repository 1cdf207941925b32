"""The evidence that wide weights were once low-bit: found where they were, not where they were not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quantverdict.artifacts.gguf import DEQUANTIZED_KEY, describe, inspect_gguf
from quantverdict.artifacts.gguf_read import open_gguf
from quantverdict.artifacts.grid import low_bit_grid
from quantverdict.artifacts.quantize import make_level

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
DISTRIBUTIONS: dict[str, Draw] = {
    "normal": lambda rng, shape: rng.normal(0, 0.02, shape),
    "laplace": lambda rng, shape: rng.laplace(0, 0.02, shape),
    "heavy tails": lambda rng, shape: rng.standard_t(3, shape) * 0.01,
    "uniform": lambda rng, shape: rng.uniform(-0.1, 0.1, shape),
    "mostly zeros": lambda rng, shape: rng.normal(0, 0.02, shape) * (rng.random(shape) < 0.3),
    "smaller than F16 resolves": lambda rng, shape: rng.normal(0, 1e-7, shape),
    "all equal": lambda rng, shape: np.full(shape, 0.5),
}
BITS = {
    "Q8_0": 8, "Q6_K": 6, "Q5_K_S": 5, "Q5_1": 5, "Q5_0": 5, "Q4_K_S": 4, "Q4_1": 4, "Q4_0": 4, "Q3_K_S": 3, "Q2_K": 2,
}  # fmt: skip


@pytest.mark.parametrize("wide", ["F16", "BF16", "F32"])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_weights_that_were_never_quantised_show_no_grid(
    name: str, wide: str, write_model: Callable[..., Path], tmp_path: Path
) -> None:
    source = write_model(tmp_path / "true.gguf", wide=wide, weights=DISTRIBUTIONS[name])
    assert low_bit_grid(open_gguf(source)) is None


def test_a_bfloat16_checkpoint_stored_as_f16_shows_no_grid(write_model: Callable[..., Path], tmp_path: Path) -> None:
    """Most published F16 files are that; seven bits of mantissa are no grid."""
    source = make_level(write_model(tmp_path / "a.gguf", wide="BF16"), "FP16", tmp_path / "b.gguf")
    assert low_bit_grid(open_gguf(source)) is None


@pytest.mark.parametrize("name", ["normal", "laplace", "heavy tails"])
@pytest.mark.parametrize("wide", ["FP16", "F32"])
@pytest.mark.parametrize("level", BITS)
def test_the_grid_of_every_low_bit_type_shows_in_its_decoded_weights(
    level: str, wide: str, name: str, write_model: Callable[..., Path], tmp_path: Path
) -> None:
    """By the data alone; Q2_K and Q3_K levels keep some tensors at more bits, the commonest grid is named."""
    source = write_model(tmp_path / "a.gguf", weights=DISTRIBUTIONS[name])
    low = make_level(source, level, tmp_path / "b.gguf")
    decoded = open_gguf(make_level(low, wide, tmp_path / "c.gguf"))
    assert low_bit_grid(decoded) == f"{BITS[level]}-bit"


def test_four_bits_show_through_bfloat16(tiny: Path, tmp_path: Path) -> None:
    low = make_level(tiny, "Q4_0", tmp_path / "b.gguf")
    assert low_bit_grid(open_gguf(make_level(low, "BF16", tmp_path / "c.gguf"))) == "4-bit"


def test_a_decoded_file_is_named_as_that_and_its_levels_too(tiny: Path, tmp_path: Path) -> None:
    """The recorded type is passed on to everything that is made from the file."""
    low = make_level(tiny, "Q4_1", tmp_path / "low.gguf")
    wide = make_level(low, "FP16", tmp_path / "wide.gguf")
    level = make_level(wide, "Q6_K", tmp_path / "level.gguf")
    assert [inspect_gguf(path).dequantized_from for path in (tiny, low, wide, level)] == [None, None, "Q4_1", "Q4_1"]
    assert "went through Q4_1 before" in "\n".join(describe(inspect_gguf(wide)))


def test_a_mix_is_named_by_its_level_and_an_unnamed_one_by_its_commonest_type(tiny: Path, tmp_path: Path) -> None:
    low = make_level(tiny, "Q4_K_M", tmp_path / "low.gguf")
    assert inspect_gguf(make_level(low, "FP16", tmp_path / "wide.gguf")).dequantized_from == "Q4_K_M"
    low.write_bytes(low.read_bytes().replace(b"general.file_type", b"general.fyle_type"))
    assert inspect_gguf(make_level(low, "FP16", tmp_path / "wide.gguf")).dequantized_from == "Q4_K"


def test_the_data_tell_where_the_metadata_do_not(tiny: Path, tmp_path: Path) -> None:
    """Somebody else's file carries no record: the grid is enough, and levels made from it inherit the finding."""
    wide = make_level(make_level(tiny, "Q4_1", tmp_path / "low.gguf"), "FP16", tmp_path / "wide.gguf")
    stripped = tmp_path / "stripped.gguf"
    stripped.write_bytes(wide.read_bytes().replace(DEQUANTIZED_KEY.encode(), b"x" * len(DEQUANTIZED_KEY)))
    assert inspect_gguf(stripped).dequantized_from == "4-bit"
    assert inspect_gguf(make_level(stripped, "Q8_0", tmp_path / "level.gguf")).dequantized_from == "4-bit"
