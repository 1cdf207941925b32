"""The paired comparison as the report shows it: outcomes, where the two kinds of rules differ, and the noise floor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantverdict.grading.refusal import SHIPPED
from quantverdict.matrix.format_alerts import LENGTH, SHARES
from quantverdict.matrix.noise import ALL
from quantverdict.registry import INSTRUMENTS, by_instrument, judged_by, sheet_rubrics
from quantverdict.reporting import formats
from quantverdict.reporting.artefacts import BundleTables, CsvRow
from quantverdict.reporting.bars import GUARDED, interval_bar
from quantverdict.reporting.formats import DisplayNames
from quantverdict.reporting.tables import Citation, Sentence, TextTable

if TYPE_CHECKING:
    import polars as pl

# What a comparison rests on: proofs that a build is its baseline's, and what of a delta is the engine's.

_SIGNS = {"same": "\N{CHECK MARK}", "different": "\N{MULTIPLICATION X}", "cannot_tell": "?"}


def origins(bundle: BundleTables) -> TextTable:
    """One row a build that has something to prove."""
    columns = ("build", "engine", "comes from the baseline", "reads the same tokens")
    shows = "Whether each build is the baseline's weights, and is asked what the baseline is asked."
    return TextTable("origins", "Proved comparable", shows, columns, tuple(_proofs(bundle)))


def _proofs(bundle: BundleTables) -> Iterator[tuple[str, ...]]:
    for (model, quant), row in bundle.artifacts.items():
        found = {proof["check"]: proof for proof in row.get("lineage") or ()}
        if found:
            build = formats.plain(f"{model}/{quant}")
            yield build, str(row.get("backend") or ""), *(_said(found.get(check)) for check in ("lineage", "prompt"))


def _said(proof: Mapping[str, Any] | None) -> str:
    if proof is None:
        return formats.NOT_MEASURED
    why = proof["reason"] + (f"; waived: {proof['waived']}" if proof.get("waived") else "")
    return f"{_SIGNS.get(proof['verdict'], '')} {formats.words(proof['verdict'])}: {formats.plain(why)}".strip()


def engines(bundle: BundleTables) -> TextTable:
    """The engine effect and the format effects, by metric."""
    columns = ("build", "engine", "effect of the", "against", "metric", "pairs", "lost", "gained", "delta (pp)")
    shows = (
        "Engine effect: the baseline's format on another engine less the baseline. Format effect: a build less the "
        "baseline's format on its own engine."
    )
    rows = tuple(
        (
            formats.plain(f"{row['base_model']}/{row['quant']}"),
            row["engine"],
            row["effect"],
            formats.plain(row["against"]),
            bundle.names.label(row["metric"]),
            row["n_pairs"],
            row["lost"],
            row["gained"],
            f"{formats.delta(row['delta_pp'])} {formats.bounded(row['ci_lo_pp'], row['ci_hi_pp'], 1)}",
        )
        for row in bundle.tables.get("engines", ())
    )
    if any(row["effect"] == "cache" for row in bundle.tables.get("engines", ())):
        shows += " Cache effect: a build less the same file with keys and values in f16."
    numeric = (*[False] * 5, *[True] * 4)
    return TextTable("engines", "Format against engine", shows, columns, rows, numeric)


SIGNS = {"non_inferior": "\N{CHECK MARK}", "inferior": "\N{MULTIPLICATION X}", "not_resolvable": "?"}
"""Of what was tested."""
UNTESTED = {"uninformative": "-", "not_measured": "-"}


@dataclass(frozen=True, slots=True)
class Outcomes:
    """The tables of the section; one without rows is not shown.

    Attributes:
        by_criteria: whether criteria decide.
        gated: every criterion of every build, or every gated metric.
        differing: builds that the other kind of rules would treat otherwise.
        noise: how many scores of the A/A replicates changed.
        origins: proofs that builds may be compared.
        engines: effects of engines and of formats.
        recovery: every metric of every build in percent of its baseline's.
    """

    by_criteria: bool
    gated: TextTable
    differing: TextTable
    noise: TextTable
    origins: TextTable
    engines: TextTable
    recovery: TextTable


def outcomes(bundle: BundleTables) -> Outcomes:
    """All of them empty for a bundle without samples."""
    by_criteria = bundle.decision.get("rules") == "criteria"
    if by_criteria:
        gated = _criteria(bundle.names, bundle.tables.get("criteria", ()), bundle.tables.get("recovery", ()))
    else:
        gated = _gated(bundle.names, bundle.tables.get("paired", ()))
    recovery = _recovery(bundle.names, bundle.tables.get("recovery", ()))
    return Outcomes(by_criteria, gated, _differing(bundle), _noise(bundle), origins(bundle), engines(bundle), recovery)


def _gated(names: DisplayNames, rows: Sequence[CsvRow]) -> TextTable:
    columns = ("build", "metric", "pairs", "lost", "gained", "delta (pp)", "margin (pp)", "outcome", "pairs needed",
               "head-room", "ungraded", "unpaired")  # fmt: skip
    body = tuple(_comparison(names, row) for row in rows if row.get("outcome"))
    shows = (
        "Prompts that a build and its baseline both have a grade for, and what they can tell of a loss. Head-room is "
        "what the baseline has to lose beside the margin; ungraded, prompts that only the baseline or only the build "
        "answered well and that have no grade in the other; unpaired, prompts that only one of the two was asked."
    )
    numeric = (False, False, True, True, True, True, True, False, True, False, True, True)
    return TextTable("gated", "Gated metrics", shows, columns, body, numeric)


def _comparison(names: DisplayNames, row: CsvRow) -> tuple[str, ...]:
    within = formats.bounded(row.get("ci_lo_pp"), row.get("ci_hi_pp"), 1)
    outcome = row.get("outcome") or ""
    return (
        formats.plain(f"{row['base_model']}/{row['quant']}"),
        names.label(row["metric"]),
        row["n_pairs"],
        row["lost"],
        row["gained"],
        f"{formats.delta(row.get('delta_pp'))} {within}".rstrip(),
        formats.table_value("margin", row.get("margin_pp")),
        f"{(SIGNS | UNTESTED).get(outcome, '')} {formats.words(outcome)}".strip(),
        row.get("n_needed") or "",
        formats.words(row.get("headroom") or ""),
        *(_counted(row, *pair) for pair in (("ungraded_a", "ungraded_c"), ("missing", "extra"))),
    )


def _criteria(names: DisplayNames, rows: Sequence[CsvRow], recovery: Sequence[CsvRow]) -> TextTable:
    columns = ("build", "criterion", "pairs", "lost", "gained", "delta (pp)", "margin (pp)", "against the margin",
               "outcome", "pairs to accept", "pairs to reject", "head-room", "ungraded", "recovery (%)")  # fmt: skip
    shows = (
        "Each criterion, and the members of a pool, with the interval that decides: its lower end is what acceptance "
        "rules out beyond, its upper end what rejection does; an end is missing where too few pairs differ to bound "
        "it. A member's margin is the guard margin, by which the build is accepted. Pairs to accept: were nothing more "
        f"lost; to reject: if it goes on as seen. The drawing: {GUARDED}."
    )
    shares = {(row["base_model"], row["quant"], row["metric"]): row for row in recovery}
    body = tuple(_standing(names, row, shares) for row in rows)
    numeric = (False, False, True, True, True, True, True, False, False, True, True, False, True, True)
    return TextTable("criteria", "Criteria", shows, columns, body, numeric)


def _standing(names: DisplayNames, row: CsvRow, shares: Mapping[tuple[str, str, str], CsvRow]) -> tuple[str, ...]:
    member = row["role"] == "member"
    name = formats.words(row["criterion"])
    within = formats.bounded(row.get("ci_lo_pp"), row.get("ci_hi_pp"))
    share = shares.get((row["base_model"], row["quant"], row["metric"]))
    tested = row.get("delta_pp") not in (None, "")
    return (
        formats.plain(f"{row['base_model']}/{row['quant']}"),
        f"{name}: {names.label(row['metric'])}" if row["metric"] else name,
        *((row[key] or "") if tested else "" for key in ("n_pairs", "lost", "gained")),
        f"{formats.delta(row.get('delta_pp'))} {within}".rstrip() if tested else "",
        formats.table_value("margin", row["guard_margin_pp" if member else "margin_pp"]),
        interval_bar(row) or "",
        f"{(SIGNS | UNTESTED).get(row['outcome'], '')} {formats.words(row['outcome'])}".strip(),
        row.get("n_to_accept") or "",
        row.get("n_to_reject") or "",
        formats.words(row.get("headroom") or ""),
        _counted(row, "ungraded_a", "ungraded_c"),
        "" if share is None else _recovered(share),
    )


def _recovery(names: DisplayNames, rows: Sequence[CsvRow]) -> TextTable:
    columns = ("build", "metric", "pairs", "baseline (%)", "build's (%)", "recovery (%)", "noise")
    shows = (
        "The build's score in percent of the baseline's, over the prompts that both have a grade for; of a metric of "
        "which less is better, 1 less its value is the score. An interval is missing where too few pairs differ to "
        "tell it."
    )
    body = tuple(
        (
            formats.plain(f"{row['base_model']}/{row['quant']}"),
            names.label(row["metric"]),
            row["n_pairs"],
            *(_percent(row.get(name)) for name in ("baseline_value", "value")),
            _recovered(row),
            NOISE.get(row.get("noise") or "", ""),
        )
        for row in rows
    )
    return TextTable("recovery", "Recovery", shows, columns, body, (False, False, *[True] * 4, False))


NOISE = {"inside": "inside the noise of A/A replicates", "beyond": "beyond the noise"}


def _recovered(row: CsvRow) -> str:
    """`98.40 [96.10, 100.72]`."""
    value = formats.number(row.get("recovery_percent"))
    if value is None:
        return formats.NOT_MEASURED
    return f"{formats.fixed(value, 1)} {formats.interval(row.get('recovery_lo'), row.get('recovery_hi'), 1)}".rstrip()


def _counted(row: CsvRow, baseline: str, build: str) -> str:
    """Prompts of the baseline and of the build: `12 / 3`, blank where there are none."""
    counts = [row.get(name) or "0" for name in (baseline, build)]
    return "" if counts == ["0", "0"] else " / ".join(counts)


def _differing(bundle: BundleTables) -> TextTable:
    columns = ("build", "by thresholds on deltas", "by paired tests")
    shows = "Builds that the rules which did not decide here would treat otherwise."
    return TextTable("differing", "Where the two kinds of rules differ", shows, columns, tuple(_other_actions(bundle)))


def _other_actions(bundle: BundleTables) -> Iterator[tuple[str, ...]]:
    for cell in bundle.cells:
        point, paired = cell.get("point_action"), cell.get("paired_action")
        if point and paired and point != paired:
            build = f"{cell['base_model']}/{cell['quant']}"
            yield formats.plain(build), formats.words(point), formats.words(paired)


def _noise(bundle: BundleTables) -> TextTable:
    columns = ("base model", "metric", "prompts", "A/A replicates", "flips", "rate (%)", "at most (%)")
    body = tuple(
        (formats.plain(row["base_model"]), bundle.names.label(row["metric"]), row["n"], row["arms"], row["flips"],
         *(_percent(row.get(name)) for name in ("null_flip_rate", "null_flip_hi")))
        for row in bundle.tables.get("noise_floor", ()) if row["task"] == ALL
    )  # fmt: skip
    shows = "Scores of the baseline run again in another order, batch size and thread count: what changes by itself."
    return TextTable("noise", "Noise floor", shows, columns, body, (False, False, *[True] * 5))


def _percent(value: object) -> str:
    known = formats.number(value)
    return formats.NOT_MEASURED if known is None else formats.fixed(100 * known, 2)


def criteria_sentences(rows: Sequence[Mapping[str, str]]) -> list[Sentence]:
    """How many criteria of how many builds came out which way; nothing where there are none."""
    if not rows:
        return []
    role = "role=criterion"
    counts = {"all": role, **{name: f"{role};outcome={name}" for name in SIGNS}}
    counts["untested"] = f"{role};outcome={'|'.join(UNTESTED)}"
    return [
        Sentence(
            "criteria",
            "Of {all} criteria {non_inferior} are non-inferior, {inferior} inferior and {not_resolvable} not "
            "resolvable with this many prompts; {untested} could not have failed or were not measured.",
            {name: Citation("criteria.csv", row, "", "count", "rows") for name, row in counts.items()},
        )
    ]


def outcome_sentences(rows: Sequence[Mapping[str, str]]) -> list[Sentence]:
    """How many gated comparisons came out which way; nothing where there are none."""
    if not any(row.get("outcome") for row in rows):
        return []
    counts = {"all": "outcome!=", **{name: f"outcome={name}" for name in SIGNS}}
    counts["untested"] = f"outcome={'|'.join(UNTESTED)}"
    return [
        Sentence(
            "outcomes",
            "Of {all} gated comparisons {non_inferior} are non-inferior, {inferior} inferior and {not_resolvable} not "
            "resolvable with this many prompts; {untested} could not have failed or were not measured.",
            {name: Citation("paired.csv", row, "", "count", "rows") for name, row in counts.items()},
        )
    ]


# Format alerts as the report shows them: those that fire, and how many were tested.

_WORDS = {**SHARES, LENGTH: "tokens of an answer"}


def firing(rows: Sequence[CsvRow]) -> TextTable:
    """The alerts of `alarms.csv` that fire."""
    columns = ("build", "alert", "prompts", "baseline", "build's", "shift", "p (Holm)")
    body = tuple(_alert(row) for row in rows if row.get("fires") == "1")
    shows = "The same prompts answered in another form than by the baseline; gains of such a build may be no gains."
    return TextTable("alarms", "Format alerts", shows, columns, body, (False, False, *[True] * 5))


def _alert(row: CsvRow) -> tuple[str, ...]:
    before, after = (
        row[count] or formats.quantity(row[mean], 1)
        for count, mean in (("baseline_k", "baseline_value"), ("k", "value"))
    )
    within = formats.interval(row.get("ci_lo"), row.get("ci_hi"), 1, sign=True)
    p = formats.number(row["p_holm"])
    return (
        formats.plain(f"{row['base_model']}/{row['quant']}"),
        _WORDS[row["alarm"]],
        row["n"],
        before,
        after,
        f"{formats.delta(row['shift'])} {row['unit']} {within}".rstrip(),
        formats.NOT_MEASURED if p is None else formats.significant(p, 2),
    )


def alert_sentences(rows: Sequence[Mapping[str, str]]) -> list[Sentence]:
    """How many alarms were tested, and how many fire; nothing where none was."""
    if not rows:
        return []
    cites = {
        "all": Citation("alarms.csv", "", "", "count", "rows"),
        "firing": Citation("alarms.csv", "fires=1", "", "count", "rows"),
    }
    return [Sentence("alarms", "Of {all} comparisons of the form of answers with the baseline's {firing} fire.", cites)]


# Which instrument a number comes from, how often instruments err, and rates as people would have given them.


@dataclass(frozen=True, slots=True)
class Instruments:
    """The section.

    Attributes:
        refusal: what the refusal deltas are of.
        measured: every rate, and its instrument.
        deltas: of refusals by each instrument; empty where there is one alone.
        worth: what the deciding instrument sees of a true change; empty where no margin is held.
        calibration: how judges did on labels that are known; empty without judges.
        errors, corrected: empty where nobody labelled.
    """

    refusal: str
    measured: TextTable
    deltas: TextTable
    worth: TextTable
    calibration: TextTable
    errors: TextTable
    corrected: TextTable


def instruments(bundle: BundleTables) -> Instruments:
    """What a reader must know of the numbers of the other sections."""
    policy = bundle.decision.get("policy") or {}
    return Instruments(
        bundle.names.label(formats.plain(policy.get("refusal_metric", "refusal_rate"))),
        _measured(bundle),
        _by_each(bundle),
        _worth(bundle),
        _calibration(bundle.tables.get("judge_calibration", ())),
        _errors(bundle.names, bundle.tables.get("instruments", ())),
        _corrected(bundle.names, bundle.tables.get("corrected_rates", ())),
    )


def judges(kinds: pl.DataFrame) -> dict[str, tuple[str, ...]]:
    """Each rate by judges to those whose labels it counts.

    Args:
        kinds: the labels that each judge gave to answers of each task: columns judge, task and label.
    """
    import polars as pl

    from quantverdict.matrix.cells import judge_scores

    # A judge stands where a build would: one label of each kind tells which of them gave which rate.
    labels = kinds.rename({"judge": "quant"}).with_columns(base_model=pl.lit(""), sample_id=pl.lit(""))
    given = judge_scores(labels).drop_nulls("value").select("metric", "quant").unique().sort("metric", "quant")
    found: dict[str, tuple[str, ...]] = {}
    for metric, judge in given.iter_rows():
        found[metric] = (*found.get(metric, ()), formats.plain(judge).translate(_BRACES))
    return found


_BRACES = str.maketrans("{}", "()")
"""Braces stand for claims in a sentence."""


def _measured(bundle: BundleTables) -> TextTable:
    rows = bundle.tables.get("matrix", ())
    others = (by_instrument(metric, one) for one in INSTRUMENTS[1:] for metric in _REFUSALS)
    names = dict.fromkeys((*sheet_rubrics(), *judged_by().values(), *filter(None, others)))
    given = [metric for metric in names if any(row.get(metric) for row in rows)]
    body = tuple((bundle.names.bare(name), bundle.names.instrument(name).removeprefix("by ")) for name in given)
    return TextTable("measured", "Instruments", "Who says what each rate counts.", ("rate", "instrument"), body)


_REFUSALS = ("refusal_rate", "over_refusal_rate")


def _by_each(bundle: BundleTables) -> TextTable:
    """Refusal deltas of every build, an instrument a column."""
    rows = [row for row in bundle.tables.get("deltas", ()) if formats.number(row.get("delta")) is not None]
    found = {(row["base_model"], row["quant"], row["metric"]): row["delta"] for row in rows}
    named = {(metric, one): by_instrument(metric, one) or "" for metric in _REFUSALS for one in INSTRUMENTS}
    measured = {metric for *_, metric in found}
    used = [one for one in INSTRUMENTS if {named[metric, one] for metric in _REFUSALS} & measured]
    body = []
    for model, quant in dict.fromkeys((model, quant) for model, quant, _ in found):
        for metric in _REFUSALS:
            values = [found.get((model, quant, named[metric, one])) for one in used]
            if any(values):
                build = formats.plain(f"{model}/{quant}")
                body.append((build, bundle.names.bare(metric), *map(formats.delta, values)))
    shows = "The delta of every build in pp by each instrument that read its answers; one of them decides."
    columns, numeric = ("build", "rate", *(f"by {one}" for one in used)), (False, False, *[True] * len(used))
    shown = tuple(body) if len(used) > 1 else ()
    return TextTable("by_each", "Refusals by each instrument", shows, columns, shown, numeric)


def _worth(bundle: BundleTables) -> TextTable:
    """Sensitivity and specificity of the instrument that decides, and the change that its margin stands for."""
    policy = bundle.decision.get("policy") or {}
    instrument = (policy.get("instruments") or {}).get("refusal", "pattern")
    decided = _REFUSALS if policy.get("rules", "points") != "points" else ()
    body = tuple(row for metric in decided for row in _worth_of(bundle, policy, metric, instrument))
    shows = (
        "Of a change in what people would call refusals the deciding instrument shows the part J = sensitivity + "
        "specificity - 1, so that a margin of its rate is a margin of 1 / J times as much in truth."
    )
    columns = (
        "rate", "instrument", "known from", "sensitivity (%)", "specificity (%)", "J", "margin (pp)",
        "true margin (pp)",
    )  # fmt: skip
    numeric = (False,) * 3 + (True,) * 5
    return TextTable("worth", "What the deciding instrument sees", shows, columns, body, numeric)


def _worth_of(
    bundle: BundleTables, policy: Mapping[str, Any], metric: str, instrument: str
) -> Iterator[tuple[str, ...]]:
    own = by_instrument(metric, instrument) or metric
    decides = instrument if own != metric else "pattern"
    margin = formats.number((policy.get("margins") or {}).get(own, 5 if policy.get("rules") == "criteria" else None))
    if margin is None or not any(row.get(own) for row in bundle.tables.get("matrix", ())):
        return
    known, sensitivity, specificity = _accuracy(bundle, metric, decides)
    name, asked = bundle.names.bare(metric), formats.fixed(margin, 1)
    if sensitivity is None or specificity is None:
        yield name, decides, *[formats.NOT_MEASURED] * 4, asked, formats.NOT_MEASURED
        return
    youden = sensitivity + specificity - 1
    true = formats.fixed(margin / youden, 1) if youden > 0 else "none: it tells nothing apart"
    shares = (formats.fixed(100 * share, 1) for share in (sensitivity, specificity))
    yield name, decides, known, *shares, formats.fixed(youden, 2), asked, true


def _accuracy(bundle: BundleTables, metric: str, instrument: str) -> tuple[str, float | None, float | None]:
    """What is known of an instrument, and from what: people's labels, its calibration, or the answers it ships with."""
    for row in bundle.tables.get("instruments", ()):
        sensitivity, specificity = (formats.number(row.get(name)) for name in ("sensitivity", "specificity"))
        mine = row["metric"] == metric and row["instrument"].partition(" ")[0] == instrument
        if mine and sensitivity is not None and specificity is not None:
            return f"{row['n_labelled']} labels of people here", sensitivity, specificity
    rubric = {"judge": "refusal", "guard": "guard_"}.get(instrument)
    for row in bundle.tables.get("judge_calibration", ()):
        if rubric is not None and row["rubric"].startswith(rubric):
            sensitivity, specificity = (formats.number(row.get(name)) for name in ("sensitivity", "specificity"))
            return f"calibration of {formats.plain(row['judge'])}, {row['n']} answers", sensitivity, specificity
    if instrument not in SHIPPED or (instrument == "classifier" and bundle.manifest.get("classifier")):
        return "", None, None
    shipped = SHIPPED[instrument]
    return f"{shipped.n} answers that it ships with", shipped.sensitivity, shipped.specificity


