"""Making levels: deterministic, whole or not at all, made once, twins found."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from quantverdict.artifacts import gguf_read, quantize, sources
from quantverdict.artifacts.gguf import describe, inspect_gguf
from quantverdict.artifacts.gguf_read import open_gguf
from quantverdict.artifacts.quantize import build_ladder, find_duplicates, make_level
from quantverdict.errors import ArtifactError, EngineError, QuantverdictError

pytest.importorskip("xllamacpp", reason="the llamacpp extra is not installed")


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_the_same_input_gives_the_same_bytes(tiny: Path, tmp_path: Path) -> None:
    """Whatever the threads did, and whatever the file is called."""
    first = make_level(tiny, "Q4_K_M", tmp_path / "a.gguf").read_bytes()
    assert make_level(tiny, "Q4_K_M", tmp_path / "elsewhere" / "b.gguf").read_bytes() == first


def test_a_level_names_its_source_and_keeps_the_rest_of_the_metadata(tiny: Path, tmp_path: Path) -> None:
    source, made = open_gguf(tiny), open_gguf(make_level(tiny, "Q6_K", tmp_path / "a.gguf"))
    assert made.get("quantverdict.source_sha256") == inspect_gguf(tiny).sha256
    assert made.get("general.file_type") == 18
    assert made.get("general.quantization_version") == 2
    assert "quantverdict.dequantized_from" not in made.fields, "a true F16 source was never low-bit"
    same = set(source.fields) - {"general.file_type", "general.quantization_version"}
    assert all(made.get(key) == source.get(key) for key in same)


def test_progress_ends_at_the_number_of_weights(tiny: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    make_level(tiny, "Q8_0", tmp_path / "a.gguf", progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (inspect_gguf(tiny).n_params,) * 2


def test_a_tensor_of_several_chunks_is_encoded_whole(
    write_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of one row and of many rows give the same bytes."""
    source = write_model(tmp_path / "a.gguf", vocab=301)
    at_once = make_level(source, "Q4_K_M", tmp_path / "b.gguf").read_bytes()
    monkeypatch.setattr("quantverdict.artifacts.quantize._CHUNK", 1)
    assert make_level(source, "Q4_K_M", tmp_path / "c.gguf").read_bytes() == at_once


def test_fallbacks_are_counted_and_said(write_model: Callable[..., Path], tmp_path: Path) -> None:
    """Rows of 288 are no multiple of 256, those of 768 are."""
    source = write_model(tmp_path / "a.gguf", width=288, heads=9, ffn=768, layers=2, tied=True)
    low, plain = (inspect_gguf(make_level(source, level, tmp_path / f"{level}.gguf")) for level in ("Q3_K_S", "Q8_0"))
    assert low.fallbacks == {"Q4_0": 12, "Q8_0": 1}
    assert low.tensor_types == {"Q4_0": 12, "F32": 3, "Q3_K": 2, "Q8_0": 1}
    assert "13 matrices (12 Q4_0, 1 Q8_0) are not in the type" in "\n".join(describe(low))
    assert plain.fallbacks == {}


def test_levels_that_fall_back_to_the_same_types_are_twins(write_model: Callable[..., Path], tmp_path: Path) -> None:
    """The demo model's case: Q3_K_S and Q2_K come out as the same weights; the earlier level is the original."""
    source = write_model(tmp_path / "a.gguf", width=96, heads=3, ffn=320, tied=True)
    artifacts = {
        level: inspect_gguf(make_level(source, level, tmp_path / f"{level}.gguf"))
        for level in ("Q8_0", "Q6_K", "Q3_K_S", "Q2_K")
    }
    assert find_duplicates(artifacts) == {"Q6_K": "Q8_0", "Q2_K": "Q3_K_S"}
    assert find_duplicates({level: artifacts[level] for level in ("Q2_K", "Q3_K_S")}) == {"Q3_K_S": "Q2_K"}
    assert find_duplicates({}) == {}


def test_a_level_that_does_not_exist_is_refused_with_those_that_do(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ArtifactError, match=r"no level Q9_Z; expected one of 33 names that `quantverdict quantize --help` lists"
    ):
        make_level(tiny, "Q9_Z", tmp_path / "a.gguf")


def test_rows_that_a_level_cannot_store_are_refused_by_name(write_model: Callable[..., Path], tmp_path: Path) -> None:
    source = write_model(tmp_path / "a.gguf", width=40, heads=2, ffn=64, layers=1)
    with pytest.raises(ArtifactError, match=r"output.weight: rows of 40 cannot be stored as Q8_0; .* multiple of 32"):
        make_level(source, "Q4_0", tmp_path / "b.gguf")


