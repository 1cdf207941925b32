"""Write a GGUF header and its tensors' data, byte for byte as llama.cpp lays them out."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from math import prod
from typing import BinaryIO, NamedTuple

from quantverdict.artifacts.ggml_types import GgmlType
from quantverdict.artifacts.gguf_read import Gguf

_UINT32, _STRING = 4, 8


class Entry(NamedTuple):
    """A tensor to be written."""

    name: str
    shape: tuple[int, ...]
    type: GgmlType

    @property
    def nbytes(self) -> int:
        return prod(self.shape) // self.type.block * self.type.size


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def text_field(key: str, value: str) -> bytes:
    """A metadata field with a string, ready to be written."""
    return _text(key) + struct.pack("<I", _STRING) + _text(value)


def uint32_field(key: str, value: int) -> bytes:
    """A metadata field with an unsigned integer, ready to be written."""
    return _text(key) + struct.pack("<II", _UINT32, value)


def copied_field(source: Gguf, key: str) -> bytes:
    """A metadata field exactly as `source` has it."""
    field = source.fields[key]
    return _text(key) + struct.pack("<I", field.kind) + source.data[field.start : field.end]


def header_bytes(fields: Iterable[bytes], entries: tuple[Entry, ...], alignment: int) -> bytes:
    """The header of a GGUF whose tensors follow in the order of `entries`, each padded to `alignment`."""
    packed = tuple(fields)
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(entries), len(packed)), *packed]
    offset = 0
    for entry in entries:
        shape = struct.pack(f"<I{len(entry.shape)}Q", len(entry.shape), *entry.shape)
        parts.append(_text(entry.name) + shape + struct.pack("<IQ", entry.type.number, offset))
        offset += padded(entry.nbytes, alignment)
    header = b"".join(parts)
    return header.ljust(padded(len(header), alignment), b"\0")


def padded(size: int, alignment: int) -> int:
    """`size` rounded up to a multiple of `alignment`."""
    return -(-size // alignment) * alignment


def write_padded(file: BinaryIO, block: bytes | memoryview, alignment: int) -> None:
    """Write a tensor's data and the zeros after it."""
    file.write(block)
    file.write(bytes(padded(len(block), alignment) - len(block)))