def _calibration(rows: Sequence[CsvRow]) -> TextTable:
    columns = ("judge", "rubric", "known answers", "ungraded", "agreement (%)", "kappa", "verdict")
    body = tuple(
        (
            formats.plain(row["judge"]),
            formats.words(row["rubric"]),
            row["n"],
            row["ungraded"],
            _percent_of(row, "agreement", "ci"),
            f"{formats.quantity(row['kappa'], 2)} {formats.interval(row['kappa_ci_lo'], row['kappa_ci_hi'])}".rstrip(),
            row["verdict"],
        )
        for row in rows
    )
    shows = (
        "What every judge was asked first: answers whose labels we know. Weak: the lower limit of kappa is below 0.4; "
        "uninformative: the upper one is, and the judge's labels by that rubric count nowhere."
    )
    return TextTable("calibration", "Calibration of judges", shows, columns, body, (False, False, *[True] * 4, False))


def _errors(names: DisplayNames, rows: Sequence[CsvRow]) -> TextTable:
    columns = (
        "instrument", "rate", "task", "labelled answers", "prompts", "found", "missed", "false alarms", "rightly left",
        "ungraded", "unclear", "sensitivity (%)", "specificity (%)",
    )  # fmt: skip
    counts = (
        "n_labelled", "n_prompts", "true_positive", "false_negative", "false_positive", "true_negative", "ungraded",
        "unclear",
    )  # fmt: skip
    body = tuple(
        (
            formats.plain(row["instrument"]),
            names.bare(row["metric"]),
            formats.plain(row["task"]),
            *(row[name] for name in counts),
            *(_percent_of(row, name, f"{name}_ci") for name in ("sensitivity", "specificity")),
        )
        for row in rows
    )
    shows = (
        "Each instrument against people's labels. Sensitivity: of what a person says has it, the share that the "
        "instrument finds; specificity: of the rest, the share that it leaves. Counts are of labelled answers, shares "
        "weighted by what each stands for; intervals count each prompt, or cluster, once."
    )
    return TextTable("errors", "Error rates", shows, columns, body, (False, False, False, *[True] * 10))


