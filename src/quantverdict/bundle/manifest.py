"""The bundle a run leaves: a folder of artefacts, and `manifest.json` that holds their hashes and all that made them.

Times and what follows from them are apart in the manifest's `run`; equal runs on one machine differ nowhere else.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from quantverdict.bundle.files import (
    LOCK,
    PARTIAL,
    SOFT_LOCK,
    Json,
    Lock,
    csv_bytes,
    flush,
    json_text,
    read_csv,
    replacing,
    saving,
    write_whole,
)
from quantverdict.bundle.frames import row_count_of, write_frame
from quantverdict.bundle.integrity import (
    MANIFEST,
    PROVENANCE,
    READ,
    SCHEMA,
    artefact_names,
    as_yaml,
    check_regular_files,
    differences,
    environment,
    hash_of,
    known_entries,
    odd_entries,
    plugin_parts,
    read_manifest,
    study_differences,
    walk,
)
from quantverdict.bundle.judge_registry import JudgeRegistry, registry_parts_under, revised
from quantverdict.bundle.sources import Sources
from quantverdict.config import Study
from quantverdict.errors import BundleError, StudyError
from quantverdict.records import Table
from quantverdict.yaml_file import load_yaml

if TYPE_CHECKING:
    import polars as pl

STOPPED = "stopped"
"""The manifest's cells that were stopped before their last prompt, and after how many."""
TIMED = ("timings/", "cells.json")
"""Artefacts that hold times and nothing else that a later stage decides on."""
RENDERED = ("claims.csv", "report.html", "report.md")
"""What `report` writes."""
GIVEN = ("judges.csv", "labels.csv", "labels_key.csv", "sources.csv", "templates.csv")
"""Tables that a decision is made from; whatever other table there is comes of it."""

KEPT = ("artifacts.json", "cells.json", "labels.csv", "labels_key.csv")
"""What a run of a finished bundle takes over as it is, besides what it appends to."""

FINISHES: Mapping[str, tuple[str, ...]] = {
    "analyze": ("analyze", "label --read", "label --out", "report"),
    "judge": ("judge", "label --read", "label --out", "report"),
    "label --read": ("label --read", "label --out", "report"),
    "label --out": ("label --out", "report"),
    "report": ("report",),
}
"""What a command brings to an end besides itself, where it was broken off: what it makes anew is all that they make.
Whatever is not named here, as a run, begins before all of them."""

WRITES: Mapping[str, tuple[str, ...]] = {
    "label --read": ("labels.csv",),
    "label --out": ("labels_key.csv",),
    "judge": ("judgements/", "judgements.parquet", "other_judgements.parquet", "judges.csv", "timings/"),
}
"""What a decision is made from that a command may have written before it was broken off."""

Entry = dict[str, str | int | None]
Stamp = tuple[int, int, int]
T = TypeVar("T")


