"""Every metric by name: what it means, its unit, its direction, how its interval is made.

A leaf, so that a name is checked wherever one is read: a policy, a gate, sources, the columns of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from quantverdict.errors import did_you_mean

Group = Literal["quality", "safety", "judge", "template", "measured"]
Tier = Literal["benchmark", "generation"]


@dataclass(frozen=True, slots=True)
class Metric:
    """What a matrix column means.

    Attributes:
        name: as in the matrix.
        meaning: one line.
        group: the part of the matrix it belongs to.
        unit: `1` for a share between 0 and 1, else the unit it is given in.
        higher_is_better: None where neither direction is better.
        proportion: a count of samples: `NAME_k` of `NAME_n`.
        interval: how its 95 % interval is made from samples; `none` where there are no samples.
        tier: how SPEC 4 reads it: a benchmark in pp, a generation metric in percent of the baseline.
    """

    name: str
    meaning: str
    group: Group
    unit: str = "1"
    higher_is_better: bool | None = True
    proportion: bool = False
    interval: Literal["wilson", "bootstrap", "none"] = "bootstrap"
    tier: Tier | None = None

    @property
    def is_share(self) -> bool:
        return self.unit == "1"

    @property
    def delta_unit(self) -> str:
        """`pp` for shares, else the metric's own unit."""
        return "pp" if self.is_share else self.unit

    def delta(self, value: Fraction, baseline: Fraction) -> Fraction:
        """Exact `value - baseline`, in `delta_unit`."""
        return (value - baseline) * (100 if self.is_share else 1)


ACCURACIES = {
    "mmlu_accuracy": "MMLU",
    "arc_accuracy": "ARC-Challenge",
    "classification_accuracy": "classification",
    "choice_accuracy": "multiple choice",
}


def _accuracy(name: str, task: str) -> tuple[Metric, ...]:
    return (
        Metric(name, f"{task}: exact match after the task's filters", "quality", proportion=True, interval="wilson",
               tier="benchmark"),
        Metric(f"{name}_rescored", f"{task}: the same answers read by a tolerant parser", "quality", proportion=True,
               interval="wilson"),
        Metric(f"{name}_format_failure", f"{task}: answers that only the tolerant parser could read", "quality",
               higher_is_better=False, proportion=True, interval="wilson"),
        Metric(f"{name}_logprob", f"{task}: the likeliest choice is the right one", "quality", proportion=True,
               interval="wilson"),
        Metric(f"{name}_margin", f"{task}: log-probability of the right choice less the best wrong one", "quality",
               unit="nats"),
    )  # fmt: skip


_ALL: tuple[Metric, ...] = (
    *(metric for name, task in ACCURACIES.items() for metric in _accuracy(name, task)),
    Metric("bertscore", "BERTScore F1 against the reference", "quality", tier="generation"),
    Metric("rouge_l", "ROUGE-L F1 against the reference, without stemming", "quality", tier="generation"),
    Metric("coherence", "SemScore: cosine of answer and reference", "quality", tier="generation"),
    Metric("coherence_prompt", "cosine of answer and prompt, without a reference", "quality", tier="generation"),
    Metric("repetition", "unique 4-grams over all 4-grams; 1 is no repetition", "quality", tier="generation"),
    Metric("output_tokens", "tokens generated", "quality", unit="tokens", higher_is_better=None),
    Metric("refusal_rate", "harmful prompts refused, by pattern", "safety", proportion=True),
    Metric("over_refusal_rate", "safe prompts refused", "safety", higher_is_better=False, proportion=True),
    Metric("truthfulness", "1, 0.5 or 0 by overlap with correct and incorrect references", "safety"),
    Metric("bias_resistance", "ambiguous items answered without the stereotype", "safety", proportion=True),
    Metric("refusal_margin", "log-probability a token of the baseline's refusal openings less its compliance openings",
           "safety", unit="nats"),
    Metric("baseline_kl", "KL divergence from the baseline, a token of the baseline's answers", "safety", unit="nats",
           higher_is_better=False),
    Metric("baseline_agreement", "tokens of the baseline's answers where both find the same one likeliest", "safety"),
    Metric("judge_refusal_rate", "harmful prompts refused in full or in part, by judge", "judge", proportion=True),
    Metric("judge_truthfulness", "answers that the judge calls truthful", "judge", proportion=True),
    Metric("judge_bias_resistance", "answers that the judge calls unbiased", "judge", proportion=True),
    Metric("advbench_refusal_rate", "plain harmful prompts refused, by pattern", "template", proportion=True),
    Metric("hard_refusal_rate", "plain harmful prompts refused outright", "template", proportion=True),
    Metric("dominant_prefix_share", "refusals that open with the commonest five words", "template",
           higher_is_better=None),
    Metric("unique_prefix_rate", "different openings over refusals", "template", higher_is_better=None),
    Metric("prefix_entropy", "normalised entropy of the openings", "template", higher_is_better=None),
    Metric("mean_refusal_tokens", "tokens of a refusal", "template", unit="tokens", higher_is_better=None),
    Metric("mean_refusal_chars", "characters of a refusal", "template", unit="characters", higher_is_better=None),
    Metric("tokens_per_second", "tokens generated a second", "measured", unit="tokens/s", interval="none"),
    Metric("ttft_ms", "time to the first token", "measured", unit="ms", higher_is_better=False, interval="none"),
    Metric("peak_memory_bytes", "most memory held", "measured", unit="bytes", higher_is_better=False,
           interval="none"),
    Metric("file_bytes", "size on disk", "measured", unit="bytes", higher_is_better=False, interval="none"),
)  # fmt: skip

METRICS: Mapping[str, Metric] = {metric.name: metric for metric in _ALL}
"""Every metric of the matrix by name, in column order."""

SHARES = tuple(name for name, metric in METRICS.items() if metric.is_share and metric.higher_is_better is not None)
"""Shares of which one direction is better."""
GATED = tuple(name for name in SHARES if METRICS[name].group in ("quality", "safety", "judge"))
"""Those that may have a margin: they are graded prompt by prompt."""
RULED = tuple(name for name in SHARES if METRICS[name].higher_is_better)
"""Those that the rules on deltas can read: more is better."""


def one_of(name: str, known: Iterable[str]) -> str:
    """What is expected in place of a name that is not known: those that are, and the nearest."""
    names = tuple(known)
    return f"one of {', '.join(names)}{did_you_mean(name, names)}"


def checked(*known: str) -> Callable[[str], str]:
    """A validator of names: it gives one of `known` back, and says what is expected in place of any other."""

    def check(name: str) -> str:
        if name not in known:
            raise ValueError(one_of(name, known))
        return name

    return check
