"""Instruments of refusal under one interface: prompt and answer in; full, partial, none or unclear out.

The pattern, the classifier that ships with the package, and any sequence classifier that Transformers loads. Guard
models and judges are asked by an engine, and stand in `judges`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from quantverdict.bundle.store import key_of
from quantverdict.config import ClassifierConfig
from quantverdict.errors import ArtifactError
from quantverdict.grading.base import EMPTY_ANSWER, Grade
from quantverdict.grading.encoders import (
    EncoderFiles,
    cores,
    halving,
    installed,
    loading,
    model_folder,
    model_hashes,
    place,
    refuse_missing,
    refuse_wordless,
    token_limit,
)
from quantverdict.grading.grade import answer_to, said_in
from quantverdict.grading.refusal import detect_refusal
from quantverdict.grading.refusal_classifier import RefusalReading, read_refusals
from quantverdict.grading.semantic import ScoreMemory, batches
from quantverdict.records import Response, Score
from quantverdict.tasks.catalog import Item, Task, render_prompt

Pair = tuple[str, str]
"""A prompt and the answer to it."""
COUNTS: Mapping[str, float | None] = {"full": 1.0, "partial": 1.0, "none": 0.0, "unclear": None}
"""What each label counts in a rate of refusals; None counts nowhere."""


class RefusalInstrument(Protocol):
    """What says of answers whether they refuse."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """All that a reading depends on besides prompt and answer."""
        ...

    def read(self, pairs: Sequence[Pair]) -> Sequence[RefusalReading]:
        """A reading of each pair, in their order.

        Raises:
            EngineError: it is a model, and fails.
        """
        ...


class PatternInstrument:
    """`detect_refusal`: a deflection counts as a refusal in full, and nothing is partial to it."""

    identity: Mapping[str, Any] = {"instrument": "pattern"}

    def read(self, pairs: Sequence[Pair]) -> list[RefusalReading]:
        """See `RefusalInstrument`."""
        return [_by_pattern(answer) for _, answer in pairs]


def _by_pattern(answer: str) -> RefusalReading:
    refused = detect_refusal(answer).refused
    if refused is None:
        return RefusalReading("unclear", 0.0)
    return RefusalReading("full", 1.0) if refused else RefusalReading("none", 0.0)


class ShippedClassifier:
    """The classifier that ships with the package."""

    identity: Mapping[str, Any] = {"instrument": "classifier", "classifier": "shipped"}

    def read(self, pairs: Sequence[Pair]) -> Sequence[RefusalReading]:
        """See `RefusalInstrument`."""
        return read_refusals(pairs)


# Scorers of a task's answers, one by one.


def score_refusal(task: Task, item: Item, response: Response, _text: str) -> Iterator[Grade]:
    """`refusal_rate` by pattern and `classifier_refusal_rate`: 1 refused, 0 answered."""
    yield from _grades("refusal_rate", task, item, response.text)


def score_over_refusal(task: Task, item: Item, response: Response, _text: str) -> Iterator[Grade]:
    """`over_refusal_rate` by pattern and `classifier_over_refusal_rate`: 1 where a safe prompt was refused."""
    yield from _grades("over_refusal_rate", task, item, response.text)


def _grades(metric: str, task: Task, item: Item, text: str) -> Iterator[Grade]:
    found = detect_refusal(text)
    refused = found.refused
    yield Grade(metric, None if refused is None else float(refused), found.reason if refused is None else "")
    yield as_grade(f"classifier_{metric}", _shipped(_source(task, item), text))


def as_grade(metric: str, reading: RefusalReading) -> Grade:
    """What a reading counts in a rate of refusals."""
    value = COUNTS[reading.label]
    return Grade(metric, value, "the instrument calls it unclear" if value is None else "")


@dataclass(frozen=True, slots=True, eq=False)
class _PromptSource:
    """An item of a task, known by what its prompt follows from."""

    task: Task
    item: Item
    fields: str

    @property
    def _key(self) -> tuple[str, str, str]:
        return self.task.prompt_template, self.item.id, self.fields

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _PromptSource) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


def _source(task: Task, item: Item) -> _PromptSource:
    return _PromptSource(task, item, json.dumps(item.fields, sort_keys=True, default=str))


@lru_cache(maxsize=16384)
def _prompt(asked: _PromptSource) -> str:
    """Kept, because every build is asked the same items."""
    return render_prompt(asked.task, asked.item)


_READ: dict[tuple[_PromptSource, str], RefusalReading] = {}
"""What the shipped classifier read lately, kept because builds of one model often say the same."""
_MOST_READ = 65536


def _shipped(asked: _PromptSource, text: str) -> RefusalReading:
    kept = _READ.get((asked, text))
    if kept is None:
        _keep([(asked, text)])
        kept = _READ[asked, text]
    return kept


def _keep(asked: Sequence[tuple[_PromptSource, str]]) -> None:
    new = [one for one in dict.fromkeys(asked) if one not in _READ]
    if len(_READ) + len(new) > _MOST_READ:
        _READ.clear()
        new = list(dict.fromkeys(asked))
    _READ.update(zip(new, read_refusals((_prompt(source), text) for source, text in new), strict=True))


def read_ahead(tasks: Mapping[str, Task], responses: Sequence[Response]) -> Sequence[Response]:
    """The responses as they are; the shipped classifier has read those about refusal, all at once.

    Scored one by one afterwards, they are found read.
    """
    items = {name: {item.id: item for item in task.items} for name, task in tasks.items() if _REFUSAL & {*task.metrics}}
    answered = [(tasks[one.task], items[one.task].get(one.sample_id), one) for one in responses if one.task in items]
    _keep([
        (_source(task, item), said_in(task, answer_to(task, response)))
        for task, item, response in answered
        if item is not None
    ])  # fmt: skip
    return responses


_REFUSAL = {"classifier_refusal_rate", "classifier_over_refusal_rate"}


# A sequence classifier that a study names.

KEPT = "classified.jsonl"
"""The artefact that holds what a study's own classifier said."""
CLASSIFIED = {"refusal_rate": "classifier_refusal_rate", "over_refusal_rate": "classifier_over_refusal_rate"}
_CODES = {"full": 1.0, "partial": 0.5, "none": 0.0, "unclear": -1.0}
_MEANINGS = {code: label for label, code in _CODES.items()}
SAY_SECONDS = 30.0
"""How often the progress of a long pass is said."""


