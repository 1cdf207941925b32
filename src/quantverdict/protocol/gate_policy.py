"""The policy of a gate: which builds it asks about, its own margins, floors for the baseline, and waivers."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from fractions import Fraction
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from quantverdict.errors import StudyError
from quantverdict.metrics import SHARES, checked
from quantverdict.policy import Exact, Frozen, GatedMetric, Margin, Policy, as_policy
from quantverdict.yaml_file import wanted

DECISION = "decision"
"""Stands for a metric where a build as a whole is decided on: it did not run, or thresholds on deltas decided."""
Cell = Annotated[str, Field(pattern=r"^[^/]+/[^/]+$")]
"""BASE_MODEL/QUANT."""


def _percent(value: Fraction) -> Fraction:
    if not 0 <= value <= 100:
        raise ValueError("a percentage, from 0 to 100")
    return value


def _day(value: object) -> object:
    """A quoted date as the day that it is; PyYAML reads a bare one."""
    try:
        return date.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        raise ValueError("a day such as 2030-12-31") from None


Share = Annotated[str, AfterValidator(checked(*SHARES))]
Percent = Annotated[Exact, AfterValidator(_percent)]


class GateWaiver(Frozen):
    """A verdict that does not count, and why, until a day."""

    cell: Cell
    metric: Annotated[str, AfterValidator(checked(*SHARES, DECISION))]
    """A gated metric, or `decision`."""
    reason: str = Field(min_length=1)
    expires: Annotated[date, BeforeValidator(_day)]
    """The last day on which it holds."""

    def __str__(self) -> str:
        return f"waiver of {self.metric} of {self.cell}"


class GatePolicy(Frozen):
    """What a gate asks for beyond the decision; empty, it asks for every build what was decided."""

    builds: tuple[Cell, ...] | None = Field(default=None, strict=False)
    """The builds that are gated; every build but the baselines if not given."""
    policy: Annotated[Policy | None, BeforeValidator(as_policy)] = None
    """Decide by this one instead of by the bundle's own: a name, or a mapping with `base`."""
    margins: Mapping[GatedMetric, Margin | None] = {}
    """Tolerated losses in pp, in place of those of the policy; null takes one out."""
    floors: Mapping[Share, Percent] = {}
    """What a baseline must reach, in percent, or may not exceed where less is better: two arms can be equally bad."""
    waivers: tuple[GateWaiver, ...] = Field(default=(), strict=False)

    def rules(self, decided_by: Policy) -> Policy:
        """The policy to decide by.

        Args:
            decided_by: that of the bundle.

        Raises:
            StudyError: a margin is taken out that no decision can do without.
        """
        policy = self.policy or decided_by
        if self.margins.get(policy.quality_metric, 1) is None:
            raise StudyError(
                "is null", field=f"margins.{policy.quality_metric}", expected="a margin of the quality metric"
            )
        margins = {
            metric: margin for metric, margin in {**policy.margins, **self.margins}.items() if margin is not None
        }
        try:
            return Policy.model_validate({**policy.model_dump(), "margins": margins})
        except ValidationError as error:
            problem, _, expected = wanted(error.errors()[0]).partition(": ")
            raise StudyError(problem, field="margins", expected=expected) from error
