"""Parquet in and out: what the engine says is one line, and what is nobody's word but the file's is tried in a child.

The engine is native code. On a file that was damaged it may panic, which is no `Exception`, or end the process.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from quantverdict.errors import BundleError

if TYPE_CHECKING:
    import polars as pl

TEXT, NUMBER, FLAG = "text", "numbers", "yes or no"
JUDGEMENTS = dict.fromkeys(("base_model", "quant", "task", "sample_id", "judge", "label", "reason"), TEXT)
SCORES = {
    **dict.fromkeys(("base_model", "quant", "task", "sample_id", "metric"), TEXT), "value": NUMBER, "cluster": TEXT,
    "reason": TEXT,
}  # fmt: skip
FORMS = {
    **dict.fromkeys(("base_model", "quant", "task", "sample_id"), TEXT),
    **dict.fromkeys(("parse_failure", "truncated", "empty", "loop", "other_language"), FLAG), "output_tokens": NUMBER,
}  # fmt: skip
"""Columns of the bundle's Parquet files, and what they hold."""


def read_frame(path: Path, columns: Mapping[str, str]) -> pl.DataFrame:
    """A Parquet file of a bundle.

    Args:
        columns: that it must have, and what they hold; a column that is null throughout may be of any type.

    Raises:
        BundleError: it cannot be read, or a column is missing or of another type.
    """
    import polars as pl

    with reading(path):
        frame = pl.read_parquet(path, glob=False)
    check_columns(path, frame.schema, columns)
    return frame


def scan_frame(path: Path, columns: Mapping[str, str]) -> pl.LazyFrame:
    """As `read_frame`, of which only what is asked for is read; collect it in a block of `reading`."""
    import polars as pl

    with reading(path):
        lazy = pl.scan_parquet(path, glob=False)
        check_columns(path, lazy.collect_schema(), columns)
    return lazy


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the engine says of a file into one line.

    Raises:
        BundleError: so it did.
    """
    import polars as pl

    try:
        yield
    except (OSError, MemoryError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise BundleError(f"{path}: cannot be read ({first_line(error)})") from error


def first_line(error: BaseException) -> str:
    """What an engine says, without its advice."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]


def check_columns(path: Path, schema: pl.Schema, columns: Mapping[str, str]) -> None:
    """Refuse a table that is not the one that its name says.

    Raises:
        BundleError: naming the first column that is missing or of another type.
    """
    import polars as pl

    for name, kind in columns.items():
        found = schema.get(name)
        if found is None:
            raise BundleError(f"{path}: no column {name}; its columns are {', '.join(schema) or 'none'}")
        fits = {
            TEXT: found in (pl.String, pl.Categorical),
            NUMBER: found.is_numeric(),
            FLAG: found == pl.Boolean,
        }
        if not fits[kind] and found != pl.Null:
            raise BundleError(f"{path}: column {name} is {found}, not {kind}")


def row_count_of(path: Path) -> int:
    """Rows of a Parquet file."""
    import polars as pl

    with reading(path):
        return int(pl.scan_parquet(path, glob=False).select(pl.len()).collect().item())


def write_frame(path: Path, frame: pl.DataFrame) -> None:
    """Write Parquet, categories as text; what the file system says is an OSError again, not the engine's exception.

    Streamed in groups of a fixed size: little memory, and the same bytes for any number of threads.
    """
    import polars as pl

    try:
        text = frame.lazy().with_columns(pl.col(pl.Categorical).cast(pl.String))
        text.sink_parquet(path, compression="zstd", compression_level=3, row_group_size=1 << 18)
    except pl.exceptions.PolarsError as error:
        code = re.search(r"\(os error (\d+)\)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error


def unreadable(paths: Iterable[Path], columns: Sequence[str] = ()) -> dict[Path, str]:
    """The Parquet files that cannot be read to their end, and why; tried in a child process, which may die of them.

    Args:
        columns: the only ones to read, where a file has them; all if none are given. `a.b` is a key of `a`.
    """
    rest, found = list(paths), dict[Path, str]()
    while rest:
        names = sorted({part for name in columns for part in (name, name.split(".")[0])})
        asked = json.dumps([[str(path.absolute()) for path in rest], names])
        ended = subprocess.run(  # noqa: S603 - this interpreter
            [sys.executable, "-c", _TRY], input=asked.encode(), capture_output=True, check=False
        )
        replies = [json.loads(line) for line in ended.stdout.splitlines()]
        found.update((path, why) for path, why in zip(rest, replies, strict=False) if why)
        if len(replies) < len(rest):
            how = f"signal {-ended.returncode}" if ended.returncode < 0 else f"exit {ended.returncode}"
            found[rest[len(replies)]] = f"its reader was ended by it: {how}"
        rest = rest[len(replies) + 1 :]
    return found


_TRY = """
import json, sys
import polars as pl
paths, columns = json.loads(sys.stdin.read())
for path in paths:
    why = ""
    try:
        lazy = pl.scan_parquet(path, glob=False)
        schema = lazy.collect_schema()
        wanted = [name for name in schema if name in columns] if columns else [*schema]
        total = lazy.select(pl.len()).collect().item()
        for start in range(0, total, 1 << 20):
            lazy.slice(start, 1 << 20).select(wanted).collect()
    except BaseException as error:
        why = (str(error).splitlines() or [type(error).__name__])[0][:300]
    print(json.dumps(why), flush=True)
"""
"""A line a file: why it cannot be read, empty where it can. It ends where the engine ends the process."""
