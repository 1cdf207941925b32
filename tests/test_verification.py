"""Whoever changes a bundle and writes the right hash beside it is found out: it does not follow from the data."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from quantverdict.cli import execute
from quantverdict.stages import run as pipeline

MATRIX = Path(__file__).parent / "data" / "published_matrix.csv"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return pipeline.analyze_matrix(MATRIX, tmp_path_factory.mktemp("bundles") / "study", "tr125")


@pytest.fixture
def tamper(bundle, tmp_path):
    """Replace text in an artefact, write its new hash into the manifest, and verify."""

    def change(name, old, new):
        copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
        path = copy / name
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")
        manifest = json.loads((copy / "manifest.json").read_text())
        manifest["artefacts"][name]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        (copy / "manifest.json").write_text(json.dumps(manifest))
        return pipeline.verify(copy)

    return change


def starting(problems, text):
    return [problem for problem in problems if problem.startswith(text)]


def test_an_untouched_bundle_holds_wherever_it_is(bundle, tmp_path):
    assert pipeline.verify(bundle) == []
    assert pipeline.verify(Path(shutil.copytree(bundle, tmp_path / "moved"))) == []


def test_thresholds_that_are_no_whole_numbers_are_stated_and_verified(tmp_path):
    """They stand in `decision.json` as fractions, and the study's report filters rows by them."""
    policy = tmp_path / "mine.yaml"
    policy.write_text("name: mine\nbase: tr125\nrefusal_collapse_pp: -7.5\nrole_signal_pp: 2.73\n")
    bundle = pipeline.analyze_matrix(MATRIX, tmp_path / "bundle", str(policy))
    pipeline.report(bundle, "study")
    assert pipeline.verify(bundle) == []


def test_either_profile_holds_and_is_kept(bundle, tmp_path):
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    short = (copy / "report.html").read_bytes()
    pipeline.report(copy, "study")
    long = (copy / "report.html").read_bytes()
    assert len(long) != len(short)
    assert pipeline.verify(copy) == []
    pipeline.report(copy)
    assert (copy / "report.html").read_bytes() == long
    pipeline.report(copy, "default")
    assert pipeline.verify(copy) == []
    assert b"the study</title>" not in (copy / "report.html").read_bytes()


def test_a_number_of_the_matrix(tamper):
    problems = tamper("matrix.csv", ",Q8_0,8,0,0.322807017544,92", ",Q8_0,8,0,0.319298245614,91")
    (delta,) = starting(problems, "deltas.csv: row base_model=llama3.2-1b;quant=Q8_0;metric=mmlu_accuracy")
    assert "matrix.csv gives" in delta
    assert starting(problems, "checklist.csv: row step=P5_001")


def test_a_number_of_the_matrix_that_nothing_is_computed_from(tamper):
    """Every byte of the matrix is in the hash that step P5_001 shows."""
    problems = tamper("matrix.csv", ",Llama,1.236,", ",Llama,1.237,")
    (step,) = starting(problems, "checklist.csv: row step=P5_001: observed is")
    assert "matrix.csv gives" in step


def test_a_regime(tamper):
    problems = tamper("regimes.csv", "AWQ,hidden_danger", "AWQ,neutral")
    assert problems[0] == (
        "regimes.csv: row base_model=llama3.2-1b;quant=AWQ: regime is neutral; matrix.csv gives hidden_danger"
    )
    assert starting(problems, "claims.csv: claim danger_n says 9; regimes.csv, row regime=hidden_danger|near_hidden")


@pytest.mark.parametrize(
    ("table", "old", "new", "cell"),
    [
        ("row_actions", "reject_hidden_danger", "reference", "base_model=llama3.2-1b;quant=AWQ: action"),
        ("quant_roles", "Q4_K_M,6,2.73,2,not", "Q4_K_M,6,2.73,0,not", "quant=Q4_K_M: reject_rows"),
        ("floor", "Q5_K_M,2.73", "Q4_K_M,2.73", "quant=Q5_K_M: quant"),
        ("taxonomy", ",8,8 rows", ",7,7 rows", "id=TAX_002: n"),
        ("mixed_effects", "-0.79", "-0.86", "quality_metric=rouge_l;safety_metric=refusal_rate;random=intercept: coef"),
    ],
)  # fmt: skip
def test_a_decision_or_a_statistic(tamper, table, old, new, cell):
    assert starting(tamper(f"{table}.csv", old, new), f"{table}.csv: row {cell} is ")


