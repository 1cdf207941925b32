"""From scored rows to the full bundle with report, beside the ordinary pandas version: equal results, seconds, memory.

    python benchmarks/analysis.py [--scales 1,10,100] [--format jsonl|parquet] [--no-reference] [--keep FOLDER]

Every scale is `make_scores.py`'s (1 is the study's size), timed as a fresh process, the median of `--repeat`. At 1
the reference (`reference_analysis.py`) is timed turn about with ours, and every figure that both have is compared.
Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
from make_scores import make

HERE = Path(__file__).parent
KEYS = {
    "matrix": ("base_model", "quant"),
    "deltas": ("base_model", "quant", "metric"),
    "paired": ("base_model", "quant", "metric"),
    "paired_rates": ("base_model", "quant", "metric"),
    "regimes": ("base_model", "quant"),
    "row_actions": ("base_model", "quant"),
    "correlations": ("scope", "quality_metric", "safety_metric"),
    "leave_one_quant_out": ("omitted", "quality_metric", "safety_metric"),
    "leave_one_model_out": ("omitted", "quality_metric", "safety_metric"),
    "repeated_measures": ("quality_metric", "safety_metric"),
    "mixed_effects": ("quality_metric", "safety_metric", "random"),
    "random_slopes": ("quality_metric", "safety_metric", "random"),
    "bpw_regressions": ("base_model", "metric"),
    "refusal_mechanism": ("metric",),
    "sign_reversal": ("quality_metric", "safety_metric"),
    "power": ("base_model", "quant", "metric"),
    "judge_agreement": ("task", "quant"),
}
OURS = {"paired_rates": "paired", "random_slopes": "mixed_effects"}
"""Our table where it has another name: the reference has these of its rows apart."""
TOLERANCE = {
    # pingouin gives these to two places.
    ("repeated_measures", "ci_lo"): 5e-3 + 1e-9,
    ("repeated_measures", "ci_hi"): 5e-3 + 1e-9,
    # An optimiser stops near the maximum; the package goes on to it.
    ("mixed_effects", "coef"): 1e-6,
    ("mixed_effects", "p_value"): 1e-6,
    ("mixed_effects", "log_likelihood"): 1e-6,
    ("mixed_effects", "p_holm"): 1e-6,
    ("mixed_effects", "p_bh"): 1e-6,
    ("random_slopes", "coef"): 1e-4,
    ("random_slopes", "log_likelihood"): 1e-6,
}
NEAR = 1e-8
CSV = {"keep_default_na": False, "na_values": [""]}


def timed(command: list[str]) -> dict[str, float]:
    """Wall and CPU seconds and peak memory of a fresh process that may keep bytecode, as an installed package does."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    unit = 1 if sys.platform == "darwin" else 1024
    return {"wall_s": wall, "cpu_s": usage.ru_utime + usage.ru_stime, "peak_mib": usage.ru_maxrss * unit / 2**20}


def middle(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: round(median(run[key] for run in runs), 2) for key in runs[0]}


def ingest(sources: Path, out: Path) -> dict[str, float]:
    subprocess.run(["rm", "-rf", str(out)], check=True)
    code = "import sys; from quantverdict.cli import main; sys.argv[0] = 'quantverdict'; main()"
    return timed([sys.executable, "-c", code, "ingest", str(sources), "--out", str(out), "--json"])


def compare(bundle: Path, reference: Path, left_out: frozenset[str]) -> dict[str, Any]:
    """How many figures both have, and those that are not the same."""
    count, wrong = 0, []
    for name, keys in KEYS.items():
        if name in left_out:
            continue
        files = (bundle / f"{OURS.get(name, name)}.csv", reference / f"{name}.csv")
        ours, theirs = (pd.read_csv(file, **CSV).set_index(list(keys)) for file in files)
        for column in [column for column in theirs if column in ours]:
            for key, value in theirs[column].items():
                count += 1
                other = ours[column].get(key)
                if not same(value, other, TOLERANCE.get((name, column), NEAR)):
                    wrong.append(f"{name}: {key}: {column}: ours {other}, reference {value}")
    return {"compared": count, "different": len(wrong), "examples": wrong[:20]}


def same(one: object, two: object, tolerance: float) -> bool:
    if pd.isna(one) or pd.isna(two):
        return bool(pd.isna(one) and pd.isna(two))
    if isinstance(one, str) or isinstance(two, str):
        return one == two
    return math.isclose(float(one), float(two), rel_tol=tolerance, abs_tol=tolerance)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scales", default="1")
    parser.add_argument("--format", choices=("jsonl", "parquet"), default="jsonl")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--no-reference", action="store_true")
    parser.add_argument("--no-slopes", action="store_true", help="Without random slopes in the reference.")
    parser.add_argument("--keep", type=Path, help="Work in this folder and leave it.")
    asked = parser.parse_args()
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.keep or Path(temporary)
        reference, out = [sys.executable, "-W", "ignore", str(HERE / "reference_analysis.py")], folder / "reference"
        reference += ["--no-slopes"] if asked.no_slopes else []
        for scale in map(int, asked.scales.split(",")):
            sources, bundle = make(folder / f"x{scale}", scale, asked.format), folder / f"bundle{scale}"
            turn_about = scale == 1 and not asked.no_reference
            rounds = []
            for _ in range(asked.repeat if scale < 50 else 1):
                ours = ingest(sources, bundle)
                rounds.append((ours, timed([*reference, str(sources), "--out", str(out)]) if turn_about else ours))
            result[f"x{scale}"] = middle([ours for ours, _ in rounds])
            if turn_about:
                result["reference"] = middle([theirs for _, theirs in rounds])
                result["equality"] = compare(bundle, out, frozenset({"random_slopes"} if asked.no_slopes else ()))
                for unit in ("wall_s", "cpu_s"):
                    ratios = [theirs[unit] / ours[unit] for ours, theirs in rounds]
                    result[f"times_faster_{unit}"] = [round(ratio, 1) for ratio in ratios]
                    result[f"median_times_faster_{unit}"] = round(median(ratios), 1)
    result["own_peak_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
