"""The bundle a run leaves: a folder of artefacts, and `manifest.json` that holds their hashes and all that made them.

Times and what follows from them are apart in the manifest's `run`; equal runs on one machine differ nowhere else.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel

from quantverdict.collect.environment import environment
from quantverdict.collect.files import (
    PARTIAL,
    Json,
    Lock,
    csv_bytes,
    flush,
    json_text,
    read_csv,
    replacing,
    saving,
    sha256_of,
    write_whole,
)
from quantverdict.collect.meaning import as_yaml, first_difference
from quantverdict.collect.roll import Roll, rescored, roll_under
from quantverdict.collect.sources import Sources
from quantverdict.config import Study
from quantverdict.errors import BundleError, StudyError
from quantverdict.records import Table
from quantverdict.yaml_file import load_yaml

if TYPE_CHECKING:
    import polars as pl

SCHEMA = 1
"""Version of the bundle's layout; another one is refused."""

MANIFEST = "manifest.json"
STOPPED = "stopped"
"""The manifest's cells that were stopped before their last prompt, and after how many."""
TIMED = ("timings/", "cells.json")
"""Artefacts that hold times and nothing else that a later stage decides on."""
UNTRACKED = (MANIFEST, ".lock")

Entry = dict[str, str | int | None]
Stamp = tuple[int, int, int]


