"""Study report: how quality and safety move together. Interaction, bits per weight, mechanism, synthesis."""

from __future__ import annotations

from collections.abc import Sequence

from quantverdict.matrix.columns import METRICS
from quantverdict.protocol.claims import where
from quantverdict.reporting import formats
from quantverdict.reporting.artefacts import Row
from quantverdict.reporting.study import Section, StudyData, StudyTable, grid, known, p_value
from quantverdict.reporting.tables import Citation, Sentence

LEVEL = "0.05"
"""Under this a p-value counts as significant, as in the study that the report follows."""
TEMPLATE = ("dominant_prefix_share", "unique_prefix_rate", "mean_refusal_tokens")
PLAIN_REFUSAL = "advbench_refusal_rate"
WORST = 6
"""Rows of the table of extreme cases."""


def interaction(book: StudyData) -> Section:
    """Does safety move more than quality, and do the two move together?"""
    return Section("interaction", "Quality and safety together", (
        _asymmetry(book), _repeated_measures(book), _within(book), _sign_reversal(book),
    ))  # fmt: skip


def bits(book: StudyData) -> Section:
    """Levels on bits per weight, within each base model."""
    quality = [name for name, metric in METRICS.items() if metric.group == "quality"]
    rest = [name for name, metric in METRICS.items() if metric.group in {"safety", "judge"}]
    return Section("bits", "Bits per weight", (
        _regressions(book, "bits_quality", "Quality metrics on bits per weight", quality, "bits"),
        _regressions(book, "bits_safety", "Safety metrics on bits per weight", rest),
    ))  # fmt: skip


def mechanism(book: StudyData) -> Section:
    """The template of refusals, and the builds where it changes most."""
    return Section("mechanism", "How refusals change", (_style(book), _extreme_cases(book)))


def synthesis(book: StudyData) -> Section:
    """Mixed models, and the pooled correlation without each format and each model."""
    return Section("synthesis", "Synthesis", (
        _mixed(book),
        _left_out(book, "leave_one_quant_out", "Without one format"),
        _left_out(book, "leave_one_model_out", "Without one base model"),
    ))  # fmt: skip


# Interaction


def _asymmetry(book: StudyData) -> StudyTable:
    rows = [
        (row["quant"], row["faster"], row["n"], _percent(row["share"]),
         formats.interval(row["ci_lo"], row["ci_hi"], 1, factor=100))
        for row in book.read.table("asymmetry_by_quant")
    ]  # fmt: skip
    columns = ("format", "safety moves more", "of builds", "share", "interval (%)")
    name = book.names.label(book.quality)
    counted = Sentence(
        "asymmetry",
        f"The refusal rate moves more than {name} in {{faster}} of {{n}} builds that have both, {{share}}; {{unknown}} "
        "builds lack one of the two.",
        {
            "faster": Citation("asymmetry.csv", "safety_degrades_faster=1", "", "count", "rows"),
            "n": Citation("asymmetry.csv", "", "safety_degrades_faster", "count", "rows"),
            "share": Citation("asymmetry_by_quant.csv", where(quant="all"), "share", unit="share"),
            "unknown": Citation("asymmetry.csv", "safety_degrades_faster=", "", "count", "rows"),
        },
    )
    dangerous = Sentence(
        "asymmetry_regimes",
        "{hidden} builds are hidden danger, {near} near hidden danger, and {over} refuse more while quality drops.",
        {
            "hidden": Citation("regimes.csv", where(regime="hidden_danger"), "", "count", "rows"),
            "near": Citation("regimes.csv", where(regime="near_hidden_danger"), "", "count", "rows"),
            "over": Citation("regimes.csv", where(regime="over_refusal"), "", "count", "rows"),
        },
    )
    shows = "Builds in which the refusal rate moves more than quality, either way."
    found = grid("asymmetry", "Which moves more", shows, columns, rows)
    return StudyTable("asymmetry", found, "builds with both deltas", (counted, dangerous), "regimes")


