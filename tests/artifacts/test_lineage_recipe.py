"""Lineage of types without regular levels: made again with equal bytes, else bounds; by tensor and by expert."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from quantverdict.artifacts.gguf_read import open_gguf
from quantverdict.artifacts.imatrix import read_imatrix
from quantverdict.artifacts.lineage import Lineage, compare
from quantverdict.artifacts.lineage_tensors import Residual, judge, judge_experts
from quantverdict.artifacts.quantize import make_level
from quantverdict.cli import commands

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
Write = Callable[..., Path]


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.normal(0, 0.02, shape)


def changed(by: float, *, everywhere: bool = True) -> Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]:
    """The same draws, each moved by a share of its size; or those of the layers alone."""
    other = np.random.default_rng(99)

    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        made = normal(rng, shape)
        return made + by * 0.02 * other.normal(size=shape) if everywhere or shape[0] == 8 else made

    return draw


def one_expert(number: int, by: float, stack: int) -> Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]:
    """The same draws, but for one expert of the first stack."""
    seen: list[int] = []

    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        made = normal(rng, shape)
        if len(shape) == 3:
            seen.append(1)
            if len(seen) == stack:
                made[number] += by * 0.02 * np.random.default_rng(5).normal(size=shape[1:])
        return made

    return draw


def imatrix_of(path: Path, model: Path) -> Path:
    """An importance matrix in the older form, for every matrix of a model."""
    import struct

    entries, rng = [], np.random.default_rng(1)
    for tensor in open_gguf(model).tensors:
        if tensor.n_dims > 1:
            size = tensor.shape[0] * (tensor.shape[2] if len(tensor.shape) > 2 else 1)
            values = rng.lognormal(0, 1, size).astype("<f4").tobytes()
            name = tensor.name.encode()
            entries.append(struct.pack("<i", len(name)) + name + struct.pack("<ii", 1, size) + values)
    path.write_bytes(struct.pack("<i", len(entries)) + b"".join(entries))
    return path


def weights_check(found: Lineage) -> tuple[str, str]:
    check = next(one for one in found.checks if one.name == "quantised weights")
    return check.verdict, check.reason


@pytest.fixture(scope="module")
def base(write_model: Write, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("recipe") / "base.gguf", arch="qwen2", layers=2, weights=normal)


@pytest.mark.parametrize("level", ["IQ4_NL", "IQ4_XS", "TQ2_0", "TQ1_0"])
def test_types_of_unequal_steps_are_judged_by_their_nearest_levels(
    level: str, base: Path, write_model: Write, tmp_path: Path
) -> None:
    """The baseline's own build has every value at its nearest level; one of weights changed by 4 % has not."""
    same = compare(base, make_level(base, level, tmp_path / "same.gguf"))
    other = write_model(tmp_path / "other.gguf", arch="qwen2", layers=2, weights=changed(0.04))
    different = compare(base, make_level(other, level, tmp_path / "different.gguf"))
    assert weights_check(same)[0] == "same"
    assert weights_check(different)[0] == "different"


def test_experts_of_mxfp4_are_judged_by_their_nearest_levels(write_model: Write, tmp_path: Path) -> None:
    base = write_model(tmp_path / "base.gguf", arch="qwen2", layers=1, experts=4, weights=normal)
    made = make_level(base, "MXFP4_MOE", tmp_path / "made.gguf")
    assert weights_check(compare(base, made))[0] == "same"


@pytest.mark.parametrize("level", ["IQ3_S", "IQ3_XXS"])
def test_bytes_that_come_out_equal_prove_what_an_error_cannot(level: str, base: Path, tmp_path: Path) -> None:
    """With the importance matrix beside it, by its recorded name; whole where that is asked for."""
    file = imatrix_of(tmp_path / "own.imatrix", base)
    made = make_level(base, level, tmp_path / "made.gguf", imatrix=read_imatrix(file))
    found = compare(base, made)
    verdict, reason = weights_check(found)
    assert (verdict, found.verdict) == ("same", "same")
    assert "proved: " in reason
    assert "with the same bytes, in the rows that were read" in reason
    whole = weights_check(compare(base, made, remake=True))
    assert whole[0] == "same"
    assert whole[1].endswith("with the same bytes, whole")


