"""How far builds are from their baseline along a text, token by token: the figures that publishers print.

A text is cut into windows as llama-perplexity cuts it: of `context` tokens each, what is left over dropped, the first
token replaced by the start token where the model wants one, and the second half of each predicted. Baseline and builds
are open at once and read the same places of the same windows one after the other, so that no logits are stored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from time import perf_counter

import psutil
from pydantic import ValidationError

from quantverdict.artifacts.builds import Build
from quantverdict.artifacts.inspect import is_checkpoint, model_path
from quantverdict.backends.base import Backend, Placement, TextReader, TextTokens
from quantverdict.backends.batch_scheduler import even_parts
from quantverdict.backends.worker import FEW
from quantverdict.bundle.manifest import Bundle
from quantverdict.bundle.store import TEXT_KL, note_time
from quantverdict.config import Study, TextKlConfig
from quantverdict.errors import DataError, EngineError, StudyError
from quantverdict.records import CellId, Matrix, Table
from quantverdict.registry import BACKENDS
from quantverdict.stages.ask import open_build
from quantverdict.stages.facts import stored_text_kl, text_kl_file
from quantverdict.stages.whitebox import answered
from quantverdict.stats.divergence import TextDivergence, TokenDivergence, text_divergence, token_divergence
from quantverdict.yaml_file import decoded, wanted

SHIPPED = Path(__file__).parents[1] / "tasks" / "kl_text.txt"
"""Prose, dialogue, code, and eight languages besides English; `kl_text.md` beside it says of what it is made."""
_TOGETHER, _HELD = 8, 128 << 20
"""Windows read side by side at most, and the bytes of logits of one model that are held at once."""
Say = Callable[[str], None]
Open = Callable[[Study, Build], Backend]


@dataclass(frozen=True, eq=False, slots=True)
class TextArm:
    """A build that is to be read along a text.

    Attributes:
        name: for messages.
        open: loads it.
        nbytes: of its files.
    """

    name: str
    open: Callable[[], Backend]
    nbytes: int


Fail = Callable[[TextArm, EngineError], None]


def text_of(settings: TextKlConfig, folder: Path) -> tuple[str, str]:
    """The text, and the SHA-256 of its file.

    Args:
        folder: where the path of a file of the user's starts.

    Raises:
        DataError: it cannot be read.
    """
    file = SHIPPED if settings.text == "shipped" else folder / Path(settings.text).expanduser()
    try:
        data = file.read_bytes()
        return decoded(data), hashlib.sha256(data).hexdigest()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the text cannot be read ({error})", file=file, expected="a UTF-8 text file") from error


def windows_of(tokens: TextTokens, settings: TextKlConfig) -> list[tuple[int, ...]]:
    """A text in windows of token ids.

    Raises:
        EngineError: it is too short for two.
    """
    size, ids = settings.context, tokens.ids
    if len(ids) < 2 * size:
        raise EngineError(f"the text has {len(ids)} tokens; expected {2 * size} at least, two windows of {size}")
    begun = () if tokens.start is None else (tokens.start,)
    windows = [begun + ids[at + len(begun) : at + size] for at in range(0, len(ids) - size + 1, size)]
    return windows[: settings.windows]


def along_text(
    baseline: TextArm, arms: Sequence[TextArm], text: str, settings: TextKlConfig, fail: Fail
) -> Iterator[tuple[TextArm, TextDivergence]]:
    """Each build beside the baseline; as many are open at once as half of the free memory holds.

    Args:
        fail: told of a build that cannot be compared; the others go on, unless it raises.

    Raises:
        EngineError: the baseline cannot be opened or read, or the text is too short.
    """
    for group in _groups(baseline, arms):
        with ExitStack() as opened:
            yield from _TextReading(baseline, text, settings, opened).compare(group, fail)


def _groups(baseline: TextArm, arms: Sequence[TextArm]) -> Iterator[list[TextArm]]:
    room = psutil.virtual_memory().available // 2 - baseline.nbytes
    group: list[TextArm] = []
    for arm in arms:
        if group and sum(one.nbytes for one in (*group, arm)) > room:
            yield group
            group = []
        group.append(arm)
    if group:
        yield group


class _TextReading:
    """A baseline that is open, and a text as it reads it."""

    def __init__(self, baseline: TextArm, text: str, settings: TextKlConfig, opened: ExitStack) -> None:
        self._baseline, self._text, self._context, self._opened = baseline, text, settings.context, opened
        self._reader, self._tokens = self._open(baseline)
        self._windows = windows_of(self._tokens, settings)

    def compare(self, arms: Sequence[TextArm], fail: Fail) -> Iterator[tuple[TextArm, TextDivergence]]:
        """Those of `arms` that can be compared, with their figures."""
        readers: dict[TextArm, TextReader] = {}
        for arm in arms:
            with _Failing(arm, fail):
                reader, tokens = self._open(arm)
                self._require_same(tokens)
                readers[arm] = reader
        found: dict[TextArm, list[TokenDivergence]] = {arm: [] for arm in readers}
        for windows, part in self._steps() if readers else ():
            reference = self._reader.window_logits(windows, part)
            following = [window[part.start + 1 : part.stop + 1] for window in windows]
            for arm in [*readers]:
                with _Failing(arm, fail, readers):
                    other = readers[arm].window_logits(windows, part)
                    found[arm] += map(token_divergence, reference, other, following)
            if not readers:
                return
        for arm in [*readers]:
            with _Failing(arm, fail):
                yield arm, _figures(found[arm])

    def _steps(self) -> Iterator[tuple[list[tuple[int, ...]], range]]:
        """What is read at once: some windows, and a part of their second halves."""
        first = self._context // 2
        together = max(1, min(_TOGETHER, _HELD // (4 * FEW * self._tokens.vocabulary)))
        for start in range(0, len(self._windows), together):
            for part in even_parts(self._context - 1 - first, FEW):
                yield self._windows[start : start + together], range(first + part.start, first + part.stop)

    def _open(self, arm: TextArm) -> tuple[TextReader, TextTokens]:
        backend = arm.open()
        self._opened.callback(backend.close)
        if not isinstance(backend, TextReader):
            raise EngineError("its backend does not show its distribution along a text")
        return backend, backend.text_tokens(self._text)

    def _require_same(self, tokens: TextTokens) -> None:
        mine = self._tokens
        if tokens == mine:
            return
        if tokens.vocabulary != mine.vocabulary:
            problem = f"its distribution is over {tokens.vocabulary} tokens, the baseline's over {mine.vocabulary}"
        elif tokens.ids == mine.ids:
            problem = f"a window begins with token {tokens.start}, of the baseline with {mine.start}"
        else:
            pairs = enumerate(zip(tokens.ids, mine.ids, strict=False))
            at = next((at for at, (one, two) in pairs if one != two), min(len(tokens.ids), len(mine.ids)))
            problem = f"it reads the text as other tokens than the baseline, from token {at + 1} on"
        raise EngineError(f"{problem}; expected builds of one model, with one tokenizer")


class _Failing:
    """What goes wrong with one build in its block is told, and takes it out of those that are read."""

    def __init__(self, arm: TextArm, fail: Fail, readers: dict[TextArm, TextReader] | None = None) -> None:
        self._arm, self._fail, self._readers = arm, fail, readers

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        if not isinstance(error, EngineError):
            return False
        self._fail(self._arm, error)
        if self._readers is not None:
            del self._readers[self._arm]
        return True


def _figures(parts: Sequence[TokenDivergence]) -> TextDivergence:
    try:
        return text_divergence(parts)
    except ValueError as error:
        raise EngineError(f"there are no figures: {error}") from error


# The command, on files


def kld(
    baseline: str | Path,
    *builds: str | Path,
    text: str | Path | None = None,
    context: int = 512,
    windows: int | None = None,
    backend: str | None = None,
    progress: Callable[[str], object] | None = None,
) -> list[dict[str, str | int | float]]:
    """How far builds are from their baseline along a text: KL divergence, same top token, perplexity.

    Args:
        baseline: a GGUF file or a checkpoint; `builds` likewise, with the same tokenizer.
        text: a UTF-8 text file; the one that ships if not given.
        context: tokens of a window; the second half of each is predicted.
        windows: read at most so many; all of the text if not given.
        backend: what runs them all; llamacpp for GGUF files and transformers for checkpoints if not given.

    Returns:
        A mapping a build: `build`, `text_sha256`, and the columns of `text_kl.csv` (KL in nats, shares from 0 to 1).

    Raises:
        ArtifactError: a file is no model.
        DataError: the text cannot be read.
        StudyError: an argument is out of its range.
        EngineError: a build cannot be run, or reads the text as other tokens than the baseline.
    """
    settings = _settings(text, context, windows)
    said, sha256 = text_of(settings, Path())
    arms = [_arm(Path(path), backend, settings.context) for path in (baseline, *builds)]
    if progress is not None:
        progress(f"{len(builds)} builds beside {arms[0].name}, along {len(said.encode()):,} bytes of text")

    def fail(arm: TextArm, error: EngineError) -> None:
        raise EngineError(f"{arm.name}: {error}") from error

    done = along_text(arms[0], arms[1:], said, settings, fail)
    return [{"build": arm.name, "text_sha256": sha256, **asdict(found)} for arm, found in done]


def kld_lines(rows: Sequence[Mapping[str, str | int | float]]) -> list[str]:
    """The figures as the command prints them, a row a figure and a column a build."""
    if not rows:
        return []
    names = [str(row["build"]) for row in rows]
    shown = [("", *names)]
    for name in FIGURES:
        values = (row[name] for row in rows)
        shown.append((name, *(f"{value:,}" if isinstance(value, int) else f"{value:.6f}" for value in values)))
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in shown]
    return [*lines, f"KL in nats a token, shares from 0 to 1; text {str(rows[0]['text_sha256'])[:12]}"]


def _settings(text: str | Path | None, context: int, windows: int | None) -> TextKlConfig:
    try:
        return TextKlConfig(text="shipped" if text is None else str(text), context=context, windows=windows)
    except ValidationError as error:
        first = error.errors()[0]
        raise StudyError(f"is {first['input']!r}", field=str(first["loc"][0]), expected=wanted(first)) from error


def _arm(path: Path, backend: str | None, context: int) -> TextArm:
    from quantverdict.backends.open import open_backend

    found = model_path(path)
    kind = backend or ("transformers" if is_checkpoint(found) else "llamacpp")
    files = found.rglob("*") if found.is_dir() else (found,)
    size = sum(file.stat().st_size for file in files if file.is_file())
    return TextArm(str(path), partial(open_backend, kind, found, Placement(_TOGETHER, context=context)), size)


# In a study


def measure_text(
    study: Study, builds: Sequence[Build], bundle: Bundle, say: Say, open_backend: Open = open_build
) -> None:
    """`text_kl/*.json`: what is missing there; a build that cannot be measured is one line and no more.

    Raises:
        DataError: the text cannot be read.
        BundleError: a stored file was changed, or cannot be written.
    """
    settings, ran = study.text_kl, answered(builds, bundle)
    if settings is None:
        bundle.drop(*(text_kl_file(build.cell) for build in builds))
        bundle.forget("text_kl")
        return
    text, sha256 = text_of(settings, study.folder)
    unmeasured: dict[str, str] = {}
    for base in (build for build in ran if build.is_baseline):
        mine = [one for one in ran if one.cell.base_model == base.cell.base_model and one is not base]
        for one in mine:
            bundle.check_hash(text_kl_file(one.cell))
        keys = {one.cell: _key(settings, sha256, base, one) for one in mine}
        missing = [one for one in mine if stored_text_kl(bundle, one.cell).get("key") != keys[one.cell]]
        bundle.drop(*(text_kl_file(one.cell) for one in missing))
        reading = _StudyText(study, base, text, bundle, open_backend)
        for cell, found in reading.figures(missing, settings, say):
            if isinstance(found, EngineError):
                unmeasured[str(cell)] = str(found)
                say(f"text_kl: {cell} is not measured: {found}")
            else:
                kept = {"key": keys[cell], "text_sha256": sha256, **asdict(found)}
                bundle.write_json(text_kl_file(cell), kept)
    bundle.set_meta(text_kl={**settings.model_dump(), "text_sha256": sha256, "unmeasured": unmeasured})


class _StudyText:
    """A text, along which the builds of one base model are read."""

    def __init__(self, study: Study, baseline: Build, text: str, bundle: Bundle, open_backend: Open) -> None:
        self._study, self._baseline, self._text = study, baseline, text
        self._bundle, self._open = bundle, open_backend

    def figures(
        self, builds: Sequence[Build], settings: TextKlConfig, say: Say
    ) -> Iterator[tuple[CellId, TextDivergence | EngineError]]:
        """What each build came to, or why it came to nothing."""
        able = [one for one in builds if self._can(one)]
        for one in builds:
            if one not in able:
                yield one.cell, self._cannot(one)
        if not able:
            return
        say(f"text_kl: {', '.join(one.cell.quant for one in able)} beside {self._baseline.cell}, along a text")
        cells = {self._arm(one): one.cell for one in able}
        failed: dict[TextArm, EngineError] = {}
        start, done = perf_counter(), 0
        try:
            base = self._arm(self._baseline)
            for arm, found in along_text(base, [*cells], self._text, settings, failed.__setitem__):
                done += found.tokens
                yield cells[arm], found
        except EngineError as error:
            failed = dict.fromkeys(cells, EngineError(f"its baseline: {error}"))
        yield from ((cells[arm], error) for arm, error in failed.items())
        if done:
            note_time(self._bundle.root, TEXT_KL, done, perf_counter() - start)

    def _can(self, build: Build) -> bool:
        return all(BACKENDS[one.backend].capabilities.texts for one in (build, self._baseline))

    def _cannot(self, build: Build) -> EngineError:
        wrong = next(one for one in (build, self._baseline) if not BACKENDS[one.backend].capabilities.texts)
        return EngineError(f"backend {wrong.backend} does not show its distribution along a text")

    def _arm(self, build: Build) -> TextArm:
        size = 0 if build.artifact is None else build.artifact.file_bytes
        return TextArm(str(build.cell), partial(self._open, self._study, build), size)


def _key(settings: TextKlConfig, sha256: str, *builds: Build) -> str:
    """Of all that the figures of a build depend on."""
    read = [(one.backend, dict(one.runtime), one.artifact and one.artifact.sha256) for one in builds]
    parts = (sha256, settings.context, settings.windows, read)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


FIGURES = tuple(field.name for field in fields(TextDivergence))
COLUMNS = ("base_model", "quant", "text_sha256", *FIGURES)


def text_kl_tables(bundle: Bundle, matrix: Matrix) -> tuple[Table, ...]:
    """`text_kl.csv`: one row a build that was measured; nothing where none was."""
    stored = [(row.cell, stored_text_kl(bundle, row.cell)) for row in matrix if not row.is_baseline]
    rows = tuple((*cell, *(found[name] for name in COLUMNS[2:])) for cell, found in stored if found)
    return (Table("text_kl", COLUMNS, rows),) if rows else ()
