"""Which samples of a build and of its baseline are the same prompt: by the hash of the prompt where sources give one.

The same id under another hash is another prompt: it is set aside and counted, as a row that belongs to no pair. The
same hash under another id is the same prompt, and gets the baseline's id. Without hashes ids are all there is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from quantverdict.bundle.sources import Sources
from quantverdict.errors import DataError, count_of
from quantverdict.ingestion.matching import HASHES, SAMPLE
from quantverdict.records import CellId

if TYPE_CHECKING:
    import polars as pl

OTHER = {
    "prompt_hash": "asked in other words than the baseline's",
    "item_hash": "another item than the baseline's of this id",
}
"""Why a row belongs to no pair, by the hash that differs."""
NAMED = 3


class LoadedSource(Protocol):
    """A source that was read; `frame` has `SAMPLE`, `line`, and of `HASHES` what the source gives."""

    path: Path
    frame: pl.DataFrame
    answers: pl.DataFrame | None
    unmatched: Counter[str]


@dataclass(frozen=True, slots=True)
class Pairing:
    """The prompts of a build beside those of its baseline.

    Attributes:
        prompts: of the baseline.
        shared: of them, those that the build has too.
        missing: of them, those that the build lacks; the first few as TASK/SAMPLE in `missing_first`.
        extra: prompts of the build that the baseline lacks.
        other_words, other_items: samples of the build that were set aside, having an id of the baseline but another
            hash of the prompt or of the item; the first few in `other_first`.
        moved: shared prompts that have another id in the build, and were found by their hash.
        shown: shared prompts of which equal hashes of the prompt show that they are the same words.
    """

    base_model: str
    quant: str
    prompts: int
    shared: int
    missing: int
    extra: int
    other_words: int
    other_items: int
    moved: int
    shown: int
    missing_first: Sequence[str]
    other_first: Sequence[str]

    @property
    def cell(self) -> CellId:
        return CellId(self.base_model, self.quant)


def pair(sources: Sources, loaded: Sequence[LoadedSource]) -> tuple[Pairing, ...]:
    """Give samples the ids of the baseline's that they are; set aside, in their source, those that are other ones.

    Raises:
        DataError: a sample has two hashes.
    """
    import polars as pl

    if not loaded:
        return ()
    found, changes = [], []
    for model in sources.models:  # one after another: what is compared is a copy of its samples
        asked = _asked(loaded, model.name)
        groups = asked.partition_by("base_model", "quant", "task", as_dict=True, maintain_order=True)
        tasks: dict[tuple[str, str], list[str]] = {}
        for base_model, quant, task in groups:
            tasks.setdefault((str(base_model), str(quant)), []).append(str(task))
        for quant in model.quants:
            own, theirs = (tasks.get((model.name, name), []) for name in (quant, model.baseline))
            if quant == model.baseline or not own or not theirs:
                continue
            nothing = asked.clear()
            paired = [
                _pair_task(*(groups.get((model.name, name, task), nothing) for name in (quant, model.baseline)))
                for task in dict.fromkeys((*theirs, *own))
            ]
            found.append(_pairing(CellId(model.name, quant), [each for each, _ in paired]))
            changes += [change for _, change in paired if change.height]
    if changes:
        _apply(pl.concat(changes), loaded)
    return tuple(found)


def _asked(loaded: Sequence[LoadedSource], base_model: str) -> pl.DataFrame:
    """Every sample of every cell of a base model once, with its hashes, in the order of the sources."""
    import polars as pl

    def of_source(frame: pl.DataFrame) -> pl.DataFrame:
        given = [pl.col(name) if name in frame.columns else pl.lit(None, pl.String).alias(name) for name in HASHES]
        mine = frame.lazy().filter(pl.col("base_model") == base_model).select("line", *SAMPLE, *given)
        return mine.unique("line", maintain_order=True).collect()

    # The scores of a row are rows of one line here.
    own = (of_source(one.frame) for one in loaded)
    whole = pl.concat(own).drop("line")
    if all(whole[name].null_count() == whole.height for name in HASHES):
        return whole.unique(SAMPLE, maintain_order=True)
    ends = [getattr(pl.col(name), end)().alias(f"{end}_{name}") for name in HASHES for end in ("min", "max")]
    asked = whole.group_by(SAMPLE, maintain_order=True).agg(ends)
    for name in HASHES:
        torn = asked.filter(pl.col(f"min_{name}") != pl.col(f"max_{name}"))
        if torn.height:
            base_model, quant, task, sample, *_ = torn.row(0)
            raise DataError(
                f"sample {base_model}/{quant}/{task}/{sample} has two values of {name}",
                file=", ".join(dict.fromkeys(str(one.path) for one in loaded)),
                expected="one: the same prompt wherever the sample is given",
            )
    return asked.select(*SAMPLE, *(pl.col(f"min_{name}").alias(name) for name in HASHES))


@dataclass(frozen=True, slots=True)
class _Task:
    """As `Pairing`, of one task; lists of TASK/SAMPLE where that has counts."""

    prompts: int
    missing: list[str]
    extra: int
    others: Mapping[str, list[str]]
    moved: int
    shown: int


def _pair_task(own: pl.DataFrame, theirs: pl.DataFrame) -> tuple[_Task, pl.DataFrame]:
    """A build's samples of one task beside the baseline's; what changes for them: `SAMPLE`, `new_id`, `other`."""
    import polars as pl

    known = [name for name in HASHES if own[name].count() and theirs[name].count()]
    both = own.join(
        theirs.select("sample_id", *(pl.col(name).alias(f"their_{name}") for name in HASHES), there=pl.lit(value=True)),
        on="sample_id", how="left", maintain_order="left",
    ).with_columns(pl.col("there").fill_null(value=False))  # fmt: skip
    # A sample without a hash, beside others that have one, is known by its id alone.
    equal = pl.all_horizontal(
        pl.lit(value=True), *((pl.col(name) == pl.col(f"their_{name}")).fill_null(value=True) for name in known)
    )
    stay = both.filter(pl.col("there") & equal)
    rest = both.filter(~(pl.col("there") & equal))
    free = theirs.join(stay.select("sample_id"), on="sample_id", how="anti", maintain_order="left")
    moved = _by_hash(rest, free, known) if known else rest.clear().with_columns(new_id="sample_id")
    left = rest.join(moved.select("sample_id"), on="sample_id", how="anti", maintain_order="left")
    others: dict[str, list[str]] = {}
    dropped = []
    alike = pl.col("there")
    for name in reversed(known):  # another item has other words as a matter of course
        differs = (pl.col(name) != pl.col(f"their_{name}")).fill_null(value=False)
        mine = left.filter(alike & differs)
        alike &= ~differs
        others[name] = _names(mine)
        nowhere = pl.lit(None, pl.Categorical).alias("new_id")
        dropped.append(mine.select(*SAMPLE, nowhere, pl.lit(name).alias("other")))
    gone = {*others.get("prompt_hash", ()), *others.get("item_hash", ())}
    lacked = free.join(
        moved.select(pl.col("new_id").alias("sample_id")), on="sample_id", how="anti", maintain_order="left"
    )
    missing = [name for name in _names(lacked) if name not in gone]
    renamed = moved.filter(pl.col("new_id") != pl.col("sample_id"))
    by_prompt = "prompt_hash" in known
    task = _Task(
        prompts=theirs.height,
        missing=missing,
        extra=left.filter(~pl.col("there")).height,
        others=others,
        moved=renamed.height,
        shown=stay.filter(pl.col("prompt_hash") == pl.col("their_prompt_hash")).height + by_prompt * moved.height,
    )
    changes = renamed.select(*SAMPLE, "new_id", pl.lit(None, pl.String).alias("other"))
    return task, pl.concat([changes, *dropped])


def _by_hash(rest: pl.DataFrame, free: pl.DataFrame, known: list[str]) -> pl.DataFrame:
    """Samples whose hashes the baseline has under an id that is not taken; the k-th of equal ones with the k-th."""
    import polars as pl

    rank = pl.int_range(pl.len()).over(known).alias("rank")
    ranked = [frame.drop_nulls(known).with_columns(rank) for frame in (rest, free)]
    ids = ranked[1].select(*known, "rank", pl.col("sample_id").alias("new_id"))
    return ranked[0].join(ids, on=[*known, "rank"], how="inner", maintain_order="left").drop("rank")


def _names(frame: pl.DataFrame) -> list[str]:
    return [f"{task}/{sample}" for task, sample in frame.select("task", "sample_id").iter_rows()]


def _pairing(cell: CellId, tasks: Sequence[_Task]) -> Pairing:
    missing = [name for one in tasks for name in one.missing]
    others = {name: [each for one in tasks for each in one.others.get(name, ())] for name in HASHES}
    prompts = sum(one.prompts for one in tasks)
    return Pairing(
        *cell,
        prompts=prompts,
        shared=prompts - len(missing) - sum(map(len, others.values())),
        missing=len(missing),
        extra=sum(one.extra for one in tasks),
        other_words=len(others["prompt_hash"]),
        other_items=len(others["item_hash"]),
        moved=sum(one.moved for one in tasks),
        shown=sum(one.shown for one in tasks),
        missing_first=missing[:NAMED],
        other_first=[*others["prompt_hash"], *others["item_hash"]][:NAMED],
    )


def _apply(changes: pl.DataFrame, loaded: Iterable[LoadedSource]) -> None:
    import polars as pl

    for one in loaded:
        joined = _joined(one.frame, changes)
        aside = joined.filter(pl.col("other").is_not_null())
        one.unmatched.update(
            {
                OTHER[str(name)]: rows["line"].n_unique()
                for (name,), rows in aside.partition_by("other", as_dict=True).items()
            }
        )
        one.frame = _changed(joined)
        one.answers = None if one.answers is None else _changed(_joined(one.answers, changes))


def _joined(frame: pl.DataFrame, changes: pl.DataFrame) -> pl.DataFrame:

    return frame.join(changes, on=SAMPLE, how="left", maintain_order="left")


def _changed(joined: pl.DataFrame) -> pl.DataFrame:
    import polars as pl

    kept = joined.filter(pl.col("other").is_null()).with_columns(pl.coalesce("new_id", "sample_id").alias("sample_id"))
    return kept.drop("new_id", "other")


def pairings_of(recorded: object) -> tuple[Pairing, ...]:
    """As the manifest has them."""
    return tuple(Pairing(**entry) for entry in recorded) if isinstance(recorded, list) else ()


def other_prompts(pairings: Iterable[Pairing]) -> dict[CellId, str]:
    """Cells with samples that were asked in other words than the baseline's, or that are other items, and how many."""
    return {one.cell: _others(one) for one in pairings if one.other_words or one.other_items}


