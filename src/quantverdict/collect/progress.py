"""How collecting is shown: a bar a cell on a terminal, else one line a cell; always on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self, TextIO

from quantverdict.collect.generate import CellOutcome, ProgressView
from quantverdict.output import one_line
from quantverdict.records import CellId


def progress_view(stream: TextIO | None = None) -> LineProgress:
    """The view that suits `stream` (stderr); use it in a `with` block."""
    out = sys.stderr if stream is None else stream
    return BarProgress(out) if out.isatty() else LineProgress(out)


class LineProgress(ProgressView):
    """One line when a cell ends."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.start, self.new, self.tokens = time.perf_counter(), 0, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        return None

    def build(self, level: str, done: int, total: int) -> None:
        """So many of a level's weights are written."""
        if done == total:
            self.say(f"made {level}")

    def say(self, line: str) -> None:
        """Something that takes long begins, or a cell has ended."""
        print(one_line(line), file=self.stream, flush=True)

    def start_cell(self, cell: CellId, total: int, done: int) -> None:  # noqa: ARG002 - the protocol's
        self.start, self.new, self.tokens = time.perf_counter(), 0, 0

    def advance(self, prompts: int, tokens: int) -> None:
        self.new += prompts
        self.tokens += tokens

    def finish_cell(self, outcome: CellOutcome) -> None:
        self.say(self.line(outcome))

    def line(self, outcome: CellOutcome) -> str:
        """What is left to read when a cell has ended."""
        if outcome.failure is not None:
            return f"{outcome.cell}: failed: {outcome.failure}"
        if not self.new:
            return f"{outcome.cell}: {outcome.prompts} answers, all from an earlier run"
        enough = "" if outcome.stopped_after is None else " were enough"
        seconds = time.perf_counter() - self.start
        return f"{outcome.cell}: {outcome.prompts} answers{enough}, {self.rates()}, {seconds:.0f} s"

    def rates(self) -> str:
        seconds = max(time.perf_counter() - self.start, 1e-3)
        return f"{self.new / seconds:.1f} prompts/s, {self.tokens / seconds:.0f} tokens/s"


class BarProgress(LineProgress):
    """A bar with prompts/s, tokens/s and time left while a cell runs, and its line when it ends."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
        )
        self.bars = Progress(*columns, console=Console(file=stream), transient=True, refresh_per_second=4)
        self.task = self.bars.add_task("", visible=False, speed="")
        self.total, self.done = 0, 0

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bars.stop()

    def build(self, level: str, done: int, total: int) -> None:
        self.bars.update(self.task, description=f"making {level}", total=total, completed=done, visible=True, speed="")
        if done == total:
            self.bars.update(self.task, visible=False)
            self.say(f"made {level}")

    def say(self, line: str) -> None:
        self.bars.console.print(one_line(line), markup=False, highlight=False, soft_wrap=True)

    def start_cell(self, cell: CellId, total: int, done: int) -> None:
        super().start_cell(cell, total, done)
        self.total, self.done = total, done
        self.bars.reset(self.task, description=str(cell), total=total, completed=done, visible=True, speed="loading")

    def advance(self, prompts: int, tokens: int) -> None:
        super().advance(prompts, tokens)
        self.bars.update(self.task, advance=prompts, speed=f"{self.rates()}, {self.left()} left")

    def left(self) -> str:
        """Time left at the speed so far, `-:--` before the first prompt is finished."""
        if not self.new:
            return "-:--"
        seconds = (self.total - self.done - self.new) * (time.perf_counter() - self.start) / self.new
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes}:{rest:02d}"

    def finish_cell(self, outcome: CellOutcome) -> None:
        self.bars.update(self.task, visible=False)
        self.say(self.line(outcome))