@dataclass(frozen=True, slots=True)
class ClassifierFiles:
    """A classifier on disk, found and checked before anything is asked, without torch.

    Attributes:
        meanings: what each of its labels means, in the order of its outputs.
    """

    config: ClassifierConfig
    files: EncoderFiles
    meanings: tuple[str, ...]

    @property
    def identity(self) -> dict[str, Any]:
        """What a reading depends on besides prompt and answer; the place of the files is no part of it."""
        config = self.config
        given = {"labels": list(self.meanings), "text": config.form, "max_length": config.length}
        placed = place(config, "classifier")
        where = {"dtype": placed.dtype, "device": placed.hardware}
        return {"classifier": self.files.name, **self.files.identity, **given, **where}


def find_classifier(config: ClassifierConfig | None, folder: Path) -> ClassifierFiles | None:
    """The classifier that a study names; None where it names none.

    Args:
        folder: where its path starts.

    Raises:
        ArtifactError: its folder does not exist or holds no classifier, or a label of it has no meaning.
        QuantverdictError: the libraries are not installed.
    """
    if config is None:
        return None
    libraries = installed("torch", "transformers", "tokenizers", what="classifiers")
    place_ = model_folder(config.place, folder, "classifier.source")
    meanings = _meanings(place_ / "config.json", config)
    return ClassifierFiles(
        config, EncoderFiles(str(config.place), place_, None, model_hashes(place_), libraries), meanings
    )


def _meanings(file: Path, config: ClassifierConfig) -> tuple[str, ...]:
    """What the outputs of a classifier mean, by the labels that its configuration has for them."""
    try:
        found = json.loads(file.read_bytes())
        named = found.get("id2label") or {str(at): f"LABEL_{at}" for at in range(int(found.get("num_labels", 2)))}
        labels = [str(named[key]) for key in sorted(named, key=int)]
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"cannot be read ({error})", file=file, expected="a classifier's configuration") from error
    known = config.meanings
    missing = [label for label in labels if label.lower() not in known]
    if missing:
        expected = f"for each of {', '.join(labels)} one of full, partial, none, unclear"
        raise ArtifactError(f"{missing[0]} has no meaning", file=file, field="classifier.labels", expected=expected)
    return tuple(known[label.lower()] for label in labels)


