"""A gate as JUnit XML and as Markdown: what is skipped is never passed, and odd characters mean themselves."""

from xml.etree import ElementTree as ET

import pytest

from quantverdict.protocol.gate import Gate, MetricVerdict
from quantverdict.records import CellId
from quantverdict.reporting.summary import gate_json, gate_lines, junit_xml, summary_markdown

NUMBERS = {"n_pairs": 200, "delta_pp": -1.25, "ci_lo_pp": -3.5, "ci_hi_pp": 1.0, "margin_pp": 5, "n_needed": 900}
ODD = 'a <b> & "c" | d\x07e\ufffff\ud800'
Q4, Q8 = CellId("m", "Q4"), CellId("m", "Q8")


@pytest.fixture
def mixed():
    verdicts = (
        MetricVerdict(CellId("m", "FP16"), "refusal_rate", "passed", "on its floor"),
        MetricVerdict(Q8, "refusal_rate", "passed", "ruled out", NUMBERS),
        MetricVerdict(Q8, "rouge_l", "not_resolvable", "too few prompts", NUMBERS),
        MetricVerdict(Q4, "rouge_l", "failed", ODD, NUMBERS),
        MetricVerdict(Q4, "refusal_rate", "waived", "waived until 2030-01-01: known", NUMBERS, "failed"),
        MetricVerdict(Q4, "truthfulness", "not_measured", "no pair"),
    )
    return Gate("s & t", "quantverdict", "paired", (Q8, Q4), verdicts, ("waiver of x expired <b>",))


def outcome_of(case):
    return next((name for name in ("failure", "skipped", "error") if case.find(name) is not None), "passed")


def test_junit_has_a_suite_a_build_and_passes_only_what_passed(mixed):
    root = ET.fromstring(junit_xml(mixed))
    suites = {suite.get("name"): suite for suite in root.findall("testsuite")}
    assert list(suites) == ["m/FP16", "m/Q8", "m/Q4"]
    found = {(case.get("classname"), case.get("name")): outcome_of(case) for case in root.iter("testcase")}
    assert found == {
        ("m/FP16", "refusal_rate"): "passed",
        ("m/Q8", "refusal_rate"): "passed",
        ("m/Q8", "rouge_l"): "skipped",
        ("m/Q4", "rouge_l"): "failure",
        ("m/Q4", "refusal_rate"): "skipped",
        ("m/Q4", "truthfulness"): "skipped",
    }
    counts = [suites["m/Q4"].get(name) for name in ("tests", "failures", "errors", "skipped")]
    assert counts == ["3", "1", "0", "2"]
    assert [root.get(name) for name in ("name", "tests", "failures", "skipped")] == ["s & t", "6", "1", "3"]


def test_junit_says_why_whatever_the_characters(mixed):
    """Markup is escaped; what XML cannot hold is replaced, and the file still parses as UTF-8."""
    root = ET.fromstring(junit_xml(mixed).encode())
    messages = [found.get("message") for found in (*root.iter("failure"), *root.iter("skipped"))]
    assert messages == [
        'a <b> & "c" | d\ufffde\ufffdf\ufffd',
        "inconclusive: too few prompts",
        "by pattern: waived until 2030-01-01: known",
        "by pattern: not measured: no pair",
    ]


def test_a_gate_without_a_build_is_skipped_in_junit_and_not_green():
    root = ET.fromstring(junit_xml(Gate("s", "p", "paired", (), (), ())))
    assert [outcome_of(case) for case in root.iter("testcase")] == ["skipped"]


def test_the_summary_names_what_stands_against_each_build(mixed):
    text = summary_markdown(mixed)
    assert text.startswith("## \N{MULTIPLICATION X} quantverdict: rejected\n")
    assert "| m/Q8 | inconclusive | inconclusive: ROUGE-L |" in text
    assert '| m/Q4 | rejected | ROUGE-L: a \\<b\\> \\& "c" \\| d\ufffde' in text
    assert "refusal rate by pattern: waived until 2030-01-01: known; not measured: truthfulness by pattern |" in text
    delta = "\N{MINUS SIGN}1.25 \\[\N{MINUS SIGN}3.5, +1.0\\]"
    assert f"| m/Q8 | refusal rate by pattern | \N{CHECK MARK} passed | {delta} | 5.00 | 200 | 900 |  |" in text
    assert "- waiver of x expired \\<b\\>" in text


def test_every_line_of_the_terminal_is_one_line(mixed):
    lines = gate_lines(mixed)
    assert lines[-1].startswith("gate: rejected (exit 3)")
    assert "  ? rouge_l: too few prompts" in lines
    assert not any("\n" in line for line in lines)


def test_the_document_has_every_verdict_with_its_numbers(mixed):
    document = gate_json(mixed)
    assert (document["verdict"], document["exit_code"]) == ("rejected", 3)
    assert [build["verdict"] for build in document["builds"]] == ["not_resolvable", "rejected"]
    waived = document["verdicts"][4]
    assert (waived["status"], waived["was"], waived["delta_pp"], waived["n_needed"]) == ("waived", "failed", -1.25, 900)
    assert document["verdicts"][5]["delta_pp"] is None