@pytest.mark.parametrize(("value", "level"), [(np.nan, "FP16"), (np.inf, "Q4_K_M"), (1e6, "FP16")])
def test_a_value_that_cannot_be_stored_is_refused_by_tensor(
    value: float, level: str, write_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Not a number, infinite, or beyond what F16 holds: no file, not a silent infinity."""

    def weights(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        values = rng.normal(0, 0.02, shape)
        values[(-1,) * len(shape)] = value if shape == (8, 512) else 0
        return values

    source = write_model(tmp_path / "a.gguf", wide="F32", weights=weights)
    with pytest.raises(ArtifactError, match=r"blk.0.ffn_down.weight: holds a value that is not finite"):
        make_level(source, level, tmp_path / "out" / "b.gguf")
    assert list((tmp_path / "out").iterdir()) == []


def test_no_room_on_the_disk_is_said_before_anything_is_written(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources.shutil, "disk_usage", lambda _: Usage(100, 90, 10))
    with pytest.raises(ArtifactError, match=r"does not fit: .* bytes are needed, 10 are free"):
        make_level(tiny, "Q8_0", tmp_path / "out" / "a.gguf")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_disk_that_fills_up_leaves_the_old_file_and_no_half_one(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_level(tiny, "Q8_0", tmp_path / "out" / "a.gguf")
    before = made.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(quantize, "write_padded", full)
    with pytest.raises(ArtifactError, match=r"cannot be written .the disk is full."):
        make_level(tiny, "Q4_0", made)
    assert [path.name for path in made.parent.iterdir()] == ["a.gguf"]
    assert made.read_bytes() == before


def test_an_interrupt_leaves_nothing(tiny: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_level(tiny, "Q4_K_M", tmp_path / "out" / "a.gguf", progress=interrupt)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_said_in_one_line(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="cannot be written"):
        make_level(tiny, "Q8_0", tmp_path / "file" / "a.gguf")


def test_without_the_engine_the_message_says_what_to_install(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_: str) -> None:
        raise PackageNotFoundError

    gguf_read.kernels.cache_clear()
    monkeypatch.setattr(gguf_read, "find_spec", lambda _: None)
    monkeypatch.setattr(gguf_read, "version", missing)
    with pytest.raises(QuantverdictError, match=r"pip install 'quantverdict\[llamacpp\]'"):
        make_level(tiny, "Q8_0", tmp_path / "a.gguf")
    with pytest.raises(QuantverdictError, match=r"pip install 'quantverdict\[llamacpp\]'"):
        build_ladder(tiny, ["Q8_0"], tmp_path)


def test_a_library_with_other_types_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard against a release that moved a type: nothing is written with it."""
    gguf_read.kernels.cache_clear()
    moved = gguf_read.TYPE_BY_NAME["Q6_K"]._replace(size=208)
    monkeypatch.setattr(gguf_read, "TYPE_BY_NAME", {**gguf_read.TYPE_BY_NAME, "Q6_K": moved})
    with pytest.raises(EngineError, match="tensor type 14 is"):
        gguf_read.kernels()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Which levels were really made, from which file name."""
    calls: list[tuple[str, str]] = []

    def counted(source: Path, level: str, out: Path, **options: Any) -> Path:
        calls.append((level, source.name))
        return make_level(source, level, out, **options)

    monkeypatch.setattr(quantize, "make_level", counted)
    return calls


def test_a_ladder_is_made_once(tiny: Path, tmp_path: Path, made: list[tuple[str, str]]) -> None:
    """The F16 level of an F16 source is the source; the others are reused by the same source wherever it lies."""
    first = build_ladder(tiny, ["FP16", "Q8_0", "Q4_K_M"], tmp_path / "cache")
    assert list(first) == ["FP16", "Q8_0", "Q4_K_M"]
    assert first["FP16"] == tiny
    assert made == [("Q8_0", "tiny.gguf"), ("Q4_K_M", "tiny.gguf")]
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(tiny.read_bytes())
    again = build_ladder(copy, ["Q4_K_M", "Q8_0"], tmp_path / "cache")
    assert len(made) == 2
    assert dict(again) == {level: first[level] for level in ("Q4_K_M", "Q8_0")}


def test_a_low_bit_source_is_decoded_first_and_the_levels_come_from_that(
    tiny: Path, tmp_path: Path, made: list[tuple[str, str]]
) -> None:
    source = make_level(tiny, "Q4_1", tmp_path / "low.gguf")
    progress: list[str] = []
    ladder = build_ladder(
        source, ["Q8_0", "FP16", "Q4_1"], tmp_path / "cache", lambda level, done, total: progress.append(level)
    )
    assert made == [("FP16", "low.gguf"), ("Q8_0", "FP16.gguf")]
    assert ladder["Q4_1"] == source
    assert list(dict.fromkeys(progress)) == ["FP16", "Q8_0"]
    assert {inspect_gguf(ladder[level]).dequantized_from for level in ("FP16", "Q8_0")} == {"Q4_1"}


def test_another_source_has_levels_of_its_own(
    tiny: Path, write_model: Callable[..., Path], tmp_path: Path, made: list[tuple[str, str]]
) -> None:
    other = write_model(tmp_path / "other.gguf", seed=9)
    first, second = (build_ladder(path, ["Q8_0"], tmp_path / "cache")["Q8_0"] for path in (tiny, other))
    assert len(made) == 2
    assert inspect_gguf(first).weights_sha256 != inspect_gguf(second).weights_sha256


def test_a_cached_level_that_changed_is_made_again(tiny: Path, tmp_path: Path, made: list[tuple[str, str]]) -> None:
    """A touched file is kept (its hash is right), a changed or cut one is not, nor one without a readable record."""
    path = build_ladder(tiny, ["Q8_0"], tmp_path)["Q8_0"]
    whole_file, record = path.read_bytes(), path.with_suffix(".json")

    def times_made() -> int:
        assert build_ladder(tiny, ["Q8_0"], tmp_path)["Q8_0"] == path
        assert path.read_bytes() == whole_file
        return len(made)

    path.write_bytes(whole_file)
    assert times_made() == 1
    path.write_bytes(whole_file[:-1] + b"\xff")
    assert times_made() == 2
    path.write_bytes(whole_file[:-64])
    assert times_made() == 3
    record.write_text("{", encoding="utf-8")
    assert times_made() == 4
    record.unlink()
    assert times_made() == 5
    path.unlink()
    assert times_made() == 6
    assert json.loads(record.read_text(encoding="utf-8"))["bytes"] == len(whole_file)
