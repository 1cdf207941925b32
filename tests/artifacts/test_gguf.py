"""Reading a GGUF: the right facts from a good file, one line for a bad one, whatever is wrong with it."""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantverdict.artifacts.gguf import describe, inspect_gguf
from quantverdict.artifacts.gguf_read import open_gguf
from quantverdict.errors import ArtifactError


def field(key: str, kind: int, payload: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + payload


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def entry(name: str = "a.weight", shape: tuple[int, ...] = (32, 2), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def gguf_bytes(fields: list[bytes], entries: list[bytes], data: bytes = bytes(256), version: int = 3) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(entries), len(fields)) + b"".join(fields) + b"".join(entries)
    return head.ljust(-(-len(head) // 32) * 32, b"\0") + data


def refused(path: Path, *words: str) -> None:
    """The file is refused in one line that names it and says each of `words`."""
    with pytest.raises(ArtifactError) as caught:
        inspect_gguf(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    for word in words:
        assert word in message


@pytest.mark.engine
def test_the_demo_model_is_read_as_gguf_py_reads_it(demo_gguf: Path) -> None:
    """Names, shapes, types, extents and metadata against the reader of the format's authors."""
    gguf = pytest.importorskip("gguf")
    theirs, ours = gguf.GGUFReader(demo_gguf), open_gguf(demo_gguf)
    assert [(t.name, t.shape, t.type.name, t.start, t.nbytes) for t in ours.tensors] == [
        (t.name, tuple(t.shape.tolist()), t.tensor_type.name, t.data_offset, t.n_bytes) for t in theirs.tensors
    ]
    own = {key: value.contents() for key, value in theirs.fields.items() if not key.startswith("GGUF.")}
    assert {key: ours.get(key) for key in ours.fields} == own


@pytest.mark.engine
def test_the_demo_model_is_described_with_its_true_bits_per_weight(demo_gguf: Path) -> None:
    """Known facts of the file: 4-bit matrices, an 8-bit embedding, ChatML."""
    artifact = inspect_gguf(demo_gguf)
    assert artifact.sha256 == hashlib.sha256(demo_gguf.read_bytes()).hexdigest()
    assert artifact.n_params == 134_515_008
    assert artifact.tensor_types == {"Q4_1": 210, "F32": 61, "Q8_0": 1}
    assert artifact.bpw_quantized == pytest.approx((106_168_320 * 5 + 28_311_552 * 8.5) / (106_168_320 + 28_311_552))
    assert artifact.special_tokens["bos"] == "<|im_start|>"
    assert "<|im_start|>" in (artifact.chat_template or "")
    assert artifact.fallbacks == {}


def test_gguf_py_and_this_reader_agree_on_every_value_type(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "values.gguf"
    path.write_bytes(gguf_bytes(EVERY_TYPE, [entry()]))
    theirs, ours = gguf.GGUFReader(path), open_gguf(path)
    assert {key: ours.get(key) for key in ours.fields} == {
        key: value.contents() for key, value in theirs.fields.items() if not key.startswith("GGUF.")
    }


EVERY_TYPE = [
    field("u8", 0, b"\xff"), field("i8", 1, b"\xff"), field("u16", 2, b"\xff\xff"), field("i16", 3, b"\xff\xff"),
    field("u32", 4, b"\xff" * 4), field("i32", 5, b"\xff" * 4), field("f32", 6, struct.pack("<f", 0.1)),
    field("bool", 7, b"\x01"), field("text", 8, text("grüße")), field("u64", 10, b"\xff" * 8),
    field("i64", 11, b"\xff" * 8), field("f64", 12, struct.pack("<d", 0.1)),
    field("floats", 9, struct.pack("<IQ2f", 6, 2, 0.5, -1.5)),
    field("bools", 9, struct.pack("<IQ2?", 7, 2, True, False)),
    field("texts", 9, struct.pack("<IQ", 8, 2) + text("ä") + text("")),
]  # fmt: skip


def test_what_a_small_model_is(tiny: Path) -> None:
    artifact = inspect_gguf(tiny)
    assert (artifact.architecture, artifact.name, artifact.format) == ("llama", "Tiny\nmodel", "gguf")
    assert artifact.bpw_quantized == 16
    assert artifact.bpw > 16, "norms are float32"
    assert artifact.special_tokens == {"bos": "tok1", "eos": "tok2"}, "an id outside the vocabulary is no token"
    assert artifact.chat_template == "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert artifact.dequantized_from is None
    types = Counter(tensor.type.name for tensor in open_gguf(tiny).tensors)
    assert artifact.tensor_types == types


def test_twins_have_one_weights_hash_whatever_their_metadata(write_model: Callable[..., Path], tmp_path: Path) -> None:
    first = inspect_gguf(write_model(tmp_path / "a.gguf"))
    renamed = inspect_gguf(write_model(tmp_path / "b.gguf", extra={"general.description": "the same weights"}))
    other = inspect_gguf(write_model(tmp_path / "c.gguf", seed=8))
    assert first.sha256 != renamed.sha256
    assert first.weights_sha256 == renamed.weights_sha256 != other.weights_sha256
    assert first.tokenizer_sha256 == renamed.tokenizer_sha256


def test_the_tokenizer_hash_sees_vocabulary_and_special_tokens_but_not_the_template(
    write_model: Callable[..., Path], tmp_path: Path
) -> None:
    plain = inspect_gguf(write_model(tmp_path / "a.gguf"))
    larger = inspect_gguf(write_model(tmp_path / "b.gguf", vocab=65))
    special = inspect_gguf(write_model(tmp_path / "c.gguf", extra={"tokenizer.ggml.unknown_token_id": 3}))
    assert len({item.tokenizer_sha256 for item in (plain, larger, special)}) == 3


def test_shape_and_type_are_part_of_the_weights_hash(tmp_path: Path) -> None:
    """The same bytes under another shape, another type or another name are other weights."""
    hashes = set()
    for place, item in enumerate([entry(), entry(shape=(64, 1)), entry(shape=(128,), kind=1), entry(name="b.weight")]):
        path = tmp_path / f"{place}.gguf"
        path.write_bytes(gguf_bytes([], [item]))
        hashes.add(inspect_gguf(path).weights_sha256)
    assert len(hashes) == 4


def test_the_description_says_everything_in_plain_lines(tiny: Path) -> None:
    lines = describe(inspect_gguf(tiny))
    assert all(line.isprintable() for line in lines), "a line end in the metadata stays in its line"
    shown = "\n".join(lines)
    for words in ("Tiny?model", "llama", "16.000 over the matrices", "30 F16", "50 characters", "bos 'tok1'"):
        assert words in shown
    assert "fallbacks" not in shown
    assert "dequantised" not in shown


def test_a_model_without_template_says_that_prompts_go_in_as_text(tmp_path: Path) -> None:
    path = tmp_path / "bare.gguf"
    path.write_bytes(gguf_bytes([], [entry()]))
    artifact = inspect_gguf(path)
    assert artifact.chat_template is None
    assert "none: prompts go in as plain text" in "\n".join(describe(artifact))


def test_reading_needs_no_engine_and_no_gguf_package(tiny: Path) -> None:
    code = (
        "import sys, pathlib; from quantverdict.artifacts.gguf import inspect_gguf\n"
        "assert 'numpy' not in sys.modules\n"
        "inspect_gguf(pathlib.Path(sys.argv[1]))\n"
        "assert not {'gguf', 'xllamacpp', 'cffi'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tiny)], check=True)


def test_a_missing_file_a_folder_and_an_empty_file_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "none.gguf", "does not exist")
    refused(tmp_path, "folder")
    (tmp_path / "empty.gguf").touch()
    refused(tmp_path / "empty.gguf", "is empty")
    os.mkfifo(tmp_path / "pipe.gguf")  # nobody writes to it
    refused(tmp_path / "pipe.gguf", "is a pipe")


BAD = {
    "another format": (b"PK\x03\x04 a zip archive", "not a GGUF"),
    "three bytes": (b"GGU", "not a GGUF"),
    "version 1": (gguf_bytes([], [entry()], version=1), "version 1"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 1, 0) + bytes(64), "big-endian"),
    "a count of fields beyond the file": (b"GGUF" + struct.pack("<IQQ", 3, 1, 2**63) + bytes(64), "do not fit"),
    "a count of tensors beyond the file": (b"GGUF" + struct.pack("<IQQ", 3, 2**62, 0) + bytes(64), "do not fit"),
    "a giant key": (gguf_bytes([struct.pack("<Q", 2**60)], [], bytes(256)), "key"),
    "a giant text": (gguf_bytes([field("k", 8, struct.pack("<Q", 2**63))], [entry()]), "truncated or corrupt"),
    "a giant array of numbers": (gguf_bytes([field("k", 9, struct.pack("<IQ", 0, 2**62))], []), "truncated or corrupt"),
    "a giant array of texts": (gguf_bytes([field("k", 9, struct.pack("<IQ", 8, 2**62))], []), "do not fit"),
    "an array of arrays": (gguf_bytes([field("k", 9, struct.pack("<IQ", 9, 1))], []), "array of value type 9"),
    "an unknown value type": (gguf_bytes([field("k", 13, bytes(8))], []), "value type 13"),
    "a key given twice": (gguf_bytes([field("k", 0, b"1")] * 2, [entry()]), "twice"),
    "a key that is not UTF-8": (gguf_bytes([struct.pack("<Q", 2) + b"\xff\xff" + bytes(8)], []), "UTF-8"),
    "an alignment of 3": (gguf_bytes([field("general.alignment", 4, struct.pack("<I", 3))], [entry()]), "power of two"),
    "an alignment as text": (gguf_bytes([field("general.alignment", 8, text("32"))], [entry()]), "power of two"),
    "no dimensions": (gguf_bytes([], [entry(shape=())]), "0 dimensions"),
    "nine dimensions": (gguf_bytes([], [entry(shape=(1,) * 9)]), "9 dimensions"),
    "an extent of zero": (gguf_bytes([], [entry(shape=(0, 2))]), "shape (0, 2)"),
    "a product beyond 64 bits": (gguf_bytes([], [entry(shape=(2**40, 2**40))]), "shape"),
    "an unknown tensor type": (gguf_bytes([], [entry(kind=4000)]), "tensor type 4000"),
    "rows that the type does not divide": (gguf_bytes([], [entry(shape=(33, 2), kind=2)]), "multiple of 32"),
    "an offset out of line": (gguf_bytes([], [entry(offset=8)]), "offset 8"),
    "data past the end": (gguf_bytes([], [entry(offset=224)]), "truncated: its data end"),
    "tensors that overlap": (gguf_bytes([], [entry(), entry(name="b", offset=32)], bytes(512)), "overlap"),
    "two tensors of one name": (gguf_bytes([], [entry(), entry(offset=256)], bytes(512)), "one name"),
    "no tensors": (gguf_bytes([], []), "no tensors"),
    "one part of two": (gguf_bytes([field("split.count", 2, b"\x02\0")], [entry()]), "part 1 of 2, by another name"),
    "a name with a line end": (gguf_bytes([], [entry(name="a\nb", kind=4000)]), r"a\nb"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_corrupt_file_is_refused_in_one_line(what: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    content, words = BAD[what]
    path.write_bytes(content)
    refused(path, words)


def test_data_that_end_with_the_file_are_whole_and_one_byte_less_is_truncated(tmp_path: Path) -> None:
    whole = gguf_bytes([], [entry()])
    path = tmp_path / "edge.gguf"
    path.write_bytes(whole)
    assert inspect_gguf(path).n_params == 64
    path.write_bytes(whole[:-1])
    refused(path, "a.weight", "truncated")


def test_a_model_cut_anywhere_is_refused(tiny: Path, tmp_path: Path) -> None:
    """Cut inside the magic, the counts, the metadata, the tensor entries and the data."""
    whole, path = tiny.read_bytes(), tmp_path / "cut.gguf"
    end = max(tensor.start + tensor.nbytes for tensor in open_gguf(tiny).tensors)
    begin = min(tensor.start for tensor in open_gguf(tiny).tensors)
    for size in [*range(1, 64), *range(64, begin, 37), *range(begin, end, (end - begin) // 50), end - 1]:
        path.write_bytes(whole[:size])
        refused(path)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_bits_give_a_model_or_one_line_but_nothing_else(
    data: st.DataObject, tiny: Path, tmp_path: Path
) -> None:
    """Bits of the header at random, lengths and counts among them: no other exception, no hang, no giant allocation."""
    content = bytearray(tiny.read_bytes())
    begin = min(tensor.start for tensor in open_gguf(tiny).tensors)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, begin - 1))
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path / "flipped.gguf"
    path.write_bytes(content)
    try:
        lines = describe(inspect_gguf(path))
    except ArtifactError as error:
        lines = [str(error)]
    assert all("\n" not in line for line in lines)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rest=st.binary(max_size=400))
def test_noise_after_the_magic_is_refused(rest: bytes, tmp_path: Path) -> None:
    path = tmp_path / "noise.gguf"
    path.write_bytes(b"GGUF\x03\0\0\0" + rest)
    refused(path)
