"""Is a bundle still what its data say? Tables, claims and reports are computed again and compared with those stored.

A hash in the manifest shows that a file changed; this shows that it is wrong, whoever wrote the hash.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from quantverdict.bundle import manifest
from quantverdict.bundle.files import cell_text
from quantverdict.bundle.frames import unreadable
from quantverdict.bundle.integrity import artefact_names, odd_entries, read_manifest
from quantverdict.bundle.manifest import Bundle
from quantverdict.config import Study
from quantverdict.errors import QuantverdictError, count_of
from quantverdict.policy import Policy
from quantverdict.protocol.claims import KEYS, broken, claims_of
from quantverdict.records import Table, Value
from quantverdict.registry.listing import without_plugins
from quantverdict.reporting.render import report_texts
from quantverdict.stages.decide import build_matrix, decide, samples_of
from quantverdict.stages.facts import JUDGEMENTS, collect_claims, stored_frame, view_of
from quantverdict.stages.judgements import KEPT, judged, judgements_frame, optional_frames

if TYPE_CHECKING:
    import polars as pl

LAST_PLACES = 1e-6
"""How far, in relation to its size, a computed statistic may differ between machines; what is decided may not."""


class DryRunBundle(Bundle):
    """A bundle that is read as it is, while what a stage writes is kept in memory."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, None, read_manifest(root))
        self.tables: dict[str, Table] = {}
        self.documents: dict[str, Any] = {}
        self.dropped: tuple[str, ...] = ()

    def write_table(self, table: Table) -> None:
        self.tables[table.name] = table

    def write_json(self, name: str, value: object) -> None:
        self.documents[name] = value

    def drop(self, *names: str) -> None:
        self.dropped += names


def verify(root: Path) -> list[str]:
    """What of a bundle is not as it was written, or does not follow from its data; empty when all holds.

    Hashes come first. What they condemn is read only to name the first value that differs; and Parquet, whose parser
    is native code, is read in a child process before it is read here. No code of a plugin is run.

    Raises:
        BundleError: not a bundle, or of another version.
    """
    with without_plugins():
        problems = manifest.verify(root)
        if odd_entries(root) or read_manifest(root)["run"].get("finished") is None:
            return problems
        unread = unreadable(root / name for name in artefact_names(root) if name.endswith(".parquet"))
        problems += [f"{path.relative_to(root)}: cannot be read ({why})" for path, why in unread.items()]
        return problems if unread else [*problems, *recheck(root)]


def recheck(root: Path) -> list[str]:
    """What of a bundle does not follow from its scores, or from its matrix where it has no scores.

    Each table is named once, with its first difference.
    """
    import polars as pl

    problems, bundle = list[str](), DryRunBundle(root)
    for check in (wrong_judgements, wrong_tables, wrong_claims, wrong_reports):
        try:
            problems += check(bundle)
        except QuantverdictError as error:
            problems.append(str(error))
        except (
            ArithmeticError, LookupError, TypeError, ValueError, OSError, AttributeError, RecursionError,
            pl.exceptions.PolarsError, pl.exceptions.PanicException,
        ) as error:  # fmt: skip
            # An artefact that was changed by hand may be anything.
            problems.append(
                f"{check.__name__.replace('_', ' ')} cannot be looked for ({type(error).__name__}: {error})"
            )
    return list(dict.fromkeys(problems))


def wrong_judgements(bundle: DryRunBundle) -> Iterator[str]:
    """Judgements that are not what the judges said of the stored answers."""
    found = judged(bundle)
    if found is None:
        stale = KEPT if isinstance(bundle.config, Study) else ()
        yield from (f"{name}: of no judge that is active" for name in stale if bundle.path(name).exists())
        return
    yield from difference(found.table, bundle, "judgements/*.jsonl")
    if found.calibration.rows:
        yield from difference(found.calibration, bundle, "judgements/*.jsonl")
    for name, given in {JUDGEMENTS: judgements_frame(found.first), **optional_frames(found)}.items():
        stored = stored_frame(bundle, name)
        same = stored is None if given is None else stored is not None and _equal(stored, given)
        if not same:
            yield f"{name}: not what judgements/*.jsonl give"


def _equal(stored: pl.DataFrame, given: pl.DataFrame) -> bool:
    """Whether two frames say the same, as text and numbers, whatever types hold them."""
    import polars as pl

    one, other = (frame.select(pl.all().cast(pl.String)) for frame in (stored, given))
    return one.equals(other)


