"""The judge registry of a bundle: whose labels are active, and whose are kept but take no part.

A judge that is changed is another one, with a file of labels of its own. One that a study no longer names is former;
named again, its labels count again and nothing is asked twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quantverdict.bundle.integrity import plain
from quantverdict.config import JudgeConfig, Model, Study, TaskUse

RECORD, FORMER = "judges", "former_judges"
"""Parts of the manifest: how each judge was configured, what it is, and the cells that a second one judges whole."""
NOT_ASKED = (
    "name", "covers", "quants", "second", "sample", "batch_size", "parallel", "threads", "timeout_s", "retries",
    "api_key_env", "price", "max_cost", "max_requests", "max_tokens",
)  # fmt: skip
"""What of a judge says which answers it labels, how fast and at what price, and not how it labels one."""
Entry = dict[str, Any]
"""`config`, `identity`, `whole` and `labels` (the name of its file, where that is not the judge's)."""


@dataclass(frozen=True, slots=True)
class JudgeRegistry:
    """The judges of a bundle, as its manifest has them.

    Attributes:
        judges: active, by name.
        former: those that are not; several may have had one name.
    """

    judges: Mapping[str, Entry] = field(default_factory=dict)
    former: Sequence[Entry] = ()

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> JudgeRegistry:
        return cls(manifest.get(RECORD) or {}, manifest.get(FORMER) or ())

    @property
    def parts(self) -> dict[str, object]:
        """What the manifest says of it."""
        return {RECORD: dict(self.judges), FORMER: list(self.former)}

    def with_entry(self, judge: JudgeConfig, **more: object) -> JudgeRegistry:
        """The entry of a judge that is active with its options as they are now, and `more` of it known."""
        entry = {**self.judges[judge.name], "config": plain(judge.model_dump()), **more}
        return JudgeRegistry({**self.judges, judge.name: entry}, self.former)

    def registered(self, judge: JudgeConfig, identity: Mapping[str, object] | None = None) -> JudgeRegistry:
        """An active judge, by the entry of the one that labels as it does: the active one, a former one, or a new one.

        Args:
            identity: what is known of the model and the engine by now, the more the better.
        """
        mine, known = self.judges.get(judge.name), identity or {}
        entries = (*(() if mine is None else (mine,)), *reversed(self.former))
        alike = [entry for entry in entries if is_alike(entry, judge, known)]
        # Once the model is known, labels that it gave come before an entry that holds none yet.
        asked = [entry for entry in alike if known and "identity" in entry]
        new = {"config": plain(judge.model_dump()), "labels": self._new_file(judge.name)}
        entry = next(iter((*asked, *alike)), new)
        rest = self if mine is None or mine is entry else self.deactivated(judge.name)
        return JudgeRegistry({**rest.judges, judge.name: entry}, [one for one in rest.former if one is not entry])

    def deactivated(self, name: str) -> JudgeRegistry:
        """Without a judge; what it said stays, and an entry that holds nothing goes."""
        if name not in self.judges:
            return self
        rest = {other: entry for other, entry in self.judges.items() if other != name}
        return JudgeRegistry(rest, [one for one in (*self.former, self.judges[name]) if "identity" in one])

    def _new_file(self, name: str) -> str:
        """NAME, or the first of NAME~2, NAME~3, ... that is no judge's: file systems may take small for capital."""
        taken = {labels_file(entry).casefold() for entry in (*self.judges.values(), *self.former)}
        numbered = (name if number == 1 else f"{name}~{number}" for number in range(1, len(taken) + 2))
        return next(file for file in numbered if file.casefold() not in taken)


def labels_file(entry: Entry) -> str:
    """The name of the file in `judgements` that holds a judge's labels, without its ending."""
    return str(entry.get("labels") or entry["config"]["name"])


def is_alike(entry: Entry, judge: JudgeConfig, identity: Mapping[str, object]) -> bool:
    """Whether the labels of an entry are what a judge would say, as far as is known before it is loaded.

    Where the hashes of both models are known they decide, and not where the files are.
    """
    known = entry.get("identity") or {}
    before = JudgeConfig.model_validate(entry["config"])
    both = asked_as(judge), asked_as(before)
    if "sha256" in known and "sha256" in identity:
        for one in both:
            del one["source"]
    alike = before.name == judge.name and both[0] == both[1]
    return alike and (not known or identity.items() <= known.items())


def asked_as(judge: JudgeConfig) -> dict[str, object]:
    """What of a judge says how it labels an answer."""
    return {**judge.model_dump(exclude={*NOT_ASKED, "backend"}), "engine": judge.engine}


def revised(stored: Study, given: Study, *, stopped: bool) -> Study:
    """The stored study with all of the given one that may change over the answers that are there.

    What a study decides by may change, how its answers are scored, which builds and which tasks it has and how many
    items of them. Each build that both have, and how each task that both have is asked, stays as it was. Where it asks
    in rounds, the tasks do: how many there are is part of when a build is stopped.

    Args:
        stopped: whether a build was stopped early. Where a study has judges none is stopped whose judge's metric is
            gated, so that a study that did stop one cannot get its first judge.
    """
    new: dict[str, object] = {key: getattr(given, key) for key in MAY_CHANGE}
    if stored.judges or not stopped:
        new["judges"] = given.judges
    new["collect"] = stored.collect.model_copy(update={"workers": given.collect.workers})
    models = {model.name: model for model in stored.models}
    new["models"] = tuple(_revised_model(models.get(model.name, model), model) for model in given.models)
    if stored.stopping == given.stopping == "none":
        new |= {"task_dir": given.task_dir, "tasks": _revised_tasks(stored, given)}
    return stored.model_copy(update=new)


MAY_CHANGE = (
    "policy", "constraints", "statistics", "classifier", "semantic", "whitebox", "text_kl", "waivers", "nulls",
    "reuse_servers", "allow_code_execution", "executor",
)  # fmt: skip
"""Keys of a study by which no answer is asked."""


def _revised_model(stored: Model, given: Model) -> Model:
    known = {variant.quant: variant for variant in stored.variants}
    return stored.model_copy(update={"variants": tuple(known.get(one.quant, one) for one in given.variants)})


def _revised_tasks(stored: Study, given: Study) -> tuple[TaskUse, ...]:
    """The tasks of the given study, with the answers' length as it was."""
    lengths = {use.named: use.max_new_tokens for use in stored.tasks}
    return tuple(
        use.model_copy(update={"max_new_tokens": lengths.get(use.named, use.max_new_tokens)}) for use in given.tasks
    )


def registry_parts_under(judge_registry: JudgeRegistry, stored: Study, given: Study) -> JudgeRegistry:
    """The registry once the given study is active in place of the stored one; judges that neither names stay in it."""
    asked = [judge for judge in given.judges if judge.engine]
    names = {judge.name for judge in asked}
    for judge in stored.judges:
        if judge.name not in names:
            judge_registry = judge_registry.deactivated(judge.name)
    for judge in asked:
        if judge.name in judge_registry.judges or any(is_alike(one, judge, {}) for one in judge_registry.former):
            judge_registry = judge_registry.registered(judge).with_entry(judge)
    return judge_registry
