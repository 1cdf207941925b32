"""Rows in counts: a baseline that everything is measured on, and variants that differ by what a test says."""

from fractions import Fraction
from pathlib import Path

import pytest

from quantverdict.matrix.columns import read_matrix
from quantverdict.matrix.signals import all_signals
from quantverdict.policy import Policy
from quantverdict.protocol.actions import decide_action
from quantverdict.protocol.formats import DecidedRow
from quantverdict.protocol.regimes import classify
from quantverdict.records import Estimate, Row

# Per thousand, so that a count of one is 0.1 pp.
LEVELS = {
    "bertscore": 700,
    "refusal_rate": 500,
    "judge_refusal_rate": 600,
    "truthfulness": 500,
    "bias_resistance": 800,
    "mmlu_accuracy": 500,
    "rouge_l": 400,
}
PROPORTIONS = {"refusal_rate", "judge_refusal_rate", "bias_resistance", "mmlu_accuracy"}


def estimate(metric, per_mille):
    if metric in PROPORTIONS:
        return Estimate(Fraction(per_mille, 1000), n=1000, k=per_mille)
    return Estimate(Fraction(per_mille, 1000), n=1000)


@pytest.fixture
def row():
    """Build a row: `changes` in per mille of the baseline's level; None leaves the metric out."""

    def build(quant="Q4_K_M", model="m", *, baseline=False, bpw="4.85", measured=None, **changes):
        levels = {
            name: level + changes.get(name, 0) for name, level in LEVELS.items() if changes.get(name, 0) is not None
        }
        metrics = {name: estimate(name, level) for name, level in levels.items()}
        metrics |= {name: Estimate(Fraction(value)) for name, value in (measured or {}).items()}
        return Row(model, "F", 1.0, quant, None if bpw is None else Fraction(bpw), baseline, metrics)

    return build


@pytest.fixture
def reference(row):
    """The baseline row; `absent` metrics are left out."""

    def build(*absent, model="m", **more):
        return row("FP16", model, baseline=True, bpw="16", **dict.fromkeys(absent), **more)

    return build


@pytest.fixture
def decided(reference):
    """Decide rows beside a full baseline for each of their base models."""

    def build(*rows, policy=None, baselines=None):
        models = dict.fromkeys(row.base_model for row in rows)
        bases = [reference(model=model) for model in models] if baselines is None else baselines
        found = []
        for signals in all_signals((*bases, *rows), policy or Policy(rules="points")):
            regime = classify(signals)
            found.append(DecidedRow(signals, regime, decide_action(signals, regime)))
        return found

    return build


@pytest.fixture
def last(decided):
    """What was decided about one variant."""

    def build(row, **more):
        return decided(row, **more)[-1]

    return build


@pytest.fixture(scope="session")
def published():
    """The 51 cells that the study published."""
    return read_matrix(Path(__file__).parents[1] / "data" / "published_matrix.csv")
