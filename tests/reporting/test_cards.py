"""The first screen: what is said of each model, in which order, and how a test is drawn."""

import json
import re

import pytest

from quantverdict.reporting import cards, figures, tables
from quantverdict.reporting.artefacts import BundleTables
from quantverdict.reporting.bars import ForestScale
from quantverdict.reporting.formats import DisplayNames
from quantverdict.stages.run import decision_of


def bundle(cells, notes=(), rules="criteria", **tables_):
    full = [{"base_model": "m", "status": "ok", "is_baseline": cell["quant"] == "FP16", **cell} for cell in cells]
    decision = {"rules": rules, "cells": full, "notes": notes, "best": {"m": {"quant": "FP16", "reason": "r"}}}
    return BundleTables(decision, tables_, {}, {}, DisplayNames())


def cards_of(view):
    return cards.cards(view, tables.builds(view), cards.notes_of(view))


def test_the_ladder_goes_from_many_bits_to_few_with_the_baseline_before_its_equals():
    cells = [{"quant": "Q2_K", "bpw": 2.6}, {"quant": "BF16", "bpw": 16}, {"quant": "FP16", "bpw": 16}, {"quant": "X"}]
    (card,) = cards_of(bundle(cells))
    assert [row.quant for row in card.ladder] == ["FP16", "BF16", "Q2_K", "X"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            {"n_to_accept": 2430, "seconds_to_accept": 600.0},
            "Q8_0: 1,950 more prompts (about 10 min) accept it if nothing more is lost.",
        ),
        (
            {"n_to_accept": 481, "n_to_reject": 960, "seconds_to_reject": None},
            "Q8_0: 1 more prompts accept it if nothing more is lost; 480 more prompts reject it if it goes on as seen.",
        ),
        ({"n_to_accept": 480}, "Q8_0: no number of prompts is known that would decide it."),
    ],
)
def test_what_to_do_next_is_in_prompts_and_time(more, said):
    cell = {"quant": "Q8_0", "action": "not_resolvable", "n_pairs": 480, **more}
    (card,) = cards_of(bundle([{"quant": "FP16"}, cell]))
    assert card.steps == (said,)


def test_a_decided_build_has_no_next_step():
    (card,) = cards_of(bundle([{"quant": "FP16"}, {"quant": "Q8_0", "action": "accept_non_inferior", "n_pairs": 9}]))
    assert card.steps == ()


def test_notes_are_by_weight_and_what_was_not_measured_is_one_line():
    notes = (
        "Inconclusive with this many prompts, so not proven safe: m/Q8_0: ... (TAX_010).",
        "bias_resistance was not measured.",
        "Format alert, m/Q2_K: unparsed answers 4 to 33 of 40.",
        "m/FP16 was itself dequantised from Q4_1: levels near that grid look better than they are.",
        "m/Q8_0 is inside the noise of A/A replicates in f1.",
    )
    found = cards.notes_of(bundle([{"quant": "FP16"}], notes))
    assert [note.split(",")[0].split(" was")[0] for note in found.heavy] == ["Format alert", "m/FP16"]
    assert found.light == (notes[-1],)
    assert found.unmeasured == ("bias resistance by pattern",)
    (by_points,) = cards.notes_of(bundle([{"quant": "FP16"}], notes[:1], rules="points")).light
    assert "TAX" not in by_points


def test_ids_of_builds_are_unique_and_hold_nothing_that_an_address_does_not():
    names = ("Q4 K", "Q4-K", "Q4<K", "Q4_K")
    found = cards.anchors(bundle([{"quant": name} for name in names]))
    assert len({*found.values()}) == len(names)
    assert all(re.fullmatch(r"[\w.-]+", one) for one in found.values())


CRITERION = {"base_model": "m", "quant": "Q8_0", "criterion": "refusal", "metric": "refusal_rate", "role": "criterion",
             "n_pairs": "220", "delta_pp": "-2", "ci_lo_pp": "-4", "ci_hi_pp": "1", "margin_pp": "5",
             "guard_margin_pp": "5", "outcome": "non_inferior"}  # fmt: skip
MEMBER = CRITERION | {"criterion": "quality", "metric": "f1", "role": "member", "guard_margin_pp": "15",
                      "ci_lo_pp": "-40", "ci_hi_pp": "60", "outcome": "not_resolvable"}  # fmt: skip


def test_the_forest_has_a_row_a_test_with_margin_and_guard_margin():
    view = bundle([{"quant": "FP16"}, {"quant": "Q8_0"}], criteria=(MEMBER, CRITERION))
    (forest,) = cards.forests(view, tables.builds(view))
    ((build, rows),) = forest.builds
    assert build.quant == "Q8_0"
    shown = [(row.name, row.member, row.outcome) for row in rows]
    assert shown == [
        ("refusal", False, "not worse"),
        ("f1", True, "inconclusive"),
    ]
    assert [row.bar.count('class="guard"') for row in rows] == [0, 1]
    assert [row.bar.count('class="margin"') for row in rows] == [1, 1]
    assert [row.bar.count('class="arrow"') for row in rows] == [0, 2]  # both ends of the second lie beyond the scale
    assert rows[0].hint == "Q8_0, refusal: \u22122.00 pp [\u22124.00, +1.00] of 220 pairs, margin 5 pp, not worse"