class Bundle:
    """A bundle that is open for writing: locked until it is closed."""

    def __init__(self, root: Path, lock: Lock | None, manifest: dict[str, Any], command: str | None = None) -> None:
        self.root = root
        self._lock = lock
        self._manifest = manifest
        self._command = command
        self._begun = False
        self._late: Callable[[], None] | None = None
        self.was_finished = manifest["run"].get("finished") is not None
        """Whether it was, when it was opened."""
        self._config: Study | Sources | None = None
        self._entries: dict[str, tuple[Stamp, Entry]] = {}
        self._values: dict[tuple[str, str], tuple[Stamp | None, Any]] = {}

    @classmethod
    def open(
        cls,
        path: Path,
        config: Study | Sources | None,
        *,
        resume: bool = True,
        command: str | None = None,
        older: bool = False,
    ) -> Self:
        """Create a bundle, or reopen the one at `path`.

        Args:
            config: the study or the sources it is made from, kept as `study.yaml` or `sources.yaml`; None where a
                stage works on whatever the bundle is.
            resume: False refuses an existing bundle.
            command: one of `FINISHES`, said where it is broken off; None is one that makes everything anew.
            older: it may be of a version that can be upgraded.

        Raises:
            BundleError: in use, of another version or another study (which key differs), or not a bundle; or it holds
                a link, a pipe or a device.
        """
        with saving(path):
            path.mkdir(parents=True, exist_ok=True)
        check_foreign_files(path)
        check_regular_files(path)
        with ExitStack() as undo:
            lock = Lock(path)
            undo.callback(lock.release)
            if not (path / MANIFEST).exists():
                bundle = cls(path, lock, {"schema": SCHEMA, "run": {"started": now(), "finished": None}})
                bundle._save()
            elif resume:
                bundle = cls(path, lock, read_manifest(path, older=older), command)
            else:
                raise BundleError(f"{path}: is a bundle already; resume it, or name another")
            if config is not None:
                if bundle.sealed:
                    bundle.check_meta_equal(bundle.begun_anew(), only=KEPT)
                bundle._bind(config)
            with saving(path):
                for name, left in walk(path):
                    if name.endswith(PARTIAL) and left.name.startswith("."):
                        path.joinpath(name).unlink()
            undo.pop_all()
        return bundle

    @classmethod
    def reopen(cls, path: Path, command: str | None = None, *needs: str, older: bool = False) -> Self:
        """Open an existing bundle, whatever it was made from.

        Args:
            command: one of `FINISHES`: what it rests on must be what it was, and what was broken off its to finish.
            needs: artefacts of which it starts from one.

        Raises:
            BundleError: not a bundle, in use, of another version, left unfinished by another command, or changed; or
                it holds none of what the command needs.
        """
        read_manifest(path, older=older)
        with ExitStack() as undo:
            bundle = cls.open(path, None, command=command, older=older)
            undo.callback(bundle.close)
            if needs and not any(bundle.path(name).exists() for name in needs):
                told = "the run is unfinished; run the same command again to finish it"
                raise BundleError(f"{path}: holds no {' or '.join(needs)}; {told}")
            if command is not None:
                bundle.require_ready(command)
            undo.pop_all()
        return bundle

    def require_ready(self, command: str) -> None:
        """Refuse a bundle that a command cannot start from, before anything of it is parsed.

        Raises:
            BundleError: left unfinished by a command that this one does not finish; or the first file that differs.
        """
        run = self.get_meta("run")
        left = None if run.get("finished") is not None else run.get("changing")
        if run.get("finished") is None and left is None:
            raise BundleError(f"{self.root}: the run is unfinished; run the same command again to finish it")
        if left is not None and left not in FINISHES[command]:
            raise BundleError(f"{self.root}: `{left}` was broken off here; give that command again first")
        again = {*RENDERED, *WRITES.get(left or "", ())}
        if command in ("analyze", "label --out"):  # who deletes labels begins anew
            again |= self.begun_anew()
        self.check_meta_equal(again, decided=command == "analyze" or left in ("analyze", "judge", "label --read"))

    def begun_anew(self) -> set[str]:
        """Who deletes labels may: their key goes with them, and is not missed then."""
        gone = [name for name in ("labels.csv", "labels_key.csv") if not self.path(name).exists()]
        return set(gone) if "labels.csv" in gone else set()

    def close(self) -> None:
        """Give the bundle free; may be called twice."""
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def path(self, name: str) -> Path:
        """Where the artefact `name` (`matrix.csv`, `responses/x.jsonl`) is."""
        return self.root / name

    @property
    def config(self) -> Study | Sources | None:
        """The study or the sources that it is made from, None where it is neither.

        Raises:
            BundleError: the bundle holds no copy of it.
        """
        name = self.get_meta("config")
        if self._config is None and name is not None:
            file = self.path(name)
            if not file.exists():
                raise BundleError(f"{self.root}: holds no {name}")
            found = load_yaml(file, Study) if name == "study.yaml" else load_yaml(file, Sources)
            self._config = found.model_copy(update={"file": str(file)})
        return self._config

    def once(self, name: str, read: Callable[[Path], T], what: str = "") -> T:
        """What `read` makes of an artefact, read once for each time that it is written; it is not to be changed.

        Args:
            what: tells apart what is made of one artefact in several ways.
        """
        path = self.path(name)
        stamp = stamp_of(path) if path.exists() else None
        if (name, what) not in self._values or self._values[name, what][0] != stamp:
            self._values[name, what] = stamp, read(path)
        found: T = self._values[name, what][1]
        return found

    def write_text(self, name: str, text: str) -> None:
        """What is there already is left as it is, and the bundle finished, where it is."""
        data = text.encode("utf-8", "backslashreplace")
        if self._begun or not (self.path(name).is_file() and self.path(name).read_bytes() == data):
            self.begin()
            write_whole(self.path(name), data)
            rows = data.count(b"\n") if name.endswith(".jsonl") else None
            self._written(name, data, rows)

    def write_json(self, name: str, value: object) -> None:
        self.write_text(name, json_text(value))

    def write_table(self, table: Table) -> None:
        """Write `NAME.csv`; it follows from what is stored, and is flushed to the disk with the others by `finish`."""
        self.write_bytes(f"{table.name}.csv", csv_bytes(table), len(table.rows))

    def write_bytes(self, name: str, data: bytes, rows: int | None = None) -> None:
        """As `write_table`."""
        self.begin()
        write_whole(self.path(name), data, flushed=False)
        self._written(name, data, rows)

    def _written(self, name: str, data: bytes, rows: int | None) -> None:
        entry: Entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "rows": rows}
        self._entries[name] = stamp_of(self.path(name)), entry

    def write_parquet(self, name: str, frame: pl.DataFrame) -> None:
        """As `write_table`."""
        self.begin()
        with replacing(self.path(name), flushed=False) as partial:
            write_frame(partial, frame)

    def read_text(self, name: str) -> str:
        try:
            return self.path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(f"{self.path(name)}: cannot be read ({error})") from error

    def read_json(self, name: str) -> Json:
        try:
            return self.once(name, lambda _: json.loads(self.read_text(name)))
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{self.path(name)}: not valid JSON ({error})") from error

    def read_table(self, name: str) -> list[dict[str, str]]:
        """Rows of `NAME.csv` by column; a missing value is the empty text."""
        return self.once(f"{name}.csv", read_csv)

    def get_meta(self, key: str) -> Json:
        """A part of the manifest, None where there is none."""
        return self._manifest.get(key)

    def check_meta_equal(
        self, but: Iterable[str] = RENDERED, *, decided: bool = False, only: Collection[str] = ()
    ) -> None:
        """Check that the bundle is what it was finished with, before anything of it is parsed.

        Args:
            but: artefacts, or folders (with a slash), that may differ.
            decided: so may whatever a decision makes anew.
            only: those that are looked at; all if none are given.

        Raises:
            BundleError: naming the first file that differs.
        """
        entries = known_entries(self._manifest)
        if only:
            entries = {name: one for name, one in entries.items() if name in only}
        if not entries:
            return
        may = tuple(but)
        for name, told in differences(self.root, entries):
            if only and name not in entries:
                continue
            journal = told.startswith("not") and (name.startswith("judgements/") or Path(name).suffix not in READ)
            if journal or name in may or name.startswith(tuple(one for one in may if one.endswith("/"))):
                continue
            made = is_made(name, entries)
            if decided and made:
                continue
            raise BundleError(f"{self.path(name)}: {_differs(told)}; {_REMEDY[told.startswith('not'), made]}")

    def check_hash(self, name: str) -> int:
        """Check an append-only artefact before it is gone on from: what the manifest knows of it is still there.

        Returns:
            How many bytes the manifest knows of; 0 where the file is not there, too.

        Raises:
            BundleError: it was changed or cut since the bundle was finished.
        """
        entry = (self.get_meta("artefacts") or {}).get(name)
        path = self.path(name)
        if entry is None or not path.exists():
            return 0
        with saving(path), path.open("rb") as file:
            if hashlib.sha256(file.read(entry["bytes"])).hexdigest() != entry["sha256"]:
                raise BundleError(f"{path}: changed since it was written; put it back, or delete it to ask again")
        return int(entry["bytes"])

    def set_meta(self, **parts: object) -> None:
        """Put parts (`seeds`, `sources`, `batches`, `backends`) into the manifest, now and for good."""
        if any(key not in self._manifest or self._manifest[key] != value for key, value in parts.items()):
            self.begin()
            self._manifest |= parts
            self._save()

    def hold(self, **parts: object) -> None:
        """As `set_meta`; of a finished bundle not before something of it is changed, so that till then it stays so."""
        if self.sealed:
            self._manifest |= parts
        else:
            self.set_meta(**parts)

    @property
    def sealed(self) -> bool:
        """Whether it is finished, and nothing was changed since."""
        return not self._begun and self._manifest["run"].get("finished") is not None

    def begin(self) -> None:
        """Say in the manifest, before anything else is changed, that the bundle is not finished, and by which command.

        Whatever writes an artefact calls it.
        """
        if self._begun:
            return
        run = {key: value for key, value in self._manifest["run"].items() if key != "changing"}
        run |= {"finished": None} if self._command is None else {"finished": None, "changing": self._command}
        if run != self._manifest["run"]:
            self._manifest["run"] = run
            self._save()
        self._begun = True
        if self._late is not None:
            late, self._late = self._late, None
            late()

    def drop(self, *names: str) -> None:
        """Delete artefacts that nothing gives any longer, where they are."""
        for name in names:
            if self.path(name).exists():
                self.begin()
                with saving(self.path(name)):
                    self.path(name).unlink()

    def forget(self, key: str) -> None:
        """Take a part out of the manifest."""
        if self._manifest.get(key) is not None:
            self.begin()
            del self._manifest[key]
            self._save()

    def update_hashes(self) -> None:
        """Put the hash of every artefact into the manifest."""
        entries = {name: self._entry(name) for name in artefact_names(self.root)}
        timed = {name: entry for name, entry in entries.items() if name.startswith(TIMED)}
        self._manifest["artefacts"] = {name: entry for name, entry in entries.items() if name not in timed}
        self._manifest["run"] |= {"artefacts": timed}
        self._manifest |= plugin_parts(self.root)
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
        self.begin()
        self._manifest["run"].pop("changing", None)
        self._manifest["run"] |= {"finished": now()}
        self.update_hashes()
        self._begun = False

    def _save(self) -> None:
        self._manifest[PROVENANCE] = hash_of(self._manifest)
        write_whole(self.root / MANIFEST, json_text(self._manifest).encode())

    def _bind(self, config: Study | Sources) -> None:
        """Bind a new bundle to its study, or check that a reopened one is of the same."""
        config.adopt()
        name = "study.yaml" if isinstance(config, Study) else "sources.yaml"
        bound = self.get_meta("config")
        if bound not in (None, name):
            raise BundleError(f"{self.root}: was made from a {bound}, not from a {name}")
        if bound is None and set(artefact_names(self.root)) - {name}:
            raise BundleError(f"{self.root}: was not made from a {name}; name another bundle")
        if self.path(name).exists() and not set(artefact_names(self.root)) <= {name, "artifacts.json"}:
            self._compare(name, config)
        elif bound is None or self.path(name).exists():  # nothing was asked yet: a corrected study may begin anew
            self._note_state(config, [])
            self.write_text(name, as_yaml(config))
        else:
            raise BundleError(f"{self.root}: its {name} is missing; put it back, or name another bundle")
        folder = config.folder if config.file else None
        parts = {"config": name, "seeds": {"seed": config.seed}, **environment(folder)}
        self.hold(**parts)  # a run that fails before it changes anything leaves the bundle as it was
        self._config = config

    def _compare(self, name: str, config: Study | Sources) -> None:
        try:
            stored = load_yaml(self.path(name), type(config))
        except StudyError as error:
            raise BundleError(f"{error} (the bundle's copy)") from error
        config.adopt()  # that of the copy were the last to be read
        both = (stored, config) if isinstance(stored, Study) and isinstance(config, Study) else None
        same = revised(*both, stopped=bool(self.get_meta(STOPPED))) if both else stored
        if difference := next(study_differences(same, config), None):
            raise BundleError(f"{self.root}: is of another study: {difference}; name another bundle")
        changed = list(study_differences(stored, config))

        def revise() -> None:
            # The roll goes before the study: what a kill leaves between them is made good by the next run.
            self.set_meta(
                **(registry_parts_under(JudgeRegistry.of(self._manifest), *both).parts if both and changed else {})
            )
            self._note_state(config, changed)
            self.write_text(name, as_yaml(config))

        if not self.sealed:  # or a line was lost, and stood for a default
            revise()
        elif changed:
            self._late = revise

    def _note_state(self, config: Study | Sources, changed: list[str]) -> None:
        """Keep in the manifest that the study is this one from now on, and what of it changed."""
        states, sha256 = self._manifest["run"].get("states", []), hashlib.sha256(as_yaml(config).encode()).hexdigest()
        if not states or states[-1]["sha256"] != sha256:
            self.begin()
            self._manifest["run"]["states"] = [*states, {"time": now(), "sha256": sha256, "changed": changed}]
            self._save()


