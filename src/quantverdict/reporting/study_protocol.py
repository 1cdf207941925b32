"""Study report: what was decided. Validation, the deployment protocol, regimes, limits."""

from __future__ import annotations

from collections.abc import Mapping

from quantverdict.matrix.columns import METRICS
from quantverdict.protocol.actions import ACTIONS
from quantverdict.protocol.claims import number, where
from quantverdict.reporting import formats
from quantverdict.reporting.study import Section, StudyData, StudyTable, grid, words
from quantverdict.reporting.study_relations import significance
from quantverdict.reporting.tables import Citation, Sentence, readable, verdict_group

STATUS = {"PASS": "ship", "FAIL": "reject"}
"""Status to its style class; any other cannot be told."""
SOURCE_COUNTS = ("raw", "loaded", "superseded", "quarantined", "unmatched")
SHORT = 12
"""Characters of a hash in a table; the artefact has all of them."""
DANGER = ("hidden_danger", "near_hidden_danger")


def validation(book: StudyData) -> Section:
    """What was covered, and which screens passed."""
    rows = [("protocol", row["requirement"], readable(book.names, row["observed"]), row["status"])
            for row in book.read.table("checklist")]  # fmt: skip
    limit = f"refusal signal under {formats.number(book.limit('role_signal_pp')):g} pp"
    for row in book.read.table("quant_roles"):
        signal, bound = number(row["max_refusal_signal_pp"]), number(book.limit("role_signal_pp"))
        status = "not known" if signal is None or bound is None else "PASS" if signal < bound else "FAIL"
        rows.append((row["quant"], limit, formats.table_value("max_refusal_signal_pp", row["max_refusal_signal_pp"])
                     + (" pp" if signal is not None else ""), status))  # fmt: skip
    shape = Sentence(
        "validation_shape",
        "The matrix holds {rows} builds of {models} base models in {families} families; {formats} formats are compared "
        "with a baseline.",
        {
            "rows": Citation("matrix.csv", "", "", "count", "rows"),
            "models": Citation("matrix.csv", "", "base_model", "distinct", "rows"),
            "families": Citation("matrix.csv", "", "family", "distinct", "rows"),
            "formats": Citation("quant_roles.csv", "", "", "count", "rows"),
        },
    )
    title, columns = "Validation summary", ("what", "required", "achieved", "status")
    tones = tuple(("", "", "", STATUS.get(row[-1], "unknown")) for row in rows)
    found = grid("validation", title, "Each step of the protocol, then each format's bound.", columns, rows)
    return Section(
        "validation",
        "Validation",
        (
            StudyTable("validation", found, "the checklist", (shape, _steps()), tones=tones),
            _sources(book),
        ),
    )


def _sources(book: StudyData) -> StudyTable:
    rows = [
        (row["label"], words(row["role"]), *(f"{int(row[count]):,}" for count in SOURCE_COUNTS), row["sha256"][:SHORT])
        for row in book.read.table("sources")
    ]
    columns = ("source", "role", "rows", *SOURCE_COUNTS[1:], "start of its SHA-256")
    cites = {role: Citation("sources.csv", where(role=role), "loaded", "sum", "rows") for role in ("quality", "safety")}
    cites["judge"] = Citation("sources.csv", where(role="judge"), "loaded", "sum", "rows")
    cites["raw"] = Citation("sources.csv", "", "raw", "sum", "rows")
    sentence = Sentence(
        "sources",
        "Of {raw} rows that were read {quality} of quality, {safety} of safety and {judge} of judges were loaded.",
        cites,
    )
    found = grid("sources", "Source audit", "Each source, checked by its hash before a row was read.", columns, rows)
    return StudyTable("sources", found, "sources of scored samples", (sentence,))


def _steps() -> Sentence:
    return Sentence(
        "validation_steps",
        "{passed} of {steps} steps of the protocol pass.",
        {
            "passed": Citation("checklist.csv", where(status="PASS"), "", "count", "rows"),
            "steps": Citation("checklist.csv", "", "", "count", "rows"),
        },
    )


# Protocol


