"""Every weight of a variant against the same weight of its baseline, a sample of rows each.

Which rows are read depends on the shapes alone, so equal files give equal findings. Of stacked experts each is judged
by itself: one broken expert of many changes the whole too little.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import prod

import numpy as np

from quantverdict.artifacts.lineage_tensors import (
    CANNOT_TELL,
    DIFFERENT,
    SAME,
    Finding,
    Residual,
    ScaleFold,
    as_decoded,
    joined,
    judge,
    judge_columns,
    judge_experts,
    judge_remade,
    norm_before,
    norm_fold,
    pair_fold,
    pool_of,
    reader_of,
    residual,
    scaled,
)
from quantverdict.artifacts.packings import Rows, Whole
from quantverdict.artifacts.weights import Importance, WeightHandle, Weights

_BUDGET = 24_000_000
"""Values read of each model in the first pass: a second or two."""
_ROWS = (24, 256)
_LEAST_EXPERT_ROWS, _TRIED = 4, 2
"""Rows of each expert; weights that all come out otherwise before the variant is taken for one of another maker."""
_COLUMN_ROWS, _LEAST_LAYERS, _COLUMN_BUDGET = 1536, 4, 32_000_000
"""For makers that move weights: rows of a matrix that are looked at for a first column, and in how many layers."""
_LEAST_MOVED = 0.05
"""Share of values that such makers leave off their nearest level at the least; GPTQ of a real model left 0.1 to 0.3."""
_PLAIN_FACTORS = 0.05
_EMBEDDINGS, _OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
_LEARNED_ROUNDING = ("auto-round", "autoround", "intel/auto-round")


@dataclass(frozen=True, slots=True)
class WeightPair:
    """A weight of the baseline and the same of the variant; `rows` are those that both have."""

    name: str
    baseline: WeightHandle
    variant: WeightHandle

    @property
    def rows(self) -> int:
        return min(self.baseline.n_rows, self.variant.n_rows)

    @property
    def experts(self) -> int:
        """How many matrices are stacked in it."""
        return max(1, prod(self.variant.shape[:-2])) if len(self.variant.shape) > 2 else 1

    @property
    def readable(self) -> bool:
        """Whether the shapes of both are known."""
        return not (self.baseline.elements or self.variant.elements)

    @property
    def comparable(self) -> bool:
        """Whether the shapes agree; an embedding may have rows that pad its vocabulary."""
        ours, theirs = self.baseline.shape, self.variant.shape
        padded = self.name in (_EMBEDDINGS, _OUTPUT) and len(ours) == len(theirs) == 2
        return ours == theirs or (padded and ours[1] == theirs[1])


def not_read(pair: WeightPair) -> Finding:
    side = pair.variant if pair.variant.low_bit else pair.baseline
    note = f"cannot be read as {side.type_name}"
    return Finding(pair.name, pair.variant.type_name, CANNOT_TELL, None, float("nan"), None, note)


def pairs(baseline: Weights, variant: Weights) -> tuple[WeightPair, ...]:
    """Weights that both have; an output matrix that only one stores is compared with the other's tied embeddings."""
    found = []
    for name in sorted({*baseline.handles, *variant.handles}, key=_natural):
        ours, theirs = (_handle(weights, name) for weights in (baseline, variant))
        if ours is not None and theirs is not None:
            found.append(WeightPair(name, ours, theirs))
    return tuple(found)


def _handle(weights: Weights, name: str) -> WeightHandle | None:
    return weights.handles.get(name) or (weights.handles.get(_EMBEDDINGS) if name == _OUTPUT else None)


def _natural(name: str) -> list[str]:
    """Layer 10 after layer 9."""
    return [piece.zfill(6) if piece.isdigit() else piece for piece in re.split(r"(\d+)", name)]


