"""A model in several GGUF files is one: whichever part is named, it is read, hashed, levelled and asked as a whole."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest

from quantverdict.artifacts.discovery import discover
from quantverdict.artifacts.gguf import describe, inspect_gguf
from quantverdict.artifacts.gguf_read import Gguf, open_gguf
from quantverdict.artifacts.quantize import TensorEntry, find_duplicates, header_bytes, make_level, write_padded
from quantverdict.artifacts.sources import resolve
from quantverdict.config import Source
from quantverdict.errors import ArtifactError


def _field(key: str, kind: int, code: str, value: int) -> bytes:
    return struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + struct.pack(f"<{code}", value)


def _part(model: Gguf, number: int, count: int, stated: int) -> bytes:
    """As llama-gguf-split writes it: metadata in the first part alone."""
    own = [one for place, one in enumerate(model.tensors) if place * count // len(model.tensors) == number]
    kept = model.fields.items() if number == 0 else ()
    fields = [
        struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", field.kind) + model.data[field.start : field.end]
        for key, field in kept
    ]
    fields += [_field("split.no", 2, "H", number), _field("split.count", 2, "H", count)]
    fields.append(_field("split.tensors.count", 5, "i", stated))
    entries = tuple(TensorEntry(one.name, one.shape, one.type) for one in own)
    out = BytesIO()
    out.write(header_bytes(fields, entries, model.alignment))
    for one in own:
        write_padded(out, memoryview(model.stored(one)), model.alignment)
    return out.getvalue()


def split(path: Path, folder: Path, count: int = 3, name: str = "tiny-F16") -> list[Path]:
    """The parts of a model, in their order."""
    folder.mkdir(parents=True, exist_ok=True)
    model = open_gguf(path)
    files = [folder / f"{name}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]
    for number, file in enumerate(files):
        file.write_bytes(_part(model, number, count, len(model.tensors)))
    return files


@pytest.fixture
def parts(tiny: Path, tmp_path: Path) -> list[Path]:
    return split(tiny, tmp_path / "split")


def test_any_part_is_the_whole_model_and_one_build_with_the_file_it_was_cut_from(parts: list[Path], tiny: Path) -> None:
    whole, found = inspect_gguf(tiny), [inspect_gguf(part) for part in parts]
    assert found[0] == found[1] == found[2]
    assert found[0].path == str(parts[0])
    for name in (
        "identity_sha256",
        "weights_sha256",
        "bpw",
        "n_params",
        "tensor_types",
        "tokens_sha256",
        "chat_template",
    ):
        assert getattr(found[0], name) == getattr(whole, name)
    assert find_duplicates({"whole": whole, "split": found[0]}) == {"split": "whole"}
    assert found[0].file_bytes == sum(part.stat().st_size for part in parts)
    assert describe(found[0])[0].endswith("tiny-F16-00001-of-00003.gguf, the first of 3 parts")


def test_its_hash_is_over_the_hashes_of_its_parts_and_a_changed_byte_of_any_changes_it(parts: list[Path]) -> None:
    each = [hashlib.sha256(part.read_bytes()).hexdigest() for part in parts]
    before = inspect_gguf(parts[0])
    assert before.sha256 == hashlib.sha256("".join(f"{one}\n" for one in each).encode()).hexdigest()
    last = bytearray(parts[2].read_bytes())
    last[-65] ^= 1
    parts[2].write_bytes(last)
    assert inspect_gguf(parts[0]).sha256 != before.sha256


@pytest.mark.engine
@pytest.mark.parametrize("level", ["Q8_0", "FP16"])
def test_a_level_made_from_parts_has_the_weights_of_one_made_from_the_file(
    parts: list[Path], tiny: Path, tmp_path: Path, level: str
) -> None:
    whole, found = (make_level(start, level, tmp_path / f"{start.stem}.out") for start in (tiny, parts[1]))
    assert inspect_gguf(found).identity_sha256 == inspect_gguf(whole).identity_sha256
    assert "split.count" not in open_gguf(found).fields


def test_a_missing_part_is_named(parts: list[Path]) -> None:
    parts[1].unlink()
    for part in (parts[0], parts[2]):
        with pytest.raises(ArtifactError, match=r"; tiny-F16-00002-of-00003.gguf is not beside it; expected every"):
            inspect_gguf(part)
    parts[0].unlink()
    with pytest.raises(ArtifactError, match=r"is part 3 of 3; tiny-F16-00001-of-00003.gguf and 1 more is not"):
        inspect_gguf(parts[2])


def test_what_does_not_belong_together_is_no_model(parts: list[Path], tiny: Path, tmp_path: Path) -> None:
    renamed = parts[0].rename(parts[0].with_name("model.gguf"))
    with pytest.raises(ArtifactError, match=r"is part 1 of 3, by another name; expected NAME-00001-of-00003.gguf"):
        inspect_gguf(renamed)
    renamed.rename(parts[0])
    good = parts[1].read_bytes()
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(ArtifactError, match=r"00002-of-00003.gguf: does not say that it is part 2 of 3"):
        inspect_gguf(parts[0])
    parts[1].write_bytes(tiny.read_bytes())
    with pytest.raises(ArtifactError, match=r"00002-of-00003.gguf: does not say that it is part 2 of 3"):
        inspect_gguf(parts[0])
    parts[1].write_bytes(good)
    parts[0].write_bytes(_part(open_gguf(tiny), 0, 3, 99))
    with pytest.raises(ArtifactError, match=r"00001-of-00003.gguf: its parts hold \d+ tensors; expected the 99"):
        inspect_gguf(parts[0])
    twice = split(tiny, tmp_path / "twice", 2)
    twice[1].write_bytes(
        _part(open_gguf(tiny), 0, 2, 1).replace(b"split.no\x02\0\0\0\0\0", b"split.no\x02\0\0\0\x01\0")
    )
    with pytest.raises(ArtifactError, match="two of its parts hold one tensor"):
        inspect_gguf(twice[0])


@pytest.mark.parametrize("source", ["{f}/{p2}", "{f}", "{f}|*.gguf", "{f}|tiny-F16*", "{f}|*00002-of*"])
def test_a_study_names_a_part_a_folder_or_a_pattern(parts: list[Path], source: str) -> None:
    place, _, file = source.format(f=parts[0].parent, p2=parts[1].name).partition("|")
    found = resolve(Source(path=place, file=file or None), Path())
    assert inspect_gguf(found).path == str(parts[0])


def test_a_folder_of_two_models_says_which_there_are(parts: list[Path], tiny: Path) -> None:
    split(tiny, parts[0].parent, 2, "tiny-Q8_0")
    with pytest.raises(ArtifactError) as error:
        resolve(Source(path=str(parts[0].parent)), Path())
    assert "matches 2 files (tiny-F16-00001-of-00003.gguf, tiny-Q8_0-00001-of-00002.gguf)" in str(error.value)
    assert "`file:` says which" in str(error.value)


def test_a_folder_is_discovered_as_one_build_a_model(
    parts: list[Path], tiny: Path, write_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = parts[0].parent
    write_model(folder / "tiny-Q8_0.gguf")
    broken = split(tiny, folder, 3, "tiny-Q4_0")
    broken[0].unlink()
    found, left = discover([str(folder)])
    assert [(one.name, one.source.path) for one in found] == [
        ("tiny-F16", str(parts[0])),
        ("tiny-Q8_0", str(folder / "tiny-Q8_0.gguf")),
    ]
    assert [(one.file, one.why) for one in left] == [
        ("tiny-Q4_0-00002-of-00003.gguf", "is part 2 of 3; tiny-Q4_0-00001-of-00003.gguf is not beside it")
    ]
    assert found[0].nbytes == sum(part.stat().st_size for part in parts)


@pytest.mark.engine
def test_the_engine_answers_with_parts_as_with_the_file(tiny_gguf: Callable[..., Path], tmp_path: Path) -> None:
    from quantverdict.backends.base import Decoding, Placement
    from quantverdict.backends.llamacpp import LlamaCppBackend
    from quantverdict.records import Prompt

    whole = tiny_gguf(tmp_path / "whole.gguf")
    files = split(whole, tmp_path / "parts", 2)
    said = []
    asked = [Prompt("t", str(i), "", text, "", ("t37", "t38")) for i, text in enumerate(("t37t37", "t37t37t37"))]
    for path in (whole, files[0]):
        backend = LlamaCppBackend(Path(inspect_gguf(path).path), Placement(parallel=2, threads=1, context=64))
        said.append(backend.complete(asked, Decoding(max_new_tokens=4)))
        backend.close()
    assert [(one.text, one.choice_logprobs) for one in said[0]] == [(one.text, one.choice_logprobs) for one in said[1]]
