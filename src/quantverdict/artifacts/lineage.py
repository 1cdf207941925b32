"""Does a variant come from the baseline it is compared with?

Tokenizer, special tokens, chat template, every setting that changes an answer (rope, epsilon, experts, ...), and every
weight: those left wide are equal within the rounding of their types, and the quantised ones are what rounding the
baseline's gives, after undoing scales that were only moved. The verdict is `same`, `different` or `cannot_tell`, and
`same` states the smallest change of weights that it rules out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from quantverdict.artifacts.gguf_read import Gguf
from quantverdict.artifacts.imatrix import IMATRIX_KEY, IMATRIX_SHA256_KEY, read_imatrix
from quantverdict.artifacts.lineage_tensors import CANNOT_TELL, COARSEST, DIFFERENT, SAME, Finding
from quantverdict.artifacts.lineage_tokenizer import (
    TokenizerFacts,
    checkpoint_settings,
    folder_facts,
    folder_files,
    gguf_facts,
)
from quantverdict.artifacts.lineage_weights import Comparison, WeightPair, not_read, pairs
from quantverdict.artifacts.settings import (
    across,
    checkpoint_differences,
    gguf_differences,
    gguf_settings,
    misstated,
    renderings,
    shown,
)
from quantverdict.artifacts.sources import cache_dir
from quantverdict.artifacts.weights import Importance, Weights, open_weights

_COVERED = 0.99
"""Share of either model's weights that must have been compared for `same`."""
_PADDING = re.compile(r"|\[PAD\d+\]|<pad\d*>|<unused\d+>|\[unused\d+\]")
_SHOWN = 4


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was compared.

    Attributes:
        verdict: `same`, `different` or `cannot_tell`.
        reason: one line.
        tensors: the weights that say so, worst first.
        settings: the settings that say so, each with its value here and in the baseline.
    """

    name: str
    verdict: str
    reason: str
    tensors: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()

    @property
    def evidence(self) -> tuple[str, ...]:
        """What the reason does not name."""
        return self.settings[1:] or self.tensors


@dataclass(frozen=True, slots=True)
class Lineage:
    """Whether a variant is a build of a baseline.

    Attributes:
        reason: one line: the first check that decides, or what `same` rests on.
        resolution: the smallest change, relative to its matrix, that is ruled out in every one; None where unknown.
    """

    baseline: str
    variant: str
    verdict: str
    reason: str
    checks: tuple[Check, ...]
    resolution: float | None


def compare(baseline: Path, variant: Path, imatrix: Path | None = None, *, remake: bool = False) -> Lineage:
    """Compare a variant with the baseline it is said to come from; GGUF files and checkpoints, in any pairing.

    Args:
        imatrix: the importance matrix that the variant was made with; looked for beside both files, by the name that
            the variant records, if not given.
        remake: encode every low-bit weight of a GGUF again, whole, and not only some rows of those whose types show
            nothing else: minutes for each billion weights.

    Raises:
        ArtifactError: a file is missing, corrupt, or of neither format.
        QuantverdictError: a low-bit GGUF, and the llamacpp extra is not installed.
    """
    with np.errstate(all="ignore"):  # weights may hold what is no number, and the verdict says so
        return _compare(baseline, variant, imatrix, remake)


def _compare(baseline: Path, variant: Path, imatrix: Path | None, remake: bool) -> Lineage:
    ours, theirs = open_weights(baseline), open_weights(variant)
    both = pairs(ours, theirs)
    fitting = {pair.name: pair for pair in both if pair.readable and pair.comparable}
    importance, lacking = _importance(ours, theirs, imatrix)
    comparison = Comparison(fitting, method=theirs.method, importance=importance, remakes=remake)
    findings = comparison.findings()
    findings += tuple(not_read(pair) for pair in both if not pair.readable)
    low_bit = {pair.name for pair in both if pair.variant.low_bit}
    resolution = _resolution(findings, {pair.name: pair for pair in both})
    checks = (
        *_reading_checks(_Side(ours), _Side(theirs)),
        _coverage(ours, theirs, both),
        _weights_check("weights left wide", [item for item in findings if item.name not in low_bit], 0),
        _with_recipe(
            _weights_check("quantised weights", [item for item in findings if item.name in low_bit], len(low_bit)),
            comparison,
            lacking,
        ),
    )
    verdict, reason = _decide(checks, resolution)
    return Lineage(str(baseline), str(variant), verdict, reason, checks, resolution)


def _importance(ours: Weights, theirs: Weights, given: Path | None) -> tuple[Importance | None, str]:
    """The importance matrix that a GGUF was made with, and why there is none where it records one."""
    if not isinstance(theirs.source, Gguf):
        return None, ""
    recorded = theirs.source.text(f"{IMATRIX_KEY}file")
    if given is not None:
        return read_imatrix(given).values, ""
    if recorded is None:
        return None, ""
    name = recorded.replace("\\", "/").rpartition("/")[2]
    places = (theirs.path.parent, ours.path.parent, cache_dir() / "imatrix")
    near = [folder / name for folder in places if name]
    file = next((path for path in near if path.is_file()), None)
    if file is None:
        return None, f"its importance matrix, {name[:60]!r}, is not beside it (--imatrix says where it is)"
    found, known = read_imatrix(file), theirs.source.text(IMATRIX_SHA256_KEY)
    if known is not None and known != found.sha256:
        return None, f"{file.name} is not the importance matrix that it was made with"
    return found.values, ""


def _with_recipe(check: Check, comparison: Comparison, lacking: str) -> Check:
    """What making the weights again showed, behind what the check says."""
    if comparison.proved and check.verdict == SAME:
        whole = "whole" if comparison.remakes else "in the rows that were read"
        said = f"proved: {comparison.proved} made again from the baseline with the same bytes, {whole}"
    elif comparison.unlike and check.verdict != DIFFERENT:
        why = lacking or "another llama.cpp, importance matrix or source made it"
        said = f"made again, {comparison.unlike} has other bytes: {why}"
    else:
        return check
    return replace(check, reason=f"{check.reason}; {said}")


def lineage_lines(found: Lineage) -> list[str]:
    """What `quantverdict lineage` prints for one variant: the verdict, then a line a check."""
    lines = [f"{found.variant}: {found.verdict.replace('_', ' ')}: {found.reason}"]
    width = max(len(check.name) for check in found.checks)
    for check in found.checks:
        lines.append(f"  {check.name:<{width}}  {check.verdict.replace('_', ' '):<11}  {check.reason}")
        if check.verdict != SAME and check.evidence:
            more = f" and {len(check.evidence) - _SHOWN} more" if len(check.evidence) > _SHOWN else ""
            between = "; " if check.settings else ", "
            lines.append(f"  {'':<{width}}  {'':<11}  {between.join(check.evidence[:_SHOWN])}{more}")
    return ["".join(character if character.isprintable() else "?" for character in line) for line in lines]


def as_json(found: Lineage) -> dict[str, object]:
    """A lineage in plain values."""
    return asdict(found)


def _decide(checks: Sequence[Check], resolution: float | None) -> tuple[str, str]:
    for verdict in (DIFFERENT, CANNOT_TELL):
        for check in checks:
            if check.verdict == verdict:
                return verdict, f"{check.name}: {check.reason}"
    if resolution is None or resolution > COARSEST:
        seen = "no change" if resolution is None else f"only a change of {resolution:.1%} or more"
        return CANNOT_TELL, f"of some matrix {seen} is ruled out; fine-tunes change less"
    return SAME, f"a change of {resolution:.2%} or more of any matrix that was read is ruled out"


class _Side:
    """One of the two models, with what its file or folder says besides weights."""

    def __init__(self, weights: Weights) -> None:
        self.weights, self.source = weights, weights.source
        if isinstance(self.source, Gguf):
            self.facts, self.settings = gguf_facts(self.source), gguf_settings(self.source)
        else:
            files = folder_files(self.source.folder)
            self.facts, self.settings = folder_facts(files), checkpoint_settings(self.source, files)

    @property
    def types(self) -> set[str]:
        """How its matrices are stored."""
        return {handle.type_name for handle in self.weights.handles.values() if handle.n_rows > 1}


def _reading_checks(ours: _Side, theirs: _Side) -> tuple[Check, ...]:
    """Everything but the weights."""
    found = _settings(ours, theirs)
    tokenizer = [text for text in found if text.startswith("tokenizer")]
    others = [text for text in found if not text.startswith("tokenizer")]
    return (
        _with(_tokens(ours.facts, theirs.facts), tokenizer),
        _special(ours, theirs),
        _template(ours.facts, theirs.facts),
        _with(Check("configuration", SAME, "no setting that changes an answer differs"), others),
    )


def _with(check: Check, settings: Sequence[str]) -> Check:
    """A check, or what differs where it found nothing."""
    if not settings or check.verdict == DIFFERENT:
        return check
    more = f", and {len(settings) - 1} more" if len(settings) > 1 else ""
    return Check(check.name, DIFFERENT, f"{settings[0]}{more}", settings=tuple(settings))


def _settings(ours: _Side, theirs: _Side) -> list[str]:
    """The settings that differ, each with its value here and in the baseline."""
    if isinstance(ours.source, Gguf) and isinstance(theirs.source, Gguf):
        tokens = ours.facts.tokens or (), theirs.facts.tokens or ()
        most = max(tokens, key=len)
        padding = {number for number, text in enumerate(most) if _PADDING.fullmatch(text)}
        return [str(one) for one in gguf_differences(ours.source, theirs.source, padding)]
    wrong = [] if isinstance(theirs.source, Gguf) else [*misstated(theirs.source.quantization, theirs.types)]
    if not isinstance(ours.source, Gguf) and not isinstance(theirs.source, Gguf):
        packed = any(handle.low_bit for handle in theirs.weights.handles.values())
        both_quantized = bool(ours.source.quantization and theirs.source.quantization)
        alike = ours.types == theirs.types and (packed or both_quantized)
        return [str(one) for one in checkpoint_differences(ours.settings, theirs.settings, alike=alike)] + wrong
    if isinstance(ours.source, Gguf):
        both = [(other, there, key, here) for key, other, here, there in across(ours.settings, theirs.settings)]
    else:
        both = [(key, there, other, here) for key, other, there, here in across(theirs.settings, ours.settings)]
    return [
        f"{key}: {shown(there)} here, {name} is {shown(here)} in the baseline" for key, there, name, here in both
    ] + wrong


def _tokens(ours: TokenizerFacts, theirs: TokenizerFacts) -> Check:
    if ours.tokens is None or theirs.tokens is None:
        return Check("tokenizer", CANNOT_TELL, "a file shows no vocabulary")
    for number in range(max(len(ours.tokens), len(theirs.tokens))):
        left, right = (facts[number] if number < len(facts) else "" for facts in (ours.tokens, theirs.tokens))
        # A format may fill ids that no token has.
        if left != right and not (_PADDING.fullmatch(left) and _PADDING.fullmatch(right)):
            return Check("tokenizer", DIFFERENT, f"token {number} is {right!r:.40} here, {left!r:.40} in the baseline")
    if ours.merges is not None and theirs.merges is not None and ours.merges != theirs.merges:
        return Check("tokenizer", DIFFERENT, _other_merges(ours.merges, theirs.merges))
    return Check("tokenizer", SAME, f"{len(ours.tokens)} tokens are equal")


def _other_merges(ours: Sequence[str], theirs: Sequence[str]) -> str:
    first = next((at for at, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
    if first is None:
        return f"the merges differ: {len(theirs)} here, {len(ours)} in the baseline"
    return f"the merges differ: merge {first} is {theirs[first]!r:.40} here, {ours[first]!r:.40} in the baseline"


def _special(ours: _Side, theirs: _Side) -> Check:
    """Padding is left out: it is masked wherever it occurs, and files name it as they like."""
    for name in ("bos", "eos"):
        left, right = (_special_id(side, name) for side in (ours, theirs))
        if left == right or (None in (left, right) and not _is_used(name, ours, theirs)):
            continue
        here, there = (
            "not set" if number is None else f"{number} ({side.facts.special_tokens.get(name)!r:.40})"
            for side, number in ((theirs, right), (ours, left))
        )
        return Check("special tokens", DIFFERENT, f"{name}_token_id: {here} here, {there} in the baseline")
    return Check("special tokens", SAME, "begin and end of text are the same ids")


def _special_id(side: _Side, name: str) -> object:
    """As the file says it; else as llama.cpp takes it, where that is known."""
    return side.facts.special.get(name, side.settings.get(f"tokenizer.ggml.{name}_token_id"))


def _is_used(name: str, *sides: _Side) -> bool:
    """Whether an id that one of the two does not set changes anything: without an end of its own an answer runs on.

    Folders name special tokens in several files, so that one that is not found says nothing.
    """
    if not all(isinstance(side.source, Gguf) for side in sides):
        return False
    return name == "eos" or any(
        side.settings.get("tokenizer.ggml.add_bos_token") is not False
        or "bos_token" in (side.facts.chat_template or "")
        for side in sides
    )


def _template(ours: TokenizerFacts, theirs: TokenizerFacts) -> Check:
    left, right = ours.chat_template, theirs.chat_template
    if left is None and right is None:
        return Check("chat template", SAME, "neither has one")
    if left is None or right is None:
        return Check("chat template", DIFFERENT, f"the {'variant' if right is None else 'baseline'} has none")
    # Jinja drops one line end at the end of a template.
    if left.removesuffix("\n") == right.removesuffix("\n"):
        return Check("chat template", SAME, f"equal, {len(left)} characters")
    reason = f"the templates differ ({len(right)} characters here, {len(left)} in the baseline)"
    one, two = renderings(left, ours.special_tokens), renderings(right, theirs.special_tokens)
    for name, text in one.items():
        if text != two[name]:
            return Check("chat template", DIFFERENT, f"{reason}; {name}: {_first_difference(text, two[name])}")
    refused = sum(text is None for text in one.values())
    if refused == len(one):
        return Check("chat template", CANNOT_TELL, f"{reason}, and render none of {refused} conversations")
    more = f"; {refused} more are refused by both" if refused else ""
    return Check("chat template", SAME, f"{len(one) - refused} conversations render the same, by other words{more}")


def _first_difference(ours: str | None, theirs: str | None) -> str:
    """Where a conversation first renders as something else."""
    if ours is None or theirs is None:
        return f"is refused by the {'baseline' if ours is None else 'variant'} alone"
    pair = ours, theirs
    at = next((n for n, (one, two) in enumerate(zip(*pair, strict=False)) if one != two), min(map(len, pair)))
    one, two = (text[max(0, at - 10) : at + 20] for text in pair)
    return f"{two!r} here, {one!r} in the baseline, from character {at + 1} on"


def _coverage(ours: Weights, theirs: Weights, both: Sequence[WeightPair]) -> Check:
    """Whether both models have the same weights, in the same shapes."""
    for weights in (ours, theirs):
        if not weights.handles and not isinstance(weights.source, Gguf):
            return Check("shapes", CANNOT_TELL, weights.source.unread or f"{weights.path} shows no weights")
    wrong = [pair for pair in both if pair.readable and not pair.comparable]
    if wrong:
        pair = wrong[0]
        reason = f"{pair.name} has shape {pair.variant.shape} here, {pair.baseline.shape} in the baseline"
        return Check("shapes", DIFFERENT, reason, tuple(pair.name for pair in wrong))
    compared = {pair.name for pair in both}
    alone = [name for weights in (ours, theirs) for name in weights.handles if name not in compared]
    for which, weights in (("baseline", ours), ("variant", theirs)):
        total = sum(handle.n_elements for handle in weights.handles.values())
        covered = sum(handle.n_elements for name, handle in weights.handles.items() if name in compared)
        if covered < _COVERED * total:
            reason = f"{1 - covered / total:.1%} of the {which}'s weights have no counterpart by name"
            return Check("shapes", CANNOT_TELL, reason, tuple(alone))
    return Check("shapes", SAME, f"{len(both)} weights have the same shapes", tuple(alone))


def _weights_check(name: str, findings: Sequence[Finding], total: int) -> Check:
    """`total`: how many there are, where a sample of them may have been read."""
    if not findings:
        return Check(name, SAME, "there are none")
    for verdict in (DIFFERENT, CANNOT_TELL):
        said = sorted((item for item in findings if item.verdict == verdict), key=lambda item: -(item.off or 0))
        if said:
            worst = said[0]
            reason = f"{len(said)} of {len(findings)}: {worst.name} ({worst.type_name}): {worst.note}"
            return Check(name, verdict, reason, tuple(item.name for item in said))
    types = ", ".join(sorted({item.type_name for item in findings}))
    many = f"{len(findings)} of {total}" if total > len(findings) else f"{len(findings)}"
    return Check(name, SAME, f"{many} ({types}) are the baseline's, rounded")


def _resolution(findings: Sequence[Finding], compared: dict[str, WeightPair]) -> float | None:
    """The coarsest of all matrices; None where one of them would show nothing. Vectors are too short to say."""
    seen = [item.resolution for item in findings if compared[item.name].baseline.n_rows > 1]
    known = [item for item in seen if item is not None]
    return max(known) if known and len(known) == len(seen) else None
