"""What is meant by the models that somebody names: files, folders, hub repositories, Ollama tags, as builds.

Only headers are read, and a repository of the hub is listed, not fetched. What is no build is left out by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from quantverdict.artifacts.checkpoint_read import Checkpoint, Weight, open_checkpoint, pickles_in
from quantverdict.artifacts.gguf import open_model
from quantverdict.artifacts.gguf_mix import LEVELS, OTHER_FILE_TYPES
from quantverdict.artifacts.gguf_read import Gguf, part_names, part_of
from quantverdict.artifacts.inspect import pickled_params
from quantverdict.artifacts.sources import hub_listing, resolve
from quantverdict.config import Source
from quantverdict.errors import ArtifactError
from quantverdict.records import ALSO_CALLED

WIDE_BITS = 15.5
"""Bits a weight from which a build is unquantised; norms and biases are wide in every build."""
_FILE_TYPES = {**OTHER_FILE_TYPES, **{level.file_type: name for name, level in LEVELS.items()}}
"""Levels by `general.file_type`, as llama.cpp numbers them."""
_LEVEL = re.compile(
    r"(?<![A-Z0-9])((?:I|T)?Q[1-8](?:_(?:KV?|KSS?|KT|KL|XXS|XS|XL|NL|S|M|L|BN|[01]|R[48]))*|MXFP4(?:_MOE)?|BF16|FP?16"
    r"|FP?32|AWQ|GPTQ|NVFP4|FP8(?:_DYNAMIC)?|W[48]A(?:16|8)|NF4|HQQ|EXL[23])"
    r"(?![A-Z0-9])"
)
_CALLED = {**ALSO_CALLED, "FP32": "F32"}
_BITS = {"F32": 32.0, "FP16": 16.0, "BF16": 16.0, "AWQ": 4.0, "GPTQ": 4.0, "MXFP4": 4.0, "MXFP4_MOE": 4.0, "HQQ": 4.0,
         "EXL2": 4.0, "EXL3": 4.0}  # fmt: skip
_BESIDES = (
    (re.compile(r"mmproj", re.IGNORECASE), "a multimodal projector"),
    (re.compile(r"imatrix", re.IGNORECASE), "an importance matrix"),
    (re.compile(r"(^|[-_.])(lora|adapter)([-_.]|$)", re.IGNORECASE), "a LoRA adapter"),
)
"""What a file that is no build is called, where its header is not at hand."""
_DEEP = 2
"""Folders that are looked into below one that is named."""
_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True, slots=True)
class DiscoveredBuild:
    """A build.

    Attributes:
        name: of its file, without the ending; a study takes it as it is, or as near as a name may be.
        source: where it is.
        level: its format by llama.cpp's name, empty where neither name nor header says.
        says: whether the `header` says the level, or its `name`.
        nbytes: of its file or files; None where nobody says.
        bits: a weight, as counted, else as its level is named; None where neither is known.
        counted: whether `bits` are counted.
        shape: layers and width of the model, which tell base models apart; None where no header is at hand.
        n_params: None where nobody says.
        family: its architecture; empty where nobody says.
        checkpoint: whether it is a folder of safetensors files, and no GGUF file.
        parts: files that it is split into.
    """

    name: str
    source: Source
    level: str
    says: str
    nbytes: int | None
    bits: float | None
    counted: bool
    shape: tuple[int, int] | None
    n_params: int | None
    family: str
    checkpoint: bool = False
    parts: int = 1

    @property
    def is_wide(self) -> bool:
        """Whether it is unquantised, as far as is known."""
        return self.bits is not None and self.bits >= WIDE_BITS


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file that is no build, and what it is instead; or why it cannot be one."""

    file: str
    why: str


@dataclass(frozen=True, slots=True)
class Group:
    """The builds of one base model, the baseline first and then from most to fewest bits; and why it is the first."""

    name: str
    builds: tuple[DiscoveredBuild, ...]
    why: str


def discover(places: Sequence[str]) -> tuple[list[DiscoveredBuild], list[LeftOut]]:
    """The builds in files, folders, repositories and tags, each once; and what else is there.

    Args:
        places: a GGUF file, a folder of them, a checkpoint's folder, `owner/name` of the hub, `ollama:tag`.

    Raises:
        ArtifactError: a place is none of these, or what is named itself is no build.
        QuantverdictError: a repository of the hub without the hub's client.
    """
    found: dict[str, DiscoveredBuild] = {}
    left: list[LeftOut] = []
    for place in places:
        for one in _at(place):
            if isinstance(one, LeftOut):
                left.append(one)
            else:
                found.setdefault(str(one.source), one)
    return list(found.values()), left


