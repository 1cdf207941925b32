"""A file that several packages hold the parts of, put together once."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from quantverdict.artifacts.whole import written_whole
from quantverdict.errors import ArtifactError

_MAGIC = b"GGUF"


def join_parts(parts: Sequence[Path], folder: Path) -> Path:
    """Concatenate `parts` in order into `folder`; reused while the same parts have the same sizes and times.

    Raises:
        ArtifactError: the first part does not begin a GGUF, or another one does; no room on disk.
    """
    for place, part in enumerate(parts):
        with part.open("rb") as file:
            begins = file.read(len(_MAGIC)) == _MAGIC
        if begins != (place == 0):
            names = ", ".join(item.name for item in parts[:4])
            raise ArtifactError(
                f"{len(parts)} files match ({names}, ...)", file=part, expected="one GGUF, or the parts of one"
            )
    stats = [part.stat() for part in parts]
    identity = repr([(str(part), stat.st_size, stat.st_mtime_ns) for part, stat in zip(parts, stats, strict=True)])
    whole = folder / "joined" / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.gguf"
    size = sum(stat.st_size for stat in stats)
    if not whole.is_file() or whole.stat().st_size != size:
        with written_whole(whole, size) as target:
            for part in parts:
                with part.open("rb") as file:
                    shutil.copyfileobj(file, target, 1 << 22)
    return whole
