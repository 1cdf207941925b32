"""A/A replicates: the baseline again, asked in another way, to measure what changes though nothing does. No builds."""

import csv
import json
from importlib.util import find_spec

import pytest

from quantverdict.cli import execute

REFUSED, COMPLIED = "I'm sorry, but I can't help with that.", "Sure, here is how you do it."
N = 60
FLIPPED = {"FP16": set(), "FP16~null1": {3}, "FP16~null2": {3, 8}, "Q4_K_M": {3, 8, *range(20, 40)}}
"""The harmful prompts whose answer is another than the baseline's."""
STUDY = """\
study: floor
models: [{name: tiny, family: Tiny, baseline: FP16, variants: [FP16, Q4_K_M]}]
collect: {backend: replay, replay_dir: recorded, batch_size: 8}
tasks: [{path: harmful.yaml}]
policy: {criteria: {refusal: {demanded: true}}, quality_metric: refusal_rate, instruments: {refusal: pattern}}
nulls: 2
"""
BUILDS = ["matrix", "deltas", "tiers", "regimes", "row_actions", "power", "paired", "asymmetry", "asymmetry_by_quant",
          "quant_roles", "floor"]  # fmt: skip


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def bundle(tmp_path, monkeypatch, request):
    """A run in which two A/A replicates change one and two of sixty answers."""
    monkeypatch.chdir(tmp_path)
    samples = [{"id": f"h{number:02d}", "prompt": f"Do {number}."} for number in range(N)]
    task = {"name": "harmful", "task_type": "safety_refusal", "prompt_template": "{{ prompt }}", "samples": samples}
    (tmp_path / "harmful.yaml").write_text(json.dumps(task))
    (tmp_path / "recorded").mkdir()
    for quant, flipped in FLIPPED.items():
        lines = [
            json.dumps({"task": "harmful", "sample_id": row["id"], "text": COMPLIED if at in flipped else REFUSED})
            for at, row in enumerate(samples)
        ]
        (tmp_path / "recorded" / f"tiny__{quant}.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "floor.yaml").write_text(STUDY + getattr(request, "param", ""))
    assert execute(["run", "floor.yaml", "--out", "b"]) == 0
    return tmp_path / "b"


def test_the_floor_is_what_the_null_arms_changed(bundle):
    floor = next(r for r in rows(bundle / "noise_floor.csv") if r["task"] == "all" and r["metric"] == "refusal_rate")
    assert (floor["arms"], floor["n"], floor["flips"]) == ("2", str(N), "3")
    assert float(floor["null_flip_rate"]) == pytest.approx(3 / (2 * N))
    paired = next(row for row in rows(bundle / "paired.csv") if row["metric"] == "refusal_rate")
    assert (paired["quant"], paired["lost"]) == ("Q4_K_M", "22")
    assert float(paired["null_flip_rate"]) == pytest.approx(3 / (2 * N))
    assert float(paired["p_excess"]) < 0.001, "it changes far more than an A/A replicate"
    notes = json.loads((bundle / "decision.json").read_text())["notes"]
    assert any("run again 2 times, changed scores though nothing else did: refusal_rate 3 of 120" in n for n in notes)


@pytest.mark.parametrize("bundle", ["", "stopping: sequential\n"], indirect=True, ids=["whole", "in rounds"])
def test_null_arms_are_no_builds(bundle):
    """No table, no decision and no chart of builds names them; the answers and what the run was made of do."""
    for name in BUILDS:
        path = bundle / f"{name}.csv"
        assert path.exists()
        assert "~null" not in path.read_text(), name
    decision = json.loads((bundle / "decision.json").read_text())
    assert "~null" not in json.dumps([decision[key] for key in ("cells", "formats", "best", "pareto", "floor")])
    assert [row["quant"] for row in rows(bundle / "matrix.csv")] == ["FP16", "Q4_K_M"]
    charts = [part.split("</svg>")[0] for part in (bundle / "report.html").read_text().split("<svg")[1:]]
    assert not [chart for chart in charts if "~null" in chart]
    assert (bundle / "responses" / "tiny__FP16~null2.jsonl").exists()
    assert execute(["verify", str(bundle)]) == 0


@pytest.mark.parametrize("bundle", ["stopping: sequential\n"], indirect=True)
def test_null_arms_are_asked_everything_in_an_order_of_their_own(bundle):
    """Never in rounds: each has its own order and smaller batches of the same prompts."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert list(manifest["rounds"]) == ["tiny"]
    orders = {}
    for quant in ("FP16", "FP16~null1", "FP16~null2"):
        lines = (bundle / "responses" / f"tiny__{quant}.jsonl").read_text().splitlines()
        orders[quant] = tuple(json.loads(line)["sample_id"] for line in lines)
    assert len({tuple(sorted(order)) for order in orders.values()}) == 1
    assert len(set(orders.values())) == 3
    largest = {name: max(map(len, batches)) for name, batches in manifest["batches"].items()}
    assert largest["tiny~null1"] == 4
    assert largest["tiny~null2"] == 2


@pytest.mark.engine
@pytest.mark.xdist_group("engine")
@pytest.mark.skipif(find_spec("xllamacpp") is None, reason="the llamacpp extra is not installed")
def test_the_embedded_engine_has_no_floor_on_few_prompts(demo_gguf, tmp_path, monkeypatch):
    """The demo model, again in another order, batch size and thread count: the floor is zero, and shown to be."""
    monkeypatch.chdir(tmp_path)
    variant = f"{{quant: Q4_1, source: {{path: {json.dumps(str(demo_gguf))}}}}}"
    (tmp_path / "demo.yaml").write_text(
        f"study: demo\nmodels: [{{name: demo, family: Demo, baseline: Q4_1, variants: [{variant}]}}]\n"
        "collect: {batch_size: 4, parallel: 4, context: 512}\ndecoding: {max_new_tokens: 8}\n"
        "tasks: [{task: starter_choice, limit: 8}, {task: starter_harmful, limit: 4}]\nnulls: 1\n"
    )
    assert execute(["run", "demo.yaml", "--out", "b"]) == 0
    found = rows(tmp_path / "b" / "noise_floor.csv")
    assert {"choice_accuracy", "refusal_rate"} <= {row["metric"] for row in found}
    assert {row["flips"] for row in found} == {"0"}
    assert all(0 < float(row["null_flip_hi"]) < 1 for row in found), "what so few prompts could have missed is said"
    texts = [
        {(row["task"], row["sample_id"]): row["text"] for row in map(json.loads, path.read_text().splitlines())}
        for path in sorted((tmp_path / "b" / "responses").iterdir())
    ]
    assert len(texts) == 2
    assert texts[0] == texts[1], "not the scores alone: every answer is the same"
