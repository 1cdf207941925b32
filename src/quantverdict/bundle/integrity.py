"""Is a bundle's folder what its manifest says? Kinds of entries first, then hashes; nothing is parsed but the manifest.

A bundle may come from anywhere: a link in it could lead to a file of whoever opens it, a pipe would be waited for
without end, and a file that was changed may be anything to its parser.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from fractions import Fraction
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from quantverdict.backends.base import given_cpus
from quantverdict.bundle.files import LOCK, PARTIAL, SOFT_LOCK, Json, json_text, sha256_of
from quantverdict.errors import BundleError, os_reason
from quantverdict.records import BackendSpec, Importer, Metric, RubricSpec, ScorerSpec, TaskType
from quantverdict.registry import METRICS, RUBRICS, TASK_TYPES, adopt, metrics_of
from quantverdict.registry.listing import LISTINGS, OF_STUDY, plugin_versions

if TYPE_CHECKING:
    from packaging.requirements import Requirement

SCHEMA = 2
"""Version of the bundle's layout; another one is refused, and an older one is told how it is brought to this."""
OLDER = {1: "0.1.0"}
"""Versions that `upgrade` takes, each with the release that wrote it."""

MANIFEST = "manifest.json"
JUDGING = ".judging"
"""Folder of what a judge said that did not come to its end; no artefact, so that the bundle stays as it was."""
UNTRACKED = (MANIFEST, LOCK, SOFT_LOCK)
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


class _StoppingMeta(BaseModel, strict=True):
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
    states: list[dict[str, Any]] = []


class _Manifest(BaseModel, strict=True):
    """What of `manifest.json` is read again; whatever else it says is shown as it is."""

    run: _Run
    artefacts: dict[str, _Entry] = {}
    config: Literal["study.yaml", "sources.yaml"] | None = None
    backends: dict[str, dict[str, Any]] = {}
    batches: dict[str, list[list[int]]] = {}
    decoding: dict[str, dict[str, Any]] = {}
    rounds: dict[str, _StoppingMeta] = {}
    stopped: dict[str, int] = {}
    looks: list[int] = []
    look: int = Field(default=1, ge=1)
    sample: dict[str, int] = {}
    files: dict[str, str] = {}
    hub: dict[str, str] = {}
    judges: dict[str, _Judge] = {}
    former_judges: list[_Judge] = []
    sources: list[dict[str, Any]] = []
    left_out: list[str] = []
    data: dict[str, dict[str, Any]] = {}
    report: dict[str, str] = {}
    plugins: dict[str, list[dict[str, Any]]] = {}
    seeds: dict[str, Any] = {}
    packages: dict[str, Any] = {}
    hardware: dict[str, Any] = {}
    git_commit: str | None = None


