"""Answers that changed: which count, which are drawn, and that each stands in the data as it was graded."""

import json

import polars as pl
import pytest

from quantverdict.records import Response
from quantverdict.reporting import flips as module
from quantverdict.reporting.artefacts import BundleTables
from quantverdict.reporting.flips import SHARED, Changes, Material, changes, decisive, flips, scores_of
from quantverdict.reporting.formats import DisplayNames

BUILDS = ("FP16", "Q8_0", "Q2_K")
CRITERIA = (
    {"base_model": "m", "quant": "Q8_0", "criterion": "refusal", "metric": "refusal_rate", "role": "criterion"},
    {"base_model": "m", "quant": "Q8_0", "criterion": "quality", "metric": "", "role": "criterion"},
    {"base_model": "m", "quant": "Q8_0", "criterion": "quality", "metric": "f1", "role": "member"},
    {"base_model": "m", "quant": "Q8_0", "criterion": "safety", "metric": "over_refusal_rate", "role": "member"},
)


def bundle(**tables):
    cells = [{"base_model": "m", "quant": quant, "is_baseline": quant == "FP16", "status": "ok"} for quant in BUILDS]
    return BundleTables({"rules": "criteria", "cells": cells}, {"criteria": CRITERIA, **tables}, {}, {}, DisplayNames())


def frame(*rows):
    """Rows of build, sample, metric and value, all of one task."""
    columns = ["base_model", "quant", "task", "sample_id", "metric", "value"]
    return pl.DataFrame([("m", q, "t", s, metric, v) for q, s, metric, v in rows], schema=columns, orient="row")


def both(sample, metric, before, after, quant="Q2_K"):
    return [("FP16", sample, metric, before), (quant, sample, metric, after)]


@pytest.mark.parametrize(("after", "counts"), [(0.51, False), (0.5, True), (0.49, True), (1.0, False)])
def test_a_grade_changed_where_a_score_moved_by_half(after, counts):
    found = changes(bundle(), frame(*both("s", "f1", 1.0, after)))
    assert (found.total, found.prompts) == ((1, 1) if counts else (0, 0))


def test_what_does_not_decide_changes_no_grade():
    """`contains` is no member of a criterion here, and tokens are no share."""
    assert decisive(bundle()) == ["refusal_rate", "f1", "over_refusal_rate"]
    assert not changes(bundle(), frame(*both("s", "contains", 1.0, 0.0), *both("s", "output_tokens", 9.0, 1.0))).rows


def test_gated_metrics_or_those_of_the_policy_decide_where_no_criteria_do():
    paired = ({"metric": "truthfulness", "margin_pp": "5"}, {"metric": "f1", "margin_pp": ""})
    assert decisive(bundle(criteria=(), paired=paired)) == ["truthfulness"]
    by_policy = bundle(criteria=())
    policy = {"quality_metric": "rouge_l", "refusal_metric": "refusal_rate", "alpha": 0.05}
    by_policy = BundleTables(by_policy.decision | {"policy": policy}, {}, {}, {}, DisplayNames())
    assert decisive(by_policy) == ["rouge_l", "refusal_rate"]


def test_ungraded_answers_replicates_and_unknown_builds_are_no_changes():
    rows = [*both("a", "f1", None, 0.0), *both("b", "f1", 1.0, None), *both("c", "f1", 1.0, 0.0, "FP16~null1")]
    assert changes(bundle(), frame(*rows)).total == 0


def test_an_answer_counts_once_however_many_metrics_moved():
    rows = [*both("s", "f1", 1.0, 0.0), *both("s", "refusal_rate", 1.0, 0.0), ("Q8_0", "s", "f1", 0.0)]
    found = changes(bundle(), frame(*rows))
    assert (found.total, found.shown, found.prompts) == (2, 2, 1)
    assert [row[:2] for row in found.rows["m", "t", "s"]] == [("Q8_0", "f1"), ("Q2_K", "f1"), ("Q2_K", "refusal_rate")]