def _corrected(names: DisplayNames, rows: Sequence[CsvRow]) -> TextTable:
    columns = (
        "build", "rate", "instrument", "answers", "labelled", "by instrument (%)", "human-corrected (%)",
        "delta by instrument (pp)", "human-corrected delta (pp)",
    )  # fmt: skip
    body = tuple(
        (
            formats.plain(f"{row['base_model']}/{row['quant']}"),
            names.bare(row["metric"]),
            formats.plain(row["instrument"]),
            row["n"],
            row["n_labelled"],
            _percent_of(row, "raw_rate"),
            _percent_of(row, "corrected_rate", "ci"),
            _delta(row, "raw_delta_pp"),
            _delta(row, "corrected_delta_pp"),
        )
        for row in rows
    )
    shows = (
        "Rates as people would have given them, by stratified double sampling (PPI++) from the answers that they "
        "labelled, over every answer that is not empty and not unclear. Decisions rest on the instruments' rates."
    )
    return TextTable("corrected", "Human-corrected rates", shows, columns, body, (False, False, False, *[True] * 6))


def _percent_of(row: CsvRow, name: str, around: str = "") -> str:
    known = formats.number(row.get(name))
    if known is None:
        return formats.NOT_MEASURED
    within = formats.interval(row.get(f"{around}_lo"), row.get(f"{around}_hi"), 1, factor=100) if around else ""
    return f"{formats.fixed(100 * known, 1)} {within}".rstrip()


def _delta(row: CsvRow, name: str) -> str:
    if row.get(name, "") == "" and not row.get("n_pairs"):
        return "reference"
    own = name == "corrected_delta_pp"
    within = formats.interval(row.get("delta_ci_lo_pp"), row.get("delta_ci_hi_pp"), 1, sign=True) if own else ""
    return f"{formats.delta(row.get(name), 1)} {within}".rstrip()