def _at(place: str) -> Iterator[DiscoveredBuild | LeftOut]:
    if place.startswith("ollama:"):
        tag = place.removeprefix("ollama:")
        source = Source(ollama=tag)
        yield replace(_gguf(resolve(source, Path())), name=tag, source=source)
        return
    path = Path(place).expanduser()
    if _is_checkpoint(path):
        yield _checkpoint(path)
    elif path.is_dir():
        yield from _in_folder(path)
    elif path.exists():
        yield _gguf(path)
    elif _HUB.fullmatch(place) and path.suffix != ".gguf":
        yield from _in_repository(place)
    else:
        expected = "a GGUF file, a folder of them, a checkpoint's folder, owner/name of the hub, or ollama:TAG"
        raise ArtifactError("does not exist", file=place, expected=expected)


def _is_checkpoint(path: Path) -> bool:
    if not path.is_dir():
        return False
    return any(path.glob("*.safetensors")) or any(path.glob("*.safetensors.index.json")) or bool(pickles_in(path))


def _in_folder(folder: Path) -> Iterator[DiscoveredBuild | LeftOut]:
    """What a folder and those in it hold; the parts of a split model are one build."""
    seen = False
    for path in _models_in(folder, _DEEP):
        seen, shown = True, path.relative_to(folder).as_posix()
        names = part_names(path.name)
        if path.name != next((name for name in names if path.with_name(name).exists()), path.name):
            continue  # of a model whose first part that is here was seen
        kind = _named_kind(path.name) if path.suffix != ".gguf" and not path.is_dir() else None
        if kind is not None:
            yield LeftOut(shown, f"is {kind}")
            continue
        try:
            yield _checkpoint(path) if path.is_dir() else _gguf(path)
        except ArtifactError as error:
            yield LeftOut(shown, error.problem)
    if not seen:
        raise ArtifactError("holds no model", file=folder, expected="GGUF files, or a checkpoint")