def test_without_its_importance_matrix_there_are_bounds_and_no_verdict(base: Path, tmp_path: Path) -> None:
    file = imatrix_of(tmp_path / "own.imatrix", base)
    made = make_level(base, "IQ3_XXS", tmp_path / "made.gguf", imatrix=read_imatrix(file))
    moved = file.rename(tmp_path / "elsewhere.imatrix")
    verdict, reason = weights_check(compare(base, made))
    assert verdict == "cannot_tell"
    assert "of 24% at the most" in reason
    assert "'own.imatrix', is not beside it" in reason
    assert weights_check(compare(base, made, moved))[0] == "same"
    done = CliRunner().invoke(commands, ["lineage", str(base), str(made), "--imatrix", str(moved)])
    assert "proved" in done.output


def test_another_importance_matrix_of_that_name_is_not_taken(base: Path, tmp_path: Path) -> None:
    """Its sha256 is recorded in what this package makes."""
    file = imatrix_of(tmp_path / "own.imatrix", base)
    made = make_level(base, "IQ3_XXS", tmp_path / "made.gguf", imatrix=read_imatrix(file))
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\x80\x3f")
    verdict, reason = weights_check(compare(base, made))
    assert verdict == "cannot_tell"
    assert "own.imatrix is not the importance matrix" in reason


def test_a_build_of_changed_weights_is_never_proved(base: Path, write_model: Write, tmp_path: Path) -> None:
    """By 3 %, which the error of the type hides: the first weight that comes out otherwise is named."""
    other = write_model(tmp_path / "other.gguf", arch="qwen2", layers=2, weights=changed(0.03, everywhere=False))
    made = make_level(other, "IQ3_S", tmp_path / "made.gguf")
    for remake in (False, True):
        verdict, reason = weights_check(compare(base, made, remake=remake))
        assert verdict == "cannot_tell"
        assert "made again, model.layers.0." in reason
        assert "another llama.cpp, importance matrix or source" in reason


@pytest.mark.parametrize("level", ["IQ3_S", "Q4_0"])
def test_one_broken_expert_is_named(level: str, write_model: Write, tmp_path: Path) -> None:
    """Of eight, changed by 5 %: in a type without regular levels by its bytes, in another by its levels."""
    base = write_model(tmp_path / "base.gguf", arch="qwen2", layers=2, experts=8, weights=normal)
    other = write_model(tmp_path / "other.gguf", arch="qwen2", layers=2, experts=8, weights=one_expert(3, 0.05, 2))
    good = compare(base, make_level(base, level, tmp_path / "good.gguf"))
    bad = compare(base, make_level(other, level, tmp_path / "bad.gguf"))
    assert weights_check(good)[0] == "same"
    verdict, reason = weights_check(bad)
    assert verdict == "different"
    assert "expert 3" in reason
    assert "1 of " in reason


def part(error: float) -> Residual:
    return Residual(None, None, 1.0, error, 0.95, 0.0, 0.0)


@pytest.mark.parametrize(("error", "verdict"), [(0.329, "cannot_tell"), (0.331, "different")])
def test_an_error_beyond_what_a_type_leaves_is_another_models(error: float, verdict: str) -> None:
    assert judge("w", "IQ3_XXS", part(error)).verdict == verdict


@pytest.mark.parametrize(("error", "verdict"), [(0.199, "cannot_tell"), (0.201, "different")])
def test_an_expert_whose_error_is_twice_the_usual_one_stands_out(error: float, verdict: str) -> None:
    found = judge_experts("w", "IQ2_S", [part(0.1), part(0.1), part(error), part(0.1)])
    assert found.verdict == verdict
    assert ("expert 2 of 4" in found.note) == (verdict == "different")


def test_the_bounds_hold_for_what_the_kernels_make() -> None:
    """Of heavy tails and even weights: within the table, and above half of it, so that it is not empty words."""
    from quantverdict.artifacts.gguf_read import TYPE_BY_NAME, kernels
    from quantverdict.artifacts.lineage_tensors import _MOST_ERROR

    rng = np.random.default_rng(4)
    for name in ("IQ3_S", "IQ3_XXS"):
        kind, wide = TYPE_BY_NAME[name], rng.standard_t(4, (4, 512)).astype(np.float32)
        out, back = np.zeros(wide.size // kind.block * kind.size, np.uint8), np.empty_like(wide)
        weights = np.ones(512, np.float32)
        kernels().narrow(kind, wide.ctypes.data, out.ctypes.data, 4, 512, weights.ctypes.data)
        kernels().widen(kind, out.ctypes.data, back.ctypes.data, wide.size)
        error = np.sqrt(np.mean((wide - back) ** 2) / np.mean(wide**2))
        assert 0.4 * _MOST_ERROR[name] < error < _MOST_ERROR[name]
