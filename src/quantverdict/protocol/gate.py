"""The gate: the decision and a gate policy into one verdict a build and metric, and what they come to (SPEC 10).

A verdict passes only where something was shown. What was not measured or cannot be told at this n is neither a pass nor
a rejection, a metric that could not have failed has left the gate and is shown as such, and so is a waived verdict.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from fractions import Fraction
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from quantverdict.errors import ExitCode, PluginError, StudyError
from quantverdict.matrix.columns import METRICS, baselines
from quantverdict.matrix.signals import Signals, all_signals, within
from quantverdict.policy import (
    LIMITS,
    Constraints,
    Criterion,
    FrozenModel,
    Margin,
    Policy,
    as_policy,
    default_criteria,
    with_defaults,
)
from quantverdict.protocol.actions import PASSES
from quantverdict.records import CellId, Estimate, Matrix, Row
from quantverdict.registry import GATE_RULES, gated, shares
from quantverdict.registry.listing import NameCheck, load, one_of
from quantverdict.yaml_file import Exact, explained

# The policy of a gate: which builds it asks about, its own margins, floors for the baseline, and waivers.

DECISION = "decision"
"""Stands for a metric where a build as a whole is decided on: it did not run, or thresholds on deltas decided."""
_LIMITED = tuple(limit.key for limit in LIMITS)
CellName = Annotated[str, Field(pattern=r"^[^/]+/[^/]+$")]
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


Share = Annotated[str, AfterValidator(NameCheck(shares))]
Gated = Annotated[str, AfterValidator(NameCheck(lambda: (*gated(), *default_criteria())))]
"""A gated metric, or one of the default criteria."""
Rule = Annotated[str, AfterValidator(NameCheck(lambda: GATE_RULES))]
Percent = Annotated[Exact, AfterValidator(_percent)]


class GateWaiver(FrozenModel):
    """A verdict that does not count, and why, until a day."""

    cell: CellName
    """BASE_MODEL/QUANT."""
    metric: Annotated[
        str, AfterValidator(NameCheck(lambda: (*shares(), *default_criteria(), DECISION, *GATE_RULES, *_LIMITED)))
    ]
    """A gated metric, a criterion, one of the gate's `checks`, a constraint such as `max_file`, or `decision`."""
    reason: str = Field(min_length=1)
    """Shown wherever the verdict is."""
    expires: Annotated[date, BeforeValidator(_day)]
    """The last day on which it holds."""

    def __str__(self) -> str:
        return f"waiver of {self.metric} of {self.cell}"


class GatePolicy(FrozenModel):
    """What a gate asks for beyond the decision; empty, it asks for every build what was decided."""

    builds: tuple[CellName, ...] | None = Field(default=None, strict=False)
    """The builds that are gated; every build but the baselines if not given."""
    policy: Annotated[Policy | None, BeforeValidator(as_policy)] = None
    """Decide by this one instead of by the bundle's own: a name, or a mapping with `base`."""
    margins: Annotated[Mapping[Gated, Margin | None], BeforeValidator(with_defaults)] = {}
    """Tolerated losses in pp, in place of those of the policy; null takes one out. By criteria: the margin of a
    criterion, or the own and the guard margin of a member; a metric that is in none becomes one."""
    floors: Mapping[Share, Percent] = {}
    """What a baseline must reach, in percent, or may not exceed where less is better: two arms can be equally bad."""
    constraints: Constraints = Constraints()
    """Sizes and speeds of every gated build, in place of those of the study; null takes one out."""
    checks: Mapping[Rule, Mapping[str, object]] = {}
    """What a plugin's gate rules ask of every build, by the rule's name, with its options."""
    waivers: tuple[GateWaiver, ...] = Field(default=(), strict=False)
    """Verdicts that do not count, each until a day."""

    def rules(self, decided_by: Policy) -> Policy:
        """The policy to decide by.

        Args:
            decided_by: that of the bundle.

        Raises:
            StudyError: a margin is taken out that no decision can do without.
        """
        policy = self.policy or decided_by
        if policy.rules == "criteria":
            return _with_margins(policy, self.margins)
        named = next((name for name in self.margins if name in default_criteria()), None)
        if named is not None:
            expected = f"a gated metric, as the policy is decided by rules {policy.rules}"
            raise StudyError(f"{named} is a criterion", field=f"margins.{named}", expected=expected)
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
            problem, expected = explained(error.errors()[0])
            raise StudyError(problem, field="margins", expected=expected) from error


