"""A finished bundle as a model card: what no table holds is read from its files, and the folder is written whole."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from quantverdict.artifacts.builds import Build
from quantverdict.artifacts.gguf_read import open_gguf
from quantverdict.bundle.files import saving, write_whole
from quantverdict.config import Study
from quantverdict.errors import ArtifactError, BundleError, DataError, QuantverdictError, one_of
from quantverdict.planning.memory import memory_of
from quantverdict.reporting.artefacts import BundleTables
from quantverdict.reporting.card import Benchmark, Card, CardFacts, merged_card
from quantverdict.reporting.formats import plain
from quantverdict.stages.facts import stored_builds, view_of
from quantverdict.stages.verify import DryRunBundle
from quantverdict.stages.view import UNFINISHED, BundleView

README, RESULTS, PICTURES = "README.md", ".eval_results", "quantverdict"
OURS = "written by quantverdict card; it is written over"
"""In every file that is written whole: another's is never written over."""
CONTEXT = 2048
"""Tokens that memory is estimated for, where no study says how many it used."""
_ON_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_REPOSITORY = re.compile(r"^https?://huggingface\.co/([\w.-]+/[\w.-]+?)/?$", re.ASCII)


@dataclass(frozen=True, slots=True)
class CardOptions:
    """What the caller says of a card; see `api.card`."""

    model: str | None = None
    base_model: str | None = None
    quantized_by: str = ""
    repo: str = ""
    dataset: str = ""
    context: int | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    png: bool = False


@dataclass(frozen=True, slots=True)
class WrittenCard:
    """The files of a card, and what a publisher is told besides."""

    files: Sequence[Path]
    notes: Sequence[str]

    def as_json(self) -> dict[str, Any]:
        """The document that `--json` prints."""
        return {"files": [str(path) for path in self.files], "notes": list(self.notes)}

    def lines(self) -> list[str]:
        """As the command prints it."""
        return [*map(str, self.files), *self.notes]


def write_card(path: Path, out: Path, options: CardOptions) -> WrittenCard:
    """Write the card of one base model of a finished bundle; the bundle is not changed.

    Raises:
        BundleError: the bundle is not finished, or a file of somebody else's is in the way; nothing was written.
        DataError: no such base model or build, no name of the hub, or a README.md whose front matter cannot be read.
        QuantverdictError: what draws PNG is not installed.
    """
    if not BundleView(path).finished:
        raise BundleError(f"{path}: {UNFINISHED}")
    for key in ("base_model", "repo", "dataset"):
        if (told := getattr(options, key)) and not _ON_HUB.fullmatch(told):
            raise DataError(f"{told!r:.80} is no name of the hub", field=key, expected="owner/name")
    bundle = DryRunBundle(path)
    config = bundle.config  # the metrics that it brings along are known from here on
    view = view_of(bundle)
    model = _model(view, options.model)
    builds = [one for one in stored_builds(bundle) if one.cell.base_model == model and not one.null]
    card = Card(view, model, _facts(bundle, builds, model, options, config))
    files = _files(card, out, options)
    return WrittenCard(files, list(_notes(card)))


def _model(view: BundleTables, asked: str | None) -> str:
    if asked is None and len(view.models) == 1:
        return view.models[0]
    if asked not in view.models:
        told = "several base models: a card is of one" if asked is None else f"no base model {asked!r:.60}"
        raise DataError(told, field="model", expected=one_of(asked or "", view.models))
    return asked


def _facts(
    bundle: DryRunBundle, builds: Sequence[Build], model: str, options: CardOptions, config: object
) -> CardFacts:
    study = config if isinstance(config, Study) else None
    context = options.context or (CONTEXT if study is None else study.collect.context)
    files = {one.cell.quant: Path(one.artifact.path).name for one in builds if one.artifact is not None}
    known = [one["quant"] for one in bundle.read_json("decision.json")["cells"] if one["base_model"] == model]
    for quant in options.files:
        if quant not in known:
            raise DataError(f"no build {quant!r:.60}", field="file", expected=one_of(quant, known))
    finished = str((bundle.get_meta("run") or {}).get("finished") or "")
    return CardFacts(
        base_model=options.base_model or _base_model(builds, study, model),
        quantized_by=options.quantized_by,
        repo=options.repo,
        context=context,
        memory={one.cell.quant: _memory(one, context) for one in builds},
        files={**files, **options.files},
        benchmarks=_benchmarks(bundle, model, options.dataset),
        date=finished,
        image="png" if options.png else "svg",
    )


