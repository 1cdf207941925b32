"""An append-only file of JSON lines, exact on reload after a crash: the one way in which anything is appended here.

What is appended is written by one write, all of it or nothing. A line that a killed run left unfinished is no line, and
is cut off before the next one is written. Answers, timings, labels, probes, scores and the store of answers are such
files; they differ in what a line holds, whether it has a checksum of its own, and whether the disk is waited for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from quantverdict.bundle.files import (
    Json,
    checked_line,
    json_line,
    make_file,
    open_own,
    saving,
    verified_line,
    whole_lines,
)


class JsonlStore:
    """One such file. It need not be there: it has no lines then, and `make` or `append` makes it.

    Args:
        checked: each line ends in its own checksum, as no hash proves it before its bundle is finished.
        synced: `append` returns when the disk has it.
    """

    def __init__(self, path: Path, *, checked: bool = True, synced: bool = True) -> None:
        self.path = path
        self._line = checked_line if checked else json_line
        self._synced = synced

    def make(self) -> None:
        """An empty file, and its folder, where there is none.

        Raises:
            BundleError: as `files.open_own`.
        """
        make_file(self.path)

    def read(self) -> bytes:
        """All bytes, those of an unfinished line too.

        Raises:
            BundleError: it cannot be read.
        """
        with saving(self.path):
            return self.path.read_bytes() if self.path.is_file() and self.path.stat().st_size else b""

    def lines(self) -> list[bytes]:
        """The whole lines, as they are stored."""
        return whole_lines(self.read())

    def recover(self) -> list[bytes]:
        """The whole lines, once what a killed run left unfinished is cut off.

        Raises:
            BundleError: it cannot be read or written.
        """
        data = self.read()
        self.cut(data.rfind(b"\n") + 1, len(data))
        return whole_lines(data)

    def mend(self) -> None:
        """As `recover`, where the lines are not wanted: nothing is read but the end, unless it is torn.

        Raises:
            BundleError: as `recover`.
        """
        with saving(self.path):
            if not self.path.is_file() or not self.path.stat().st_size:
                return
            with self.path.open("rb") as file:
                file.seek(-1, os.SEEK_END)
                torn = file.read(1) != b"\n"
        if torn:
            self.recover()

    def append(self, values: Iterable[object]) -> None:
        """Add a line for each value: all of them, or the file stays as it was.

        Raises:
            BundleError: as `append_lines`.
        """
        self.append_lines(b"".join(map(self._line, values)))

    def append_lines(self, data: bytes) -> None:
        """The same with lines that are made already.

        Raises:
            BundleError: as `files.open_own`; or the disk is full.
        """
        self.make()
        handle = open_own(self.path, os.O_WRONLY | os.O_APPEND)
        with saving(self.path):
            try:
                size = os.fstat(handle).st_size
                try:
                    rest = memoryview(data)
                    while rest:
                        rest = rest[os.write(handle, rest) :]
                    if self._synced:
                        os.fsync(handle)
                except OSError:
                    os.ftruncate(handle, size)
                    raise
            finally:
                os.close(handle)

    def cut(self, size: int, was: int) -> None:
        """Cut it back to `size` bytes; `was` is how many it has.

        Raises:
            BundleError: as `files.open_own`.
        """
        if size < was:
            handle = open_own(self.path, os.O_RDWR)
            with saving(self.path):
                try:
                    os.ftruncate(handle, size)
                    os.fsync(handle)
                finally:
                    os.close(handle)


def proved_value(line: bytes) -> Json:
    """As `value_of`, of a line that must have a checksum.

    Raises:
        ValueError, RecursionError: as `value_of`; or it has none.
    """
    if verified_line(line) is line:
        raise ValueError("has no checksum")
    return value_of(line)


def value_of(line: bytes) -> Json:
    """What a line holds, without its checksum.

    Raises:
        ValueError: it is not JSON, or was changed after it was stored.
        RecursionError: it is nested too deep.
    """
    return json.loads(verified_line(line))