def _others(one: Pairing) -> str:
    said = []
    if one.other_words:
        asked = f"{one.other_words} of {count_of(one.prompts, 'prompt')} {'was' if one.other_words == 1 else 'were'}"
        said.append(f"{asked} asked in other words than the baseline's")
    if one.other_items:
        said.append(f"{one.other_items} of {one.prompts} ids are another item than in the baseline")
    return f"{' and '.join(said)}, and are not compared ({_some(one.other_first, one.other_words + one.other_items)})"


def unpaired(pairings: Iterable[Pairing]) -> Iterator[str]:
    """Prompts that only one side has, or that were found under another id; a sentence each."""
    for one in pairings:
        if one.missing:
            first = _some(one.missing_first, one.missing)
            yield f"{one.cell} lacks {one.missing} of the {one.prompts} prompts of its baseline ({first})."
        if one.extra:
            they = "it is" if one.extra == 1 else "they are"
            yield f"{one.cell} has {count_of(one.extra, 'prompt')} that its baseline lacks: {they} not compared."
        if one.moved:
            they = "it is paired by its" if one.moved == 1 else "they are paired by their"
            yield f"{one.cell} has {count_of(one.moved, 'prompt')} of its baseline under another id: {they} hash."


def pairing_notes(pairings: Sequence[Pairing]) -> Iterator[str]:
    """`unpaired`, and what equal prompts rest on."""
    yield from unpaired(pairings)
    unshown = [one for one in pairings if one.shown < one.shared]
    if unshown:
        whose = (
            "any build" if len(unshown) == len(pairings) else _some([str(one.cell) for one in unshown], len(unshown))
        )
        yield (
            f"Equal prompts were not shown for {whose}: without a column prompt_hash, samples are paired by their ids."
        )


def _some(names: Sequence[str], total: int) -> str:
    more = total - len(names[:NAMED])
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