def _memory(build: Build, context: int) -> int | None:
    """None where the file is not here any longer, or its header does not say."""
    if build.artifact is None:
        return None
    types = build.runtime.get("cache_k", "f16").upper(), build.runtime.get("cache_v", "f16").upper()
    try:
        return memory_of(Path(build.artifact.path), context, types).total
    except (ArtifactError, OSError, KeyError):
        return None


def _base_model(builds: Sequence[Build], study: Study | None, model: str) -> str | None:
    """The original's name on the hub: the study's checkpoint, else what the GGUF files say of themselves."""
    own = next((one for one in study.models if one.name == model), None) if study is not None else None
    if own is not None and own.checkpoint is not None and own.checkpoint.hub:
        return own.checkpoint.hub
    said = set()
    for build in builds:
        if build.artifact is not None and build.artifact.format == "gguf":
            try:
                header = open_gguf(Path(build.artifact.path))
            except (ArtifactError, OSError):
                continue
            found = _REPOSITORY.match(header.text("general.base_model.0.repo_url") or "")
            said.add(found[1] if found else None)
    return said.pop() if len(said) == 1 else None


def _benchmarks(bundle: DryRunBundle, model: str, dataset: str) -> dict[str, Benchmark]:
    """Metrics that decide and are measured on one task alone, which is a data set of the hub or in the one named."""
    records: Mapping[str, Mapping[str, Any]] = bundle.get_meta("data") or {}
    tasks = _tasks(bundle)
    found = {}
    for metric in dict.fromkeys(row["metric"] for row in _deciding(bundle, model) if row["metric"]):
        measured_on = tasks.get(metric, ())
        if len(measured_on) == 1:
            record = records.get(measured_on[0]) or {}
            place = str(record.get("source", ""))
            if place.startswith("hub:"):
                name = "/".join(place.removeprefix("hub:").split("/")[:2])
                found[metric] = Benchmark(name, measured_on[0], str(record.get("revision") or ""))
                continue
        if dataset:
            found[metric] = Benchmark(dataset, measured_on[0] if len(measured_on) == 1 else metric)
    return found


def _deciding(bundle: DryRunBundle, model: str) -> list[Mapping[str, str]]:
    name = "criteria" if bundle.path("criteria.csv").is_file() else "paired"
    table = bundle.read_table(name) if bundle.path(f"{name}.csv").is_file() else []
    return [row for row in table if row["base_model"] == model and (name == "criteria" or row["outcome"])]


def _tasks(bundle: DryRunBundle) -> dict[str, tuple[str, ...]]:
    """Metric to the tasks that it has scores of; nothing where no samples are kept."""
    path = bundle.path("scores.parquet")
    if not path.is_file():
        return {}
    import polars as pl

    from quantverdict.bundle.frames import SCORES, reading, scan_frame

    with reading(path):
        pairs = scan_frame(path, SCORES).select(pl.col("metric", "task").cast(pl.String)).unique().collect().rows()
    found: dict[str, tuple[str, ...]] = {}
    for metric, task in sorted(pairs):
        found[metric] = (*found.get(metric, ()), task)
    return found


# The folder


def _files(card: Card, out: Path, options: CardOptions) -> list[Path]:
    """Everything is made and every place looked at before the first file is written, the card itself the last."""
    charts = card.charts()
    made = _pictures(charts, png=options.png) | _results(card)
    stale = _check_places(out, made)
    readme = out / README
    section = card.section({name: shows for name, (shows, _) in charts.items()})
    made[README] = merged_card(_read(readme), card.front_matter(), section, str(readme)).encode()
    for name, data in made.items():
        write_whole(out / name, data)
    with saving(out):
        for path in stale:
            path.unlink(missing_ok=True)
    return [out / name for name in sorted(made, key=lambda one: (one != README, one))]


