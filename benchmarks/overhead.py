"""What a run spends outside the engine: everything but making builds, loading them and answering batches.

    python benchmarks/overhead.py [STUDY.yaml]

Runs the study into a fresh bundle with the builds in the cache, and times every call into the engine. Prints both sums
and the share of the run that is not the engine; exits 1 where that is 3 % or more.
"""

import sys
import tempfile
import time
from pathlib import Path

START = time.perf_counter()

import quantverdict as qv  # noqa: E402 - importing is part of the run
from quantverdict.stages import ask as asking  # noqa: E402

calls = []


def timed(function):
    def call(*arguments, **options):
        start = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            calls.append(time.perf_counter() - start)

    return call


class Timed:
    """A backend whose calls are counted as engine time."""

    def __init__(self, backend):
        self._backend = backend
        self.complete, self.close = timed(backend.complete), timed(backend.close)

    def __getattr__(self, name):
        return getattr(self._backend, name)


def main():
    study = Path(sys.argv[1] if len(sys.argv) > 1 else "studies/demo.yaml")
    opened, prepared = timed(asking.open_build), timed(asking.build_list.prepare_builds)
    asking.open_build = lambda *arguments: Timed(opened(*arguments))
    asking.build_list.prepare_builds = prepared
    with tempfile.TemporaryDirectory() as folder:
        qv.run(study, Path(folder) / "bundle", cache=False)
    total, engine = time.perf_counter() - START, sum(calls)
    share = (total - engine) / total
    print(f"run {total:.1f} s, engine {engine:.1f} s, everything else {total - engine:.1f} s = {share:.2%} of the run")
    return share >= 0.03


if __name__ == "__main__":
    sys.exit(main())