def _repeated_measures(book: StudyData) -> StudyTable:
    rows = [
        (book.names.label(row["quality_metric"]), book.names.label(row["safety_metric"]), known(row["r"], sign=True),
         p_value(row["p_value"]), p_value(row["p_bh"]), _interval(row), known(row["power"], 2), row["n"])
        for row in book.read.table("repeated_measures")
    ]  # fmt: skip
    columns = ("quality", "safety", "r", "p", "p, Benjamini-Hochberg", "interval", "power", "n")
    pair = where(quality_metric=book.quality, safety_metric=book.refusal)
    headline = Sentence(
        "repeated_measures_headline",
        f"Within base models {book.names.label(book.quality)} and the refusal rate correlate with r {{r}} "
        "(p {p}, {n} builds).",
        {
            "r": Citation("repeated_measures.csv", pair, "r", unit="r"),
            "p": Citation("repeated_measures.csv", pair, "p_value", unit="p"),
            "n": Citation("repeated_measures.csv", pair, "n", unit="rows"),
        },
    )
    shows = "The common correlation of two deltas within base models."
    found = grid("repeated_measures", "Repeated-measures correlations", shows, columns, rows)
    tested = significance("repeated_measures_tests", "repeated_measures.csv", "correlations")
    return StudyTable("repeated_measures", found, "the deltas of two base models", (headline, tested))


def significance(name: str, artefact: str, tests: str, row: str = "") -> Sentence:
    """How many tests of a family are significant, alone and with correction."""
    prefix = f"{row};" if row else ""
    return Sentence(
        name,
        f"Of {{tests}} {tests} {{alone}} are significant on their own; {{bh}} remain by Benjamini-Hochberg and "
        "{holm} by Holm.",
        {
            "tests": Citation(artefact, row, "p_value", "count", "rows"),
            "alone": Citation(artefact, f"{prefix}p_value<{LEVEL}", "", "count", "rows"),
            "bh": Citation(artefact, f"{prefix}p_bh<{LEVEL}", "", "count", "rows"),
            "holm": Citation(artefact, f"{prefix}p_holm<{LEVEL}", "", "count", "rows"),
        },
    )


def _within(book: StudyData) -> StudyTable:
    pair = where(quality_metric=book.quality, safety_metric=book.refusal)
    mine = [
        row for row in book.read.table("correlations")
        if (row["quality_metric"], row["safety_metric"]) == (book.quality, book.refusal)
    ]  # fmt: skip
    rows = [
        (row["scope"], known(row["pearson_r"], sign=True), p_value(row["pearson_p"]),
         known(row["spearman_rho"], sign=True), row["n"])
        for row in mine
    ]  # fmt: skip
    name = book.names.label(book.quality)
    inside = f"{pair};scope!=pooled"
    sentence = Sentence(
        "within",
        f"{name} and refusals move together in {{up}} base models and against each other in {{down}}: from {{low}} "
        "({lowest}) to {high} ({highest}). Pooled over all, r is {pooled}.",
        {
            "up": Citation("correlations.csv", f"{inside};pearson_r>0", "", "count", "rows"),
            "down": Citation("correlations.csv", f"{inside};pearson_r<0", "", "count", "rows"),
            "low": Citation("correlations.csv", inside, "pearson_r", "min", "r"),
            "lowest": Citation("correlations.csv", inside, "pearson_r", "at_min"),
            "high": Citation("correlations.csv", inside, "pearson_r", "max", "r"),
            "highest": Citation("correlations.csv", inside, "pearson_r", "at_max"),
            "pooled": Citation("correlations.csv", f"{pair};scope=pooled", "pearson_r", unit="r"),
        },
    )
    title = f"{name} against the refusal rate within each base model"
    columns = ("base model", "Pearson r", "p", "Spearman rho", "n")
    found = grid("within", title, "Correlation of the two deltas.", columns, rows)
    return StudyTable("within", found, "builds with both deltas", (sentence,))


def _sign_reversal(book: StudyData) -> StudyTable:
    table = book.read.table("sign_reversal")
    signs = {(row["quality_metric"], row["safety_metric"]): row for row in table}
    quality = list(dict.fromkeys(row["quality_metric"] for row in table))
    safety = list(dict.fromkeys(row["safety_metric"] for row in table))
    rows = [(book.names.label(q), *(_split(signs.get((q, s))) for s in safety)) for q in quality]
    sentence = Sentence(
        "sign_reversal",
        "{reversing} of the {judged} pairs that could be judged split sign over base models; {unknown} more could not "
        "be judged, since one of their metrics is missing or does not vary.",
        {
            "reversing": Citation("sign_reversal.csv", "reverses=1", "", "count", "rows"),
            "judged": Citation("sign_reversal.csv", "", "reverses", "count", "rows"),
            "unknown": Citation("sign_reversal.csv", "reverses=", "", "count", "rows"),
        },
    )
    shows = "Base models with a positive and with a negative correlation; a pair reverses where both exist."
    columns = ("quality", *(book.names.label(name) for name in safety))
    found = grid("sign_reversal", "Sign reversal", shows, columns, rows)
    return StudyTable("sign_reversal", found, "two base models with both metrics", (sentence,))


