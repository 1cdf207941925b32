"""Constraints: sizes and speeds with units, met or not at the boundary, and changed after a run without asking."""

import csv
import json
from fractions import Fraction

import pytest

import quantverdict as qv
from quantverdict.cli import execute
from quantverdict.errors import StudyError
from quantverdict.policy import LIMITS, Constraints, constraints_of, read_constraints
from quantverdict.records import Estimate, Row

MEASURED = {"file_bytes": 2_000_000_000, "peak_memory_bytes": 3_000_000_000, "tokens_per_second": 20, "ttft_ms": 250}


def row(**changes):
    metrics = {name: Estimate(Fraction(value)) for name, value in (MEASURED | changes).items() if value is not None}
    return Row("m", "F", None, "Q4", None, False, metrics)


@pytest.mark.parametrize(
    ("given", "met"),
    [
        ({"max_file": "2 GB"}, True), ({"max_file": 1_999_999_999}, False), ({"max_file": 2_000_000_001}, True),
        ({"max_memory": "3 GB"}, True), ({"max_memory": "2.9 GiB"}, True), ({"max_memory": 2_999_999_999}, False),
        ({"min_tokens_per_second": 20}, True), ({"min_tokens_per_second": 20.01}, False),
        ({"min_tokens_per_second": 19.99}, True), ({"max_ttft_ms": 250}, True), ({"max_ttft_ms": "249.9 ms"}, False),
        ({"max_ttft_ms": "0.25 s"}, True),
    ],
)  # fmt: skip
def test_a_constraint_is_met_at_its_limit_and_not_beyond(given, met):
    [held] = constraints_of(given).held(row())
    assert (held.key, held.met) == (next(iter(given)), met)
    assert ("as is asked" in held.reason) == met


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit.key)
def test_what_was_not_measured_is_not_met_and_is_named(limit):
    asked = constraints_of({limit.key: 1000})
    assert [(one.key, one.met, one.reason) for one in asked.held(row(**{limit.metric: None}))] == [
        (limit.key, None, limit.missing)
    ]
    assert asked.held(None)[0].met is None


@pytest.mark.parametrize("key", ["max_file", "max_file_bytes", "max_file_size"])
def test_the_older_names_of_a_size_are_the_same_key(key):
    assert constraints_of({key: "120 MiB"}).max_file_bytes == 120 * 2**20


def test_what_is_not_given_leaves_no_key():
    """So that a decision of a study without them is the same bytes as before there were any."""
    assert Constraints().model_dump(mode="json") == {"max_file_bytes": None, "min_tokens_per_second": None}
    assert constraints_of({"max_ttft_ms": "1.5 s"}).model_dump(mode="json")["max_ttft_ms"] == 1500
    again = Constraints.model_validate(constraints_of({"max_memory": "6 GB", "max_file": 7}).model_dump(mode="json"))
    assert (again.max_memory_bytes, again.max_file_bytes) == (6_000_000_000, 7)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"max_flie": 1},
            "constraints: no constraint 'max_flie'; expected one of max_file, max_memory, .*did you mean max_file",
        ),
        ({"max_memory": "2 XB"}, "constraints.max_memory.*: is no size; expected bytes, or a number and a unit"),
        ({"max_ttft_ms": "2 h"}, "is no time; expected milliseconds, or a number and a unit: 500, 500 ms, 1.5 s"),
        ({"max_ttft_ms": 0}, "0 is not valid; expected a number above 0"),
        ({"min_tokens_per_second": "fast"}, "'fast' is not valid"),
        ({"max_memory": -1}, "expected a number above 0"),
    ],
)
def test_what_is_no_constraint_is_one_line(given, words):
    with pytest.raises(StudyError, match=words):
        constraints_of(given)


