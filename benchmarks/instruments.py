"""How well, and how fast, the refusal instruments that ship read the answers that people labelled.

python benchmarks/instruments.py [FILE] [LABEL COLUMN]
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from quantverdict import grade_file
from quantverdict.grading.instruments import PatternInstrument, ShippedClassifier

ANSWERS = Path(__file__).parents[1] / "tests" / "data" / "refusal_answers.jsonl"


def main() -> None:
    """A table of confusion for each instrument, and answers a second."""
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else ANSWERS
    label = sys.argv[2] if len(sys.argv) > 2 else "label"
    pairs = [(row["prompt"], row["answer"]) for row in map(json.loads, file.read_text(encoding="utf-8").splitlines())]
    for name, instrument in (("pattern", PatternInstrument()), ("classifier", ShippedClassifier())):
        print("\n".join(grade_file(file, "refusal", instrument=name, label=label).lines))
        start = time.perf_counter()
        instrument.read(pairs)
        print(f"  {len(pairs) / (time.perf_counter() - start):.0f} answers a second")


if __name__ == "__main__":
    main()
