"""Logs of lm-evaluation-harness in, beside pandas reading the same files: `python benchmarks/import_logs.py [PYTHON]`.

Two arms of equal size are written as that harness writes samples (some 1.2 kB a row), each a folder with its results.
For each size, rows a wall and a CPU second and peak memory of three things: what `quantverdict import` does with the
files (hashes, every row checked, pairing by id and hash); the whole command, down to the decision and its report; and
`pandas.read_json(lines=True)` of both files with a merge by `doc_id`. PYTHON is one that has pandas, if not this one.
Then `quantverdict compare` on two files of 10,000 rows, turn about with pandas doing the same and with a bare `import
numpy` (`--rows ""` measures this alone).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

PANDAS = """
import sys, pandas as pd
one, two = (pd.read_json(path, lines=True) for path in sys.argv[1:])
both = one.merge(two, on="doc_id", suffixes=("", "_b"))
assert (both.prompt_hash == both.prompt_hash_b).all()
print(len(both), both.exact_match_b.mean() - both.exact_match.mean())
"""
READ = """
import sys
from pathlib import Path
from quantverdict.ingestion.logs import LogOptions
from quantverdict.stages.import_logs import read_logs
read = read_logs([Path(one).parent for one in sys.argv[1:]], Path("bundle"), LogOptions(), arms={})
print(read.found.scores.height, read.found.pairings)
"""
TIME = "2026-11-30T10-00-00.000000"
PADDING = "what is it, and why does it matter to anyone who reads this line? " * 5


class Spent(NamedTuple):
    """Of a child process: seconds by the clock and of the processor, and the most memory that it held, in MiB."""

    wall: float
    cpu: float
    peak: float


def write_arm(folder: Path, arm: str, rows: int) -> Path:
    """One task of `rows` samples, as the harness logs it."""
    own = folder / f"org__{arm}"
    own.mkdir(parents=True)
    path, draw = own / f"samples_task_{TIME}.jsonl", random.Random(arm)
    with path.open("w") as file:
        for number in range(rows):
            asked = f"Question {number}: {PADDING}"
            right = random.Random(number).random() < 0.7
            said = right if draw.random() < 0.98 else not right
            sample = {
                "doc_id": number, "doc": {"id": number, "question": asked}, "target": "x",
                "arguments": {"gen_args_0": {"arg_0": asked, "arg_1": {"until": ["\\n"], "temperature": 0.0}}},
                "resps": [["a"]], "filtered_resps": ["a"], "filter": "none", "metrics": ["exact_match"],
                "doc_hash": hashlib.sha256(str(number).encode()).hexdigest(),
                "prompt_hash": hashlib.sha256(asked.encode()).hexdigest(), "target_hash": "0" * 64,
                "exact_match": float(said),
            }  # fmt: skip
            file.write(json.dumps(sample) + "\n")
    results = {
        "model_name": f"org/{arm}", "configs": {"task": {}}, "higher_is_better": {"task": {"exact_match": True}}
    }  # fmt: skip
    (own / f"results_{TIME}.json").write_text(json.dumps(results))
    return path


def spent(command: list[str], folder: Path) -> Spent:
    """Run a command and take its time and peak memory."""
    begun = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, env=os.environ)
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - begun
    if status:
        raise SystemExit(f"{' '.join(command)}: failed")
    return Spent(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("python", nargs="?", default=sys.executable, help="has pandas")
    parser.add_argument("--rows", default="250000,500000,1000000", help="of both arms together")
    parser.add_argument("--compare", type=int, default=5, help="rounds of compare")
    options = parser.parse_args()
    ours = [sys.executable, "-m", "quantverdict"]
    print("| rows | tool | rows/s (wall) | rows/s (CPU) | wall | CPU | peak memory |")
    print("| ---: | --- | ---: | ---: | ---: | ---: | ---: |")
    for rows in map(int, filter(None, options.rows.split(","))):
        with tempfile.TemporaryDirectory() as held:
            folder = Path(held)
            paths = [write_arm(folder, arm, rows // 2) for arm in ("base", "q4")]
            for tool, command in (
                ("read and paired, as import does", [sys.executable, "-c", READ, *map(str, paths)]),
                ("quantverdict import", [*ours, "import", *(str(path.parent) for path in paths), "--out", "bundle"]),
                ("pandas", [options.python, "-c", PANDAS, *map(str, paths)]),
            ):
                used = spent(command, folder)
                print(f"| {rows:,} | {tool} | {rows / used.wall:,.0f} | {rows / used.cpu:,.0f} | {used.wall:.1f} s | "
                      f"{used.cpu:.1f} s | {used.peak:,.0f} MiB |", flush=True)  # fmt: skip
    with tempfile.TemporaryDirectory() as held:
        folder = Path(held)
        paths = [write_arm(folder, arm, 10_000) for arm in ("base", "q4")]
        tools = {
            "compare, 2 x 10,000 rows": [*ours, "compare", *map(str, paths)],
            "pandas: both files, merged by id": [options.python, "-c", PANDAS, *map(str, paths)],
            "python -c 'import numpy'": [sys.executable, "-c", "import numpy"],
        }
        spent(tools["compare, 2 x 10,000 rows"], folder)  # bytecode, as an installed package has it
        found = [[spent(command, folder) for command in tools.values()] for _ in range(options.compare)]
    for name, rounds in zip(tools, zip(*found, strict=True), strict=True):
        wall, cpu = (sorted(getattr(one, what) for one in rounds) for what in ("wall", "cpu"))
        middle = len(rounds) // 2
        print(f"{name}: {cpu[middle]:.2f} s CPU (least {cpu[0]:.2f}), {wall[middle]:.2f} s wall (least {wall[0]:.2f}), "
              f"{max(one.peak for one in rounds):.0f} MiB")  # fmt: skip


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