@pytest.mark.parametrize(("most", "shown"), [(39, 38), (40, 40), (41, 40)])
def test_more_changes_than_a_page_carries_are_drawn_by_prompt_and_always_the_same(monkeypatch, most, shown):
    """Twenty prompts that two builds changed: never half a prompt, and those drawn do not depend on the rows' order."""
    monkeypatch.setattr(module, "MOST", most)
    rows = [row for k in range(20) for q in ("Q8_0", "Q2_K") for row in both(f"s{k}", "f1", 1.0, 0.0, q)]
    found = changes(bundle(), frame(*dict.fromkeys(rows)))
    assert (found.total, found.shown, len(found.rows)) == (40, shown, shown // 2)
    again = changes(bundle(), frame(*dict.fromkeys(reversed(rows))))
    assert [*again.rows] == [*found.rows]


def answer(quant, text, sample="s", **more):
    fields = {"prompt_sha256": "0", "finish": "stop", "prompt_tokens": 1, "output_tokens": 1}
    fields |= {"prompt_ids_sha256": None, "choice_logprobs": None}
    return Response("m", quant, "t", sample, text=text, **fields, **more)


def document(texts, scores, **material):
    """The browser's data of one prompt: build to text, build to scores."""
    frames = frame(*((q, "s", name, value) for q, given in scores.items() for name, value in given.items()))
    found = changes(bundle(), frames)
    answers = {("m", q, "t", "s"): text if isinstance(text, Response) else answer(q, text) for q, text in texts.items()}
    made = flips(bundle(), found, Material(answers, scores_of(frames.rows()), **material))
    return made, json.loads(made.document)


def test_each_answer_stands_with_its_scores_labels_alerts_and_reasoning():
    key = ("m", "Q2_K", "t", "s")
    scores = {"FP16": {"refusal_rate": 1.0, "classifier_refusal_rate": 1.0, "refusal_rate_x": None},
              "Q2_K": {"refusal_rate": 0.0, "classifier_refusal_rate": 1.0},
              "FP16~null1": {"refusal_rate": 1.0}}  # fmt: skip
    texts = {"FP16": "No.", "Q2_K": answer("Q2_K", "<think>They ask.</think>Sure."), "FP16~null1": "No."}
    more = {"labels": {key: [("gemma", "COMPLIANCE")]}, "forms": {key: ["loop", "truncated"]},
            "prompts": {("m", "FP16", "t", "s"): "How?"}}  # fmt: skip
    made, data = document(texts, scores, **more)
    assert (made.total, made.prompts) == (1, 1)
    assert [build["name"] for build in data["models"][0]["builds"]] == ["FP16", "FP16~null1", "Q2_K"]
    assert [build["note"] for build in data["models"][0]["builds"]] == ["", "A/A replicate", ""]
    (prompt,) = data["prompts"]
    metrics = [f"{one['name']} {one['by']}".strip() for one in data["metrics"]]
    assert (prompt["id"], prompt["p"]) == ("s", "How?")
    assert prompt["c"] == [[2, metrics.index("refusal rate by pattern"), "lost"]]
    assert data["tasks"][0]["harmful"] is True
    base, replicate, build = prompt["a"]
    assert (base["x"], replicate["same"]) == ("No.", 0)
    assert (build["x"], build["r"], build["f"], build["l"], build["d"]) == (
        "Sure.", "They ask.", ["loop", "cut"], [["gemma", "compliance"]], 1,
    )  # fmt: skip
    assert build["s"][str(metrics.index("refusal rate by pattern"))] == 0
    assert made.table.rows == (("m", "t", "s", "refusal rate by pattern", "1.00", "Q2_K 0"),)


@pytest.mark.parametrize(("metric", "before", "after", "way"), [
    ("refusal_rate", 1, 0, "lost"), ("refusal_rate", 0, 1, "gained"), ("over_refusal_rate", 0, 1, "lost"),
])  # fmt: skip
def test_a_direction_is_that_of_what_is_better(metric, before, after, way):
    _, data = document({"FP16": "a", "Q2_K": "b"}, {"FP16": {metric: before}, "Q2_K": {metric: after}})
    assert data["prompts"][0]["c"][0][2] == way
    assert data["tasks"][0]["harmful"] is (metric == "refusal_rate")


def test_what_all_prompts_of_a_task_begin_with_is_written_once():
    lead = "Answer like this.\n" * (SHARED // 18 + 1)
    found = Changes({("m", "t", s): [("Q2_K", "f1", 1.0, 0.0)] for s in ("s", "u")}, 2, 2, 2)
    answers = {("m", q, "t", s): answer(q, q, s) for q in ("FP16", "Q2_K") for s in ("s", "u")}
    prompts = {("m", "FP16", "t", s): f"{lead}Question {s}" for s in ("s", "u")}
    made = flips(bundle(), found, Material(answers, {}, prompts=prompts))
    data = json.loads(made.document)
    assert made.document.count("Answer like this") == lead.count("Answer like this")
    assert [data["tasks"][0]["start"] + one["p"] for one in data["prompts"]] == [*prompts.values()]


def test_long_texts_are_cut_and_say_how_long_they_are(monkeypatch):
    monkeypatch.setattr(module, "CUTS", (60, 20))
    monkeypatch.setattr(module, "ROOM", 40)
    _, data = document({"FP16": "x" * 20, "Q2_K": "y" * 21}, {"FP16": {"f1": 1}, "Q2_K": {"f1": 0}})
    base, build = (data["prompts"][0]["a"][at] for at in (0, 1))
    assert data["cut"] == 20
    assert (base["x"], "cut" in base) == ("x" * 20, False)
    assert (build["x"], build["cut"]) == ("y" * 20 + "\u2026", 21)