def protocol(book: StudyData) -> Section:
    """Roles of the formats, the checklist, the failure modes, the floor, and every row's action."""
    return Section("protocol", "Deployment protocol", (
        _formats(book), _checklist(book), _taxonomy(book), _floor(book), _actions(book),
    ))  # fmt: skip


def _formats(book: StudyData) -> StudyTable:
    rows = [
        (row["quant"], row["n_models"], formats.table_value("max_refusal_signal_pp", row["max_refusal_signal_pp"]),
         row["reject_rows"], words(row["role"]), readable(book.names, row["reason"]))
        for row in book.read.table("quant_roles")
    ]  # fmt: skip
    columns = ("format", "models", "largest refusal signal (pp)", "rejected rows", "role", "reason")
    sentence = Sentence(
        "formats",
        "{unsafe} of {n} formats are not blanket safe; {rejecting} have a rejected row, and the largest refusal signal "
        "is {signal} ({at}).",
        {
            "unsafe": Citation("quant_roles.csv", where(role="not_blanket_safe"), "", "count", "rows"),
            "n": Citation("quant_roles.csv", "", "", "count", "rows"),
            "rejecting": Citation("quant_roles.csv", "reject_rows>0", "", "count", "rows"),
            "signal": Citation("quant_roles.csv", "", "max_refusal_signal_pp", "max", "pp"),
            "at": Citation("quant_roles.csv", "", "max_refusal_signal_pp", "at_max"),
        },
    )
    found = grid(
        "formats", "Roles of the formats", "What a format can be used for over all base models.", columns, rows
    )
    return StudyTable("formats", found, "a format besides the baselines", (sentence,))


def _checklist(book: StudyData) -> StudyTable:
    rows = [(row["step"], row["requirement"], readable(book.names, row["observed"]), row["status"])
            for row in book.read.table("checklist")]  # fmt: skip
    columns = ("step", "requirement", "observed", "status")
    found = grid("checklist", "Protocol checklist", "What each step requires and what was observed.", columns, rows)
    sentence = Sentence(
        "checklist",
        "Steps that do not pass: {names}.",
        {"names": Citation("checklist.csv", "status!=PASS", "", "names")},
    )
    tones = tuple(("", "", "", STATUS.get(row[-1], "unknown")) for row in rows)
    return StudyTable("checklist", found, "the checklist", (sentence,), tones=tones)


def _taxonomy(book: StudyData) -> StudyTable:
    rows = [
        (row["id"], row["failure_mode"], *(readable(book.names, row[name]) for name in ("trigger", "observed")),
         row["what_to_do"])
        for row in book.read.table("taxonomy")
    ]  # fmt: skip
    columns = ("id", "failure mode", "trigger", "observed", "what to do")
    sentence = Sentence(
        "taxonomy",
        "{fired} of {modes} failure modes fire.",
        {
            "fired": Citation("taxonomy.csv", "n>0", "", "count", "rows"),
            "modes": Citation("taxonomy.csv", "", "", "count", "rows"),
        },
    )
    found = grid("taxonomy", "Failure modes", "How a build could be approved wrongly, and where.", columns, rows)
    return StudyTable("taxonomy", found, "the failure modes", (sentence,))


def _floor(book: StudyData) -> StudyTable:
    quant = next((row["quant"] for row in book.read.table("floor")), "")
    names = (book.refusal, book.policy.get("judge_refusal_metric", ""), book.policy.get("truthfulness_metric", ""),
             book.policy.get("bias_metric", ""), book.quality)  # fmt: skip
    shown = book.metrics(*names)
    rows = [
        (model, *(formats.delta(book.deltas.get((model, quant, m.name), {}).get("delta")) for m in shown))
        for model in book.models
        if quant
    ]
    columns = ("base model", *(f"{book.names.label(m.name)} delta ({m.delta_unit})" for m in shown))
    chosen = Sentence(
        "floor",
        "The conservative floor is {quant}: its largest refusal signal is {signal} over {models} base models. By "
        "pattern alone its refusals move by up to {pattern} ({at}).",
        {
            "quant": Citation("floor.csv", "", "quant"),
            "signal": Citation("floor.csv", "", "max_refusal_signal_pp", unit="pp"),
            "models": Citation("floor.csv", "", "n_models", unit="rows"),
            "pattern": Citation("deltas.csv", where(quant=quant, metric=book.refusal), "delta", "max_abs", "pp change"),
            "at": Citation("deltas.csv", where(quant=quant, metric=book.refusal), "delta", "at_max_abs"),
        },
    )
    row = where(quant=quant, metric=book.quality)
    held = Sentence(
        "floor_quality",
        f"{book.names.label(book.quality)} moves from {{low}} ({{lowest}}) to {{high}} ({{highest}}) there.",
        {
            "low": Citation("deltas.csv", row, "delta", "min", "pp change"),
            "lowest": Citation("deltas.csv", row, "delta", "at_min"),
            "high": Citation("deltas.csv", row, "delta", "max", "pp change"),
            "highest": Citation("deltas.csv", row, "delta", "at_max"),
        },
    )
    title = f"The conservative floor, {quant}" if quant else "The conservative floor"
    found = grid("floor", title, "Its deltas on each base model.", columns, rows)
    none = "No format qualifies." if book.read.table("quant_roles") else ""
    return StudyTable("floor", found, "a format besides the baselines", (chosen, held), none=none)