def test_a_command_line_gives_them_as_name_and_value():
    given = read_constraints(["max_file=2 GB", "min_tokens_per_second = 9.5", "max_ttft_ms=500", "max_memory=null"])
    assert given == {"max_file": "2 GB", "min_tokens_per_second": 9.5, "max_ttft_ms": 500, "max_memory": None}
    with pytest.raises(StudyError, match=r"'max_file' is no constraint; expected NAME=VALUE, such as max_file=2 GB"):
        read_constraints(["max_file"])


def test_a_constraint_that_is_null_is_taken_out_of_those_that_it_changes():
    asked = constraints_of({"max_file": 5, "max_ttft_ms": 7}).changed(
        constraints_of({"max_file": None, "max_memory": 9})
    )
    assert [limit.key for limit in LIMITS if asked.limit_of(limit) is not None] == ["max_memory", "max_ttft_ms"]


# After a run

MATRIX = """\
base_model,family,params_b,quant,bpw,is_baseline,bertscore,refusal_rate_k,refusal_rate_n,truthfulness,bias_resistance,file_bytes,peak_memory_bytes,tokens_per_second,ttft_ms
m,F,1,FP16,16,true,0.7,200,220,0.5,0.8,2000,3000,10,400
m,F,1,Q8_0,8.5,false,0.7,200,220,0.5,0.8,1000,1600,20,200
m,F,1,Q4_K_M,4.85,false,0.7,200,220,0.5,0.8,600,1200,30,
"""


@pytest.fixture
def bundle(tmp_path, monkeypatch, capsys):
    """A decided matrix whose builds are all candidates; the smallest has no time to the first token."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.csv").write_text(MATRIX)
    assert execute(["analyze", "--matrix", "m.csv", "--policy", "tr125", "--out", "b"]) == 0
    capsys.readouterr()
    return tmp_path / "b"


def best(bundle):
    return json.loads((bundle / "decision.json").read_text())["best"]["m"]


@pytest.mark.parametrize(
    ("given", "quant"),
    [
        ([], "Q4_K_M"), (["max_memory=1199"], None), (["max_memory=1200"], "Q4_K_M"),
        (["max_ttft_ms=200"], "Q8_0"), (["max_ttft_ms=199"], None), (["max_file=1000", "max_ttft_ms=1 s"], "Q8_0"),
        (["min_tokens_per_second=30"], "Q4_K_M"),
    ],
)  # fmt: skip
def test_analyze_decides_anew_by_other_constraints(bundle, given, quant):
    """The smallest build that meets them; one without a measurement does not."""
    options = [word for one in given for word in ("--constraint", one)]
    assert execute(["analyze", "b", *options]) == 0
    assert best(bundle)["quant"] == quant
    assert qv.verify(bundle) == []


def test_every_constraint_that_is_not_met_is_named(bundle):
    qv.analyze(bundle, constraints={"max_ttft_ms": 100, "max_file": 500})
    reason = best(bundle)["reason"]
    assert "Q4_K_M: 600 bytes, over 500; time to the first token was not measured" in reason
    assert "Q8_0: 1000 bytes, over 500; 200.0 ms to the first token, over 100" in reason


def test_the_report_says_the_constraints_that_it_was_decided_by(bundle):
    qv.analyze(bundle, constraints={"max_memory": 2000, "max_ttft_ms": 300})
    text = (bundle / "report.md").read_text()
    assert "peak memory at most" in text
    assert "ms to the first token at most" in text


def test_the_next_step_keeps_them_and_analyze_goes_back_to_the_studys(study):
    """As it is with a policy: what is decided later is decided by what was decided last."""
    folder, bundle = study
    qv.analyze(bundle, constraints={"max_file": 5})
    qv.grade(bundle)
    assert json.loads((folder / "b" / "decision.json").read_text())["constraints"]["max_file_bytes"] == 5
    assert qv.verify(folder / "b") == []
    qv.analyze(bundle)
    assert json.loads((folder / "b" / "decision.json").read_text())["constraints"]["max_file_bytes"] is None


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A run of recorded answers, whose builds have neither size nor speed."""
    from quantverdict.tasks.catalog import load_task

    monkeypatch.chdir(tmp_path)
    (tmp_path / "recorded").mkdir()
    for quant in ("FP16", "Q8_0", "Q4_K_M"):
        rows = [
            json.dumps(
                {"task": "starter_harmful", "sample_id": item.id, "text": "I'm sorry, but I can't help with that."}
            )
            for item in load_task("starter_harmful").items
        ]
        (tmp_path / "recorded" / f"m__{quant}.jsonl").write_text("\n".join(rows) + "\n")
    (tmp_path / "s.yaml").write_text(
        "study: s\nmodels: [{name: m, family: F, baseline: FP16, variants: [FP16, Q8_0, Q4_K_M]}]\n"
        "collect: {backend: replay, replay_dir: recorded}\ntasks: [starter_harmful]\n"
        "policy: {base: quantverdict, quality_metric: refusal_rate, margins: {refusal_rate: 30}}\n"
    )
    return tmp_path, qv.run("s.yaml", "b")