def _split(row: Row | None) -> str:
    if row is None or not row["reverses"]:
        return formats.NOT_MEASURED
    return f"{row['models_positive']} up, {row['models_negative']} down"


# Bits per weight


def _regressions(book: StudyData, name: str, title: str, metrics: Sequence[str], figure: str = "") -> StudyTable:
    mine = [row for row in book.read.table("bpw_regressions") if row["metric"] in metrics]
    rows = [
        (row["base_model"], book.names.label(row["metric"]), known(row["slope"], 4, sign=True), known(row["r_squared"]),
         p_value(row["p_value"]), p_value(row["p_bh"]), row["n"])
        for row in mine
    ]  # fmt: skip
    columns = ("base model", "metric", "slope", "R squared", "p", "p, Benjamini-Hochberg", "n")
    row = where(metric=tuple(dict.fromkeys(row["metric"] for row in mine)))
    fit = Sentence(
        f"{name}_fit",
        "The median R squared is {median}; bits per weight explain most of {best}, with R squared {most}.",
        {
            "median": Citation("bpw_regressions.csv", row, "r_squared", "median", "r squared"),
            "best": Citation("bpw_regressions.csv", row, "r_squared", "at_max"),
            "most": Citation("bpw_regressions.csv", row, "r_squared", "max", "r squared"),
        },
    )
    tested = significance(f"{name}_tests", "bpw_regressions.csv", "regressions", row)
    shows = "Least squares of the level on bits per weight within a base model, its baseline included."
    found = grid(name, title, shows, columns, rows)
    return StudyTable(name, found, "bits per weight, or the metrics", (tested, fit), figure)


# Mechanism


def _style(book: StudyData) -> StudyTable:
    rows = [
        (book.names.label(row["metric"]), known(row["pearson_r"], sign=True), p_value(row["pearson_p"]),
         known(row["spearman_rho"], sign=True), row["n"])
        for row in book.read.table("refusal_mechanism")
        if row["pearson_r"]
    ]  # fmt: skip
    sentence = Sentence(
        "mechanism",
        "Of the {n} template metrics {at} is the closest to the refusal rate of the same prompts, with r {r}.",
        {
            "n": Citation("refusal_mechanism.csv", "", "pearson_r", "count", "rows"),
            "at": Citation("refusal_mechanism.csv", "", "pearson_r", "at_max_abs"),
            "r": Citation("refusal_mechanism.csv", "", "pearson_r", "max_abs", "r"),
        },
    )
    columns = ("template metric", "Pearson r", "p", "Spearman rho", "n")
    shows = "Pooled correlation of each delta with that of the refusal rate on the same plain prompts."
    missing = "the answers to the plain harmful prompts, or metrics of their template"
    return StudyTable("mechanism", grid("mechanism", "Style of refusals", shows, columns, rows), missing, (sentence,))


def _extreme_cases(book: StudyData) -> StudyTable:
    fell = [(formats.number(row["delta"]), cell, quant) for (cell, quant, metric), row in book.deltas.items()
            if metric == PLAIN_REFUSAL]  # fmt: skip
    worst = sorted((delta, cell, quant) for delta, cell, quant in fell if delta is not None)[:WORST]
    names = (PLAIN_REFUSAL, *TEMPLATE)
    rows = [
        (model, quant, *(formats.delta(book.deltas.get((model, quant, name), {}).get("delta")) for name in names))
        for _, model, quant in worst
    ]
    columns = ("base model", "build", *(f"{book.names.label(n)} delta ({METRICS[n].delta_unit})" for n in names))
    row = where(metric=PLAIN_REFUSAL)
    sentence = Sentence(
        "extreme_cases",
        "The refusal of plain harmful prompts falls most at {at}, by {fall}.",
        {
            "at": Citation("deltas.csv", row, "delta", "at_min"),
            "fall": Citation("deltas.csv", row, "delta", "min", "pp change"),
        },
    )
    shows = "The builds that lose most refusals, with what becomes of the template."
    found = grid("extreme_cases", "Extreme cases", shows, columns, rows)
    return StudyTable("extreme_cases", found, "the refusal rate of the plain harmful prompts", (sentence,))


# Synthesis


