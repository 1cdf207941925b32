"""How many prompts a build is asked, look after look.

A study may be decided, asked more, and decided again, and the chance of a wrong decision stays what it was: each look
has its own share of the level. So the sizes of looks are settled before anything is seen (each is 1.5 times the last),
and whatever is added is rounded up to one of them. A larger sample holds the smaller; what each task has of it grows in
proportion, as far as the task has items.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import count

from quantverdict.bundle.manifest import Bundle
from quantverdict.bundle.prompts import drawn
from quantverdict.collect.schedule import asked_before
from quantverdict.config import Study
from quantverdict.errors import StudyError
from quantverdict.tasks.catalog import Task

LOOKS, LOOK, SAMPLE = "looks", "look", "sample"
"""Parts of the manifest: the sizes of looks, the number of the current one, and how much each task has of it."""
NO_MORE = "the tasks hold no more prompts"


def next_size(size: int) -> int:
    """Prompts a build of the look after one of `size`: 1.5 times as many, rounded up."""
    return (3 * size + 1) // 2


@dataclass(frozen=True, slots=True)
class Looks:
    """Where a study is.

    Attributes:
        sizes: prompts a build of each look, from the first; those that are there never change.
        number: of the current look, from 1.
        sample: how many prompts of each task the current look has, tasks that were left out since among them.
    """

    sizes: tuple[int, ...]
    number: int
    sample: Mapping[str, int]

    def at_least(self, prompts: int) -> Looks:
        """The first look of so many prompts, this one or a later one; the sample is still the old one."""
        sizes = list(self.sizes)
        for number in count(self.number):
            while len(sizes) < number:
                sizes.append(next_size(sizes[-1]))
            if sizes[number - 1] >= prompts:
                return replace(self, sizes=tuple(sizes), number=number)
        raise AssertionError("sizes grow")

    @property
    def parts(self) -> dict[str, object]:
        """What the manifest says of it."""
        return {LOOKS: list(self.sizes), LOOK: self.number, SAMPLE: dict(self.sample)}


def first_look(sample: Mapping[str, int], available: int) -> Looks:
    """The looks of a study that begins with a sample, up to the first that holds all there is."""
    sizes = [sum(sample.values())]
    while sizes[-1] < available:
        sizes.append(next_size(sizes[-1]))
    return Looks(tuple(sizes), 1, dict(sample))


def look_of(bundle: Bundle) -> int:
    """The number of the look that a bundle is at; 1 where it was made in another way."""
    return int(bundle.get_meta(LOOK) or 1)


def enlarged(sample: Mapping[str, int], available: Mapping[str, int], size: int) -> dict[str, int]:
    """A sample with prompts added until there are `size`, or all there are.

    Each goes to the task that grew least so far in proportion, of those that have one left; of equals to the first.
    """
    found = dict(sample)
    for _ in range(size - sum(sample.values())):
        left = [name for name in found if found[name] < available[name]]
        if not left:
            break
        found[min(left, key=lambda name: Fraction(found[name] + 1, sample[name]))] += 1
    return found


class Sampling:
    """The tasks of a study with the items that its bundle asks, which may be more than the study's own limits say.

    Args:
        whole: the study's tasks with all their items.
    """

    def __init__(self, study: Study, whole: Sequence[Task], bundle: Bundle) -> None:
        self._study, self._bundle = study, bundle
        self._whole = {task.name: (task, use) for task, use in zip(whole, study.tasks, strict=True)}
        self._asked = _asked(study, bundle)
        self._available = {name: len(task.items) for name, (task, _) in self._whole.items()}

    def settle(self, more: int | None = None) -> tuple[Task, ...]:
        """The tasks as they are asked now; the manifest holds which look it is.

        A study that asks in rounds has no looks: how many prompts there are is part of when it stops.

        Args:
            more: prompts a build that are to be added, rounded up to the next look; None adds what the study demands.

        Raises:
            StudyError: `more`, and there are none.
            TaskError: a task lacks an item that was asked.
        """
        if self._study.stopping == "sequential":
            return tuple(drawn(self._study, task, use) for task, use in self._whole.values())
        looks, tasks = self._looks(more)
        self._bundle.hold(**looks.parts)
        return tasks

    def asked_only(self) -> tuple[Task, ...]:
        """The tasks with the items that were asked, and no others."""
        tasks = [(task, set(self._asked.get(name, ()))) for name, (task, _) in self._whole.items()]
        return tuple(
            replace(task, items=tuple(item for item in task.items if item.id in kept)) for task, kept in tasks if kept
        )

    @property
    def exhausted(self) -> bool:
        """Whether every item of every task is asked."""
        return all(len(self._asked.get(name, ())) == most for name, most in self._available.items())

    def next_prompts(self) -> int:
        """How many prompts a build the next look would add."""
        return sum(len(task.items) for task in self._looks(1)[1]) - self.known

    def _looks(self, more: int | None) -> tuple[Looks, tuple[Task, ...]]:
        own = {name: len(self._draw(name).items) for name in self._whole}
        looks = self._stored(own)
        sample = {name: max(own[name], looks.sample.get(name, 0)) for name in self._whole}
        others = {name: size for name, size in looks.sample.items() if name not in self._whole}
        if more is None and all(sample[name] == looks.sample.get(name) for name in sample):
            return looks, self._tasks(looks.sample)
        held = sum((*self._available.values(), *others.values()))
        wanted = min(held, sum((*sample.values(), *others.values())) + (more or 0))
        if more is not None and sample == self._available:
            raise StudyError(NO_MORE, field="--more", expected="tasks that have more items")
        found = looks.at_least(max(wanted, looks.sizes[looks.number - 1] + 1))
        while True:
            grown = enlarged(sample, self._available, found.sizes[found.number - 1] - sum(others.values()))
            tasks = self._tasks(grown)
            if sum(len(task.items) for task in tasks) > self.known or grown == self._available:
                return replace(found, sample={**others, **grown}), tasks
            found = found.at_least(found.sizes[found.number - 1] + 1)  # not one whole cluster more fits this one

    @property
    def known(self) -> int:
        """Prompts of the study's tasks that were asked."""
        return sum(len(self._asked.get(name, ())) for name in self._whole)

    def _stored(self, own: Mapping[str, int]) -> Looks:
        """Where the bundle is; one that says nothing of looks is at its first."""
        recorded = {key: self._bundle.get_meta(key) for key in (LOOKS, LOOK, SAMPLE)}
        if recorded[LOOKS] and self._asked:
            return Looks(tuple(recorded[LOOKS]), recorded[LOOK], recorded[SAMPLE])
        begun = {name: len(ids) for name, ids in self._asked.items()}
        return first_look(begun or own, sum(self._available.values()))

    def _draw(self, name: str, most: int | None = None) -> Task:
        task, use = self._whole[name]
        return drawn(self._study, task, use, self._asked.get(name, ()), most)

    def _tasks(self, sample: Mapping[str, int]) -> tuple[Task, ...]:
        return tuple(self._draw(name, sample[name]) for name in self._whole)


def _asked(study: Study, bundle: Bundle) -> dict[str, Collection[str]]:
    """The ids of the items of each task that some base model was asked."""
    found: dict[str, dict[str, None]] = {}
    for model in study.models:
        for prompt in asked_before(bundle, model.name):
            found.setdefault(prompt.task, {})[prompt.sample_id] = None
    return {name: list(ids) for name, ids in found.items()}
