"""Importance matrices: both forms give the same numbers, a broken one is a line, a level says what it was made with."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quantverdict.artifacts.gguf import describe, inspect_gguf
from quantverdict.artifacts.gguf_read import open_gguf
from quantverdict.artifacts.imatrix import read_imatrix
from quantverdict.artifacts.quantize import make_level
from quantverdict.errors import ArtifactError

VALUES = {"blk.0.ffn_up.weight": [[1.0, 2.0, 0.5, 4.0]], "blk.0.ffn_up_exps.weight": [[2.0, 4.0], [1.0, 1.0]]}
COUNTS = {"blk.0.ffn_up.weight": [8.0], "blk.0.ffn_up_exps.weight": [2.0, 0.0]}
EXPECTED = {"blk.0.ffn_up.weight": [0.125, 0.25, 0.0625, 0.5], "blk.0.ffn_up_exps.weight": [1.0, 2.0, 1.0, 1.0]}


def as_gguf(path: Path, sums=None, counts=None, kind: str = "imatrix") -> Path:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "none")
    writer.kv_data[0].pop("general.architecture")
    writer.add_string("general.type", kind)
    writer.add_array("imatrix.datasets", ["wiki.txt"])
    writer.add_uint32("imatrix.chunk_count", 5)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, values in (sums or VALUES).items():
        writer.add_tensor(f"{name}.in_sum2", np.array(values, np.float32))
        if name in (counts or COUNTS):
            writer.add_tensor(f"{name}.counts", np.array((counts or COUNTS)[name], np.float32)[:, None])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def as_entries(path: Path, tail: bytes = struct.pack("<ii", 5, 8) + b"wiki.txt") -> Path:
    """The older form: mean squares times calls."""
    data = struct.pack("<i", len(EXPECTED))
    for name, values in EXPECTED.items():
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 4, len(values))
        data += np.array(values, np.float32).__mul__(4).astype("<f4").tobytes()
    path.write_bytes(data + tail)
    return path


@pytest.mark.parametrize("write", [as_gguf, as_entries])
def test_both_forms_give_the_mean_squares_and_what_they_are_of(write: Callable[[Path], Path], tmp_path: Path) -> None:
    found = read_imatrix(write(tmp_path / "i.dat"))
    assert {name: values.tolist() for name, values in found.values.items()} == EXPECTED
    assert (found.dataset, found.chunks) == ("wiki.txt", 5)
    assert all(values.dtype == np.float32 for values in found.values.values())


def test_an_old_file_without_a_tail_says_nothing_of_its_text(tmp_path: Path) -> None:
    found = read_imatrix(as_entries(tmp_path / "i.dat", b""))
    assert (found.dataset, found.chunks) == ("", None)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is cut, or no importance matrix"),
        (b"\xff\xff\xff\xff", "is corrupt, or no importance matrix"),
        (struct.pack("<i", 0), "holds no entries"),
        (struct.pack("<ii", 1, 100) + b"short", "is cut"),
        (struct.pack("<ii", 1, 1) + b"a" + struct.pack("<iif", 1, 1, float("nan")), "negative or no number"),
        (struct.pack("<ii", 1, 1) + b"a" + struct.pack("<iif", 1, 1, -1.0), "negative or no number"),
        (b"GGUF" + bytes(20), "GGUF version 0"),
    ],
)
def test_what_is_no_importance_matrix_is_one_line(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "i.dat"
    path.write_bytes(content)
    with pytest.raises(ArtifactError) as caught:
        read_imatrix(path)
    assert words in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_model_and_sums_without_counts_are_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is no importance matrix"):
        read_imatrix(tiny)
    with pytest.raises(ArtifactError, match="sums without counts"):
        read_imatrix(as_gguf(tmp_path / "i.gguf", counts={"blk.0.ffn_up.weight": [1.0]}))
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_imatrix(tmp_path / "none.dat")


@pytest.mark.engine
def test_a_level_says_what_it_was_made_with_and_weights_change_it(
    write_model: Callable[..., Path], importance: Callable[..., dict[str, np.ndarray]], tmp_path: Path
) -> None:
    source = write_model(tmp_path / "source.gguf", layers=2)
    sums = {name: values[None, :] for name, values in importance(source).items()}
    matrix = read_imatrix(as_gguf(tmp_path / "own.gguf", sums, {name: [1.0] for name in sums}))
    plain, weighted = (
        inspect_gguf(make_level(source, "Q4_K_M", tmp_path / f"{one is None}.gguf", imatrix=one))
        for one in (None, matrix)
    )
    assert plain.weights_sha256 != weighted.weights_sha256
    assert (plain.calibration, plain.tensor_types) == ("", weighted.tensor_types)
    assert weighted.calibration == f"importance matrix of wiki.txt, 5 chunks, {len(sums)} tensors"
    assert any("importance matrix of wiki.txt" in line for line in describe(weighted))
    again = open_gguf(make_level(Path(weighted.path), "Q8_0", tmp_path / "again.gguf"))
    assert not [key for key in again.fields if key.startswith("quantize.imatrix")], "another level was made without"


@pytest.mark.engine
def test_few_bits_need_a_matrix_of_this_model(
    write_model: Callable[..., Path], importance: Callable[..., dict[str, np.ndarray]], tmp_path: Path
) -> None:
    source, other = write_model(tmp_path / "a.gguf"), write_model(tmp_path / "b.gguf", width=512)
    with pytest.raises(
        ArtifactError, match=r"IQ2_XXS stores blk.0.attn_k.weight as IQ2_XXS, which needs an importance"
    ):
        make_level(source, "IQ2_XXS", tmp_path / "made.gguf")
    sums = {name: values[None, :] for name, values in importance(other).items()}
    of_other = read_imatrix(as_gguf(tmp_path / "other.gguf", sums, {name: [1.0] for name in sums}))
    with pytest.raises(
        ArtifactError, match=r"other.gguf: .*has 512 columns; expected 256, as of a.gguf: the importance"
    ):
        make_level(source, "IQ4_XS", tmp_path / "made.gguf", imatrix=of_other)
    del sums["blk.0.attn_k.weight"]
    partial = read_imatrix(as_gguf(tmp_path / "part.gguf", sums, {name: [1.0] for name in sums}))
    with pytest.raises(
        ArtifactError, match=r"blk.0.attn_k.weight as IQ2_XXS, and the importance matrix does not hold it"
    ):
        make_level(source, "IQ2_XXS", tmp_path / "made.gguf", imatrix=partial)
    assert not list(tmp_path.glob("made*"))
    assert inspect_gguf(make_level(source, "IQ4_XS", tmp_path / "iq4.gguf")).calibration == ""
    low = inspect_gguf(make_level(source, "IQ3_S", tmp_path / "iq3.gguf"))
    assert low.calibration == "no importance matrix is recorded: so few bits lose more without one"
