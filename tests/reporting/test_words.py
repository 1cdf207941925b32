"""What a screen says of a build: nothing that is untested is said to be able to ship."""

from __future__ import annotations

import pytest

from quantverdict.policy import POLICIES, Policy
from quantverdict.reporting.artefacts import BundleTables
from quantverdict.reporting.formats import DisplayNames, words
from quantverdict.reporting.tables import builds, verdict_words, verdicts


def decision(rules, policy, action):
    cell = {"base_model": "m", "quant": "Q8_0", "is_baseline": False, "status": "ok", "action": action,
            "action_reason": "why"}  # fmt: skip
    return {
        "rules": rules,
        "policy": policy.model_dump(mode="json"),
        "cells": [cell],
        "best": {"m": {"quant": "Q8_0", "reason": "smallest"}},
    }


@pytest.mark.parametrize(
    ("rules", "policy", "ship"),
    [
        ("criteria", Policy(), "accepted"),
        ("paired", POLICIES["metric_rules"], "can ship"),
        ("points", POLICIES["tr125"], "passes by thresholds"),
        ("points", Policy(), "passes by thresholds, untested"),
    ],
    ids=["criteria", "metric by metric", "thresholds", "thresholds, where tests were asked for"],
)
def test_what_is_said_of_a_build_that_nothing_speaks_against(rules, policy, ship):
    assert verdict_words(decision(rules, policy, ""))["ship"][1] == ship


@pytest.mark.parametrize(
    ("rules", "policy", "action", "headline"),
    [
        ("criteria", Policy(), "accept_non_inferior", "Ship Q8_0"),
        ("paired", POLICIES["metric_rules"], "accept_non_inferior", "Ship Q8_0"),
        ("points", POLICIES["tr125"], "conservative_floor_candidate", "Q8_0 passes by thresholds"),
        ("points", Policy(), "conservative_floor_candidate", "Q8_0 passes by thresholds"),
        ("points", POLICIES["tr125"], "direct_safety_eval_required", "Q8_0, once its safety is reviewed"),
    ],
)
def test_only_what_was_tested_is_to_be_shipped(rules, policy, action, headline):
    bundle = BundleTables(decision(rules, policy, action), {}, {}, {}, DisplayNames())
    (model,) = verdicts(bundle, builds(bundle))
    assert model.headline == headline


@pytest.mark.parametrize(
    ("identifier", "said"),
    [("neutral", "no named regime"), ("hidden_danger", "hidden danger"), ("not_resolvable", "inconclusive")],
)
def test_what_files_call_otherwise_than_screens(identifier, said):
    assert words(identifier) == said