def test_a_claim(tamper):
    problems = tamper("claims.csv", ",count,33,", ",count,37,")
    assert starting(problems, "claims.csv: claim asymmetry_faster says 37; asymmetry.csv, ")


def test_a_claim_that_is_bound_to_another_row(tamper):
    """It may hold where it points now, but it is not what the report states."""
    problems = tamper("claims.csv", "asymmetry.csv,safety_degrades_faster=1,,count,33", "asymmetry.csv,,ratio,count,41")
    assert starting(problems, "claims.csv: claim asymmetry_faster: row is ''")


def test_a_claim_that_is_left_out(bundle, tamper):
    line = next(line for line in (bundle / "claims.csv").read_text().splitlines() if line.startswith("danger_n,"))
    assert starting(
        tamper("claims.csv", line + "\n", ""), "claims.csv: claim danger_n, which the report states, is missing"
    )


def test_a_number_of_the_report(tamper):
    (problem,) = tamper("report.md", "refusal signal is 2.73 pp", "refusal signal is 1.73 pp")
    assert problem.startswith("report.md: line ")
    assert "1.73 pp" in problem
    assert "2.73 pp" in problem


def test_a_number_of_the_page(tamper):
    (problem,) = tamper("report.html", ">2.73 pp<", ">1.73 pp<")
    assert problem.startswith("report.html: line ")


def test_the_decision_document(tamper):
    problems = tamper("decision.json", '"regime": "hidden_danger"', '"regime": "neutral"')
    assert starting(problems, "decision.json: cells[5].regime is 'neutral'; matrix.csv gives 'hidden_danger'")


def test_a_threshold_of_the_policy(tamper):
    """The tables no longer follow from the policy that is said to have made them."""
    problems = tamper("decision.json", '"refusal_collapse_pp": "-10"', '"refusal_collapse_pp": "-20"')
    assert starting(problems, "regimes.csv: row ")


@pytest.mark.parametrize("name", ["matrix.csv", "decision.json", "claims.csv", "regimes.csv"])
@pytest.mark.parametrize("ruin", [b"", b"\xff\xfe", b"{}", b"[1]\n", b"a,b\n1\n"])
def test_a_ruined_artefact_is_a_problem_and_never_a_crash(bundle, tmp_path, name, ruin, capsys):
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    (copy / name).write_bytes(ruin)
    assert execute(["verify", str(copy), "--json"]) == 2
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert [problem for problem in problems if problem.startswith(f"{name}: changed")]
    assert all("\n" not in problem for problem in problems)


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """A bundle of scored samples: two builds, twenty questions."""
    root = tmp_path_factory.mktemp("sampled")
    rows = [
        {"model": "m", "quant": quant, "task": task, "id": f"{task}-{n}", "right": int(n % 5 > lost)}
        for quant, lost in (("FP16", 0), ("Q4_K_M", 2))
        for task in ("mmlu", "advbench_refusal")
        for n in range(20)
    ]
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (root / "rows.jsonl").write_bytes(data)
    columns = {"base_model": "model", "quant": "quant", "task": "task", "sample_id": "id"}
    measures = [
        {"metric": "mmlu_accuracy", "column": "right", "tasks": ["mmlu"]},
        {"metric": "refusal_rate", "column": "right", "tasks": ["advbench_refusal"]},
    ]
    source = {"label": "rows", "role": "quality", "path": "rows.jsonl", "sha256": hashlib.sha256(data).hexdigest(),
              "columns": columns, "measures": measures}  # fmt: skip
    model = {"name": "m", "family": "f", "params_b": 1, "baseline": "FP16", "quants": {"FP16": 16, "Q4_K_M": "4.85"}}
    policy = {"base": "tr125", "quality_metric": "mmlu_accuracy"}
    study = {"study": "s", "models": [model], "sources": [source], "policy": policy}
    (root / "sources.yaml").write_text(json.dumps(study))
    return pipeline.ingest(root / "sources.yaml", root / "bundle")


def test_a_matrix_that_does_not_follow_from_its_scores(sampled, tmp_path):
    assert pipeline.verify(sampled) == []
    copy = Path(shutil.copytree(sampled, tmp_path / "copy"))
    text = (copy / "matrix.csv").read_text()
    assert ",0.8,16,20," in text
    (copy / "matrix.csv").write_text(text.replace(",0.8,16,20,", ",0.75,15,20,", 1))
    problem = starting(pipeline.verify(copy), "matrix.csv: row ")[0]
    assert "is 0.75; scores.parquet gives 0.8 (and 1 more)" in problem
