"""Files of a bundle: written whole or not at all, with the same bytes for the same content; one writer at a time."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import math
import os
import re
import stat
import time
import warnings
import weakref
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from quantverdict.errors import BundleError, os_reason
from quantverdict.records import Table, Value

if TYPE_CHECKING:
    import filelock

Json: TypeAlias = Any
"""Whatever a JSON or YAML document holds; its reader knows the shape."""

WINDOWS = os.name == "nt"

PARTIAL = ".partial"
"""Suffix of a file that is being written; whatever a killed run leaves of it is nobody's."""

LOCK = ".lock"
SOFT_LOCK = ".soft.lock"
"""Stands for `LOCK` while a bundle is held, where files cannot be locked."""

DECIMALS = 12
"""A fraction is written as a decimal of at most this many places."""


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Turn what the file system says into one line.

    Raises:
        BundleError: `path` cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            problem = "the disk is full; what was collected is safe: make room and run the same command again"
        else:
            problem = f"cannot be written ({os_reason(error)})"
        raise BundleError(f"{path}: {problem}") from error


@contextmanager
def replacing(path: Path, *, flushed: bool = True) -> Iterator[Path]:
    """A path to write to; when the block ends well its file is flushed to the disk and becomes `path`.

    Args:
        flushed: False leaves the flush, which waits for the disk, to `flush`.
    """
    partial = path.with_name(f".{path.name}{PARTIAL}")
    with saving(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.unlink(missing_ok=True)  # it may be a link, and lead to a file of somebody else's
            yield partial
            if flushed:
                flush_file(partial)
            partial.replace(path)
            if flushed:
                flush_file(path.parent)
        finally:
            partial.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes, *, flushed: bool = True) -> None:
    """Write a file or, on any failure, leave the one before it; `flushed` as in `replacing`.

    Raises:
        BundleError: the disk is full, or the path is not writable.
    """
    with replacing(path, flushed=flushed) as partial:
        partial.write_bytes(data)


def flush(root: Path, files: Iterable[Path]) -> None:
    """Make files, and their names in `root`, survive a power cut; many at a time, as each waits for the disk.

    Raises:
        BundleError: the disk is full or failed.
    """
    with saving(root), ThreadPoolExecutor(8) as pool:
        deque(pool.map(flush_file, files), maxlen=0)
        flush_file(root)


def flush_file(path: Path) -> None:
    """Make the content of a file, or the names in a folder, survive a power cut."""
    if WINDOWS and path.is_dir():
        return  # no folder can be opened there
    handle = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def open_own(path: Path, flags: int) -> int:
    """A file of a bundle opened for a change, never through a link: that may lead to a file of somebody else's.

    Args:
        flags: as `os.open` takes them.

    Raises:
        BundleError: it is a symbolic link, has a second name (a hard link), or is no file; it is as it was.
    """
    with saving(path):
        if path.is_symlink():  # that no folder of the bundle is one was seen when it was opened
            raise BundleError(f"{path}: is a symbolic link, and is not written through; put the file itself there")
        handle = os.open(path, flags | _OWN, 0o644)
        status = os.fstat(handle)
    wrong = None if stat.S_ISREG(status.st_mode) else "is not a file"
    if wrong is None and status.st_nlink > 1:
        wrong = "has a second name (a hard link), whose content would change with it; put a copy of it there"
    if wrong:
        os.close(handle)
        raise BundleError(f"{path}: {wrong}")
    return handle


_OWN = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
"""Where a system has no such flags, links were looked for before; without the last, Windows writes CRLF for LF."""


