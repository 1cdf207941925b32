"""Tasks, items and responses as small as they get."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from quantverdict.records import Response
from quantverdict.tasks.catalog import Item, Task

AWKWARD = {
    "empty": "",
    "spaces": " \t\u00a0\u3000 ",
    "newlines": "\n" * 50,
    "punctuation": "?!...---***\"'()[]{}",
    "emoji": "😀🙏🏽👩\u200d👩\u200d👧",
    "curly": "I’m sorry, but I can’t “help” with ‘that’",
    "chinese": "我不能帮助你。答案是B。",
    "arabic": "الجواب هو ب. لا أستطيع مساعدتك",
    "cyrillic": "Ответ: Б. Я не могу помочь",
    "right-to-left marks": "\u202eI cannot help\u202c \u200fB\u200f",
    "zero width": "\u200bB\u200d\ufeff",
    "nul": "\x00B\x00\x07",
    "lone surrogate": "B \ud800 \udfff",
    "long word": "a" * 100_000,
    "long spaces": " " * 50_000 + "B" + " " * 50_000,
    "long tabs and lines": "\t\n" * 50_000,
    "repeated refusal": "I can" * 20_000,
    "repeated clause": "I cannot, " * 10_000,
    "nested quotes": "\"'" * 50_000,
    "open quotes": "\"I can't " * 10_000,
    "brackets": "(" * 50_000 + ")" * 50_000,
    "letters": "A B C D " * 12_500,
    "list": "1. a\n2. b\n" * 10_000,
    "not": "not " * 25_000,
    "answers": "the answer is " * 7_000,
    "digits": "1234567890" * 10_000,
    "ligatures": "ﷺ" * 50_000,
}


@pytest.fixture(params=AWKWARD, ids=list(AWKWARD))
def awkward(request: pytest.FixtureRequest) -> str:
    """One awkward answer after the other."""
    return AWKWARD[request.param]


@pytest.fixture
def make_task() -> Callable[..., Task]:
    def make(
        task_type: str, *fields: dict[str, object], name: str = "", filters: tuple[str, ...] = (), **rest: str
    ) -> Task:
        items = tuple(Item(f"{index}", mapping) for index, mapping in enumerate(fields))
        accuracy = "choice_accuracy" if task_type == "classification" else None
        return Task(
            name or task_type, task_type, "", "", filters, items, "", accuracy, rest.get("cluster_field"), "made.yaml"
        )

    return make


@pytest.fixture
def answer() -> Callable[..., Response]:
    def make(text: str, task: str = "t", sample_id: str = "0", tokens: int = 7, **rest: object) -> Response:
        finish = str(rest.pop("finish", "stop"))
        return Response("model", "Q4_K_M", task, sample_id, "sha", text, finish, 5, tokens, **rest)  # type: ignore[arg-type]

    return make