def _with_margins(policy: Policy, margins: Mapping[str, Fraction | None]) -> Policy:
    """A policy of criteria with other margins."""
    criteria, own = dict(policy.criteria or {}), dict(policy.margins)
    for name, margin in margins.items():
        owner = name if name in criteria else next((one for one in criteria if name in policy.members(one)), None)
        if owner is None:
            if margin is not None:
                criteria[name] = Criterion(metrics=(name,), margin_pp=margin)
            continue
        left = () if owner == name else tuple(metric for metric in policy.members(owner) if metric != name)
        if margin is None and not left:
            if criteria.pop(owner).demanded:
                raise StudyError("is null", field=f"margins.{name}", expected=f"a margin: {owner} is demanded")
            continue
        if margin is not None and left:
            own[name] = margin
        criteria[owner] = _changed(criteria[owner], name, margin, left)
    entry = {
        **policy.model_dump(),
        "margins": own,
        "criteria": {key: one.model_dump() for key, one in criteria.items()},
    }
    try:
        return Policy.model_validate(entry)
    except ValidationError as error:
        problem, expected = explained(error.errors()[0])
        raise StudyError(problem, field="margins", expected=expected) from error


def _changed(criterion: Criterion, metric: str, margin: Fraction | None, left: tuple[str, ...]) -> Criterion:
    """A criterion with another margin; of a member, where others are left, or without it."""
    if margin is not None and not left:
        return criterion.model_copy(update={"margin_pp": margin})
    if margin is not None:
        return criterion.model_copy(update={"guards": {**criterion.guards, metric: margin}})
    guards = {name: margin for name, margin in criterion.guards.items() if name != metric}
    weights = criterion.weights
    if isinstance(weights, Mapping):
        weights = {name: weight for name, weight in weights.items() if name != metric}
    return criterion.model_copy(update={"metrics": left, "guards": guards, "weights": weights})


Status = Literal["passed", "failed", "not_measured", "not_resolvable", "uninformative", "waived"]
Cell = Mapping[str, Any]
"""A cell of `decision.json`."""

CODES: Mapping[str, ExitCode] = {
    "failed": ExitCode.REJECTED,
    "not_measured": ExitCode.NOT_MEASURED,
    "not_resolvable": ExitCode.NOT_RESOLVABLE,
}
"""What a status comes to, the worst first; nothing else stands against a build."""
NAMES: Mapping[ExitCode, str] = {
    ExitCode.OK: "accepted",
    ExitCode.REJECTED: "rejected",
    ExitCode.NOT_MEASURED: "not_measured",
    ExitCode.NOT_RESOLVABLE: "not_resolvable",
}
OF_OUTCOME: Mapping[str, tuple[Status, str]] = {
    "non_inferior": ("passed", "a loss of the margin or more is ruled out"),
    "inferior": ("failed", "worse by more than the margin"),
    "not_resolvable": ("not_resolvable", "too few prompts to tell"),
    "uninformative": ("uninformative", "it could not have failed, and no build passes by it"),
    "not_measured": ("not_measured", "its baseline was not measured"),
}
NUMBERS = ("n_pairs", "delta_pp", "ci_lo_pp", "ci_hi_pp", "margin_pp", "n_needed")


