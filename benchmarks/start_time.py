"""What a short command takes before it does anything, beside another version: `python benchmarks/start_time.py COMMIT`.

CPU seconds of `--help`, `gate`, `analyze` and a bare `import numpy`, of the working tree and of COMMIT's `src`, turn
about, each on a bundle that it made itself of the published matrix. Bytecode is kept, as an installed package has it.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MATRIX = ROOT / "tests" / "data" / "published_matrix.csv"


def run(src: Path, folder: Path, arguments: list[str], codes: tuple[int, ...]) -> float:
    """CPU seconds of one command by the package in `src`."""
    env = {**os.environ, "PYTHONPATH": str(src)}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, *arguments]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)
    _, status, used = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) not in codes:
        raise SystemExit(f"{src}: {' '.join(arguments)}: exit {os.waitstatus_to_exitcode(status)}")
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commit", help="of the version to compare with")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    tool = ["-m", "quantverdict"]
    commands = {
        "--help": ([*tool, "--help"], (0,)),
        "gate BUNDLE": ([*tool, "gate", "bundle"], (0, 3, 4, 5)),
        "analyze BUNDLE": ([*tool, "analyze", "bundle"], (0,)),
        "import numpy": (["-c", "import numpy"], (0,)),
    }
    with tempfile.TemporaryDirectory() as held:
        places = {"this tree": Path(held, "new"), options.commit: Path(held, "old")}
        packed = subprocess.run(["git", "archive", options.commit, "src"], cwd=ROOT, capture_output=True, check=True)
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
            archive.extractall(places[options.commit], filter="data")
        sources = {"this tree": ROOT / "src", options.commit: places[options.commit] / "src"}
        making = [*tool, "analyze", "--matrix", str(MATRIX), "--policy", "tr125", "--out", "bundle"]
        taken: dict[tuple[str, str], list[float]] = {}
        for name, src in sources.items():
            places[name].mkdir(exist_ok=True)
            run(src, places[name], making, (0,))
            for arguments, codes in commands.values():
                run(src, places[name], arguments, codes)
        for _ in range(options.rounds):
            for what, (arguments, codes) in commands.items():
                for name, src in sources.items():
                    taken.setdefault((what, name), []).append(run(src, places[name], arguments, codes))
    print(f"| command | {' | '.join(sources)} | ratio of the medians |\n| --- | ---: | ---: | ---: |")
    for what in commands:
        new, old = (taken[what, name] for name in sources)
        told = [f"{statistics.median(one):.2f} s (least {min(one):.2f})" for one in (new, old)]
        print(f"| `{what}` | {' | '.join(told)} | {statistics.median(new) / statistics.median(old):.2f} |")


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
