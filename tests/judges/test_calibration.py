"""What every judge is asked first, and when it is called weak or uninformative."""

import json
from collections import Counter
from types import SimpleNamespace

import pytest

from quantverdict.judges.calibration import FILE, LEAST_KAPPA, calibration_of, calibrations
from quantverdict.judges.rubrics import load_rubric
from quantverdict.registry.listing import resource

RUBRICS = {load_rubric(name) for name in ("refusal", "truthfulness", "bias")}
KNOWN = calibration_of(RUBRICS)


def replies(say):
    """What a judge says that answers `say(known answer)`."""
    return {one.question.key: SimpleNamespace(label=say(one)) for one in KNOWN}


def found(say):
    return {one.rubric: one for one in calibrations("j", KNOWN, replies(say))}


def test_the_set_has_sixty_different_answers_of_every_label():
    lines = [json.loads(line) for line in resource(FILE).read_text().splitlines()]
    assert len(lines) == len({(one["prompt"], one["answer"]) for one in lines}) == 60
    counted = Counter((one["rubric"], one["label"]) for one in lines)
    for rubric in RUBRICS:
        assert all(counted[rubric.name, label] for label in rubric.labels), rubric.name
    assert Counter(one["rubric"] for one in lines) == {"refusal": 30, "truthfulness": 15, "bias": 15}


def test_one_that_agrees_throughout_has_kappa_1():
    for one in found(lambda known: known.label).values():
        assert (one.found.kappa, one.found.agreement, one.verdict) == (1, 1, "agrees")
        assert one.sensitivity.k == one.sensitivity.n
        assert one.specificity.k == one.specificity.n


def test_a_full_and_a_partial_refusal_count_alike():
    """Kappa is over what the rate counts, and both count as refused."""
    told = found(lambda known: known.label.replace("PARTIAL_REFUSAL", "FULL_REFUSAL"))
    assert told["refusal"].found.kappa == 1


@pytest.mark.parametrize(
    "say",
    [
        lambda known: next(label for label in known.question.rubric.labels),  # one label throughout
        lambda known: None,  # no label at all
        lambda known: {"FULL_REFUSAL": "COMPLIANCE", "COMPLIANCE": "FULL_REFUSAL"}.get(known.label, known.label),
    ],
)
def test_one_that_says_the_same_of_all_or_nothing_or_the_opposite_is_uninformative(say):
    assert found(say)["refusal"].verdict == "uninformative"


def test_replies_without_a_label_are_counted_and_agree_with_nothing():
    told = found(lambda known: None if known.label == "UNCLEAR" else known.label)["refusal"]
    assert told.ungraded == 2
    assert told.found.agreement == pytest.approx(28 / 30)


def test_the_boundaries_are_the_limits_of_kappa():
    """Wrong on more and more answers: agrees, weak where the lower limit is below 0.4, then uninformative."""
    verdicts = []
    ordered = [one.question.key for one in KNOWN if one.label in ("FULL_REFUSAL", "COMPLIANCE")]
    flip = {"FULL_REFUSAL": "COMPLIANCE", "COMPLIANCE": "FULL_REFUSAL"}
    for wrong in range(len(ordered)):
        told = found(lambda one, n=wrong: flip[one.label] if one.question.key in ordered[:n] else one.label)["refusal"]
        interval = told.found.kappa_interval
        expected = "agrees" if interval.lo >= LEAST_KAPPA else "weak" if interval.hi >= LEAST_KAPPA else "uninformative"
        assert told.verdict == expected
        verdicts.append(told.verdict)
    assert list(dict.fromkeys(verdicts)) == ["agrees", "weak", "uninformative"]


def test_a_rubric_of_which_not_all_was_asked_is_left_out_and_one_of_ones_own_has_no_known_answers():
    said = replies(lambda known: known.label)
    del said[KNOWN[0].question.key]
    assert [one.rubric for one in calibrations("j", KNOWN, said)] == ["truthfulness", "bias"]
    own = load_rubric("refusal").__class__("mine", "text", ("YES", "NO"), "0")
    assert calibration_of({own}) == []


def test_a_guard_that_reads_harm_is_asked_of_harmful_requests_alone():
    assert len(calibration_of((), "wildguard")) == 30
    assert len(calibration_of((), "harmbench")) == 25
    assert {one.label for one in calibration_of((), "qwen3guard")} == {"full", "partial", "none", "unclear"}
