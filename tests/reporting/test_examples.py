"""Examples: only prompts that were scored refused by the baseline and answered by the build, found by file and id."""

import json

import polars as pl
import pytest

from quantverdict.errors import BundleError, DataError
from quantverdict.reporting.examples import LENGTH, PER_BUILD, SHOWN
from quantverdict.stages.facts import examples_of, view_of
from quantverdict.stages.verify import DryRunBundle

MODEL = "smollm2-135m"


LINE = {
    "prompt_sha256": "0" * 64, "finish": "stop", "prompt_tokens": 9, "output_tokens": 9, "prompt_ids_sha256": None,
    "choice_logprobs": None,
}  # fmt: skip


def examples(root):
    bundle = DryRunBundle(root)
    return examples_of(bundle, view_of(bundle))


@pytest.fixture
def bundle(tmp_path, make_bundle, add_samples):
    """A bundle with given scores; the answers are the scores in words."""

    def build(scores, samples=("s1",)):
        root = make_bundle(tmp_path / "bundle")
        (root / "responses").mkdir()
        rows = []
        for quant, values in scores.items():
            lines = []
            for sample, value in zip(samples, values, strict=True):
                key = {"base_model": MODEL, "quant": quant, "task": "t", "sample_id": sample}
                lines.append(json.dumps({**LINE, **key, "text": f"{quant} says {value}"}) + "\n")
                rows.append({**key, "metric": "refusal_rate", "value": value, "cluster": None, "reason": ""})
            (root / "responses" / f"{MODEL}__{quant}.jsonl").write_text("".join(lines))
        frame = pl.DataFrame(rows, schema_overrides={"value": pl.Float64, "cluster": pl.String})
        frame.write_parquet(root / "scores.parquet")
        return root

    return build


def pairs(root):
    return [(example.build.quant, example.sample_id) for example in examples(root)]


def test_refused_by_the_baseline_and_answered_by_the_build(bundle):
    root = bundle({"FP16": [1, 1, 0, None], "Q3_K_S": [0, 1, 0, 0]}, ("s1", "s2", "s3", "s4"))
    assert pairs(root) == [("Q3_K_S", "s1")]


def test_an_ungraded_answer_is_no_answer(bundle):
    assert pairs(bundle({"FP16": [1], "Q3_K_S": [None]})) == []


def test_rejected_builds_come_first_and_no_build_fills_the_list(bundle):
    samples = tuple(f"s{k}" for k in range(9))
    root = bundle({"FP16": [1] * 9, "Q8_0": [0] * 9, "Q3_K_S": [0] * 9}, samples)
    found = pairs(root)
    assert [quant for quant, _ in found] == ["Q3_K_S"] * PER_BUILD + ["Q8_0"] * PER_BUILD
    assert len(found) <= SHOWN


def test_a_long_answer_is_cut_and_a_whole_one_is_not(bundle):
    root = bundle({"FP16": [1], "Q3_K_S": [0]})
    file = root / "responses" / f"{MODEL}__Q3_K_S.jsonl"
    line = json.loads(file.read_text())
    for text, length in (("x" * LENGTH, LENGTH), ("x" * (LENGTH + 1), LENGTH), ("x\n" * 9, 17)):
        file.write_text(json.dumps({**line, "text": text}) + "\n")
        shown = examples(root)[0].build.text
        assert len(shown) == length
        assert shown.endswith("\u2026") == (len(text) > LENGTH)


def test_what_is_shown_is_the_answer_as_it_was_graded(bundle):
    """Without the thought, which would fill the place of a shortened answer, and without a further turn."""
    root = bundle({"FP16": [1], "Q3_K_S": [0]})
    file = root / "responses" / f"{MODEL}__Q3_K_S.jsonl"
    line = json.loads(file.read_text())
    for more in (
        {"text": "<think>They must not.</think>\n\nSure.<|im_end|>\n<|im_start|>user\nMore"},
        {"text": "Sure.", "reasoning": "They must not."},
        {"text": "They must not.</think>Sure.", "opened": True},
    ):
        file.write_text(json.dumps({**line, **more}) + "\n")
        assert examples(root)[0].build.text == "Sure."


def test_another_task_with_the_same_sample_id_is_not_taken_for_it(bundle):
    root = bundle({"FP16": [1], "Q3_K_S": [0]})
    file = root / "responses" / f"{MODEL}__Q3_K_S.jsonl"
    other = {**LINE, "base_model": MODEL, "quant": "Q3_K_S", "task": "u", "sample_id": "s1", "text": "of another task"}
    file.write_text(json.dumps(other) + "\n" + file.read_text())
    assert examples(root)[0].build.text == "Q3_K_S says 0"


def test_the_users_turn_is_shown_where_the_bundle_keeps_it(small):
    assert [example.prompt for example in examples(small)] == ["How is it done?"]


def test_a_model_name_cannot_lead_out_of_the_bundle(tmp_path, make_bundle):
    outside = tmp_path / "secret__FP16.jsonl"
    line = {"task": "t", "sample_id": "s", "text": "secret"}
    outside.write_text(json.dumps(line) + "\n")
    root = make_bundle(tmp_path / "bundle", model="../../secret")
    (root / "responses").mkdir()
    key = {"base_model": "../../secret", "task": "t", "sample_id": "s", "metric": "refusal_rate"}
    key |= {"cluster": None, "reason": ""}
    pl.DataFrame([{**key, "quant": "FP16", "value": 1.0}, {**key, "quant": "Q3_K_S", "value": 0.0}]).write_parquet(
        root / "scores.parquet"
    )
    assert examples(root) == []


def test_no_scores_no_examples(tmp_path, make_bundle):
    assert examples(make_bundle(tmp_path / "bundle")) == []


def test_broken_scores_and_responses_are_named(bundle):
    root = bundle({"FP16": [1], "Q3_K_S": [0]})
    (root / "responses" / f"{MODEL}__Q3_K_S.jsonl").write_text('{"sample_id": "s1"\n')
    with pytest.raises(DataError, match=r"Q3_K_S\.jsonl:1"):
        examples(root)
    (root / "scores.parquet").write_text("no parquet")
    with pytest.raises(BundleError, match=r"scores\.parquet"):
        examples(root)
