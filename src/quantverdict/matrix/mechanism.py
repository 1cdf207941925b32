"""How refusals change: the template of a cell's refusals against its refusal rate on the same prompts."""

from __future__ import annotations

from quantverdict.matrix.relations import LINK, Changes, adjusted, link
from quantverdict.records import Table

TEMPLATE = (
    "dominant_prefix_share", "unique_prefix_rate", "prefix_entropy", "mean_refusal_tokens", "mean_refusal_chars",
    "hard_refusal_rate",
)  # fmt: skip
PLAIN_REFUSAL = "advbench_refusal_rate"


def refusal_mechanism(moved: Changes) -> Table:
    """`refusal_mechanism.csv`: pooled correlation of each template delta with that of the plain prompts' refusals."""
    rows = [(metric, PLAIN_REFUSAL, *link(moved, metric, PLAIN_REFUSAL)) for metric in TEMPLATE]
    columns = ("metric", "refusal_metric", *LINK, "reason")
    return adjusted("refusal_mechanism", columns, rows, {"pearson_p": "", "spearman_p": "spearman_"})
