"""What `llama-perplexity --kl-divergence` prints: numbers of one build as a whole, from a text of thousands of tokens.

The lines of single chunks are running means, whose differences are lost in rounding: the last figures are all there is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from quantverdict.errors import DataError
from quantverdict.ingestion.logs import LogFile, LoggedMetric, LogOptions, Unit
from quantverdict.registry import IMPORTERS
from quantverdict.yaml_file import decoded

_LINES = {
    "kl_mean": (r"Mean +KLD:", Unit("nats", "lower"), 1.0),
    "kl_median": (r"Median +KLD:", Unit("nats", "lower"), 1.0),
    "kl_p90": (r"90\.0% +KLD:", Unit("nats", "lower"), 1.0),
    "kl_p99": (r"99\.0% +KLD:", Unit("nats", "lower"), 1.0),
    "kl_p999": (r"99\.9% +KLD:", Unit("nats", "lower"), 1.0),
    "kl_max": (r"Maximum +KLD:", Unit("nats", "lower"), 1.0),
    "same_top": (r"Same top p *:", Unit("share", "higher"), 100.0),
    "ppl": (r"Mean PPL\(Q\) *:", Unit("perplexity", "lower"), 1.0),
    "ppl_ratio": (r"Mean PPL\(Q\)/PPL\(base\) *:", Unit("ratio", "lower"), 1.0),
}
FIGURES = {f"text_{name}": line for name, line in _LINES.items()}
"""Each metric: how its line begins, its unit, and what the figure is divided by."""
_MODEL = re.compile(r"loaded meta data .* from (?P<path>\S+\.gguf)", re.MULTILINE)


def kld_log(path: Path, options: LogOptions) -> Iterator[LogFile]:
    """One log of the build that was compared, which its file names where the program said which it loaded."""
    text, figures = _text(path), next(kld_rows(path))
    metrics = (LoggedMetric(name, name, unit, whole=True) for name, (_, unit, _) in FIGURES.items() if name in figures)
    loaded = _MODEL.search(text)
    yield LogFile(
        path=path,
        format="kld",
        columns={"sample_id": IMPORTERS["kld"].columns["sample_id"]},
        metrics=tuple(one for one in metrics if options.takes(one.name)),
        arm=Path(loaded["path"]).stem if loaded else path.stem,
        task="text",
    )


def kld_rows(path: Path) -> Iterator[dict[str, object]]:
    """One row: `task`, `sample_id`, and the figures.

    Raises:
        DataError: it has no figures at its end.
    """
    text, row = _text(path), dict[str, object]()
    for name, (start, _, scale) in FIGURES.items():
        found = re.findall(rf"^{start} +(-?[\d.]+(?:e[+-]?\d+)?)", text, re.MULTILINE)
        if found:
            row[name] = float(found[-1]) / scale
    if "text_kl_mean" not in row:
        problem = "has no figures of a KL divergence at its end"
        raise DataError(problem, file=path, expected="all that llama-perplexity --kl-divergence prints: Mean KLD, ...")
    yield {"task": "text", "sample_id": "text", **row}


def _text(path: Path) -> str:
    try:
        return decoded(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read ({error})", file=path, expected="text in UTF-8") from error
