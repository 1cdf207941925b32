"""Before anything is compared: does each build come from its baseline, and does it read the prompts as the same tokens?

What is proved once is not looked at again: a proof has the key of the files it compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from quantverdict.artifacts.builds import Build, CompatibilityCheck
from quantverdict.backends.base import Tokenizer
from quantverdict.bundle.prompts import PromptPlan
from quantverdict.config import Study
from quantverdict.errors import ArtifactError, EngineError
from quantverdict.records import Artifact, CellId, Prompt
from quantverdict.registry import BACKENDS

SAME, DIFFERENT, CANNOT_TELL = "same", "different", "cannot_tell"
_RECIPE = "4"
"""Part of a proof's key; raise it when the same files would get another verdict."""


TokenizerOf = Callable[[Build], Tokenizer | None]
"""What a build's engine reads a prompt as; None where only its answers will tell."""


def check_builds(
    study: Study,
    builds: Sequence[Build],
    plans: Mapping[str, PromptPlan],
    known: Mapping[CellId, tuple[CompatibilityCheck, ...]],
    tokenizer_of: TokenizerOf,
    step: Callable[[str, int, int], None] = lambda *_: None,
) -> tuple[Build, ...]:
    """Every build with its proofs; baselines, duplicates, A/A replicates and recorded answers need none.

    Args:
        plans: what each base model is asked.
        known: proofs of an earlier run.
        tokenizer_of: asked only where two builds differ in engine, format or tokenizer.
        step: told how many builds are compared with their baselines.

    Raises:
        ArtifactError: a file cannot be read.
    """
    found = []
    for at, build in enumerate(builds):
        base = _baseline(builds, build)
        asked = build.runs and not build.is_baseline and not build.null
        if base is not None and asked and BACKENDS[build.backend].reads != "recordings":
            step(f"comparing {build.cell} with its baseline", at, len(builds))
            proofs = _Case(study, build, base, plans[build.cell.base_model], tokenizer_of).proofs(known)
            found.append(replace(build, proofs=tuple(proofs)))
        else:
            found.append(build)
    step("compared with their baselines", len(builds), len(builds))
    return tuple(found)


def require_compatible(builds: Sequence[Build]) -> None:
    """Stop before anything is asked of a build that is not what its baseline is.

    One whose weights, vocabulary and template are the baseline's, and whose settings are not, is asked the same
    question and may answer it otherwise: it is asked, and not accepted (`configured_otherwise`).

    Raises:
        ArtifactError: naming the first, and how to compare them all the same.
    """
    for build in builds:
        for proof in build.proofs:
            if proof.verdict == DIFFERENT and proof.waived is None and not _by_settings_alone(proof):
                where = None if build.artifact is None else build.artifact.path
                raise ArtifactError(
                    f"{build.cell} cannot be compared with its baseline: {proof.check}: {proof.reason}",
                    file=where,
                    expected="a build of the baseline, or a waiver in the study: "
                    f"waivers: [{{cell: {build.cell}, check: {proof.check}, reason: ...}}]",
                )


def doubts(builds: Sequence[Build]) -> dict[CellId, str]:
    """Cells whose origin or prompts are not proved to be their baseline's, and why."""
    found: dict[CellId, str] = {}
    for build in builds:
        said = [_doubt(proof) for proof in build.proofs if proof.verdict != SAME]
        if said:
            found[build.cell] = "; ".join(said)
    return found


def configured_otherwise(builds: Sequence[Build]) -> dict[CellId, str]:
    """Cells that differ from their baseline in settings alone, and which; not those that the study waives."""
    return {
        build.cell: proof.reason
        for build in builds
        for proof in build.proofs
        if proof.verdict == DIFFERENT and proof.waived is None and _by_settings_alone(proof)
    }


def _by_settings_alone(proof: CompatibilityCheck) -> bool:
    different = [check for check in proof.details if check["verdict"] == DIFFERENT]
    return proof.check == "lineage" and bool(different) and all(check.get("settings") for check in different)


def _doubt(proof: CompatibilityCheck) -> str:
    how = "is not proved" if proof.verdict == CANNOT_TELL else "differs"
    return f"{proof.check} {how}: {proof.reason}" + (f" (waived: {proof.waived})" if proof.waived else "")


def _baseline(builds: Sequence[Build], build: Build) -> Build | None:
    same = (one for one in builds if one.is_baseline and one.cell.base_model == build.cell.base_model)
    return next(same, None)


def _imatrix_of(study: Study, cell: CellId) -> Path | None:
    """The importance matrix that the study made a build with, where it made one by itself."""
    for model in study.models:
        for variant in model.variants:
            if CellId(model.name, variant.quant) == cell and variant.source is None:
                file = (variant.quantize or study.quantize).imatrix
                return None if file is None else study.folder / file
    return None


