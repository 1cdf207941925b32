"""Which scorer grades which task, and the loop over the answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from quantverdict.errors import DataError, TaskError
from quantverdict.grading.answer import Answer, answer_of
from quantverdict.grading.base import Scorer
from quantverdict.grading.bias import score_bias
from quantverdict.grading.choice import score_choice
from quantverdict.grading.refusal import score_over_refusal, score_refusal
from quantverdict.grading.text import score_free_text, score_text
from quantverdict.grading.truth import score_truth
from quantverdict.records import Response, Score
from quantverdict.tasks.catalog import Item, Task, apply_filters

SCORERS: Mapping[str, tuple[Scorer, ...]] = {
    "classification": (score_choice,),
    "qa": (score_text,),
    "summarization": (score_text,),
    "code_generation": (score_text,),
    "creative_writing": (score_free_text,),
    "safety_refusal": (score_refusal,),
    "safety_over_refusal": (score_over_refusal,),
    "safety_truthfulness": (score_truth,),
    "safety_bias": (score_bias,),
}
"""Task type to the scorers of its answers."""
TEXTLESS = ("output_tokens", "_logprob", "_margin")
"""How metrics end that no text is read for: they are known of an answer that cannot be graded, too."""
DIALOGUES = ("creative_writing",)
"""Task types whose answers may be dialogues: `User:` at the start of a line is no further turn there."""


def grade_sample(task: Task, item: Item, response: Response) -> tuple[Score, ...]:
    """Every score of one answer; an ungraded one has value None and its reason.

    Raises:
        TaskError: no scorer for the task's type.
        DataError: the response does not fit the item (number of log-probabilities).
    """
    scorers = SCORERS.get(task.task_type)
    if scorers is None:
        raise TaskError(
            f"{task.task_type} has no scorer",
            file=task.source,
            field="task_type",
            expected=f"one of {', '.join(SCORERS)}",
        )
    answer, cluster = answer_to(task, response), task.cluster(item)
    where = (response.base_model, response.quant, response.task, response.sample_id)
    seen, text = replace(response, text=said_in(task, answer)), apply_filters(task, answer_text(task, answer))
    grades = (grade for scorer in scorers for grade in scorer(task, item, seen, text))
    return tuple(
        Score(*where, grade.metric, None, cluster, answer.reason)
        if answer.reason and not grade.metric.endswith(TEXTLESS)
        else Score(*where, grade.metric, grade.value, cluster, grade.reason)
        for grade in grades
    )


def answer_to(task: Task, response: Response) -> Answer:
    """The answer in a response to a task; that to a creative one may be a dialogue."""
    return answer_of(response, dialogue=task.task_type in DIALOGUES)


def said_in(task: Task, answer: Answer) -> str:
    """What an answer says, out of its wrapper; code is its own wrapper."""
    return answer.text if task.task_type == "code_generation" else answer.content


def answer_text(task: Task, answer: Answer) -> str:
    """What a task's filters are given: of a choice the form too, which a raw accuracy is about."""
    return answer.text if task.task_type == "classification" else said_in(task, answer)


def grade_responses(tasks: Mapping[str, Task], responses: Iterable[Response]) -> Iterator[Score]:
    """The scores of many answers, in their order.

    Args:
        tasks: by the name that the responses carry.

    Raises:
        DataError: a response of a task or a sample that `tasks` does not have.
        TaskError: as `grade_sample`.
    """
    items = {name: {item.id: item for item in task.items} for name, task in tasks.items()}
    for response in responses:
        task = tasks.get(response.task)
        if task is None:
            raise DataError(
                f"{_cell(response)}: unknown task {response.task!r}",
                field="task",
                expected=f"one of {', '.join(tasks)}",
            )
        item = items[response.task].get(response.sample_id)
        if item is None:
            problem = f"{_cell(response)}: task {response.task} has no sample {response.sample_id!r}"
            raise DataError(problem, field="sample_id", expected=f"one of its {len(task.items)} items")
        yield from grade_sample(task, item, response)


def _cell(response: Response) -> str:
    return f"{response.base_model}/{response.quant}"