@dataclass(frozen=True, slots=True)
class MetricVerdict:
    """What the gate says of one metric of one cell.

    Attributes:
        metric: `gate_policy.DECISION` where the build as a whole is meant.
        reason: in one line.
        numbers: of `NUMBERS`, where it was compared in pairs.
        was: the status that a waiver lifted.
    """

    cell: CellId
    metric: str
    status: Status
    reason: str
    numbers: Mapping[str, float | int | None] = field(default_factory=dict)
    was: Status | None = None


@dataclass(frozen=True, slots=True)
class Gate:
    """What a gate found.

    Attributes:
        study: its name.
        policy: the name of the policy that decided.
        rules: `paired` or `points`.
        builds: that were gated, in study order; verdicts of baselines are in `verdicts` only.
        verdicts: floors of the baselines first, then build by build.
        notes: waivers that do not hold, or that nothing needed.
        judges: each rate by judges to those whose labels it counts.
    """

    study: str
    policy: str
    rules: str
    builds: tuple[CellId, ...]
    verdicts: tuple[MetricVerdict, ...]
    notes: tuple[str, ...]
    judges: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def exit_code(self) -> ExitCode:
        """The worst over all verdicts; with no build gated nothing was measured."""
        return worst(self.verdicts) if self.builds else ExitCode.NOT_MEASURED

    def of(self, cell: CellId) -> tuple[MetricVerdict, ...]:
        return tuple(one for one in self.verdicts if one.cell == cell)

    @property
    def cells(self) -> tuple[CellId, ...]:
        """Every cell that has a verdict."""
        return tuple(dict.fromkeys(one.cell for one in self.verdicts))


@dataclass(frozen=True, slots=True)
class _Bundle:
    """What verdicts are read from."""

    cells: Mapping[CellId, Cell]
    signals: Mapping[CellId, Signals]
    policy: Policy
    rules: str
    margins: tuple[str, ...]


def worst(verdicts: Iterable[MetricVerdict]) -> ExitCode:
    """3 before 4 before 5 before 0; no verdict at all is nothing measured."""
    found = {one.status for one in verdicts}
    if not found:
        return ExitCode.NOT_MEASURED
    return next((code for status, code in CODES.items() if status in found), ExitCode.OK)


def gate(document: Mapping[str, Any], matrix: Matrix, asked: GatePolicy, today: date) -> Gate:
    """Judge every gated build.

    Args:
        document: `decision.json`, decided by the policy that `asked` gives.
        matrix: `matrix.csv`.
        asked: the gate's policy.
        today: a waiver that expires before it does not hold.

    Raises:
        StudyError: a build or a waived cell is not in the bundle.
    """
    cells = {CellId(cell["base_model"], cell["quant"]): cell for cell in document["cells"]}
    policy = Policy.model_validate(document["policy"])
    signals = {one.cell: one for one in all_signals(matrix, policy)}
    by_criteria = document["rules"] == "criteria"
    margins = tuple(metric for metric, margin in asked.margins.items() if margin is not None and metric in METRICS)
    bundle = _Bundle(cells, signals, policy, document["rules"], margins)
    builds, rows = _chosen(asked, cells), {row.cell: row for row in matrix}
    verdicts = [*_floors(asked, baselines(matrix), bundle, dict.fromkeys(cell.base_model for cell in builds))]
    limits = Constraints.model_validate(document.get("constraints") or {}).changed(asked.constraints)
    for cell in builds:
        verdicts += [*_of_build(cell, bundle), *_by_constraints(cell, rows, limits, bundle)]
        verdicts += _by_rules(cell, rows.get(cell), asked, bundle)
    judged, notes = _waive(verdicts, asked.waivers, cells, today, _by_metric(cells) if by_criteria else {})
    return Gate(document["study"], policy.name, bundle.rules, builds, judged, notes)


def _chosen(asked: GatePolicy, cells: Mapping[CellId, Cell]) -> tuple[CellId, ...]:
    if asked.builds is None:
        return tuple(cell for cell, entry in cells.items() if not entry["is_baseline"])
    return tuple(_known(name, cells, "builds") for name in dict.fromkeys(asked.builds))


