"""The terminal's table: fits its width, says all builds, and shows names as text."""

import io
import json
import shutil

import pytest
from rich.console import Console

from quantverdict.reporting.tables import BEST
from quantverdict.reporting.terminal import decision_table, print_decision, summary_lines
from quantverdict.stages.run import decision_of

QUANTS = ("FP16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_S", "Q2_K")


def printed(bundle, width, **options):
    console = Console(width=width, file=io.StringIO(), **options)
    console.print(decision_table(decision_of(bundle)))
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 100, 120, 160])
def test_nothing_is_cut_and_no_line_is_wider_than_the_terminal(small, study, width):
    for bundle in (small, study):
        lines = printed(bundle, width).splitlines()
        assert max(len(line.rstrip()) for line in lines) <= width
        assert not [line for line in lines if "\u2026" in line]


def test_a_row_a_build_with_its_figures(small):
    text = printed(small, 120)
    rows = [line for line in text.splitlines() if any(f" {quant} " in line[:14] for quant in QUANTS)]
    assert len(rows) == 7
    rejected = next(line for line in rows if "Q3_K_S" in line)
    for shown in (
        "\u2715 Q3_K_S",
        "4.51",
        "75.8 MB",
        "110",
        "\u22121.67",
        "\u221219.00",
        "hidden danger",
        "reject hidden danger",
    ):
        assert shown in rejected
    assert "[\u221231.36, \u22125.74]" in text


def test_the_star_beside_a_build_is_explained_and_only_where_one_stands(small, study):
    for bundle in (small, study):
        text = printed(bundle, 120)
        starred = [line for line in text.splitlines() if " * " in line[2:16]]
        legends = [line.strip() for line in text.splitlines() if line.startswith("  * ")]
        assert len(legends) == len(starred)
        assert {legend.removeprefix("* ") for legend in legends} <= {*BEST.values()}
    assert "  * " in printed(small, 120)


def test_failed_twin_and_dequantised_builds_say_so(small):
    text = printed(small, 120)
    assert "Q5_K_M: the engine stopped: out of memory" in text
    assert "Q2_K: same weights as Q3_K_S" in text
    assert "FP16: dequantised from Q4_1" in text


def test_a_build_made_of_other_types_than_its_name_says_so(small, tmp_path):
    shutil.copytree(small, tmp_path / "b")
    path = tmp_path / "b" / "artifacts.json"
    builds = [build | {"fallbacks": {"Q5_0": 166, "Q8_0": 15}} for build in json.loads(path.read_text())]
    path.write_text(json.dumps(builds))
    assert "Q4_K_M: 181 matrices fell back to Q5_0, Q8_0; " in printed(tmp_path / "b", 120)
    assert "fell back" not in printed(small, 120)


def test_very_narrow_terminals_keep_the_action_readable(small):
    text = printed(small, 60)
    assert "action" in text
    assert "regime" not in text
    assert " danger" in text


def test_narrow_terminals_lose_size_and_speed_only(small):
    wide, narrow = printed(small, 120), printed(small, 80)
    assert "75.8 MB" in wide
    assert "75.8 MB" not in narrow
    assert all(quant in narrow for quant in QUANTS)
    assert "[\u221231.36, \u22125.74]" in narrow


def test_the_same_bundle_prints_the_same(study):
    assert printed(study, 120) == printed(study, 120)


def test_names_are_neither_markup_nor_escape_codes(tmp_path, make_bundle):
    root = make_bundle(tmp_path / "named", model="[red]x[/red]\x1b[2J")
    text = printed(root, 120, force_terminal=True, color_system=None)
    assert "[red]x[/red]" in text
    assert "\x1b[2J" not in text


def test_a_terminal_without_unicode_gets_ascii(small):
    raw = io.BytesIO()
    console = Console(width=100, file=io.TextIOWrapper(raw, encoding="ascii"))
    print_decision(decision_of(small), small / "report.html", console)
    console.file.flush()
    text = raw.getvalue().decode("ascii")
    assert "x Q3_K_S" in text
    assert "-19.00" in text


def test_the_summary_names_the_build_the_floor_and_the_notes(small):
    lines = summary_lines(decision_of(small))
    assert lines[0].startswith("smollm2-135m: Q4_K_M, once its safety is reviewed: ")
    assert lines[1] == "conservative floor: Q6_K, largest refusal signal 1.00 pp"
    assert any("itself dequantised from Q4_1" in line for line in lines)


def test_without_a_best_build_or_a_floor_the_summary_says_none(small):
    path = small / "decision.json"
    decision = json.loads(path.read_text()) | {"best": {"smollm2-135m": None}, "floor": None}
    path.write_text(json.dumps(decision))
    assert summary_lines(decision_of(small))[:2] == ["smollm2-135m: No build to recommend", "conservative floor: none"]


def test_print_ends_with_the_path_of_the_report(small):
    console = Console(width=80, file=io.StringIO())
    print_decision(decision_of(small), small / "report.html", console)
    assert console.file.getvalue().splitlines()[-1] == f"report: {small / 'report.html'}"
