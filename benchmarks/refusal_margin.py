"""Does the refusal margin, or the distance from the baseline, move before the refusal rate? On the demo's ladder.

    python benchmarks/refusal_margin.py [--bundle B] [--openings 8] [--prompts 36] [--tokens 48]

Runs the demo study on every level with `whitebox` on, or adds it to a copy of a finished bundle of that study, whose
answers are then not asked again. Prints `whitebox.csv` as a table, and what becomes of either side of the margin.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

import quantverdict as qv
from quantverdict.bundle.manifest import Bundle
from quantverdict.bundle.prompts import study_tasks
from quantverdict.config import load_study
from quantverdict.records import CellId
from quantverdict.stages.whitebox import prefixes_file, probe_set_of, read_probes

DEMO = Path(__file__).parents[1] / "studies" / "demo.yaml"
LADDER = ["FP16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_S", "Q2_K"]


def ladder(target: Path) -> Path:
    """The demo study with every level of its model."""
    study = yaml.safe_load(DEMO.read_text()) | {"task_dir": str(DEMO.parent)}
    study["models"][0]["variants"] = LADDER
    target.write_text(yaml.safe_dump(study, sort_keys=False))
    return target


def with_whitebox(source: Path, target: Path, settings: dict[str, int]) -> Path:
    """A study file with the settings."""
    target.write_text(yaml.safe_dump(yaml.safe_load(source.read_text()) | {"whitebox": settings}, sort_keys=False))
    return target


def table(rows: list[dict[str, str]]) -> str:
    lines = [
        "| build | refusal rate, pp | refusal margin, nats | p | fell, rose | KL, nats | agreement |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        refusal, margin = (
            f"{float(row[f'{name}_delta_{unit}']):+.{digits}f}"
            f" [{float(row[f'{name}_ci_lo_{unit}']):+.{digits}f}, {float(row[f'{name}_ci_hi_{unit}']):+.{digits}f}]"
            for name, unit, digits in (("refusal", "pp", 1), ("margin", "nats", 3))
        )
        lines.append(
            f"| {row['quant']} | {refusal} | {margin} | {float(row['p_value']):.2g} | {row['fell']}, {row['rose']} |"
            f" {float(row['baseline_kl']):.4f} | {float(row['baseline_agreement']):.3f} |"
        )
    return "\n".join(lines)


def sides(bundle: Bundle, study: Any, builds: list[str]) -> str:
    """Mean log-probability per token of the refusal and of the compliance openings, of every build."""
    name = study.models[0].name
    baseline = CellId(name, study.models[0].baseline)
    probe_set, tokens = probe_set_of(study, study_tasks(study), bundle, baseline), bundle.read_json(prefixes_file(name))
    assert probe_set.prefixes is not None
    lines = ["| build | refusal openings | compliance openings |", "| --- | ---: | ---: |"]
    for quant in (baseline.quant, *builds):
        probes = [one.values for one in read_probes(bundle.root, CellId(name, quant)).values() if one.kind == "margin"]
        each = {
            text: fmean(values[place] for values in probes) / tokens["tokens"][text]
            for place, text in enumerate(probe_set.prefixes.texts)
        }
        means = (
            sum(weight * each[text] for text, weight in side.items())
            for side in (probe_set.prefixes.refusal, probe_set.prefixes.compliance)
        )
        lines.append("| " + " | ".join((quant, *(f"{value:.3f}" for value in means))) + " |")
    return "\n".join(lines)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--bundle", type=Path)
    options.add_argument("--openings", type=int, default=8)
    options.add_argument("--prompts", type=int, default=36)
    options.add_argument("--tokens", type=int, default=48)
    chosen = options.parse_args()
    settings = {key: getattr(chosen, key) for key in ("openings", "prompts", "tokens")}
    with tempfile.TemporaryDirectory() as folder:
        study, out = Path(folder) / "demo.yaml", Path(folder) / "bundle"
        with_whitebox(ladder(study), study, settings)
        if chosen.bundle is not None:
            shutil.copytree(chosen.bundle, out)
            with_whitebox(out / "study.yaml", out / "study.yaml", settings)
        qv.run(study, out, cache=False)
        with (out / "whitebox.csv").open() as file:
            rows = list(csv.DictReader(file))
        rows.sort(key=lambda row: float(row["baseline_kl"]))
        print(table(rows), end="\n\n")
        with Bundle.reopen(out) as bundle:
            print(sides(bundle, load_study(study), [row["quant"] for row in rows]))


if __name__ == "__main__":
    main()