def make_file(path: Path) -> None:
    """An empty file, and its folder, where there is none; a file that is there may have other names.

    Raises:
        BundleError: as `open_own`.
    """
    if path.is_file() and not path.is_symlink():
        return
    with saving(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    os.close(open_own(path, os.O_RDWR | os.O_CREAT))
    with saving(path):
        flush_file(path.parent)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_text(value: object) -> str:
    """A JSON document with sorted keys, one entry a line."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def json_line(value: object) -> bytes:
    """A line of a JSONL file: UTF-8, keys in their order, no number that JSON does not have."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    try:
        return (text + "\n").encode()
    except UnicodeEncodeError:
        # A pair of surrogates is the character it stands for; a lone one has no UTF-8 and is escaped.
        paired = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
        return (re.sub("[\ud800-\udfff]", lambda lone: f"\\u{ord(lone[0]):04x}", paired) + "\n").encode()


_CHECK = re.compile(rb',"crc32":"([0-9a-f]{8})"}\Z')


def checked_line(value: object) -> bytes:
    """An object as `json_line`, its checksum the last key: no hash proves a line before its bundle is finished."""
    line = json_line(value)[:-2]
    return line + b',"crc32":"%08x"}\n' % zlib.crc32(line)


def verified_line(line: bytes) -> bytes:
    """A line without its checksum; one of an older version has none.

    Raises:
        ValueError: it was changed after it was stored.
    """
    found = _CHECK.search(line)
    if found is None:
        return line
    if zlib.crc32(line[: found.start()]) != int(found[1], 16):
        raise ValueError("changed after it was stored")
    return line[: found.start()] + b"}"


def whole_lines(data: bytes) -> list[bytes]:
    """The lines that end in LF; no other character ends a line of JSON."""
    return data.split(b"\n")[:-1]


def csv_bytes(table: Table) -> bytes:
    """A table as UTF-8, LF, comma, RFC 4180 quotes; see `cell_text` for the values."""
    rows = [
        [quoted(name) for name in table.columns],
        *([quoted(value) if isinstance(value, str) else cell_text(value) for value in row] for row in table.rows),
    ]
    return "".join(",".join(row) + "\n" for row in rows).encode("utf-8", "backslashreplace")


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows by column name; a missing value is the empty text.

    Raises:
        BundleError: no such file, not UTF-8, or a row of another length than the header.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BundleError(f"{path}: cannot be read ({error})") from error
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise BundleError(f"{path}: row {number} has more or fewer values than there are columns")
    return rows


def cell_text(value: Value) -> str:
    """None and NaN are empty, booleans 1/0, fractions decimals of up to 12 places, floats the shortest exact text."""
    match value:  # what is most frequent first
        case float():
            # Not `repr`, which names the type of a NumPy float.
            return "" if math.isnan(value) else float.__repr__(value)
        case None:
            return ""
        case str():
            return value
        case bool():
            return "1" if value else "0"
        case int():
            return str(value)
        case Fraction():
            return decimal_text(value)
    raise TypeError(f"a table cannot hold {value!r} ({type(value).__name__})")


def decimal_text(value: Fraction) -> str:
    """Exact where 12 decimals are enough, else rounded to the nearest (ties to even)."""
    scaled, rest = divmod(value.numerator * 10**DECIMALS, value.denominator)
    scaled += 2 * rest > value.denominator or (2 * rest == value.denominator and scaled % 2 == 1)
    whole, part = divmod(abs(scaled), 10**DECIMALS)
    digits = f"{part:0{DECIMALS}d}".rstrip("0")
    return ("-" if scaled < 0 else "") + str(whole) + (f".{digits}" if digits else "")


def quoted(text: str) -> str:
    """RFC 4180. The csv module leaves a lone CR bare, and readers take it for the end of the row."""
    return '"' + text.replace('"', '""') + '"' if _NEEDS_QUOTES.search(text) else text


_NEEDS_QUOTES = re.compile('[,"\r\n]')


_held: weakref.WeakSet[Lock] = weakref.WeakSet()


class Lock:
    """An exclusive lock on a folder, held by the kernel for this process: it ends with it, however it ends.

    Where the system or the file system has no such locks, a file that names its owner stands for one; what a dead
    owner left is taken over.

    Args:
        wait_s: how long to wait for whoever holds it.

    Raises:
        BundleError: another process (named) or another lock of this one holds it; or `.lock` is no file of ours.
    """

    def __init__(self, folder: Path, wait_s: float = 0.0) -> None:
        path = folder / LOCK
        self._soft: filelock.SoftFileLock | None = None
        self._handle = open_own(path, os.O_RDWR | os.O_CREAT)
        held, patience = False, time.monotonic() + wait_s
        try:
            with saving(path):
                while (owner := self._hold(path)) is not None and time.monotonic() < patience:
                    time.sleep(_PAUSE_S)
            held = owner is None
        finally:
            if not held:
                self.release()
        if owner is not None:
            raise BundleError(f"{folder}: in use by process {owner}; wait for it, or name another bundle")
        _held.add(self)

    def _hold(self, path: Path) -> str | None:
        """Take the lock, or say who has it."""
        try:
            if _lock(self._handle):
                os.lseek(self._handle, 0, os.SEEK_SET)
                os.write(self._handle, f" {os.getpid():<{_OWNER_BYTES - 2}}\n".encode())
                return None
        except _NoLocksError:
            return self._hold_soft(path.with_name(SOFT_LOCK))
        os.lseek(self._handle, 1, os.SEEK_SET)  # Windows lets nobody else read the byte that is locked
        return os.read(self._handle, _OWNER_BYTES - 1).decode("ascii", "replace").strip() or "unknown"

    def _hold_soft(self, path: Path) -> str | None:
        """Take a lock that is a file, or say who has it."""
        import filelock

        soft = filelock.SoftFileLock(path, thread_local=False)
        try:
            soft.acquire(blocking=False)
        except filelock.Timeout:
            return f"{soft.pid or 'unknown'} (if there is none, delete {path.name} there)"
        self._soft = soft
        return None

    def release(self) -> None:
        """May be called twice."""
        self.forget()
        if self._soft is not None:
            self._soft.release()
            self._soft = None

    def forget(self) -> None:
        """In a forked worker, which must not hold its parent's lock: it may outlive it. A soft lock is its owner's."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


_PAUSE_S = 0.02
_OWNER_BYTES = 32
"""Of the file of a lock: a blank, which is what is locked, the owner and blanks."""


class _NoLocksError(Exception):
    """The system, or the file system, cannot lock a file."""


def _lock(handle: int) -> bool:
    """Lock a file, unless somebody has.

    Raises:
        _NoLocksError: files cannot be locked here.
    """
    with warnings.catch_warnings(action="ignore"):  # filelock says that there are no locks
        import filelock
    try:
        return filelock.lock_descriptor(handle, blocking=False)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP):
            raise _NoLocksError from error
        raise


def _forget_locks() -> None:
    for lock in list(_held):
        lock.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks)