def read_manifest(path: Path, *, older: bool = False) -> dict[str, Any]:
    """The manifest of the bundle at `path`, whose folder holds nothing but files and folders.

    Args:
        older: it may be of a version that can be upgraded.

    Raises:
        BundleError: not a bundle, of another version, or changed; or it holds a link, a pipe or a device.
    """
    check_regular_files(path)
    try:
        manifest: Any = json.loads((path / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise BundleError(f"{path}: not a bundle (no {MANIFEST})") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path / MANIFEST}: cannot be read ({error})") from error
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if type(schema) is int and schema in OLDER and not older:
        how = f"`quantverdict upgrade {path}` brings it to {SCHEMA}"
        raise BundleError(f"{path}: is of schema version {schema}, as release {OLDER[schema]} wrote it; {how}")
    if schema not in (SCHEMA, *(OLDER if older else ())) or not isinstance(manifest.get("run"), dict):
        raise BundleError(f"{path}: a bundle of schema version {schema!r}; this program reads {SCHEMA}")
    try:
        _Manifest.model_validate(manifest)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BundleError(f"{path / MANIFEST}: {where}: not as it was written ({first['msg']})") from error
    if manifest.get(PROVENANCE, hash_of(manifest)) != hash_of(manifest):
        raise BundleError(f"{path / MANIFEST}: changed since it was written; put it back")
    adopt_parts(manifest.get("plugins", {}), path / MANIFEST)
    return dict(manifest)


BROUGHT: Mapping[str, type] = {
    "metrics": Metric, "scorers": ScorerSpec, "task_types": TaskType, "rubrics": RubricSpec, "backends": BackendSpec,
    "importers": Importer,
}  # fmt: skip
"""What a bundle brings along of plugins under the manifest's `plugins`, so that it is read without them."""
NAMING = ("study.yaml", "sources.yaml", "matrix.csv", "decision.json")
"""Artefacts that name such things."""


def plugin_parts(root: Path) -> dict[str, Any]:
    """The manifest's `plugins` and `plugin_packages`: what a bundle names of loaded plugins, and the metrics that its
    sources bring along; empty where nothing."""
    own = [one for one in METRICS.values() if METRICS.owner(one.name) == OF_STUDY and one.group != "judge"]
    if not own and not any(LISTINGS[kind].of_plugins() for kind in BROUGHT):
        return {}
    text = " ".join(path.read_text(encoding="utf-8") for name in NAMING if (path := root / name).is_file())
    named = set(re.findall(r"[\w.+-]+", text))
    kinds = [kind for kind in TASK_TYPES.of_plugins() if named.intersection(metrics_of(kind))]
    named |= {kind.name for kind in kinds} | {name for kind in kinds for name in kind.scorers}
    named |= {rubric.name for rubric in RUBRICS.of_plugins() if named & {rubric.of, rubric.metric}}
    found = {kind: [one for one in LISTINGS[kind].of_plugins() if one.name in named] for kind in BROUGHT}
    found["metrics"] = [*(one for one in own if one.name in text), *found["metrics"]]
    if not any(found.values()):
        return {}
    owners = sorted({LISTINGS[kind].owner(one.name) for kind, ones in found.items() for one in ones} - {OF_STUDY})
    plugins = {
        kind: [_adapter(BROUGHT[kind]).dump_python(one, mode="json") for one in ones]
        for kind, ones in found.items()
        if ones
    }
    return {"plugins": plugins, "plugin_packages": {name: plugin_versions().get(name) for name in owners}}


def adopt_parts(parts: Mapping[str, Any], where: Path) -> None:
    """Know what a bundle brings along.

    Raises:
        BundleError: it is not as it was written.
        PluginError: a plugin here means something else by a name.
    """
    for kind, entries in parts.items():
        for number, fields in enumerate(entries):
            if kind not in BROUGHT:
                raise BundleError(f"{where}: plugins.{kind}: not as it was written")
            try:
                entry = _adapter(BROUGHT[kind]).validate_python(fields)
            except ValidationError as error:
                told = error.errors()[0]["msg"]
                raise BundleError(f"{where}: plugins.{kind}.{number}: not as it was written ({told})") from error
            adopt(kind, entry)


def hash_of(manifest: Mapping[str, Any]) -> str:
    """Of all but what changes with every run, and the hashes of the artefacts, which their files prove."""
    rest = {key: value for key, value in manifest.items() if key not in (PROVENANCE, "artefacts", "run")}
    return hashlib.sha256(json_text(rest).encode("utf-8", "backslashreplace")).hexdigest()


def check_fields(kind: type, fields: Mapping[str, Any], where: str) -> None:
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
        raise BundleError(f"{root}: cannot be read ({os_reason(error)})") from error
    for entry in entries:
        if entry.is_dir(follow_symlinks=False) and Path(entry.name).suffix not in FILES and entry.name != LOCK:
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


def check_regular_files(root: Path) -> None:
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
        raise BundleError(f"{path}: cannot be read ({os_reason(error)})") from error


# What a study means, whatever its file looks like: defaults filled in, order and comments gone.


def plain(value: object) -> Json:
    """Fractions as text, as newer releases of pydantic give them; tuples as lists; the rest as it is."""
    match value:
        case dict():
            return {str(key): plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case Fraction():
            return str(value)
    return value


def as_yaml(config: BaseModel) -> str:
    """The configuration with every default written out; loads to an equal one."""
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # loads the same, three times as fast
    return yaml.dump(plain(config.model_dump()), Dumper=dumper, sort_keys=False, allow_unicode=True, width=120)


def study_differences(stored: BaseModel, given: BaseModel) -> Iterator[str]:
    """`KEY was A, is B` for each key that differs."""
    yield from _differences(plain(stored.model_dump()), plain(given.model_dump()), "")


def _differences(stored: Json, given: Json, where: str) -> Iterator[str]:
    if isinstance(stored, dict) and isinstance(given, dict):
        pairs = [(f"{where}.{key}".lstrip("."), stored.get(key), given.get(key)) for key in {**stored, **given}]
    elif isinstance(stored, list) and isinstance(given, list) and len(stored) == len(given):
        both = zip(stored, given, strict=True)
        pairs = [(f"{where}.{_named(index, new)}", was, new) for index, (was, new) in enumerate(both)]
    else:
        pairs = []
        if stored != given:
            yield f"{where} was {_short(stored)}, is {_short(given)}"
    for key, was, new in pairs:
        yield from _differences(was, new, key)


def _named(index: int, entry: Json) -> str:
    """An entry of a list by its name, where it has one."""
    names = (entry.get(key) for key in ("quant", "name", "task", "path")) if isinstance(entry, dict) else ()
    return next((name for name in names if isinstance(name, str)), str(index))


def _short(value: object) -> str:
    text = f"{len(value)} entries" if isinstance(value, list) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


# What a run ran on: package versions, hardware, the commit of the study's folder.

PACKAGE = "quantverdict"
NOT_ENGINES = {"dev", "reference"}


def environment(study_folder: Path | None) -> dict[str, object]:
    """The manifest's parts `packages`, `hardware` and `git_commit`."""
    return {"packages": packages(), "hardware": hardware(), "git_commit": git_commit(study_folder)}


def packages() -> dict[str, str]:
    """Versions of Python, of this package, and of what it declares and is installed, engines included."""
    found = {"python": platform.python_version(), PACKAGE: metadata.version(PACKAGE)}
    needed = [one.name for part in requirements().values() for one in part]
    found |= {name: installed for name in needed if (installed := version(name))}
    return dict(sorted(found.items()))


def requirements() -> dict[str, list[Requirement]]:
    """What each extra needs on this system; under the empty name what is always needed."""
    from packaging.requirements import Requirement

    told = metadata.metadata(PACKAGE)
    extras = [extra for extra in told.get_all("Provides-Extra", ()) if extra not in NOT_ENGINES]
    needed = [Requirement(text) for text in told.get_all("Requires-Dist", ())]
    always = [one for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    return {"": always} | {
        extra: [one for one in needed if one not in always and one.marker and one.marker.evaluate({"extra": extra})]
        for extra in extras
    }


def version(package: str) -> str | None:
    """Of an installed distribution, None where it is not installed; none of its code is run."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def hardware() -> dict[str, object]:
    """CPU model, cores (of the machine, and given to this process), bytes of memory, platform."""
    import psutil

    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "cores_given": len(given_cpus()),
        "memory_bytes": psutil.virtual_memory().total,
        "platform": platform.platform(),
    }


def cpu_model() -> str | None:
    """As the kernel names it, None where it does not."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or None
    named = re.search(r"^(?:model name|Model|cpu model)\s*:\s*(.+)$", text, re.MULTILINE)
    return named[1].strip() if named else platform.processor() or None


def git_commit(folder: Path | None) -> str | None:
    """The commit checked out in `folder`, None where it is in no repository."""
    git = shutil.which("git")
    if folder is None or git is None:
        return None
    command = [git, "-C", str(folder), "rev-parse", "--verify", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - fixed words
    return done.stdout.strip() if done.returncode == 0 else None
