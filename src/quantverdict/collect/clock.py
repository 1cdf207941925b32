"""What scoring stored answers took: a line a pass in `timings/NAME.jsonl`, for the plan of the next run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quantverdict.collect.files import json_line, make_file, whole_lines
from quantverdict.collect.store import append_bytes

SEMANTIC, MARGINS, DRIFTS = "semantic", "whitebox~margins", "whitebox~drifts"


@dataclass(frozen=True, slots=True)
class Took:
    """How much was done in how long; nothing in no time where it is not known."""

    done: int = 0
    seconds: float = 0.0

    @property
    def each(self) -> float | None:
        return self.seconds / self.done if self.done else None


def judge_clock(file: str) -> str:
    """The name for a judge, by the file of its labels."""
    return f"judge~{file}"


def note_time(bundle: Path, name: str, done: int, seconds: float) -> None:
    """Add a line.

    Raises:
        BundleError: it cannot be written.
    """
    path = bundle / "timings" / f"{name}.jsonl"
    make_file(path)
    append_bytes(path, json_line({"done": done, "wall_s": round(seconds, 3)}), sync=False)


def time_taken(bundle: Path, name: str) -> Took:
    """All lines together; one that is none is left out."""
    path = bundle / "timings" / f"{name}.jsonl"
    found = [_read(line) for line in (whole_lines(path.read_bytes()) if path.exists() else [])]
    return Took(sum(done for done, _ in found), sum(seconds for _, seconds in found))


def _read(line: bytes) -> tuple[int, float]:
    try:
        data: Mapping[str, object] = json.loads(line)
        # Judges' lines said questions before there were others.
        done, seconds = data.get("done", data.get("questions")), data["wall_s"]
    except (ValueError, KeyError, AttributeError, RecursionError):
        return 0, 0.0
    whole = type(done) is int and isinstance(seconds, int | float)
    return (int(str(done)), float(str(seconds))) if whole else (0, 0.0)