def _actions(book: StudyData) -> StudyTable:
    actions = {(row["base_model"], row["quant"]): row["action"] for row in book.read.table("row_actions")}
    rows = [
        (model, *(_action(book, actions, (model, quant)) for quant in book.quants)) for model in book.models if actions
    ]
    tones = tuple(("", *(_tone(actions.get((model, quant))) for quant in book.quants)) for model in book.models)
    cites = {action: Citation("row_actions.csv", where(action=action), "", "count", "rows") for action in ACTIONS[1:]}
    cites["n"] = Citation("row_actions.csv", "action!=reference", "", "count", "rows")
    said = ", ".join(f"{{{action}}} {words(action)}" for action in ACTIONS[1:])
    sentence = Sentence("actions", f"Of {{n}} builds that are no baseline: {said}.", cites)
    found = grid(
        "actions", "What to do with every build", "The action of each build.", ("base model", *book.quants), rows
    )
    return StudyTable("actions", found, "a build", (sentence,), tones=tones)


def _action(book: StudyData, actions: Mapping[tuple[str, str], str], cell: tuple[str, str]) -> str:
    return words(actions[cell]) if cell in actions else book.absence(*cell)


def _tone(action: str | None) -> str:
    if action is None:
        return "missing"
    return "" if action == ACTIONS[0] else verdict_group({"action": action})


# Regimes


def regimes(book: StudyData) -> Section:
    """The dangerous rows, and how many rows each regime has."""
    table = book.read.table("regimes")
    rows = [
        (row["base_model"], row["quant"], formats.delta(row["quality_delta_pp"]),
         formats.delta(row["refusal_delta_pp"]), words(row["regime"]))
        for row in table if row["regime"] in DANGER
    ]  # fmt: skip
    columns = (
        "base model", "build", f"{book.names.label(book.quality)} delta (pp)",
        f"{book.names.refusal_delta(book.policy)} (pp)", "regime",
    )  # fmt: skip
    row = where(regime=DANGER)
    worst = Sentence(
        "danger",
        "{n} builds keep their quality while refusals collapse; the largest loss is {loss} ({at}), the smallest "
        "{least} ({least_at}).",
        {
            "n": Citation("regimes.csv", row, "", "count", "rows"),
            "loss": Citation("regimes.csv", row, "refusal_delta_pp", "min", "pp change"),
            "at": Citation("regimes.csv", row, "refusal_delta_pp", "at_min"),
            "least": Citation("regimes.csv", row, "refusal_delta_pp", "max", "pp change"),
            "least_at": Citation("regimes.csv", row, "refusal_delta_pp", "at_max"),
        },
    )
    shares = [
        (words(row["regime"]), row["n"], f"{formats.fixed(100 * share, 1)} %" if share is not None else "none")
        for row in book.read.table("regime_counts")
        for share in [formats.number(row["share"])]
    ]
    spread = Sentence(
        "regimes",
        "Of {n} builds that are no baseline {neutral} are of no named regime; {unclassified} could not be classified.",
        {
            "n": Citation("regimes.csv", "regime!=baseline", "", "count", "rows"),
            "neutral": Citation("regimes.csv", where(regime="neutral"), "", "count", "rows"),
            "unclassified": Citation("regimes.csv", where(regime="unclassified"), "", "count", "rows"),
        },
    )
    shows = "Builds whose quality holds while refusals collapse."
    counted = grid("regimes", "Regimes counted", "Shares are of the builds that are no baseline.",
                   ("regime", "builds", "share"), shares)  # fmt: skip
    return Section("regimes", "Regimes", (
        StudyTable("danger", grid("danger", "Hidden danger", shows, columns, rows), "", (worst,),
             none="No build keeps its quality while its refusals collapse."),
        StudyTable("regimes", counted, "the regimes", (spread,)),
    ))  # fmt: skip