class _Case:
    """One build against its baseline."""

    def __init__(self, study: Study, build: Build, base: Build, plan: PromptPlan, tokenizer_of: TokenizerOf) -> None:
        self.build, self.base, self.plan, self.tokenizer_of = build, base, plan, tokenizer_of
        self.known: dict[str, CompatibilityCheck] = {}
        self.imatrix = _imatrix_of(study, build.cell)
        self.waived: dict[str, str] = {
            str(waiver.check): waiver.reason for waiver in study.waivers if waiver.cell == str(build.cell)
        }

    def proofs(self, known: Mapping[CellId, tuple[CompatibilityCheck, ...]]) -> list[CompatibilityCheck]:
        # What could not be told is asked again: a server may be there now.
        self.known = {one.key: one for one in known.get(self.build.cell, ()) if one.verdict != CANNOT_TELL}
        return [self._proof("lineage"), self._proof("prompt")]

    def _proof(self, check: str) -> CompatibilityCheck:
        key = self._key(check)
        proof = self.known.get(key) if check == "lineage" or self._kept else None
        proof = proof or (self._lineage(key) if check == "lineage" else self._prompt(key))
        return replace(proof, waived=self.waived.get(check))

    @property
    def _kept(self) -> bool:
        """Whether files alone decide what is read; a program that holds a model may hold another one now."""
        return all(one.artifact is not None and not BACKENDS[one.backend].remote for one in (self.base, self.build))

    def _key(self, check: str) -> str:
        sides = [f"{one.backend}:{one.artifact.sha256 if one.artifact else '?'}" for one in (self.base, self.build)]
        asked = [prompt.sha256 for prompt in self.plan.prompts] if check == "prompt" else []
        return hashlib.sha256(" ".join((check, _RECIPE, *sides, *asked)).encode()).hexdigest()

    def _lineage(self, key: str) -> CompatibilityCheck:
        ours, theirs = self.base.artifact, self.build.artifact
        if ours is None or theirs is None:
            who = "the baseline" if ours is None else "the build"
            return CompatibilityCheck("lineage", CANNOT_TELL, f"the file of {who} is not on this machine", key)
        if ours.identity_sha256 and ours.identity_sha256 == theirs.identity_sha256:
            return CompatibilityCheck("lineage", SAME, "the same weights and settings", key)
        from quantverdict.artifacts import lineage

        found = lineage.compare(Path(ours.path), Path(theirs.path), self.imatrix)
        details = lineage.as_json(found)["checks"]
        assert isinstance(details, list | tuple)
        return CompatibilityCheck("lineage", found.verdict, found.reason, key, details=tuple(details))

    def _prompt(self, key: str) -> CompatibilityCheck:
        ours, theirs = self.base.artifact, self.build.artifact
        if ours is not None and theirs is not None and self._alike(ours, theirs):
            return CompatibilityCheck("prompt", SAME, "the same tokenizer in the same engine", key)
        mine, other = self._tokenizer(self.base), self._tokenizer(self.build)
        if mine is None or other is None:
            who = self.base if mine is None else self.build
            return CompatibilityCheck("prompt", CANNOT_TELL, f"{who.backend} shows no tokens before it is asked", key)

        difference = first_difference(self.plan.prompts, mine, other) or other_stops(mine, other)
        if difference is not None:
            return CompatibilityCheck("prompt", DIFFERENT, str(difference), key)
        return CompatibilityCheck("prompt", SAME, f"{len(self.plan.prompts)} prompts are the same tokens", key)

    def _alike(self, ours: Artifact, theirs: Artifact) -> bool:
        same = ours.tokens_sha256 == theirs.tokens_sha256 and ours.format == theirs.format
        return same and self.base.backend == self.build.backend

    def _tokenizer(self, build: Build) -> Tokenizer | None:
        try:
            return self.tokenizer_of(build)
        except EngineError:
            return None  # the engine is not here: the cell itself will say why


# Is a prompt the same tokens on two backends? Asked before anything is generated.


@dataclass(frozen=True, slots=True)
class TokenDifference:
    """The first prompt that two backends read as different tokens.

    Attributes:
        prompts: how many prompts differ, this one included.
        position: of the first token that differs, from 0.
        baseline, other: its text on either side; None where the prompt ends before it.
    """

    task: str
    sample_id: str
    prompts: int
    position: int
    baseline: str | None
    other: str | None

    def __str__(self) -> str:
        sides = ["the end" if text is None else repr(text) for text in (self.baseline, self.other)]
        more = f", and {self.prompts - 1} more prompts" if self.prompts > 1 else ""
        said = f"token {self.position} is {sides[0]} to the baseline and {sides[1]} here"
        return f"{self.task}/{self.sample_id}: {said}{more}"


def first_difference(prompts: Sequence[Prompt], baseline: Tokenizer, other: Tokenizer) -> TokenDifference | None:
    """Compare every prompt token by token; None where all are the same ids."""
    found: TokenDifference | None = None
    different = 0
    for prompt in prompts:
        ours, theirs = baseline.ids(prompt), other.ids(prompt)
        if ours == theirs:
            continue
        different += 1
        if found is None:
            at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
            position = min(len(ours), len(theirs)) if at is None else at
            texts = [
                side.piece(ids[position]) if position < len(ids) else None
                for side, ids in ((baseline, ours), (other, theirs))
            ]
            found = TokenDifference(prompt.task, prompt.sample_id, 0, position, texts[0], texts[1])
    if found is None:
        return None
    return TokenDifference(found.task, found.sample_id, different, found.position, found.baseline, found.other)


def other_stops(baseline: Tokenizer, other: Tokenizer) -> str | None:
    """The tokens that end an answer on one side alone, in words; None where they are the same, or a side shows none."""
    ours, theirs = baseline.stops, other.stops
    if ours is None or theirs is None or set(ours) == set(theirs):
        return None
    named = [
        f"{', '.join(repr(side.piece(token)) for token in sorted(tokens))} {where}"
        for side, tokens, where in (
            (baseline, set(ours) - set(theirs), "for the baseline alone"),
            (other, set(theirs) - set(ours), "here alone"),
        )
        if tokens
    ]
    return f"an answer ends at {' and '.join(named)}"