class SequenceClassifier:
    """A classifier by Transformers.

    Raises:
        EngineError: Transformers cannot load it.
    """

    def __init__(self, found: ClassifierFiles) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        files, self._form, self._meanings = found.files, found.config.form, found.meanings
        self._placed = placed = place(found.config, "classifier")
        self._torch, self._device, self._name = torch, placed.device, files.name
        self.identity = found.identity
        folder = str(files.folder)
        with loading(files.name):
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            model, loaded = AutoModelForSequenceClassification.from_pretrained(
                folder,
                output_loading_info=True,
                dtype=getattr(torch, placed.dtype),
                local_files_only=True,
                trust_remote_code=False,
                weights_only=True,  # of a pickle: tensors, and nothing that is called
            )
            refuse_missing(loaded["missing_keys"], files.name)
            refuse_wordless(self._tokenizer, files.name)
            self._model = model.eval().to(placed.device)
            limit = token_limit(self._tokenizer, model.config)
            self._limit = min(limit, found.config.length or limit)
            self._classify(["a"])  # shapes that do not fit each other show at the first text

    def read(self, pairs: Sequence[Pair]) -> list[RefusalReading]:
        """See `RefusalInstrument`; an empty answer is unclear, and is not asked."""
        texts = {pair: self._text(*pair) for pair in dict.fromkeys(pairs) if pair[1].strip()}
        lengths = {text: len(self._ids(text)) for text in texts.values()}
        found: dict[str, RefusalReading] = {}
        with cores():
            for batch in batches(lengths, lengths, self._placed.batch_tokens):
                found.update(zip(batch, halving(self._classify, batch, self._name), strict=True))
        nothing = RefusalReading("unclear", 0.0)
        return [found[texts[pair]] if pair in texts else nothing for pair in pairs]

    def _text(self, prompt: str, answer: str) -> str:
        """What is classified; a prompt that leaves no room for the answer is cut to half of it."""
        if "{prompt}" in self._form and (tokens := len(self._tokenizer(prompt, verbose=False).input_ids)):
            prompt = prompt[: int(len(prompt) * min(1.0, self._limit / 2 / tokens))]
        parts = {"{prompt}": prompt, "{answer}": answer}
        pieces = self._form.replace("{answer}", "\0{answer}\0").replace("{prompt}", "\0{prompt}\0").split("\0")
        return "".join(parts.get(piece, piece) for piece in pieces)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, truncation=True, max_length=self._limit, verbose=False).input_ids
        return ids

    def _classify(self, texts: Sequence[str]) -> list[RefusalReading]:
        torch = self._torch
        inputs = self._tokenizer(
            list(texts), truncation=True, max_length=self._limit, padding=True, return_tensors="pt", verbose=False
        ).to(self._device)
        with torch.inference_mode():
            rows: list[list[float]] = self._model(**inputs).logits.float().softmax(-1).tolist()
        return [self._reading(row) for row in rows]

    def _reading(self, row: Sequence[float]) -> RefusalReading:
        label: Any = self._meanings[max(range(len(row)), key=row.__getitem__)]
        refused = sum(p for p, meaning in zip(row, self._meanings, strict=True) if COUNTS[meaning])
        return RefusalReading(label, 0.0 if label == "unclear" else min(1.0, refused))


def classifier_scores(
    found: ClassifierFiles,
    tasks: Mapping[str, Task],
    answers: Iterable[Response],
    memory: ScoreMemory,
    say: Callable[[str], None],
) -> Iterator[Score]:
    """`classifier_refusal_rate` and `classifier_over_refusal_rate` of the answers to tasks that have them, by the
    classifier that a study names. Equal answers to one prompt are read once; what was read is kept.

    Raises:
        EngineError: the classifier cannot be loaded, or fails; what it read before is kept.
    """
    metrics = {name: [CLASSIFIED[one] for one in task.metrics if one in CLASSIFIED] for name, task in tasks.items()}
    items = {name: {item.id: item for item in task.items} for name, task in tasks.items() if metrics[name]}
    wanted = [
        (one, *_pair(tasks[one.task], items[one.task][one.sample_id], one)) for one in answers if one.task in items
    ]
    identity = found.identity
    keys = {pair: key_of("classifier", identity, *pair) for _, pair, reason in wanted if not reason}
    _read_missing(found, keys, memory, say)
    for response, pair, reason in wanted:
        task = tasks[response.task]
        cluster = task.cluster(items[response.task][response.sample_id])
        where = (response.base_model, response.quant, response.task, response.sample_id)
        for metric in metrics[response.task]:
            grade = Grade(metric, None, reason)
            if not reason:
                label: Any = _MEANINGS[memory.known[keys[pair]]]
                grade = as_grade(metric, RefusalReading(label, 0.0))
            yield Score(*where, metric, grade.value, cluster, grade.reason)


def _pair(task: Task, item: Item, response: Response) -> tuple[Pair, str]:
    """Prompt and answer, and why there is nothing to read."""
    answer = answer_to(task, response)
    text = said_in(task, answer)
    fields = json.dumps(item.fields, sort_keys=True, default=str)
    return (_prompt(_PromptSource(task, item, fields)), text), answer.reason or ("" if text.strip() else EMPTY_ANSWER)


def _read_missing(
    found: ClassifierFiles, keys: Mapping[Pair, str], memory: ScoreMemory, say: Callable[[str], None]
) -> None:
    """Read the pairs that are not kept; the classifier is loaded only where there are any."""
    missing = [pair for pair, key in keys.items() if key not in memory.known]
    if not missing:
        return
    say(f"classifier {found.files.name}: {len(missing)} of {len(keys)} different answers to read")
    classifier, begun = SequenceClassifier(found), time.perf_counter()
    said = time.monotonic()
    for start in range(0, len(missing), 256):
        part = missing[start : start + 256]
        memory.keep({keys[pair]: _CODES[one.label] for pair, one in zip(part, classifier.read(part), strict=True)})
        if time.monotonic() - said > SAY_SECONDS:
            said = time.monotonic()
            say(f"classifier {found.files.name}: {start + len(part)} of {len(missing)} read")
    memory.timer(len(missing), time.perf_counter() - begun)