class Bundle:
    """A bundle that is open for writing: locked until it is closed."""

    _sources: Sources | None = None

    def __init__(self, root: Path, lock: Lock, manifest: dict[str, Any]) -> None:
        self.root = root
        self._lock = lock
        self._manifest = manifest
        self._entries: dict[str, tuple[Stamp, Entry]] = {}

    @classmethod
    def open(cls, path: Path, config: BaseModel | None, *, resume: bool = True) -> Self:
        """Create a bundle, or reopen the one at `path`.

        Args:
            config: the study or the sources it is made from, kept as `study.yaml` or `sources.yaml`; None where a
                stage works on whatever the bundle is.
            resume: False refuses an existing bundle.

        Raises:
            BundleError: in use, of another version or another study (which key differs), or not a bundle.
        """
        with saving(path):
            path.mkdir(parents=True, exist_ok=True)
        refuse_strangers(path)
        with ExitStack() as undo:
            lock = Lock(path)
            undo.callback(lock.release)
            if not (path / MANIFEST).exists():
                bundle = cls(path, lock, {"schema": SCHEMA, "run": {"started": now(), "finished": None}})
                bundle._save()
            elif resume:
                bundle = cls(path, lock, read_manifest(path))
            else:
                raise BundleError(f"{path}: is a bundle already; resume it, or name another")
            if config is not None:
                bundle._bind(config)
            for left in path.rglob(f".*{PARTIAL}"):
                left.unlink()
            undo.pop_all()
        return bundle

    @classmethod
    def reopen(cls, path: Path) -> Self:
        """Open an existing bundle, whatever it was made from.

        Raises:
            BundleError: not a bundle, in use, or of another version.
        """
        read_manifest(path)
        return cls.open(path, None)

    def close(self) -> None:
        """Give the bundle free; may be called twice."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def path(self, name: str) -> Path:
        """Where the artefact `name` (`matrix.csv`, `responses/x.jsonl`) is."""
        return self.root / name

    def sources(self) -> Sources:
        """The sources that it was made from.

        Raises:
            BundleError: the bundle holds none.
        """
        if self._sources is None:
            if not self.path("sources.yaml").exists():
                raise BundleError(f"{self.root}: holds no sources.yaml")
            self._sources = load_yaml(self.path("sources.yaml"), Sources)
        return self._sources

    def study(self) -> Study:
        """The study as run.

        Raises:
            BundleError: the bundle holds none.
        """
        if not self.path("study.yaml").exists():
            raise BundleError(f"{self.root}: holds no study.yaml")
        file = self.path("study.yaml")
        return load_yaml(file, Study).model_copy(update={"file": str(file)})

    def write_text(self, name: str, text: str) -> None:
        write_whole(self.path(name), text.encode("utf-8", "backslashreplace"))

    def write_json(self, name: str, value: object) -> None:
        self.write_text(name, json_text(value))

    def write_table(self, table: Table) -> None:
        """Write `NAME.csv`; it follows from what is stored, and is flushed to the disk with the others by `finish`."""
        name, data = f"{table.name}.csv", csv_bytes(table)
        write_whole(self.path(name), data, flushed=False)
        entry: Entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "rows": len(table.rows)}
        self._entries[name] = stamp_of(self.path(name)), entry

    def write_parquet(self, name: str, frame: pl.DataFrame) -> None:
        """As `write_table`."""
        with replacing(self.path(name), flushed=False) as partial:
            write_frame(partial, frame)

    def read_text(self, name: str) -> str:
        try:
            return self.path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(f"{self.path(name)}: cannot be read ({error})") from error

    def read_json(self, name: str) -> Json:
        try:
            return json.loads(self.read_text(name))
        except ValueError as error:
            raise BundleError(f"{self.path(name)}: not valid JSON ({error})") from error

    def read_table(self, name: str) -> list[dict[str, str]]:
        """Rows of `NAME.csv` by column; a missing value is the empty text."""
        return read_csv(self.path(f"{name}.csv"))

    def freeze_text(self, name: str, text: str) -> bool:
        """Write an artefact that may never change: False where the bundle holds another text already."""
        if self.path(name).exists():
            return self.read_text(name) == text
        self.write_text(name, text)
        return True

    def recorded(self, key: str) -> Json:
        """A part of the manifest, None where there is none."""
        return self._manifest.get(key)

    def refuse_lost(self) -> None:
        """Check that every table that the bundle was finished with is there, with all of its rows.

        Raises:
            BundleError: naming the first that is not.
        """
        for name, entry in (self.recorded("artefacts") or {}).items():
            path = self.path(name)
            if path.suffix != ".csv":
                continue
            rows = row_count(path) if path.is_file() and path.stat().st_size else None
            if rows != entry["rows"]:
                told = "is missing or empty" if rows is None else f"has {rows} rows, not {entry['rows']}"
                raise BundleError(f"{path}: {told}; analyze the bundle again")

    def refuse_changed(self, name: str) -> None:
        """Check an append-only artefact before it is gone on from: what the manifest knows of it is still there.

        Raises:
            BundleError: it was changed or cut since the bundle was finished.
        """
        entry = (self.recorded("artefacts") or {}).get(name)
        path = self.path(name)
        if entry is None or not path.exists():
            return
        with saving(path), path.open("rb") as file:
            if hashlib.sha256(file.read(entry["bytes"])).hexdigest() != entry["sha256"]:
                raise BundleError(f"{path}: changed since it was written; put it back, or delete it to ask again")

    def record(self, **parts: object) -> None:
        """Put parts (`seeds`, `sources`, `batches`, `backends`) into the manifest, now and for good."""
        self._manifest |= parts
        self._save()

    def drop(self, *names: str) -> None:
        """Delete artefacts that nothing gives any longer, where they are."""
        for name in names:
            self.path(name).unlink(missing_ok=True)

    def forget(self, key: str) -> None:
        """Take a part out of the manifest."""
        if self._manifest.pop(key, None) is not None:
            self._save()

    def take_stock(self) -> None:
        """Put the hash of every artefact into the manifest."""
        entries = {name: self._entry(name) for name in artefact_names(self.root)}
        timed = {name: entry for name, entry in entries.items() if name.startswith(TIMED)}
        self._manifest["artefacts"] = {name: entry for name, entry in entries.items() if name not in timed}
        self._manifest["run"] |= {"artefacts": timed}
        self._save()

    def _entry(self, name: str) -> Entry:
        """`entry_of` an artefact, made once for each time that it is written."""
        path = self.path(name)
        if name not in self._entries or self._entries[name][0] != stamp_of(path):
            self._entries[name] = stamp_of(path), entry_of(path)
        return self._entries[name][1]

    def finish(self) -> None:
        """Flush and hash every artefact, and say that the run is complete."""
        flush(self.root, map(self.path, artefact_names(self.root)))
        self._manifest["run"] |= {"finished": now()}
        self.take_stock()

    def _save(self) -> None:
        write_whole(self.root / MANIFEST, json_text(self._manifest).encode())

    def _bind(self, config: BaseModel) -> None:
        """Bind a new bundle to its study, or check that a reopened one is of the same."""
        name = "study.yaml" if isinstance(config, Study) else "sources.yaml"
        self._sources = config if isinstance(config, Sources) else None
        bound = self.recorded("config")
        if bound not in (None, name):
            raise BundleError(f"{self.root}: was made from a {bound}, not from a {name}")
        if bound is None and set(artefact_names(self.root)) - {name}:
            raise BundleError(f"{self.root}: was not made from a {name}; name another bundle")
        if self.path(name).exists() and not set(artefact_names(self.root)) <= {name, "artifacts.json"}:
            self._compare(name, config)
        elif bound is None or self.path(name).exists():  # nothing was asked yet: a corrected study may begin anew
            self.write_text(name, as_yaml(config))
        else:
            raise BundleError(f"{self.root}: its {name} is missing; put it back, or name another bundle")
        file = getattr(config, "file", "")
        folder = Path(file).parent if file else None
        self.record(config=name, seeds={"seed": getattr(config, "seed", None)}, **environment(folder))

    def _compare(self, name: str, config: BaseModel) -> None:
        try:
            stored = load_yaml(self.path(name), type(config))
        except StudyError as error:
            raise BundleError(f"{error} (the bundle's copy)") from error
        both = (stored, config) if isinstance(stored, Study) and isinstance(config, Study) else None
        same = rescored(*both, stopped=bool(self.recorded(STOPPED))) if both else stored
        if difference := first_difference(same, config):
            raise BundleError(f"{self.root}: is of another study: {difference}; name another bundle")
        if first_difference(stored, config):
            self._manifest["run"] |= {"finished": None}
            # The roll goes before the study: what a kill leaves between them is made good by the next run.
            self.record(**(roll_under(Roll.of(self._manifest), *both).parts if both else {}))
            self.write_text(name, as_yaml(config))


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the bundle at `path`.

    Raises:
        BundleError: not a bundle, or of another version.
    """
    try:
        manifest: Json = json.loads((path / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise BundleError(f"{path}: not a bundle (no {MANIFEST})") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path / MANIFEST}: cannot be read ({error})") from error
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if schema != SCHEMA or not isinstance(manifest.get("run"), dict):
        raise BundleError(f"{path}: a bundle of schema version {schema!r}; this program reads {SCHEMA}")
    return dict(manifest)


def verify(path: Path) -> list[str]:
    """What of a finished bundle is no longer as it was written: changed, missing or extra files. Empty when all holds.

    Raises:
        BundleError: not a bundle, or of another version.
    """
    manifest = read_manifest(path)
    if manifest["run"].get("finished") is None:
        return [f"{path}: the run is not finished; run the same command again"]
    known: Mapping[str, Any] = manifest.get("artefacts", {}) | manifest["run"].get("artefacts", {})
    found = set(artefact_names(path))
    problems = [f"{name}: missing" for name in known if name not in found]
    problems += [f"{name}: not in the manifest" for name in found if name not in known]
    for name in sorted(found & set(known)):
        was, now_is = known[name].get("sha256"), sha256_of(path / name)
        if was != now_is:
            problems.append(f"{name}: changed; sha256 is {now_is}, the manifest says {was}")
    return sorted(problems)


def artefact_names(root: Path) -> list[str]:
    """Every file of the bundle but the manifest and the lock, sorted."""
    names = (file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file())
    return sorted(name for name in names if name not in UNTRACKED and not name.endswith(PARTIAL))


def stamp_of(path: Path) -> Stamp:
    """What changes whenever a file is written."""
    told = path.stat()
    return told.st_ino, told.st_size, told.st_mtime_ns


def entry_of(path: Path) -> Entry:
    """What the manifest says of an artefact."""
    return {"sha256": sha256_of(path), "bytes": path.stat().st_size, "rows": row_count(path)}


def row_count(path: Path) -> int | None:
    """Rows of a table, lines of a JSONL file, None for any other file."""
    match path.suffix:
        case ".csv":
            return len(read_csv(path))
        case ".jsonl":
            with path.open("rb") as file:
                return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
        case ".parquet":
            import polars as pl

            return int(pl.scan_parquet(path).select(pl.len()).collect().item())
    return None


def write_frame(path: Path, frame: pl.DataFrame) -> None:
    """Write Parquet, categories as text; what the file system says is an OSError again, not the engine's exception.

    Streamed in groups of a fixed size: little memory, and the same bytes for any number of threads.
    """
    import polars as pl

    try:
        text = frame.lazy().with_columns(pl.col(pl.Categorical).cast(pl.String))
        text.sink_parquet(path, compression="zstd", compression_level=3, row_group_size=1 << 18)
    except pl.exceptions.PolarsError as error:
        told = re.search(r"\(os error (\d+)\)", str(error))
        if told is None:
            raise
        raise OSError(int(told[1]), os.strerror(int(told[1])), str(path)) from error


def refuse_strangers(path: Path) -> None:
    """A folder that holds something and is no bundle is somebody's: leave it alone."""
    held = [entry.name for entry in path.iterdir() if entry.name != ".lock" and not entry.name.endswith(PARTIAL)]
    if held and MANIFEST not in held:
        raise BundleError(f"{path}: not a bundle and not empty (it holds {min(held)}); name another folder")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
