"""The roll of judges: who is active, whose labels are whose, and under which file they lie."""

import pytest

from quantverdict.bundle.judge_registry import JudgeRegistry, is_alike, labels_file
from quantverdict.config import JudgeConfig

JUDGE = JudgeConfig.model_validate({"name": "one", "model": "m", "source": {"path": "a.gguf"}})
HERE, THERE = {"sha256": "a", "version": "1"}, {"sha256": "b", "version": "1"}


def judge(**changes):
    return JudgeConfig.model_validate({**JUDGE.model_dump(), **changes})


def asked(judge_registry, config, identity):
    """As once the judge has labelled: its model is known."""
    return judge_registry.registered(config, {"sha256": identity["sha256"]}).with_entry(config, identity=identity)


@pytest.mark.parametrize(
    ("change", "alike"),
    [
        ({"covers": ("m",)}, True), ({"quants": ("Q8_0",)}, True), ({"second": True, "sample": 5}, True),
        ({"batch_size": 1}, True), ({"price": {"input": 1, "output": 1}}, True), ({"timeout_s": 1.0}, True),
        ({"model": "n"}, False), ({"context": 512}, False), ({"temperature": 0.5}, False),
        ({"source": {"path": "b.gguf"}}, False), ({"backend": "transformers"}, False), ({"name": "two"}, False),
        ({"backend": "llamacpp"}, True),
    ],
)  # fmt: skip
def test_what_says_how_an_answer_is_labelled_makes_another_judge(change, alike):
    judge_registry = asked(JudgeRegistry(), JUDGE, HERE)
    assert is_alike(judge_registry.judges["one"], judge(**change), {}) is alike


def test_a_file_that_moved_is_the_same_judge_and_another_in_its_place_is_not():
    """Even where the study was bound before the file was looked into."""
    judge_registry = asked(JudgeRegistry(), JUDGE, HERE)
    moved = judge(source={"path": "elsewhere/a.gguf"})
    bound = judge_registry.registered(moved).with_entry(moved)
    assert labels_file(bound.judges["one"]) == "one~2"
    back = asked(bound, moved, HERE)
    assert (labels_file(back.judges["one"]), back.former) == ("one", [])
    other = asked(judge_registry, JUDGE, THERE)
    assert (labels_file(other.judges["one"]), [labels_file(one) for one in other.former]) == ("one~2", ["one"])


def test_every_model_keeps_its_file_whatever_the_order():
    judge_registry, models = JudgeRegistry(), [(judge(model=name), {"sha256": name}) for name in "xyz"]
    for config, identity in (*models, *reversed(models), *models):
        judge_registry = asked(judge_registry, config, identity)
        assert (
            labels_file(judge_registry.judges["one"])
            == dict(zip("xyz", ("one", "one~2", "one~3"), strict=True))[config.model]
        )
    assert len(judge_registry.former) == 2


def test_names_that_a_file_system_may_not_tell_apart_have_files_of_their_own():
    judge_registry = asked(JudgeRegistry(), judge(name="ONE"), HERE).deactivated("ONE")
    assert labels_file(asked(judge_registry, JUDGE, HERE).judges["one"]) == "one~2"


def test_a_judge_that_never_said_anything_leaves_no_trace():
    judge_registry = JudgeRegistry().registered(JUDGE).with_entry(JUDGE).deactivated("one")
    assert judge_registry.parts == {"judges": {}, "former_judges": []}
