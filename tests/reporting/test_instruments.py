"""What both reports say of instruments: judges by their names, tables of judges, alarms, the inside of the builds."""

import csv
import io
import json
import re

import polars as pl
import pytest
from rich.console import Console

from quantverdict.reporting import render
from quantverdict.reporting.figures import heat_maps
from quantverdict.reporting.tables import builds
from quantverdict.reporting.terminal import decision_table, summary_lines
from quantverdict.stages.facts import collect_claims, view_of
from quantverdict.stages.run import decision_of
from quantverdict.stages.verify import DryRunBundle

MODEL = "smollm2-135m"
DIRECTION = "first_judge,second_judge,metric,task,quant,n,only_first,only_second,more_credit,p_value\n"
INSIDE = "base_model,quant,refusal_delta_pp,margin_delta_nats,baseline_kl\n"
ALARMS = (
    "base_model,quant,alarm,n,baseline_k,baseline_value,k,value,shift,unit,ci_lo,ci_hi,p_holm,fires\n"
    f"{MODEL},Q2_K,truncated,40,1,,9,,20,pp,5,35,0.01,"
)


def change(root, **matrix):
    """Columns that every row of the matrix gets."""
    path = root / "matrix.csv"
    rows = [row | matrix for row in csv.DictReader(path.read_text().splitlines())]
    with path.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def judge(root, *judgements):
    change(root, judge_refusal_rate="0.5", judge_truthfulness="0.5")
    decision = json.loads((root / "decision.json").read_text())
    decision["policy"]["refusal_metric"] = "judge_refusal_rate"
    (root / "decision.json").write_text(json.dumps(decision))
    frame = pl.DataFrame(judgements, schema=["judge", "task", "label"], orient="row")
    # An answer each, which no build of the bundle gave.
    names = {"base_model": pl.lit(MODEL), "quant": pl.lit("Q8_0"), "sample_id": pl.col("judge"), "reason": pl.lit("")}
    frame.with_columns(**names).write_parquet(root / "judgements.parquet")


def report_texts(root):
    bundle = DryRunBundle(root)
    told = collect_claims(bundle)
    return render.report_texts(view_of(bundle, told), told)


def texts(root, profile):
    manifest = json.loads((root / "manifest.json").read_text())
    (root / "manifest.json").write_text(json.dumps(manifest | {"report": {"profile": profile}}))
    found = report_texts(root)
    return [found[name].decode() for name in ("report.html", "report.md")]


@pytest.mark.parametrize("profile", ["default", "study"])
def test_a_rate_by_judges_names_those_that_gave_it(small, profile):
    """Two gave the refusal rate, one of them truthfulness too; one whose answers cannot be read gave none."""
    judge(small, ("gemma", "harm", "FULL_REFUSAL"), ("claude", "harm", "COMPLIANCE"), ("claude", "t", "TRUTHFUL"),
          ("mute", "harm", None), ("mute", "t", "UNCLEAR"))  # fmt: skip
    for text in texts(small, profile):
        assert "refusal rate by judges claude, gemma" in text
        assert "truthfulness by judge claude" in text
        assert "mute" not in text
        assert "by judge<" not in text
    assert (
        summary_lines(decision_of(small))[-1] == "instruments: refusal delta is of refusal rate by judges claude, gemma"
    )


def test_without_the_judgements_a_judge_has_no_name(small):
    change(small, judge_refusal_rate="0.5")
    assert "refusal rate by judge |" in texts(small, "default")[1]


def test_the_table_of_builds_says_by_which_instrument_refusal_deltas_are(small):
    html, markdown = texts(small, "default")
    assert 'class="num">refusal delta <small>by pattern</small></th>' in html
    assert "| quality delta | refusal delta by pattern |" in markdown
    judge(small, ("gemma", "harm", "FULL_REFUSAL"))
    html, markdown = texts(small, "default")
    assert "<small>by judge gemma</small></th>" in html
    assert "| refusal delta by judge gemma |" in markdown


@pytest.mark.parametrize("profile", ["default", "study"])
def test_tables_of_judges_and_of_the_inside_are_shown_where_they_are(small, profile):
    before = "".join(texts(small, profile))
    assert "Inside the builds" not in before
    (small / "judges.csv").write_text("judge,model,second,samples,loaded,ungraded\ngemma,g,0,90,80,7\n")
    (small / "judge_direction.csv").write_text(
        f"{DIRECTION}gemma,claude,judge_refusal_rate,all,all,60,4,9,claude,0.27\n"
    )
    (small / "whitebox.csv").write_text(f"{INSIDE}{MODEL},Q2_K,-3,-0.5,0.2\n{MODEL},Q8_0,0,0.1,0.01\n")
    for text in texts(small, profile):
        assert "Inside the builds" in text
        assert "Which judge gives more credit" in text
        assert "gemma" in text
    if profile == "study":
        said = texts(small, profile)[1]
        assert "gemma read 90 answers and left 7 of them ungraded; 80 of its labels count." in said
        assert "Of 60 answers that both graded for refusal rate, gemma alone gives 4 credit and claude alone 9" in said


def test_the_study_has_the_instruments_and_only_the_alarms_that_fire(small):
    assert "## Instruments" in texts(small, "study")[1]
    for fires in (None, "0", "1"):
        if fires:
            (small / "alarms.csv").write_text(f"{ALARMS}{fires}\n")
        for text in texts(small, "study"):
            assert ("Format alerts" in text) == (fires == "1")


def test_a_value_that_has_no_change_stands_alone_in_the_heat_map(small):
    change(small, baseline_kl="0.2")
    lines = "base_model,quant,metric,unit,baseline_value,delta,delta_percent\n"
    (small / "deltas.csv").write_text(f"{lines}{MODEL},Q8_0,baseline_kl,nats,,,\n")
    bundle = decision_of(small)
    (heat,) = heat_maps(bundle, builds(bundle))
    (line,) = [row for _, rows in heat.groups for row in rows if row.metric == "baseline kl"]
    assert next((cell.value, cell.delta) for cell in line.cells if cell.tone != "reference") == ("0.200", "")


@pytest.mark.parametrize("names", [("gemma",), ("a-judge-of-a-very-long-name-that-no-axis-has-room-for", "another")])
def test_axes_and_the_terminal_name_the_instrument_as_far_as_there_is_room(small, names):
    """By pattern, by which judge, or where its name is too long that it is one; the caption then has the whole."""

    def axes(html):
        return re.findall(r'<text [^>]*class="title"[^>]*>([^<]*)</text>', html)

    def header(width):
        console = Console(width=width, file=io.StringIO())
        console.print(decision_table(decision_of(small)))
        return console.file.getvalue().split("FP16")[0]

    html, _ = texts(small, "default")
    assert "refusal delta by pattern (pp)" in axes(html)
    assert "refusal rate by pattern (%)" in axes(html)
    assert re.search(r"refusal delta +.*\n.*by pattern, pp", header(120))
    judge(small, *((name, "harm", "FULL_REFUSAL") for name in names))
    html, _ = texts(small, "default")
    by = f"by judge {names[0]}" if len(names) == 1 else "by judge"
    assert f"refusal delta {by} (pp)" in axes(html)
    assert f"refusal rate {by} (%)" in axes(html)
    assert f"refusal rate by judge{'s' * (len(names) > 1)} {', '.join(names)}" in html
    shown = header(120)
    assert ("gemma, pp" if len(names) == 1 else "a-judge-of-…, pp") in shown
    assert max(map(len, header(80).splitlines())) <= 80