def verify(path: Path) -> list[str]:
    """What of a finished bundle is no longer as it was written: changed, missing or extra files. Empty when all holds.

    Nothing but the manifest is parsed.

    Raises:
        BundleError: not a bundle, or of another version.
    """
    # A folder that was never a bundle is said to be none, whatever is in it.
    if odd := odd_entries(path) if os.path.lexists(path / "manifest.json") else {}:
        return [f"{name}: {kind}; a bundle holds files" for name, kind in odd.items()]
    manifest = read_manifest(path)
    if manifest["run"].get("finished") is None:
        return [f"{path}: the run is unfinished; run the same command again to finish it"]
    return sorted(f"{name}: {told}" for name, told in differences(path, known_entries(manifest)))


def is_made(name: str, entries: Mapping[str, Any]) -> bool:
    """Whether an artefact is made by a decision or its report, and not what one is made from."""
    if "/" in name or name in GIVEN or (name == "matrix.csv" and "scores.parquet" not in entries):
        return False
    return name.endswith(".csv") or name in (*RENDERED, "decision.json")


def _differs(told: str) -> str:
    match told.partition(";")[0]:
        case "missing":
            return "is missing"
        case "changed":
            return "changed since it was written"
    return "is not in the manifest, so nothing that finished wrote it"