@dataclass
class Comparison:
    """Reads pairs of weights and judges them.

    Attributes:
        method: how the variant's checkpoint says it was made.
        checked: pairs by name.
        folds: factors found in the norms, by name of the norm.
        importance: of the columns, as the variant's maker had it; None where it used none.
        remakes: whether all low-bit weights are encoded again, and not those alone that show nothing else.
        proved: how many weights came out with the bytes that are stored.
        unlike: the weight that ended the remaking, as none of its rows came out with the bytes that are stored.
    """

    checked: dict[str, WeightPair]
    method: str = ""
    folds: dict[str, ScaleFold | None] = field(default_factory=dict)
    importance: Importance | None = None
    remakes: bool = False
    unlike: str = ""
    proved: int = 0

    def findings(self) -> tuple[Finding, ...]:
        """One finding a weight, in the order of the pairs."""
        found = {name: self._first_pass(pair) for name, pair in self.checked.items()}
        self._unfold_pairs(found)
        self._look_for_first_columns(found)
        self._unfolded_norms(found)
        self._make_again(found)
        if any(name in self.method.lower() for name in _LEARNED_ROUNDING):
            found = {name: _learned(finding) for name, finding in found.items()}
        return tuple(found.values())

    def _first_pass(self, pair: WeightPair) -> Finding:
        return self._judged(pair, None, None)

    def _sample(self, pair: WeightPair) -> Whole:
        share = min(max(_BUDGET // max(1, len(self.checked) * pair.baseline.shape[-1]), _ROWS[0]), _ROWS[1])
        experts = pair.experts
        if experts == 1:
            return _spread(pair.rows, share)
        each = pair.rows // experts
        own = _spread(each, max(share // experts, _LEAST_EXPERT_ROWS))
        return np.asarray((np.arange(experts)[:, None] * each + own).reshape(-1))

    def _judged(self, pair: WeightPair, inputs: ScaleFold | None, outputs: ScaleFold | None) -> Finding:
        """One weight's finding, with these further factors of its inputs and of its rows.

        A low-bit baseline may be what the variant was made from, as it is decoded, or another build of its source.
        """
        rows = self._sample(pair)
        read = self._read(pair, rows)
        if read is None:
            return not_read(pair)
        ours, theirs = read
        if inputs is not None:
            ours = scaled(ours, inputs.factors[None, :], inputs.relative_error[None, :])
        if outputs is not None:
            ours = scaled(ours, outputs.factors[rows, None], outputs.relative_error[rows, None])
        if pair.baseline.low_bit:
            decoded = _judge(pair, rows, as_decoded(ours), theirs)
            if decoded.verdict == SAME:
                return decoded
        return _judge(pair, rows, ours, theirs)

    def _read(self, pair: WeightPair, rows: Whole) -> tuple[Rows, Rows] | None:
        """Both sides' rows, the factors of the norm before them on the baseline's."""
        ours, theirs = pair.baseline.read(rows), pair.variant.read(rows)
        if ours is None or theirs is None:
            return None
        fold = self._norm_fold(pair.name)
        if fold is not None and len(fold.factors) == ours.values.shape[1]:
            ours = scaled(ours, fold.factors[None, :], fold.relative_error[None, :])
        return ours, theirs

    def _norm_fold(self, name: str) -> ScaleFold | None:
        norm = norm_before(name, self.checked)
        if norm is None or norm not in self.checked:
            return None
        if norm not in self.folds:
            pair = self.checked[norm]
            ours, theirs = pair.baseline.read(np.arange(1)), pair.variant.read(np.arange(1))
            self.folds[norm] = None if ours is None or theirs is None else norm_fold(ours, theirs)
        return self.folds[norm]

    def _unfold_pairs(self, found: dict[str, Finding]) -> None:
        """Judge again what may differ only by factors moved between v and o, or up and down."""
        for name in list(self.checked):
            reader = reader_of(name)
            if not name.endswith(".weight") or reader is None or reader not in self.checked:
                continue
            if DIFFERENT not in (found[name].verdict, found[reader].verdict):
                continue
            first, second = self.checked[name], self.checked[reader]
            fold = self._pair_fold(first, second)
            if fold is None:
                continue
            outputs = ScaleFold(np.float32(1) / fold.factors, fold.relative_error)
            found[name] = self._judged(first, None, outputs)
            found[reader] = self._judged(second, fold, None)
            if (bias := name.removesuffix("weight") + "bias") in self.checked:
                found[bias] = self._judged(self.checked[bias], outputs, None)

    def _pair_fold(self, first: WeightPair, second: WeightPair) -> ScaleFold | None:
        if first.rows != second.baseline.shape[-1] or not (first.variant.low_bit and second.variant.low_bit):
            return None
        writer = self._read(first, np.arange(first.rows))
        reader = self._read(second, _spread(second.rows, _COLUMN_ROWS))
        return None if writer is None or reader is None else pair_fold(writer, reader)

    def _unfolded_norms(self, found: dict[str, Finding]) -> None:
        """A norm that differs is the same where its factors are in a matrix that reads it.

        Where that was seen in a first column alone, factors near 1 are not believed: it would not have shown them.
        """
        for norm, fold in self.folds.items():
            readers = [name for name in self.checked if norm_before(name, self.checked) == norm]
            read = [found[name] for name in readers if name in found]
            if fold is None or found[norm].verdict != DIFFERENT:
                continue
            if readers and not read:
                del found[norm]
                continue
            plain = float(np.std(np.log(fold.factors))) < _PLAIN_FACTORS
            if any(item.verdict == SAME and not (plain and (item.off or 0) > _LEAST_MOVED) for item in read):
                kept, note = found[norm], "its factors are in the matrices that read it"
                found[norm] = Finding(norm, kept.type_name, SAME, kept.off, kept.error, kept.resolution, note)

    def _make_again(self, found: dict[str, Finding]) -> None:
        """Encode rows of the baseline as the variant stores them: equal bytes prove what no error can.

        Where the first weights come out otherwise, another kernel or importance matrix made them, and nothing follows.
        Where most come out equal, what does not is another model's.
        """
        wanted = [
            name
            for name, pair in self.checked.items()
            if pair.variant.remade is not None
            and name in found
            and (self.remakes or (found[name].verdict == CANNOT_TELL and found[name].off is None))
        ]
        made: dict[str, Finding] = {}
        for name in wanted:
            pair = self.checked[name]
            rows = np.arange(pair.rows) if self.remakes else self._sample(pair)
            ours = pair.baseline.read(rows)
            if ours is None or pair.variant.remade is None:
                continue
            equal = pair.variant.remade(rows, ours.values, self.importance)
            self.unlike = self.unlike or ("" if equal.any() else name)
            experts = rows // max(1, pair.rows // pair.experts)
            made[name] = judge_remade(found[name], equal, ours.values.size, pair.rows, experts)
            if self.unlike and len(made) >= _TRIED and all(one.verdict == DIFFERENT for one in made.values()):
                return
        same = sum(one.verdict == SAME for one in made.values())
        if 2 * same > len(made):
            for name, one in made.items():
                # Where levels say that a weight is the baseline's, other bytes say that another kernel made it.
                found[name] = one if one.verdict == SAME or found[name].verdict != SAME else found[name]
            self.proved, self.unlike = same, ""

    def _look_for_first_columns(self, found: dict[str, Finding]) -> None:
        """Judge again, by their first column, matrices whose maker may have moved weights.

        Where there are many layers some of them are read, evenly spread, and the others are left without a finding.
        """
        moved = [name for name, finding in found.items() if finding.verdict == DIFFERENT and _may_move(finding)]
        if not moved or np.median([found[name].off or 0 for name in moved]) < _LEAST_MOVED:
            return
        layers = sorted({_layer(name) for name in moved})
        sizes = {
            name: min(self.checked[name].rows, _COLUMN_ROWS) * self.checked[name].baseline.shape[-1] for name in moved
        }
        share = _COLUMN_BUDGET / max(1, sum(sizes.values()))
        read = {layers[at] for at in _spread(len(layers), max(_LEAST_LAYERS, int(share * len(layers))))}
        pools: dict[tuple[str, str], dict[str, Residual]] = {}
        for name in moved:
            rows = _spread(self.checked[name].rows, _COLUMN_ROWS)
            both = self._read(self.checked[name], rows) if _layer(name) in read else None
            if both is not None:
                pools.setdefault(pool_of(name), {})[name] = residual(*both)
            else:
                del found[name]
        verdicts = judge_columns({key: joined(tuple(parts.values())) for key, parts in pools.items()})
        for key, parts in pools.items():
            for name, part in parts.items():
                said, type_name = verdicts[key], self.checked[name].variant.type_name
                found[name] = Finding(name, type_name, said.verdict, said.off, part.error, said.resolution, said.note)


def _judge(pair: WeightPair, rows: Whole, ours: Rows, theirs: Rows) -> Finding:
    name, type_name = pair.name, pair.variant.type_name
    if pair.experts == 1 or not pair.variant.low_bit:
        return judge(name, type_name, residual(ours, theirs))
    each = len(rows) // pair.experts
    spans = [slice(at * each, (at + 1) * each) for at in range(pair.experts)]
    return judge_experts(name, type_name, [residual(_part(ours, one), _part(theirs, one)) for one in spans])


def _part(rows: Rows, span: slice) -> Rows:
    values, low, high, slack = (item if len(item) == 1 else item[span] for item in (rows[0], *rows[2:]))
    step = rows.step if rows.step is None or len(rows.step) == 1 else rows.step[span]
    return Rows(values, step, low, high, slack)


def _may_move(finding: Finding) -> bool:
    """Types of which the maker may be GPTQ: `INT4` is how compressed-tensors stores any maker's integers."""
    return finding.off is not None and finding.type_name.startswith(("GPTQ-", "INT"))


def _learned(finding: Finding) -> Finding:
    if finding.verdict != DIFFERENT or finding.off is None:
        return finding
    note = f"{finding.off:.1%} of values are not at their nearest level, and its maker learns which level to take"
    return Finding(finding.name, finding.type_name, CANNOT_TELL, finding.off, finding.error, None, note)


def _layer(name: str) -> int:
    match = re.search(r"layers\.(\d+)\.", name)
    return int(match[1]) if match else -1


def _spread(count: int, wanted: int) -> Whole:
    """At most `wanted` of `count` numbers from 0 on, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).astype(np.int64)) if count else np.arange(0)