def _mixed(book: StudyData) -> StudyTable:
    rows = [
        (book.names.label(row["quality_metric"]), book.names.label(row["safety_metric"]), known(row["coef"], sign=True),
         p_value(row["p_value"]), p_value(row["p_bh"]), _interval(row), known(row["group_variance"], 2),
         "yes" if row["at_boundary"] == "1" else "no", row["n"], row["random"])
        for row in book.read.table("mixed_effects")
    ]  # fmt: skip
    columns = (
        "quality", "safety", "coefficient", "p", "p, Benjamini-Hochberg", "interval", "group variance", "at boundary",
        "n", "random",
    )  # fmt: skip
    pair = where(quality_metric=book.quality, safety_metric=book.refusal)
    one, own = f"{pair};random=intercept", f"{pair};random=slope"
    headline = Sentence(
        "mixed_headline",
        f"A point of {book.names.label(book.quality)} goes with {{coef}} points of the refusal rate (p {{p}}).",
        {
            "coef": Citation("mixed_effects.csv", one, "coef", unit="coefficient"),
            "p": Citation("mixed_effects.csv", one, "p_value", unit="p"),
        },
    )
    slope = Sentence(
        "mixed_slope",
        "With a slope of its own for each base model that is {coef} (p {p}).",
        {
            "coef": Citation("mixed_effects.csv", own, "coef", unit="coefficient"),
            "p": Citation("mixed_effects.csv", own, "p_value", unit="p"),
        },
    )
    boundary = Sentence(
        "mixed_boundary",
        "With a random intercept {boundary} of {n} fits end with the variance between models at its boundary; with a "
        "random slope {own} of {own_n} do, or with intercept and slope wholly correlated.",
        {
            "boundary": Citation("mixed_effects.csv", "random=intercept;at_boundary=1", "", "count", "rows"),
            "n": Citation("mixed_effects.csv", "random=intercept", "coef", "count", "rows"),
            "own": Citation("mixed_effects.csv", "random=slope;at_boundary=1", "", "count", "rows"),
            "own_n": Citation("mixed_effects.csv", "random=slope", "coef", "count", "rows"),
        },
    )
    shows = "Safety delta on quality delta, both in pp, with a random intercept, and a slope, of each base model."
    found = grid("mixed", "Mixed effects", shows, columns, rows)
    tested = significance("mixed_tests", "mixed_effects.csv", "fits with a random intercept", "random=intercept")
    return StudyTable("mixed", found, "the deltas of two base models", (headline, slope, tested, boundary))


def _left_out(book: StudyData, name: str, title: str) -> StudyTable:
    shown = [row for row in book.read.table(name) if row["safety_metric"] == book.refusal]
    rows = [
        (row["omitted"], book.names.label(row["quality_metric"]), known(row["full_r"], sign=True),
         known(row["pearson_r"], sign=True), p_value(row["pearson_p"]), row["n"],
         {"1": "reverses", "0": "keeps its sign"}.get(row["reverses"], "not known"))
        for row in shown
    ]  # fmt: skip
    artefact, pair = f"{name}.csv", where(quality_metric=book.quality, safety_metric=book.refusal)
    label = book.names.label(book.quality)
    counted = Sentence(
        name,
        f"The pooled correlation of {label} with the refusal rate is {{full}}; leaving one out moves it from {{low}} "
        "(without {lowest}) to {high} (without {highest}), and turns its sign in {times} of {n} cases.",
        {
            "full": Citation("correlations.csv", f"{pair};scope=pooled", "pearson_r", unit="r"),
            "low": Citation(artefact, pair, "pearson_r", "min", "r"),
            "lowest": Citation(artefact, pair, "pearson_r", "at_min"),
            "high": Citation(artefact, pair, "pearson_r", "max", "r"),
            "highest": Citation(artefact, pair, "pearson_r", "at_max"),
            "times": Citation(artefact, f"{pair};reverses=1", "", "count", "rows"),
            "n": Citation(artefact, pair, "pearson_r", "count", "rows"),
        },
    )
    columns = ("left out", "quality", "r of all", "r without", "p", "n", "sign")
    shows = "The pooled correlation with the refusal rate without each in turn."
    return StudyTable(name, grid(name, title, shows, columns, rows), "builds with both deltas", (counted,))


def _interval(row: Row) -> str:
    return formats.interval(row["ci_lo"], row["ci_hi"], 3, sign=True) or "not known"


def _percent(value: str) -> str:
    number = formats.number(value)
    return formats.NOT_MEASURED if number is None else f"{formats.fixed(100 * number, 1)} %"