_REMEDY = {
    (False, True): "analyze the bundle again",
    (False, False): "put it back",
    (True, True): "take it out of the bundle",
    (True, False): "take it out of the bundle",
}
"""What helps, by whether the manifest does not know a file, and whether a decision makes it."""


def stamp_of(path: Path) -> Stamp:
    """What changes whenever a file is written."""
    told = path.stat()
    return told.st_ino, told.st_size, told.st_mtime_ns


def entry_of(path: Path) -> Entry:
    """What the manifest says of an artefact: `rows` are those of a table, lines of a JSONL file, None of any other."""
    digest, size, lines = hashlib.sha256(), 0, 0
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
            size, lines = size + len(block), lines + block.count(b"\n")
    match path.suffix:
        case ".csv":
            rows: int | None = len(read_csv(path))
        case ".parquet":
            rows = row_count_of(path)
        case suffix:
            rows = lines if suffix == ".jsonl" else None
    return {"sha256": digest.hexdigest(), "bytes": size, "rows": rows}


def check_foreign_files(path: Path) -> None:
    """A folder that holds something and is no bundle is somebody's: leave it alone."""
    held = [name for name, _ in walk(path) if name not in (LOCK, SOFT_LOCK) and not name.endswith(PARTIAL)]
    if held and MANIFEST not in held:
        raise BundleError(f"{path}: not a bundle and not empty (it holds {min(held)}); name another folder")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
