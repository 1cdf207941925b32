"""Benchmarks by name: task files whose rows come from their own place, at a revision, when they are asked for.

A file in `benchmarks/` is a task file like any other; its first line says what a user must know of the data: licence,
rows, whether its terms must be accepted, paper. Nothing is fetched by listing them.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml

from quantverdict.errors import TaskError, one_of
from quantverdict.tasks.catalog import Task, task_summaries
from quantverdict.tasks.data import DataSource
from quantverdict.tasks.lm_eval import BUILT_IN

_FACTS = re.compile(
    r"# Licence of the data: (?P<licence>.+?)\. (?P<rows>\d+) rows.*?\. Gated: (?P<gated>yes|no)\. "
    r"Paper: (?P<paper>\S+)\n"
)


class Benchmark(NamedTuple):
    """What is known of a benchmark before anything is fetched.

    Attributes:
        place: of its data on the hub, with config and split or files.
        revision: the commit that is read; `main` where none is pinned, which is resolved once and recorded in a bundle.
        rows: of the data, those among them that the task leaves out.
        gated: whether its terms must be accepted on the hub, and a token given.
    """

    name: str
    task_type: str
    place: str
    revision: str
    licence: str
    rows: int
    gated: bool
    paper: str
    description: str


def benchmark_names() -> tuple[str, ...]:
    """The benchmarks that a study can name."""
    return tuple(sorted(path.stem for path in BUILT_IN.parent.glob("*.yaml") if path != BUILT_IN))


@cache
def benchmark(name: str) -> Benchmark:
    """What is known of one.

    Raises:
        TaskError: there is none of that name.
    """
    text = _file(name).read_text(encoding="utf-8")
    facts, keys = _FACTS.match(text), yaml.safe_load(text)
    if facts is None:
        raise TaskError(
            "does not begin with the facts of its data", file=_file(name), expected="# Licence of the data: ..."
        )
    source = DataSource.model_validate(keys["data"])
    place = str(source) if source.files is None else f"{source}/{source.files}"
    return Benchmark(
        name, keys["task_type"], place, source.revision, facts["licence"], int(facts["rows"]), facts["gated"] == "yes",
        facts["paper"], keys["description"],
    )  # fmt: skip


def benchmark_task(name: str, data: DataSource | None, folder: Path) -> Task:
    """A benchmark with its rows, which are fetched now.

    Args:
        data: rows of the user's own copy, in place of the hub's.
        folder: where its relative path starts.

    Raises:
        TaskError: no such benchmark, or its rows cannot be had: of a gated one with where its terms are accepted.
    """
    from quantverdict.tasks.taskfile import read_task

    task = read_task(_file(name), None if data is None else (data, folder))
    return replace(task, source=f"benchmark:{name}")


def listed() -> list[dict[str, object]]:
    """Every task that a study can name, as rows: what is built in, and the benchmarks."""
    own = [{"kind": "built-in", **row._asdict()} for row in task_summaries()]
    return [*own, *({"kind": "benchmark", **benchmark(name)._asdict()} for name in benchmark_names())]


def benchmark_lines() -> list[str]:
    """The same for a terminal."""
    lines = [f"{row.name:24}{row.items:>6}  {row.task_type:22}built in" for row in task_summaries()]
    for one in map(benchmark, benchmark_names()):
        terms = "; terms to accept" if one.gated else ""
        at = one.revision[:12] if one.revision != "main" else "main, as it is when first asked"
        lines.append(
            f"{one.name:24}{one.rows:>6}  {one.task_type:22}{one.place} at {at}; {one.licence}{terms}; {one.paper}"
        )
    return lines


def _file(name: str) -> Path:
    if name not in benchmark_names():
        raise TaskError(f"no benchmark {name}", field="benchmark", expected=one_of(name, benchmark_names()))
    return BUILT_IN.with_name(f"{name}.yaml")
