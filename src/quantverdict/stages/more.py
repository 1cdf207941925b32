"""How many prompts a run asks where the study does not say it: so many more, or until every build is decided."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantverdict.bundle.manifest import Bundle
from quantverdict.collect.looks import NO_MORE, Sampling
from quantverdict.collect.schedule import read_outcomes
from quantverdict.config import Study
from quantverdict.errors import StudyError, count_of
from quantverdict.matrix.signals import duration
from quantverdict.records import CellId
from quantverdict.stages.facts import seconds_a_prompt

_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600}
_PART = r"\d{1,9}(?:\.\d{1,3})?\s*(?:s|min|m|h)"


@dataclass(frozen=True, slots=True)
class GrowthRequest:
    """What a command asks for besides its study.

    Attributes:
        more: prompts a build to add; None adds none.
        until_decided: add prompts until every build is decided.
        budget_s: seconds that this may take; None sets no bound.
    """

    more: int | None = None
    until_decided: bool = False
    budget_s: float | None = None

    def __post_init__(self) -> None:
        if self.more is not None and self.more < 1:
            raise StudyError(f"is {self.more}", field="--more", expected="a number of prompts above 0")
        if self.budget_s is not None and not self.until_decided:
            raise StudyError("bounds nothing", field="--budget", expected="--until-decided beside it")


def refuse_rounds(study: Study, asked: GrowthRequest) -> None:
    """Refuse to add prompts to a study that asks in rounds.

    Raises:
        StudyError: so it does.
    """
    if study.stopping == "sequential" and (asked.more is not None or asked.until_decided):
        field = "--until-decided" if asked.until_decided else "--more"
        message = "stopping: sequential asks in rounds that were settled before the first"
        raise StudyError(message, file=study.file, field=field, expected="a study with stopping: none")


def read_budget(text: str) -> float:
    """A time as seconds: `90s`, `30m`, `1h30m`.

    Raises:
        StudyError: it is none, or nothing.
    """
    expected = "a time above 0: 90s, 30m, 2h, 1h30m"
    if not re.fullmatch(rf"(?:{_PART}\s*)+", text.strip(), re.ASCII):
        raise StudyError(f"{text!r:.40} is no time", field="--budget", expected=expected)
    parts = re.findall(r"([\d.]+)\s*([a-z]+)", text)
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if seconds <= 0:
        raise StudyError("is nothing", field="--budget", expected=expected)
    return seconds


def undecided(document: Mapping[str, Any]) -> list[CellId]:
    """The builds that `decision.json` leaves open for want of prompts."""
    cells: Sequence[Mapping[str, Any]] = document["cells"]
    return [CellId(one["base_model"], one["quant"]) for one in cells if one["action"] == "not_resolvable"]


def reason_to_stop(bundle: Bundle, sampling: Sampling, asked: GrowthRequest, spent_s: float) -> str | None:
    """Why no more is asked; None where more is.

    A look that is not expected to fit into what is left of the budget is not begun: half a look decides nothing.

    Args:
        spent_s: of the budget.
    """
    open_ = undecided(bundle.read_json("decision.json"))
    if not open_:
        return "every build is decided"
    verb, named = "is" if len(open_) == 1 else "are", ", ".join(map(str, open_[:6]))
    left = f"{count_of(len(open_), 'build')} {verb} not decided ({named}{', ...' if open_[6:] else ''})"
    if sampling.exhausted:
        return f"{NO_MORE}; {left}"
    if asked.budget_s is None:
        return None
    if spent_s >= asked.budget_s:
        return f"the budget of {duration(asked.budget_s)} is spent; {left}"
    new = sampling.next_prompts()
    needed = _seconds_of_all(bundle) * new
    if spent_s + needed > asked.budget_s:
        message = f"{duration(spent_s)} of {duration(asked.budget_s)} are spent"
        return f"{message}, and the next look ({new} prompts a build) takes about {duration(needed)}; {left}"
    return None


def _seconds_of_all(bundle: Bundle) -> float:
    """What one prompt more takes over all cells; one that was asked nothing is taken to be as slow as the others."""
    known = seconds_a_prompt(bundle)
    return sum(known.values()) * len(read_outcomes(bundle)) / max(len(known), 1)