def _known(name: str, cells: Iterable[CellId], where: str) -> CellId:
    found = next((cell for cell in cells if str(cell) == name), None)
    if found is None:
        raise StudyError(f"no build {name}", field=where, expected=one_of(name, map(str, cells)))
    return found


# Floors: two equally bad arms must not pass


def _floors(
    asked: GatePolicy, base: Mapping[str, Row], bundle: _Bundle, models: Iterable[str]
) -> Iterator[MetricVerdict]:
    for model in models:
        cell = base[model].cell if model in base else _baseline(model, bundle.cells)
        for metric, floor in asked.floors.items():
            row = base.get(model)
            yield _floor(cell, metric, None if row is None else row.metrics.get(metric), floor)


def _baseline(model: str, cells: Mapping[CellId, Cell]) -> CellId:
    """That of a base model without a row of it."""
    return next((cell for cell, entry in cells.items() if cell.base_model == model and entry["is_baseline"]),
                CellId(model, "baseline"))  # fmt: skip


def _floor(cell: CellId, metric: str, estimate: Estimate | None, floor: Fraction) -> MetricVerdict:
    """A share against a percentage, exactly: at the floor is a pass."""
    if estimate is None:
        return MetricVerdict(
            cell, metric, "not_measured", f"the baseline {cell} has no {metric} to hold against its floor"
        )
    share, more = 100 * estimate.value, METRICS[metric].higher_is_better
    counted = "" if estimate.k is None else f" ({estimate.k} of {estimate.n})"
    said = f"the baseline {cell} has {float(share):.2f} %{counted}"
    limit = f"at {'least' if more else 'most'} {float(floor):g} %"
    if share >= floor if more else share <= floor:
        return MetricVerdict(cell, metric, "passed", f"{said}, {limit} as is asked")
    return MetricVerdict(
        cell, metric, "failed", f"{said} where {limit} is asked: no build is good that is as good as that"
    )


# Builds


def _of_build(cell: CellId, bundle: _Bundle) -> list[MetricVerdict]:
    entry = bundle.cells[cell]
    if entry["status"] == "twin":
        return _of_duplicate(cell, entry["twin_of"], bundle)
    if entry["status"] != "ok":
        return [MetricVerdict(cell, DECISION, "not_measured", f"it did not run: {entry['failure']}")]
    if entry["is_baseline"]:
        return [MetricVerdict(cell, DECISION, "passed", "the baseline")]
    if bundle.rules == "points":
        return [_by_points(cell, bundle), *map(_as_asked, _metrics(cell, bundle.margins, bundle))]
    by_criteria = bundle.rules == "criteria"
    tested = _criteria(cell, entry, bundle) if by_criteria else _metrics(cell, _wanted(cell, bundle), bundle)
    found = _decided(cell, entry, tested)
    if entry.get("unpaired") and not any(one.metric == DECISION for one in found):
        return [MetricVerdict(cell, DECISION, "not_measured", entry["unpaired"]), *found]
    return found


def _of_duplicate(cell: CellId, quant: str, bundle: _Bundle) -> list[MetricVerdict]:
    """The same weights were run under another name, and these are its verdicts."""
    found = _of_build(CellId(cell.base_model, quant), bundle)
    return [replace(one, cell=cell, reason=f"same weights as {quant}: {one.reason}") for one in found]


def _wanted(cell: CellId, bundle: _Bundle) -> tuple[str, ...]:
    """The metrics that the policy demands, and the gated ones that any build of the base model has."""
    found = (
        one["metric"]
        for other, entry in bundle.cells.items()
        if other.base_model == cell.base_model
        for one in entry["outcomes"] or ()
    )
    return tuple(dict.fromkeys([*bundle.policy.demanded, *found]))


