"""Write a file whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from quantverdict.errors import ArtifactError


@contextmanager
def written_whole(path: Path, size: int) -> Iterator[BinaryIO]:
    """A file for writing that gets its name only when the block ends well.

    Raises:
        ArtifactError: `size` bytes are not free in its folder, or it cannot be written there.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        if free < size:
            raise ArtifactError(f"does not fit: {size:,} bytes are needed, {free:,} are free", file=path)
        try:
            with partial.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise ArtifactError(f"cannot be written ({error.strerror or error})", file=path) from error
