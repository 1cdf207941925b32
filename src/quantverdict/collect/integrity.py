"""Is a bundle's folder what its manifest says? Kinds of entries first, then hashes; nothing is parsed but the manifest.

A bundle may come from anywhere: a link in it could lead to a file of whoever opens it, a pipe would be waited for
without end, and a file that was changed may be anything to its parser.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from quantverdict.collect.files import PARTIAL, json_text, sha256_of
from quantverdict.errors import BundleError

SCHEMA = 1
"""Version of the bundle's layout; another one is refused."""

MANIFEST = "manifest.json"
JUDGING = ".judging"
"""Folder of what a judge said that did not come to its end; no artefact, so that the bundle stays as it was."""
UNTRACKED = (MANIFEST, ".lock")
PROVENANCE = "provenance_sha256"
"""Key of the hash of all that the manifest says besides the hashes of the artefacts and the run's times."""
FILES = frozenset((".csv", ".html", ".json", ".jsonl", ".lock", ".md", ".parquet", ".yaml"))
"""How the name of a file ends that a command writes: no folder has such a name."""
READ = FILES - {".html", ".md", ".lock"}
"""How the name of a file ends that some command reads."""

Count = Field(ge=0)


class _Entry(BaseModel, strict=True):
    sha256: str
    bytes: int = Count
    rows: int | None


class _Rounds(BaseModel, strict=True):
    ends: list[int]
    largest: dict[str, int]


class _Judge(BaseModel, strict=True):
    config: dict[str, Any]
    identity: dict[str, Any] | None = None
    whole: list[str] = []
    labels: str | None = None


class _Run(BaseModel, strict=True):
    finished: str | None = None
    changing: str | None = None
    artefacts: dict[str, _Entry] = {}


class _Manifest(BaseModel, strict=True):
    """What of `manifest.json` is read again; whatever else it says is shown as it is."""

    run: _Run
    artefacts: dict[str, _Entry] = {}
    config: Literal["study.yaml", "sources.yaml"] | None = None
    backends: dict[str, dict[str, Any]] = {}
    batches: dict[str, list[list[int]]] = {}
    decoding: dict[str, dict[str, Any]] = {}
    rounds: dict[str, _Rounds] = {}
    stopped: dict[str, int] = {}
    judges: dict[str, _Judge] = {}
    former_judges: list[_Judge] = []
    sources: list[dict[str, Any]] = []
    report: dict[str, str] = {}
    seeds: dict[str, Any] = {}
    packages: dict[str, Any] = {}
    hardware: dict[str, Any] = {}
    git_commit: str | None = None


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the bundle at `path`, whose folder holds nothing but files and folders.

    Raises:
        BundleError: not a bundle, of another version, or changed; or it holds a link, a pipe or a device.
    """
    refuse_odd(path)
    try:
        manifest: Any = json.loads((path / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise BundleError(f"{path}: not a bundle (no {MANIFEST})") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path / MANIFEST}: cannot be read ({error})") from error
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if schema != SCHEMA or not isinstance(manifest.get("run"), dict):
        raise BundleError(f"{path}: a bundle of schema version {schema!r}; this program reads {SCHEMA}")
    try:
        _Manifest.model_validate(manifest)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BundleError(f"{path / MANIFEST}: {where}: not as it was written ({first['msg']})") from error
    if manifest.get(PROVENANCE, hash_of(manifest)) != hash_of(manifest):
        raise BundleError(f"{path / MANIFEST}: changed since it was written; put it back")
    return dict(manifest)


def hash_of(manifest: Mapping[str, Any]) -> str:
    """Of all but what changes with every run, and the hashes of the artefacts, which their files prove."""
    rest = {key: value for key, value in manifest.items() if key not in (PROVENANCE, "artefacts", "run")}
    return hashlib.sha256(json_text(rest).encode("utf-8", "backslashreplace")).hexdigest()


def refuse_misfit(kind: type, fields: Mapping[str, Any], where: str) -> None:
    """Refuse values that are not those of a dataclass.

    Raises:
        BundleError: naming the first key that is missing, unknown or of another type.
    """
    names = {field.name for field in dataclasses.fields(kind)}
    told = next((f"{name}: no such key is known" for name in fields if name not in names), None)
    if told is None:
        try:
            _adapter(kind).validate_python(dict(fields))
        except ValidationError as error:
            first = error.errors()[0]
            told = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    if told is not None:
        raise BundleError(f"{where}: not as it was written: {told}")


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def known_entries(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifest says of each artefact, by name; nothing where the bundle was never finished."""
    return {**manifest.get("artefacts", {}), **manifest["run"].get("artefacts", {})}


def walk(root: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Every entry under a folder but its folders that are no links, by path from there; no link is followed.

    Raises:
        BundleError: a folder cannot be read.
    """
    try:
        with os.scandir(root) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise BundleError(f"{root}: cannot be read ({error.strerror or error})") from error
    for entry in entries:
        if entry.is_dir(follow_symlinks=False) and Path(entry.name).suffix not in FILES and entry.name != ".lock":
            yield from ((f"{entry.name}/{name}", below) for name, below in walk(root / entry.name))
        else:
            yield entry.name, entry


def odd_entries(root: Path) -> dict[str, str]:
    """What of a bundle is no file, by name, and what it is instead."""
    return {name: kind for name, entry in walk(root) if (kind := _kind(entry))}


def _kind(entry: os.DirEntry[str]) -> str:
    if entry.is_symlink():
        return "is a symbolic link, and is not followed"
    if entry.is_dir():
        return "is a folder"
    return "" if entry.is_file() else "is a pipe or a device"


def refuse_odd(root: Path) -> None:
    """Refuse a bundle that holds anything but files and folders, before anything in it is opened.

    Raises:
        BundleError: naming the first entry that is neither.
    """
    for name, kind in odd_entries(root).items() if root.is_dir() else ():
        raise BundleError(f"{root / name}: {kind}; a bundle holds files: put the file itself there")


def artefact_names(root: Path) -> list[str]:
    """Every file of the bundle but the manifest, the lock and what is being written, sorted."""
    names = (name for name, entry in walk(root) if entry.is_file(follow_symlinks=False))
    untracked = (*UNTRACKED, JUDGING)
    return sorted(name for name in names if name.split("/")[0] not in untracked and not name.endswith(PARTIAL))


def differences(root: Path, entries: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What of the folder is not as `entries` of a manifest have it: by name, what it is; in the order of the names."""
    found = set(artefact_names(root))
    for name in sorted(found | set(entries)):
        if name not in found:
            yield name, "missing"
        elif name not in entries:
            yield name, "not in the manifest"
        elif (now_is := _hash(root / name)) != entries[name]["sha256"]:
            yield name, f"changed; sha256 is {now_is}, the manifest says {entries[name]['sha256']}"


def _hash(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror or error})") from error
