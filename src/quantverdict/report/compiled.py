"""Report templates as Jinja compiled them, kept between runs: compiling takes longer than filling them in."""

from __future__ import annotations

from importlib.metadata import version
from pickle import UnpicklingError
from typing import TYPE_CHECKING

from jinja2 import BytecodeCache

from quantverdict.artifacts.sources import cache_dir
from quantverdict.collect.files import write_whole
from quantverdict.errors import QuantverdictError

if TYPE_CHECKING:
    from jinja2.bccache import Bucket


class CompiledTemplates(BytecodeCache):
    """Kept in the cache folder, by the hash of each template's text; where nothing can be kept, compiled every time."""

    def __init__(self) -> None:
        self.folder = cache_dir() / "templates" / version("jinja2")

    def load_bytecode(self, bucket: Bucket) -> None:
        """Jinja itself leaves what another Python wrote, or was made of another text."""
        try:
            bucket.bytecode_from_string((self.folder / bucket.key).read_bytes())
        except (OSError, EOFError, ValueError, TypeError, UnpicklingError):
            bucket.reset()

    def dump_bytecode(self, bucket: Bucket) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / bucket.key, bucket.bytecode_to_string(), flushed=False)
        except (OSError, QuantverdictError):
            return
