"""Which scorer grades which task, and the loop over the answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache, partial

from quantverdict.errors import DataError, TaskError, one_of
from quantverdict.grading.answer import Answer, answer_of, read_answer
from quantverdict.grading.base import Scorer
from quantverdict.grading.code import Executions, Program, program_of
from quantverdict.records import Response, Score
from quantverdict.registry import METRICS, SCORERS
from quantverdict.registry.listing import load
from quantverdict.tasks.catalog import Item, Task, apply_filters


def grade_sample(
    task: Task, item: Item, response: Response, *, published: bool = False, executions: Executions | None = None
) -> tuple[Score, ...]:
    """Every score of one answer; an ungraded one has value None and its reason.

    Args:
        published: by the scorers of the published study.
        executions: what programs came to, by their keys; None where none were run.

    Raises:
        TaskError: no scorer for the task's type.
        DataError: the response does not fit the item (number of log-probabilities).
    """
    scorers = scorers_of(task, published=published, executions=executions)
    answer, cluster = answer_to(task, response), task.cluster(item)
    where = (response.base_model, response.quant, response.task, response.sample_id)
    seen = replace(response, text=said_in(task, answer), reasoning=answer.reasoning or None)
    text = filtered(task, answer)
    grades = (grade for scorer in scorers for grade in scorer(task, item, seen, text))
    return tuple(
        Score(*where, grade.metric, None, cluster, answer.reason)
        if answer.reason and METRICS[grade.metric].reads_text
        else Score(*where, grade.metric, grade.value, cluster, grade.reason)
        for grade in grades
    )


def scorers_of(task: Task, *, published: bool = False, executions: Executions | None = None) -> tuple[Scorer, ...]:
    """What grades the answers to a task; `published` and `executions` as in `grade_sample`.

    Raises:
        TaskError: no scorer for the task's type.
    """
    try:
        return tuple(
            partial(load(SCORERS.find(name).target), executions=executions)
            if SCORERS.find(name).executes
            else _scorer(name, published=published)
            for name in task.type.scorers
        )
    except ValueError as error:
        problem = f"{task.task_type} has no scorer"
        raise TaskError(problem, file=task.source, field="task_type", expected=str(error)) from error


@cache
def _scorer(name: str, *, published: bool) -> Scorer:
    spec = SCORERS.find(name)
    scorer: Scorer = load((spec.published if published else "") or spec.target)
    return scorer


def answer_to(task: Task, response: Response) -> Answer:
    """The answer in a response to a task; to a conversation that is graded as a whole, all turns of the model."""
    found = answer_of(response, dialogue=task.type.dialogue)
    if task.graded == "last" or not response.replies or found.reason:
        return found
    said = [read_answer(text, opened=response.opened, dialogue=task.type.dialogue) for text in response.replies]
    return replace(
        found,
        text="\n\n".join([*(one.text for one in said), found.text]),
        content="\n\n".join([*(one.content for one in said), found.content]),
        wrapper="none",
    )


def said_in(task: Task, answer: Answer) -> str:
    """What an answer says, out of its wrapper; code is its own wrapper."""
    return answer.text if task.type.answer == "text" else answer.content


def answer_text(task: Task, answer: Answer) -> str:
    """What a task's filters are given: of a choice the form too, which a raw accuracy is about."""
    return answer.text if task.type.answer == "choice" else said_in(task, answer)


def filtered(task: Task, answer: Answer) -> str:
    """An answer after its task's filters."""
    return apply_filters(task, answer_text(task, answer))


def metrics_given(task: Task, *, executed: bool) -> tuple[str, ...]:
    """The metrics that answers to a task get; those of programs only where these are run, and an item has a check."""
    runs = executed and any(isinstance(item.fields.get("check"), str) for item in task.items)
    return tuple(metric for metric in task.metrics if runs or METRICS[metric].graded != "execution")


def programs_in(tasks: Mapping[str, Task], responses: Iterable[Response]) -> dict[str, Program]:
    """The different programs that answers make of items with assertions, by their keys."""
    items = {
        name: {item.id: item for item in task.items}
        for name, task in tasks.items()
        if any(SCORERS.find(scorer).executes for scorer in task.type.scorers)
    }
    found: dict[str, Program] = {}
    for response in responses:
        item = items.get(response.task, {}).get(response.sample_id)
        answer = None if item is None else answer_to(tasks[response.task], response)
        if item is not None and answer is not None and not answer.reason:
            program = program_of(item, filtered(tasks[response.task], answer))
            found |= {} if program is None else {program.key: program}
    return found


def grade_responses(
    tasks: Mapping[str, Task],
    responses: Iterable[Response],
    *,
    published: bool = False,
    executions: Executions | None = None,
) -> Iterator[Score]:
    """The scores of many answers, in their order.

    Args:
        tasks: by the name that the responses carry.
        published, executions: as in `grade_sample`.

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
                expected=one_of(response.task, tasks),
            )
        item = items[response.task].get(response.sample_id)
        if item is None:
            problem = f"{_cell(response)}: task {response.task} has no sample {response.sample_id!r}"
            raise DataError(problem, field="sample_id", expected=f"one of its {len(task.items)} items")
        yield from grade_sample(task, item, response, published=published, executions=executions)


def _cell(response: Response) -> str:
    return f"{response.base_model}/{response.quant}"
