"""Whose label counts, and what a second judge is asked."""

from collections import Counter

from quantverdict.judges.rubrics import first_label_wins, stratified
from quantverdict.records import CellId, Judgement


def said(judge, **labels):
    return [Judgement("m", "Q4", "t", sample, judge, label) for sample, label in labels.items()]


def test_the_first_judge_with_a_label_wins_and_every_judgement_is_kept_once():
    one, two = said("one", a="X", b=None, c=None), said("two", a="Y", b="Y", c=None, d="Y")
    first, others = first_label_wins([one, two])
    assert {j.sample_id: (j.judge, j.label) for j in first} == {
        "a": ("one", "X"),
        "b": ("two", "Y"),
        "c": ("one", None),
        "d": ("two", "Y"),
    }
    assert len(first) + len(others) == len(one) + len(two)
    assert {(j.judge, j.sample_id) for j in others} == {("two", "a"), ("one", "b"), ("two", "c")}


def samples(quant):
    return [("m", quant, task, f"{task}{n}") for task, size in (("big", 60), ("small", 20)) for n in range(size)]


def test_some_cells_are_taken_whole_and_others_by_task_in_proportion_the_same_prompts_in_each():
    asked = [*samples("FP16"), *samples("Q4"), *samples("Q2")]
    found = stratified(asked, [CellId("m", "FP16")], 20, seed=42)
    cells = Counter(sample[1] for sample in found)
    assert cells == {"FP16": 80, "Q4": 20, "Q2": 20}
    assert Counter(sample[2] for sample in found if sample[1] == "Q4") == {"big": 15, "small": 5}
    drawn = {quant: {sample[2:] for sample in found if sample[1] == quant} for quant in ("Q4", "Q2")}
    assert drawn["Q4"] == drawn["Q2"]
    assert found == [sample for sample in asked if sample in set(found)]
    assert stratified(asked, [], 20, seed=1) != stratified(asked, [], 20, seed=2)
    assert stratified(asked[::-1], [CellId("m", "FP16")], 20, seed=42) == found[::-1]


def test_any_first_part_of_a_draw_has_its_tasks_in_proportion_of_the_middles_of_their_shares():
    """60 of one task and 20 of another: places (k + 1/2) / 60 and (k + 1/2) / 20 merged."""
    for per_cell in range(1, 80):
        found = Counter(sample[2] for sample in stratified(samples("Q4"), [], per_cell, seed=7))
        places = sorted([((k + 0.5) / 60, "big") for k in range(60)] + [((k + 0.5) / 20, "small") for k in range(20)])
        assert found == Counter(task for _, task in places[:per_cell]), per_cell


def test_the_tasks_of_unlike_sizes_begin_with_the_larger():
    asked = [("m", "Q4", task, f"{n}") for task, size in (("a", 1), ("b", 2), ("c", 9)) for n in range(size)]
    order = [Counter(sample[2] for sample in stratified(asked, [], n, seed=3)) for n in range(1, 13)]
    places = sorted(((k + 0.5) / size, task) for task, size in (("a", 1), ("b", 2), ("c", 9)) for k in range(size))
    assert order == [Counter(task for _, task in places[:n]) for n in range(1, 13)]