# Limits


def limits(book: StudyData) -> Section:
    """What the data cannot show: the smallest visible drop, what is missing, what multiplicity leaves."""
    rows = [
        (book.names.label(name), METRICS[name].meaning, ", ".join(lacking))
        for name in METRICS
        if METRICS[name].group in {"quality", "safety", "judge"} and name in _measured(book)
        and (lacking := [f"{row['base_model']} {row['quant']}" for row in book.matrix if not row.get(name)])
    ]  # fmt: skip
    found = grid("limits", "Metrics that some builds lack", "They take part wherever they can.",
                 ("metric", "meaning", "builds without it"), rows)  # fmt: skip
    visible = Sentence(
        "limits_power",
        "The smallest drop of refusals that these prompts show with the power asked for lies between {least} "
        "({least_at}) and {most} ({most_at}); a smaller one is not evidence either way.",
        {
            "least": Citation("decision.json#cells", "", "refusal_mde_pp", "min", "pp"),
            "least_at": Citation("decision.json#cells", "", "refusal_mde_pp", "at_min"),
            "most": Citation("decision.json#cells", "", "refusal_mde_pp", "max", "pp"),
            "most_at": Citation("decision.json#cells", "", "refusal_mde_pp", "at_max"),
        },
    )
    tested = significance("limits_tests", "bpw_regressions.csv", "regressions on bits per weight")
    none = "Every build has every metric of the matrix."
    return Section("limits", "Limits", (
        StudyTable("limits", found, "", (visible, tested), none=none), _power(book),
    ))  # fmt: skip


def _power(book: StudyData) -> StudyTable:
    """The smallest and the largest of the smallest visible drops of each metric."""
    table = [row for row in book.read.table("power") if row["mde_unpaired_pp"]]
    rows = []
    for metric in dict.fromkeys(row["metric"] for row in table):
        mine = [row for row in table if row["metric"] == metric]
        spans = [_span([row[column] for row in mine], digits)
                 for column, digits in (("n", 0), ("mde_unpaired_pp", 1), ("mde_paired_pp", 1))]  # fmt: skip
        rows.append((book.names.label(metric), *spans))
    said = tuple(
        Sentence(
            name,
            f"The smallest drop that {{at}} can show {how} is {{least}}; at the other end is {{worst}} with {{most}}.",
            {
                "least": Citation("power.csv", "", column, "min", "pp"),
                "at": Citation("power.csv", "", column, "at_min"),
                "most": Citation("power.csv", "", column, "max", "pp"),
                "worst": Citation("power.csv", "", column, "at_max"),
            },
        )
        for name, how, column in (
            ("power_unpaired", "against other prompts", "mde_unpaired_pp"),
            ("power_paired", "on the same prompts", "mde_paired_pp"),
        )
    )
    columns = ("metric", "prompts", "two samples (pp)", "in pairs (pp)")
    shows = "The smallest drop of each rate that a build's prompts show, over all builds."
    return StudyTable(
        "power", grid("power", "Smallest visible drops", shows, columns, rows), "counts of the rates", said
    )


def _span(values: list[str], digits: int) -> str:
    """From the least to the most, one number where they are the same."""
    known = [number for value in values if (number := formats.number(value)) is not None]
    if not known:
        return formats.NOT_MEASURED
    ends = dict.fromkeys(formats.fixed(end, digits) for end in (min(known), max(known)))
    return " to ".join(ends)


def _measured(book: StudyData) -> set[str]:
    return {name for name in METRICS if any(row.get(name) for row in book.matrix)}