def _metrics(cell: CellId, wanted: Sequence[str], bundle: _Bundle) -> list[MetricVerdict]:
    outcomes = {one["metric"]: one for one in bundle.cells[cell]["outcomes"] or ()}
    found = []
    for metric in wanted:
        if metric not in outcomes:
            reason = "no prompt that both it and the baseline have a grade for"
            found.append(MetricVerdict(cell, metric, "not_measured", reason))
            continue
        one = _of_outcome(cell, outcomes[metric])
        left = one.status == "not_measured" and bundle.rules == "paired" and metric not in bundle.policy.demanded
        found.append(replace(one, status="uninformative") if left else one)
    return found


def _of_outcome(cell: CellId, one: Mapping[str, Any]) -> MetricVerdict:
    status, words = OF_OUTCOME[one["outcome"]]
    seen = f"{one['delta_pp']:+.2f} pp of {one['n_pairs']} pairs, margin {one['margin_pp']:g} pp"
    needs = f"; {one['n_needed']} would resolve it" if one["n_needed"] else ""
    why = one.get("reason") if one["outcome"] != "non_inferior" else None
    needs += f"; {str(why).removeprefix(one['metric'] + ': ')}" if why else ""
    return MetricVerdict(cell, one["metric"], status, f"{words}: {seen}{needs}", {name: one[name] for name in NUMBERS})


def _criteria(cell: CellId, entry: Cell, bundle: _Bundle) -> list[MetricVerdict]:
    """A verdict for each criterion, under its name, and for each member of a pool, under its metric."""
    found = []
    for row in entry["criteria"]:
        status, words = OF_OUTCOME[row["outcome"]]
        demanded = (bundle.policy.criteria or {})[row["criterion"]].demanded and row["role"] == "criterion"
        if status in ("not_measured", "uninformative"):
            status = "not_measured" if demanded else "uninformative"
        by_guard = row["role"] == "member" and row["outcome"] != "inferior"
        margin = row["guard_margin_pp" if by_guard else "margin_pp"]
        reason, why = words, row["reason"] if row["outcome"] != "non_inferior" else ""
        if row["delta_pp"] is not None:
            reason = f"{words}: {row['delta_pp']:+.2f} pp {within(row['ci_lo_pp'], row['ci_hi_pp'])}"
            reason += f" of {row['n_pairs']} pairs, {'guard ' if by_guard else ''}margin {margin:g} pp"
        if row["outcome"] == "not_resolvable":
            reason += "".join(
                f"; {row[key]} {what}"
                for key, what in (("n_to_accept", "would do if nothing more is lost"),
                                  ("n_to_reject", "would reject if it goes on as seen")) if row[key]
            )  # fmt: skip
        reason += f"; {why}" if why else ""
        name = row["criterion"] if row["role"] == "criterion" else row["metric"]
        numbers = {key: row.get(key) for key in NUMBERS} | {"margin_pp": margin, "n_needed": row["n_to_accept"]}
        found.append(MetricVerdict(cell, name, status, reason, numbers))
    return found


def _by_metric(cells: Mapping[CellId, Cell]) -> dict[tuple[str, str], str]:
    """Of each build the criteria of one metric, by that metric: a waiver may name either."""
    return {
        (str(cell), row["metric"]): row["criterion"]
        for cell, entry in cells.items()
        for row in entry.get("criteria") or ()
        if row["role"] == "criterion" and row["metric"]
    }


def _as_asked(one: MetricVerdict) -> MetricVerdict:
    """A metric that the gate asks about beside thresholds on deltas: that it could not have failed is no pass."""
    return replace(one, status="not_measured") if one.status == "uninformative" else one


def _decided(cell: CellId, entry: Cell, verdicts: list[MetricVerdict]) -> list[MetricVerdict]:
    """A build whose verdicts all pass, while nothing was tested or its action is no pass, does not pass."""
    if entry["action"] in PASSES and verdicts:
        return verdicts
    if entry["action"].startswith("reject_") and worst(verdicts) is not ExitCode.REJECTED:
        return [MetricVerdict(cell, DECISION, "failed", _action(entry)), *verdicts]
    if not verdicts:
        return [MetricVerdict(cell, DECISION, "not_measured", "no gated metric was measured")]
    if entry["action"] == "not_measured" and worst(verdicts) is not ExitCode.NOT_MEASURED:
        return [MetricVerdict(cell, DECISION, "not_measured", _action(entry)), *verdicts]
    if worst(verdicts) is ExitCode.OK:
        return [MetricVerdict(cell, DECISION, "not_resolvable", _action(entry)), *verdicts]
    return verdicts