def wrong_tables(bundle: DryRunBundle) -> Iterator[str]:
    """The statistics and the decision, computed again with the policy that `decision.json` holds."""
    stored = bundle.read_json("decision.json")
    try:
        policy = Policy.model_validate(stored.get("policy") if isinstance(stored, dict) else stored)
    except ValidationError as error:
        yield f"decision.json: policy.{'.'.join(map(str, error.errors()[0]['loc']))}: {error.errors()[0]['msg']}"
        return
    samples = samples_of(bundle)
    if samples is not None:
        build_matrix(bundle, samples)
        yield from difference(bundle.tables.pop("matrix"), bundle, "scores.parquet")
    decide(bundle, policy, samples)
    for table in bundle.tables.values():
        yield from difference(table, bundle, "matrix.csv")
    yield from (f"{name}: nothing gives it any longer" for name in bundle.dropped if bundle.path(name).exists())
    document = bundle.documents["decision.json"]
    if bundle.get_meta("config") is None:
        document = {**document, "study": stored.get("study")}
    yield from (f"decision.json: {text}" for text in list(unlike(stored, document))[:1])


def difference(table: Table, bundle: Bundle, source: str) -> Iterator[str]:
    """The first cell of a stored table that is not as computed from `source`, and how many more there are."""
    name = f"{table.name}.csv"
    if not bundle.path(name).is_file():
        yield f"{name}: missing"
        return
    stored = bundle.read_table(table.name)
    if len(stored) != len(table.rows):
        yield f"{name}: {count_of(len(stored), 'row')}; {source} gives {len(table.rows)}"
        return
    wrong = [
        (dict(zip(table.columns, row, strict=True)), column, old.get(column) or "", cell_text(value))
        for old, row in zip(stored, table.rows, strict=True)
        for column, value in zip(table.columns, row, strict=True)
        if not same(old.get(column) or "", value)
    ]
    if wrong:
        row, column, old_text, text = wrong[0]
        where = ";".join(f"{key}={row[key]}" for key in KEYS if row.get(key) is not None)
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        yield f"{name}: row {where}: {column} is {old_text or 'blank'}; {source} gives {text or 'blank'}{more}"


def same(text: str, value: Value) -> bool:
    """Whether a stored text is a computed value: exactly, but for the last places of a float."""
    if text == cell_text(value):
        return True
    if not isinstance(value, float):
        return False
    try:
        return math.isclose(float(text), value, rel_tol=LAST_PLACES, abs_tol=1e-12)
    except ValueError:
        return False


def unlike(stored: object, computed: object, path: str = "") -> Iterator[str]:
    """Where two JSON documents differ."""
    if isinstance(stored, Mapping) and isinstance(computed, Mapping):
        for key in {**stored, **computed}:
            yield from unlike(stored.get(key), computed.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(stored, list) and isinstance(computed, list) and len(stored) == len(computed):
        for index, (one, two) in enumerate(zip(stored, computed, strict=True)):
            yield from unlike(one, two, f"{path}[{index}]")
    elif isinstance(stored, float | int) and isinstance(computed, float):
        if not math.isclose(stored, computed, rel_tol=1e-9, abs_tol=1e-12):
            yield f"{path} is {stored}; matrix.csv gives {computed}"
    elif stored != computed:
        yield f"{path} is {stored!r}; matrix.csv gives {computed!r}"


def wrong_claims(bundle: DryRunBundle) -> Iterator[str]:
    """Claims that no longer hold, that are not those of the report, or that the ledger lacks."""
    ledger = collect_claims(bundle).everything
    stored = claims_of(bundle.read_table("claims"))
    yield from broken(stored, ledger.read)
    known = {claim.claim_id: claim for claim in stored}
    for claim_id, claim in ledger.claims.items():
        old = known.get(claim_id)
        if old is None:
            yield f"claims.csv: claim {claim_id}, which the report states, is missing"
            continue
        for name in ("text", "artefact", "row", "column", "aggregate", "unit"):
            if getattr(old, name) != getattr(claim, name):
                yield f"claims.csv: claim {claim_id}: {name} is {getattr(old, name)!r}, not {getattr(claim, name)!r}"


def wrong_reports(bundle: DryRunBundle) -> Iterator[str]:
    """Reports that are not what the artefacts give, by their first line that differs."""
    report_claims = collect_claims(bundle)
    for name, text in report_texts(view_of(bundle, report_claims), report_claims).items():
        path = bundle.path(name)
        if not path.is_file() or path.read_bytes() == text:
            continue
        old, new = (data.decode("utf-8", "replace").splitlines() for data in (path.read_bytes(), text))
        at = next((at for at, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]), len(new))
        lines = [around(lines, at, other) for lines, other in ((old, new), (new, old))]
        yield f"{name}: line {at + 1} says {lines[0]!r}; the artefacts give {lines[1]!r}"


def around(lines: list[str], at: int, other: list[str], width: int = 80) -> str:
    """The part of a line where it leaves that of another text."""
    line, against = (text[at] if at < len(text) else "" for text in (lines, other))
    first = next((k for k, pair in enumerate(zip(line, against, strict=False)) if pair[0] != pair[1]), len(against))
    start = max(0, first - width // 2)
    return line[start : start + width]