def test_marks_of_a_forest_stand_at_their_values():
    scale = ForestScale([CRITERION, MEMBER])
    assert (scale.lo, scale.hi) == (-30, 15)
    drawn = dict(re.findall(r'<line class="(\w+)" x1="([\d.]+)"', scale.bar(CRITERION, "ship")))
    at = {name: float(x) for name, x in drawn.items()}
    pixel = (at["zero"] - at["margin"]) / 5
    assert (at["zero"] - at["reach"]) / pixel == pytest.approx(4, abs=0.05)


def test_an_untested_row_draws_nothing():
    row = CRITERION | {"delta_pp": "", "ci_lo_pp": "", "outcome": "not_measured"}
    assert ForestScale([row]).bar(row, "untested") == ""


@pytest.mark.parametrize(
    ("ends", "tone"),
    [
        ((-1, 1), ""), ((0, 3), ""), ((None, 3), ""), ((-4, -0.1), "worse1"), ((-9, -2.5), "worse2"),
        ((-9, -4.99), "worse2"), ((-9, -5), "worse3"), ((-30, -10), "worse4"), ((-60, -20), "worse5"),
        ((0.1, 2), "better1"), ((5, 9), "better3"),
    ],
)  # fmt: skip
def test_the_colour_of_a_cell_is_how_far_its_interval_lies_beyond_zero_and_the_margin(ends, tone):
    assert figures.evidence_tone("refusal_rate", ends, 5) == tone
    other = {"worse": "better", "better": "worse"}.get(tone[:-1], "")
    assert figures.evidence_tone("over_refusal_rate", ends, 5) == (f"{other}{tone[-1]}" if tone else "")


def test_without_a_margin_or_a_better_way_a_difference_is_still_seen():
    assert figures.evidence_tone("refusal_rate", (-90, -80), None) == "worse2"
    assert figures.evidence_tone("output_tokens", (-90, -80), None) == "other2"


@pytest.mark.parametrize(
    ("metric", "ratio", "tone"),
    [
        ("file_bytes", 1.04, ""), ("file_bytes", 0.53, "cheaper2"), ("file_bytes", 0.2, "cheaper4"),
        ("file_bytes", 2.0, "dearer2"), ("tokens_per_second", 2.0, "cheaper2"), ("tokens_per_second", 0.9, "dearer1"),
        ("ttft_ms", 0.5, "cheaper2"),
    ],
)  # fmt: skip
def test_size_and_speed_have_a_scale_of_their_own(metric, ratio, tone):
    assert figures.cost_tone(metric, ratio) == tone


def test_a_matrix_shows_costs_as_ratios_and_never_as_worse_or_better(small):
    view = decision_of(small)
    (heat,) = figures.heat_maps(view, tables.builds(view))
    costs = dict(heat.groups)["measured"]
    assert {row.name for row in costs} == {"tokens_per_second", "file_bytes"}
    tones = {cell.tone.rstrip("12345") for row in costs for cell in row.cells}
    assert tones <= {"reference", "cheaper", "dearer", "", "missing"}
    assert costs[-1].cells[1].delta.startswith("\u00d7")


def test_a_metric_of_text_is_drawn_against_bits_where_the_matrix_has_it(small):
    """Without it nothing fails."""
    view = decision_of(small)
    before = len(figures.bits_figures(view))
    matrix = tuple({**row, "text_kl_mean": f"0.{at}"} for at, row in enumerate(view.tables["matrix"]))
    tables_ = {**view.tables, "matrix": matrix}
    more = BundleTables(view.decision, tables_, view.artifacts, view.manifest, view.names)
    drawn = figures.bits_figures(more)
    assert len(drawn) == before + 1
    assert any("KL on a text" in figure.svg for figure in drawn)


def test_a_criterion_of_a_study_with_one_model_says_no_floor_and_no_checklist(small):
    """Under criteria the page has no protocol of thresholds, which nobody asked for."""
    decision = json.loads((small / "decision.json").read_text()) | {"rules": "criteria"}
    view = decision_of(small)
    by_criteria = BundleTables(decision, view.tables, {}, {}, view.names)
    assert not {"checklist", "taxonomy", "quant_roles", "floor"} & {grid.name for grid in tables.grids(by_criteria)}
    by_points = BundleTables(decision | {"rules": "points"}, view.tables, {}, {}, view.names)
    assert {"checklist", "taxonomy", "quant_roles"} <= {grid.name for grid in tables.grids(by_points)}