def _models_in(folder: Path, deep: int) -> Iterator[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise ArtifactError(f"cannot be read ({error.strerror or error})", file=folder, expected="a folder") from error
    for path in entries:
        if path.is_dir():
            if _is_checkpoint(path):
                yield path
            elif deep:
                yield from _models_in(path, deep - 1)
        elif path.suffix == ".gguf" or _named_kind(path.name) == "an importance matrix":
            yield path


def _named_kind(name: str) -> str | None:
    return next((kind for pattern, kind in _BESIDES if pattern.search(name)), None)


def level_in(name: str) -> str:
    """The level that a file's name ends with, in the names of a study; empty where it names none."""
    named = _LEVEL.findall(name.upper())
    return _CALLED.get(named[-1], named[-1]) if named else ""


def _bits_of(level: str) -> float | None:
    digit = re.search(r"\d", level)
    return _BITS.get(level) or (float(digit[0]) if digit else None)


# Files


def _gguf(path: Path) -> DiscoveredBuild:
    """A build by its header.

    Raises:
        ArtifactError: it is no GGUF file, no language model, or a part of it is missing.
    """
    model = open_model(path)
    name = model.path.stem if model.path.suffix == ".gguf" else model.path.name
    name = name if (part := part_of(model.path.name)) is None else part[0]
    n_params = sum(tensor.n_elements for tensor in model.tensors)
    bits = 8 * sum(tensor.nbytes for tensor in model.tensors) / n_params
    said = _FILE_TYPES.get(-1 if (number := model.integer("general.file_type")) is None else number, "")
    if bits >= WIDE_BITS and said not in ("F32", "FP16", "BF16"):
        said = _widest(model)
    return DiscoveredBuild(
        name=name,
        source=Source(path=str(model.path)),
        level=said or level_in(name),
        says="header" if said else "name",
        nbytes=model.nbytes,
        bits=bits,
        counted=all(tensor.type.known for tensor in model.tensors),
        shape=_shape(model),
        n_params=n_params,
        family=model.text("general.architecture") or "",
        parts=len(model.parts),
    )


def _widest(model: Gguf) -> str:
    """The type of most weights, for a file that does not say its level."""
    sizes: dict[str, int] = {}
    for tensor in model.tensors:
        sizes[tensor.type.name] = sizes.get(tensor.type.name, 0) + tensor.n_elements
    most = max(sizes, key=lambda name: sizes[name])
    return _CALLED.get(most, most)


def _shape(model: Gguf) -> tuple[int, int] | None:
    architecture = model.text("general.architecture") or ""
    layers, width = (model.integer(f"{architecture}.{key}") for key in ("block_count", "embedding_length"))
    return None if layers is None or width is None else (layers, width)


def _checkpoint(path: Path) -> DiscoveredBuild:
    """A build by its configuration and the headers of its files.

    Raises:
        ArtifactError: it is no whole checkpoint of a language model.
    """
    model = open_checkpoint(path)
    weights, name = model.weights, path.resolve().name
    n_params = sum(weight.n_elements for weight in weights) or pickled_params(model)[0]
    bits = 8 * (sum(weight.nbytes for weight in weights) or model.nbytes) / n_params
    packing = next((weight.packing for weight in weights if weight.packing != "wide"), "wide")
    level = packing.upper() if packing in ("awq", "gptq") else _wide_level(model, bits)
    named = level_in(name)
    return DiscoveredBuild(
        name=name,
        source=Source(path=str(path)),
        level=level or named or _stored_level(model),
        says="header" if level or not named else "name",
        nbytes=model.nbytes,
        bits=bits,
        counted=not model.unread,
        shape=_config_shape(model),
        n_params=n_params,
        family=str(model.text_config.get("model_type") or ""),
        checkpoint=True,
    )


def _wide_level(model: Checkpoint, bits: float) -> str:
    if bits < WIDE_BITS or not model.weights:
        return ""
    most = _commonest(model.weights)
    return _CALLED.get(most, most)


def _stored_level(model: Checkpoint) -> str:
    """What most low-bit weights are stored as, where no maker's name is known: FP8, INT8, NVFP4, MLX-4, ..."""
    low = [weight for weight in model.weights if weight.packing not in ("wide", "unknown")]
    return _commonest(low).partition(" ")[0] if low else ""


def _commonest(weights: Iterable[Weight]) -> str:
    sizes: dict[str, int] = {}
    for weight in weights:
        sizes[weight.type_name] = sizes.get(weight.type_name, 0) + weight.n_elements
    return max(sizes, key=lambda name: sizes[name])


def _config_shape(model: Checkpoint) -> tuple[int, int] | None:
    layers, width = (model.text_config.get(key) for key in ("num_hidden_layers", "hidden_size"))
    return (layers, width) if isinstance(layers, int) and isinstance(width, int) else None


# The hub


def _in_repository(repository: str) -> Iterator[DiscoveredBuild | LeftOut]:
    """The GGUF files of a repository, by their names and sizes; or the checkpoint that it is."""
    listing = hub_listing(Source(hub=repository))
    ggufs = {name: size for name, size in listing.files.items() if name.endswith(".gguf")}
    for name in sorted(ggufs):
        path, kind, part = PurePosixPath(name), _named_kind(name), part_of(PurePosixPath(name).name)
        parts = [str(path.with_name(one)) for one in part_names(path.name)]
        missing = [one for one in parts if one not in ggufs]
        if missing:
            if name == next(one for one in parts if one in ggufs):
                yield LeftOut(name, f"is a part of a model whose part {PurePosixPath(missing[0]).name} is missing")
        elif name != parts[0]:
            continue
        elif kind is not None:
            yield LeftOut(name, f"is {kind}, by its name")
        else:
            source = Source(hub=repository, revision=listing.revision, file=name)
            sizes = [ggufs[one] for one in parts]
            nbytes = None if None in sizes else sum(size for size in sizes if size is not None)
            stem = path.stem if part is None else part[0]
            yield replace(_listed(stem, source, nbytes, listing.n_params, listing.family), parts=len(parts))
    weights = [size for name, size in listing.files.items() if PurePosixPath(name).match("*.safetensors")]
    if not ggufs and not (weights and "config.json" in listing.files):
        raise ArtifactError("holds no model", file=f"hub:{repository}", expected="GGUF files, or a checkpoint")
    if not ggufs:
        source = Source(hub=repository, revision=listing.revision)
        nbytes = None if None in weights else sum(size for size in weights if size is not None)
        one = _listed(repository.rpartition("/")[2], source, nbytes, listing.n_params, listing.family)
        # A repository that does not name a level is what levels are made from.
        wide = {} if one.level else {"level": "BF16", "bits": one.bits or 16.0}
        yield replace(one, checkpoint=True, **wide)  # type: ignore[arg-type]


def _listed(name: str, source: Source, nbytes: int | None, n_params: int | None, family: str) -> DiscoveredBuild:
    """A build that is known by its name, its size, and what the hub says of the model."""
    level = level_in(name)
    counted = nbytes is not None and n_params is not None
    bits = 8 * nbytes / n_params if nbytes is not None and n_params else _bits_of(level)
    return DiscoveredBuild(name, source, level, "name", nbytes, bits, counted, None, n_params, family)


# Base models


def groups_of(found: Sequence[DiscoveredBuild]) -> tuple[list[Group], list[LeftOut]]:
    """The builds by base model, in the order in which they were named; and those that there is nothing to compare with.

    Which base model a build is of is guessed by layers and width, else by the number of weights; lineage proves it when
    the study runs.
    """
    together: list[list[DiscoveredBuild]] = []
    for one in found:
        group = next((group for group in together if _alike(group[0], one)), None)
        if group is None:
            together.append([one])
        else:
            group.append(one)
    groups, alone = list[Group](), list[LeftOut]()
    for builds in together:
        if len(builds) == 1 and not builds[0].is_wide:
            why = "is the only build of its base model: name its F16 or BF16 build too, or another one"
            alone.append(LeftOut(str(builds[0].source), why))
        else:
            ordered = sorted(builds, key=_by_bits)
            groups.append(Group(_common_name(builds), tuple(ordered), _why(ordered)))
    return groups, alone


def _alike(one: DiscoveredBuild, two: DiscoveredBuild) -> bool:
    if one.shape is not None and two.shape is not None:
        return one.shape == two.shape
    if one.n_params is not None and two.n_params is not None:
        return abs(one.n_params - two.n_params) <= 0.01 * max(one.n_params, two.n_params)
    return True


def _by_bits(one: DiscoveredBuild) -> tuple[float, bool, bool, int, str]:
    """From most to fewest; as many bits: BF16, in which most models are trained, then a GGUF file, then the larger."""
    return (-round(one.bits or 0.0, 1), one.level != "BF16", one.checkpoint, -(one.nbytes or 0), one.name)


def _why(ordered: Sequence[DiscoveredBuild]) -> str:
    """Why the first of some builds is the baseline."""
    first = ordered[0]
    bits = "" if first.bits is None else f"{first.bits:.2f} bits a weight" if first.counted else ""
    said = f"{first.level} by its {first.says}" if first.level else "a level that nothing names"
    message = ", ".join(part for part in (said, bits) if part)
    most = f"the most bits of {len(ordered)} builds" if len(ordered) > 1 else "the one build that was named"
    if first.is_wide:
        return f"{message}: {most}"
    return f"{message}: {most}, and no F16, BF16 or F32 among them: what it lost itself cannot be seen"


def _common_name(builds: Sequence[DiscoveredBuild]) -> str:
    """What the names of builds begin with, without levels."""
    names = [one.name for one in builds]
    at = next((at for at, pair in enumerate(zip(*names, strict=False)) if len(set(pair)) > 1), min(map(len, names)))
    common = names[0][:at]
    if len(names) > 1 and any(len(name) > at and name[at].isalnum() for name in names) and common[-1:].isalnum():
        common = re.sub(r"[A-Za-z0-9]+$", "", common)  # half a word is no name
    while (bare := re.sub(r"[-._: ]+$", "", common)) and (named := _last_level(bare)):
        common = bare[:named]
    bare = re.sub(r"[-._: ]+$", "", common)
    return bare if len(bare) > 1 else names[0]


def _last_level(name: str) -> int | None:
    """Where the level begins that a name ends with."""
    return next((named.start() for named in _LEVEL.finditer(name.upper()) if named.end() == len(name)), None)


# As `quantverdict list` shows them


def build_rows(found: Sequence[DiscoveredBuild], left: Sequence[LeftOut]) -> dict[str, object]:
    """Builds from most to fewest bits, and what is none, for a program."""
    rows = [
        {"name": one.name, "level": one.level or None, "bits_per_weight": one.bits, "bits_counted": one.counted,
         "bytes": one.nbytes, "parts": one.parts, "parameters": one.n_params, "architecture": one.family or None,
         "source": one.source.model_dump(exclude_none=True)}
        for one in _widest_first(found)
    ]  # fmt: skip
    return {"builds": rows, "left_out": [{"file": one.file, "why": one.why} for one in left]}


def build_lines(found: Sequence[DiscoveredBuild], left: Sequence[LeftOut]) -> list[str]:
    """The same for a person."""
    wide = max((len(one.name) for one in found), default=5) + 2
    lines = [f"{'build':{wide}}{'level':10}{'bits':>6}{'size':>11}  from"] if found else []
    for one in _widest_first(found):
        bits = "?" if one.bits is None else f"{one.bits:.2f}" if one.counted else f"~{round(one.bits, 2):g}"
        size = "?" if one.nbytes is None else f"{one.nbytes / 1e6:,.1f} MB"
        parts = f", {one.parts} parts" if one.parts > 1 else ""
        lines.append(f"{one.name:{wide}}{one.level or '?':10}{bits:>6}{size:>11}  {one.source}{parts}")
    return lines + [f"left out: {one.file}: {one.why}" for one in left]


def _widest_first(found: Sequence[DiscoveredBuild]) -> list[DiscoveredBuild]:
    return sorted(found, key=lambda one: -(one.bits or 0))