def _by_points(cell: CellId, bundle: _Bundle) -> MetricVerdict:
    """By thresholds on deltas. What they neither accept nor reject was not measured, or measured and left open."""
    entry, signals = bundle.cells[cell], bundle.signals[cell]
    if entry["action"].startswith("reject_"):
        return MetricVerdict(cell, DECISION, "failed", _action(entry))
    if entry["action"] in PASSES:
        least = entry["refusal_mde_pp"]
        seen = "" if least is None else f"; the smallest drop of refusals that could be seen is {least:.1f} pp"
        return MetricVerdict(cell, DECISION, "passed", f"{_action(entry)}{seen}")
    known = [signals.quality, *(delta for _, delta in signals.drifts)]
    return MetricVerdict(cell, DECISION, "not_measured" if None in known else "not_resolvable", _action(entry))


def _by_constraints(
    cell: CellId, rows: Mapping[CellId, Row], limits: Constraints, bundle: _Bundle
) -> Iterator[MetricVerdict]:
    """Sizes and speeds as they were measured; a duplicate build has those of the build whose weights it shares."""
    duplicate = bundle.cells[cell].get("twin_of")
    row = rows.get(cell if duplicate is None else CellId(cell.base_model, duplicate))
    for one in limits.held(row):
        status: Status = "not_measured" if one.met is None else "passed" if one.met else "failed"
        yield MetricVerdict(
            cell, one.key, status, one.reason if duplicate is None else f"same weights as {duplicate}: {one.reason}"
        )


def _by_rules(cell: CellId, row: Row | None, asked: GatePolicy, bundle: _Bundle) -> Iterator[MetricVerdict]:
    """What a plugin's rules say; a status that there is not is no pass."""
    for name, options in asked.checks.items():
        rule = GATE_RULES[name]
        status, reason = load(rule.target)(bundle.cells[cell], row, options)
        if status not in get_args(Status):
            problem = f"{GATE_RULES.owner(name)}: gate rule {name} gives {status!r}"
            raise PluginError(f"{problem}; expected {one_of(str(status), get_args(Status))}")
        yield MetricVerdict(cell, name, status, str(reason))


def _action(entry: Cell) -> str:
    torn = entry.get("unpaired")
    more = f"; {torn}" if torn and torn not in entry["action_reason"] else ""
    return f"{entry['action']}: {entry['action_reason']}{more}"


# Waivers


def _waive(
    verdicts: Sequence[MetricVerdict],
    waivers: Sequence[GateWaiver],
    cells: Iterable[CellId],
    today: date,
    criteria: Mapping[tuple[str, str], str],
) -> tuple[tuple[MetricVerdict, ...], tuple[str, ...]]:
    """The verdicts with those that a waiver lifts, and what is to say about waivers that lift none."""
    judged = {(str(one.cell), one.metric): one for one in verdicts}
    notes = []
    for waiver in waivers:
        _known(waiver.cell, list(cells), "waivers")
        key = (waiver.cell, criteria.get((waiver.cell, waiver.metric), waiver.metric))
        one = judged.get(key)
        if waiver.expires < today:
            notes.append(f"{waiver} expired on {waiver.expires}, so it is refused: {waiver.reason}")
        elif one is None:
            notes.append(f"{waiver}: not gated here")
        elif one.status in CODES:
            lifted = f"waived until {waiver.expires}: {waiver.reason} ({one.status}: {one.reason})"
            judged[key] = replace(one, status="waived", reason=lifted, was=one.status)
        elif one.status == "passed":
            notes.append(f"{waiver} is not needed: it passes")
    return tuple(judged.values()), tuple(notes)