def _pictures(charts: Mapping[str, tuple[str, Mapping[str, str]]], *, png: bool) -> dict[str, bytes]:
    made: dict[str, bytes] = {}
    for name, (_, themes) in charts.items():
        for theme, drawn in themes.items():
            made[f"{PICTURES}/{name}-{theme}.svg"] = f"<!-- {OURS} -->\n{drawn}".encode()
            if png:
                made[f"{PICTURES}/{name}-{theme}.png"] = _png(drawn)
    return made


def _results(card: Card) -> dict[str, bytes]:
    """A file a build with metrics of data sets of the hub."""
    made: dict[str, bytes] = {}
    for row in card.rows:
        if entries := card.eval_results(row):
            text = yaml.safe_dump(entries, sort_keys=False, allow_unicode=True, width=1000)
            made[f"{RESULTS}/{PICTURES}-{_safe(row.quant, made)}.yaml"] = f"# {OURS}\n{text}".encode()
    return made


def _check_places(out: Path, made: Mapping[str, bytes]) -> list[Path]:
    """Refuse to write through a link or over what is not ours; what an earlier card left and this one has not.

    Raises:
        BundleError: naming the file.
    """
    for place in (out, out / RESULTS, out / PICTURES, out / README):
        if place.is_symlink() and place != out:
            raise BundleError(f"{place}: is a symbolic link, and is not written through")
        if place.exists() and place.is_dir() == (place.name == README):
            raise BundleError(f"{place}: {'is a folder' if place.is_dir() else 'is no folder'}")
    for name in made:
        place = out / name
        if (place.exists() or place.is_symlink()) and not _is_ours(place):
            raise BundleError(f"{place}: is there, and not of an earlier card; move it away first")
    earlier = [*(out / RESULTS).glob(f"{PICTURES}-*.yaml"), *(out / PICTURES).glob("*.svg")]
    earlier += (out / PICTURES).glob("*.png")
    return [path for path in earlier if path.relative_to(out).as_posix() not in made and _is_ours(path)]


def _is_ours(path: Path) -> bool:
    """A PNG is, where the SVG that it was drawn from is."""
    if path.is_symlink() or not path.is_file():
        return False
    if path.suffix == ".png":
        return path.with_suffix(".svg").exists() and _is_ours(path.with_suffix(".svg"))
    with path.open("rb") as file:
        return OURS.encode() in file.read(200)


def _read(path: Path) -> str:
    if not path.exists():
        return ""
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("cannot be read as UTF-8", file=path, expected="a model card") from error


def _safe(quant: str, taken: Mapping[str, bytes]) -> str:
    """A build's name as a file's, which no other build has."""
    name = re.sub(r"[^\w.-]", "_", quant, flags=re.ASCII)
    while f"{RESULTS}/{PICTURES}-{name}.yaml" in taken:
        name += "_"
    return name


def _png(svg: str) -> bytes:
    """The drawing in twice its size, by resvg: MIT, a wheel of its own without dependencies.

    Raises:
        QuantverdictError: it is not installed, or finds no font: it leaves text out then, and says nothing.
    """
    try:
        resvg = importlib.import_module("resvg_py")
    except ImportError as error:
        raise QuantverdictError("what draws PNG is not installed; pip install 'quantverdict[png]'") from error
    drawn = bytes(resvg.svg_to_bytes(svg_string=svg, zoom=2))
    if drawn == bytes(resvg.svg_to_bytes(svg_string=re.sub(r"<text[^>]*>[^<]*</text>", "", svg), zoom=2)):
        raise QuantverdictError("PNG cannot be drawn: no font is found; install one, such as fonts-dejavu-core")
    return drawn


def _notes(card: Card) -> Iterator[str]:
    facts = card.facts
    if facts.base_model is None:
        name = plain(card.model)
        yield f"base_model is left out: nothing says what {name} is called on the hub (--base-model OWNER/NAME)"
    if not facts.quantized_by:
        yield "quantized_by is left out (--quantized-by NAME)"
    if not facts.benchmarks:
        yield f"{RESULTS} is left out: no metric that decides is of a data set of the hub (--dataset OWNER/NAME)"
    unnamed = [row.quant for row in card.rows if not row.file]
    if unnamed:
        yield f"no file is known of {plain(', '.join(unnamed))} (--file BUILD=NAME)"