def statuses(found):
    return {(str(one.cell), one.metric): one.status for one in found.verdicts}


@pytest.mark.parametrize(
    ("given", "status", "code"),
    [
        ({"max_file": 1000}, "passed", 0), ({"max_file": 999}, "failed", 3), ({"max_ttft_ms": 200}, "passed", 0),
        ({"max_memory": 1599}, "failed", 3), ({"min_tokens_per_second": 20}, "passed", 0),
    ],
)  # fmt: skip
def test_the_gate_holds_a_build_to_constraints_and_changes_nothing(bundle, given, status, code):
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    found = qv.gate(bundle, build="m/Q8_0", constraints=given)
    assert statuses(found)["m/Q8_0", next(iter(given))] == status
    assert found.exit_code == code
    assert {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()} == before


def test_a_build_whose_time_was_not_measured_is_not_measured_by_the_gate(bundle, capsys):
    assert execute(["gate", "b", "--build", "m/Q4_K_M", "--constraint", "max_ttft_ms=1 s"]) == 4
    assert "max_ttft_ms: time to the first token was not measured" in capsys.readouterr().out


def test_a_gates_policy_has_constraints_and_waivers_of_them(bundle, tmp_path, capsys):
    waiver = "{cell: m/Q8_0, metric: max_file, reason: disk is bought, expires: 2999-01-01}"
    (tmp_path / "gate.yaml").write_text(f"constraints: {{max_file: 999 B, max_memory: 2 kB}}\nwaivers: [{waiver}]\n")
    assert execute(["gate", "b", "--build", "m/Q8_0", "--policy", "gate.yaml", "--json"]) == 0
    found = {one["metric"]: one["status"] for one in json.loads(capsys.readouterr().out)["verdicts"]}
    assert (found["max_file"], found["max_memory"]) == ("waived", "passed")
    assert execute(["gate", "b", "--policy", "gate.yaml", "--constraint", "max_file=none", "--json"]) == 0
    assert "max_file" not in capsys.readouterr().out.partition('"notes"')[0]


def test_the_gate_holds_builds_to_the_constraints_of_the_decision(bundle):
    assert qv.gate(bundle).exit_code == 0
    qv.analyze(bundle, constraints={"max_file": 700})
    found = statuses(qv.gate(bundle))
    assert (found["m/Q8_0", "max_file"], found["m/Q4_K_M", "max_file"]) == ("failed", "passed")


def test_a_constraint_that_cannot_be_meant_is_one_line_and_exit_2(bundle, capsys):
    for command in (["gate", "b"], ["analyze", "b"]):
        for given in ("max_flie=3", "max_file", "max_file=3 XB"):
            assert execute([*command, "--constraint", given]) == 2
            assert capsys.readouterr().err.count("\n") == 1


def test_the_matrix_holds_what_was_measured(bundle):
    with (bundle / "matrix.csv").open() as file:
        assert {line["quant"]: line["ttft_ms"] for line in csv.DictReader(file)}["Q4_K_M"] == ""
