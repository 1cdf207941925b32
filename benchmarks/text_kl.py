"""KL along the text that ships, at the demo's levels: tokens a CPU second, beside llama-perplexity where it is given.

    python benchmarks/text_kl.py [--perplexity PROGRAM] [--windows 32] [--levels Q8_0,Q4_K_M]

Whole commands are timed: both read the same windows of the same text with the same two files. No package has
llama-perplexity; PROGRAM is one of your own, of whatever release: its figures are printed beside ours.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from demo_model import level

from quantverdict.ingestion.kld import FIGURES
from quantverdict.stages.kld import SHIPPED

OURS = {"text_kl_mean": "mean", "text_kl_p999": "p999", "text_kl_max": "max", "text_same_top": "same_top",
        "text_ppl": "ppl", "text_ppl_ratio": "ppl_ratio"}  # fmt: skip


def timed(command: Sequence[str]) -> tuple[str, str, float]:
    """What a command prints and says besides, and the CPU seconds of it and of what it started."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stdout, done.stderr, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def ours(base: Path, build: Path, windows: int) -> tuple[dict[str, float], float]:
    command = [sys.executable, "-m", "quantverdict", "kld", str(base), str(build), "--windows", str(windows), "--json"]
    printed, _, cpu = timed(command)
    (row,) = json.loads(printed)
    return {name: row[key] for name, key in OURS.items()}, cpu


def theirs(program: str, base: Path, build: Path, windows: int) -> tuple[dict[str, float], float]:
    with tempfile.TemporaryDirectory() as folder:
        logits = str(Path(folder) / "logits")
        plain = [program, "-f", str(SHIPPED), "--chunks", str(windows), "-c", "512", "--kl-divergence-base", logits]
        _, _, first = timed([*plain, "-m", str(base)])
        printed, said, second = timed([program, "--kl-divergence-base", logits, "--kl-divergence", "-m", str(build)])
    found = {name: float(re.findall(rf"^{start} +(-?[\d.]+)", printed + said, re.MULTILINE)[-1]) / scale
             for name, (start, _, scale) in FIGURES.items() if name in OURS}  # fmt: skip
    return found, first + second


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--perplexity", help="llama-perplexity of llama.cpp")
    options.add_argument("--windows", type=int, default=32)
    options.add_argument("--levels", default="Q8_0,Q4_K_M")
    chosen = options.parse_args()
    base = level("FP16")
    for name in chosen.levels.split(","):
        figures, cpu = ours(base, level(name), chosen.windows)
        tokens = 2 * 512 * chosen.windows
        print(f"{name}: {tokens / cpu:.1f} tokens a CPU second (two models, {cpu:.1f} s)")
        other: dict[str, float] = {}
        if chosen.perplexity:
            other, cpu = theirs(chosen.perplexity, base, level(name), chosen.windows)
            print(f"{name}: llama-perplexity: {tokens / cpu:.1f} tokens a CPU second ({cpu:.1f} s)")
        for key, value in figures.items():
            print(f"  {key:16}{value:12.6f}" + (f"{other[key]:12.6f}" if key in other else ""))


if __name__ == "__main__":
    main()
