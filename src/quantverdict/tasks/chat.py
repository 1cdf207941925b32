"""A question as the user's turn in a model's own chat template, as Transformers renders it; and the check that it is
in the prompt, whole and once.

A template that drops the question, or a part of it, renders without a fault: every build then answers something else
alike. So the template is tried with a probe first, and every prompt is held against what the probe showed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from quantverdict.errors import TaskError
from quantverdict.tasks.sandbox import render_template

TEXT, PARTS = "text", "parts"
"""How a template takes the content of a turn: as text, or as `[{"type": "text", "text": ...}]`."""
_PROBE = "quantverdict asks whether this question is shown"
_NONE = {"tools": None, "documents": None}
_MANNERS: tuple[tuple[str, Mapping[str, object]], ...] = ((TEXT, _NONE), (PARTS, _NONE), (TEXT, {}), (PARTS, {}))
"""Tried in this order. Transformers gives tools and documents as none; some templates render only without them, as
llama.cpp gives them."""
_SPECIAL = {
    "bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad", "mask": "mask", "cls": "cls", "separator": "sep",
    "seperator": "sep",
}  # fmt: skip
"""GGUF's names of special tokens (one as it is misspelt there) to Transformers'."""
_DUMPED = re.compile(r"""(['"])type\1: (['"])text\2""")
_EXPECTED = "a template whose prompt holds the question whole and once (white space around it may go)"


@dataclass(frozen=True, slots=True)
class _Frame:
    """What stands around the probe."""

    before: str
    after: str


class ChatTemplate:
    """A model's chat template.

    Args:
        source: in Jinja.
        special: texts of special tokens, by GGUF's names (`bos`, `eos`, ...).
        where: for whom it is tried; for the message.

    Attributes:
        content: `text`, or `parts` where a text is not shown.

    Raises:
        TaskError: it does not render, or does not show a question, or shows it more than once.
    """

    def __init__(self, source: str, special: Mapping[str, str], where: str) -> None:
        self._source = source
        self._tokens: dict[str, object] = {"bos_token": "", "eos_token": ""}
        self._tokens |= {f"{_SPECIAL[name]}_token": text for name, text in special.items() if name in _SPECIAL}
        self.content, self._given, self._frame = self._try(where)

    def render(self, text: str, where: str) -> str:
        """`text` as the user's turn, up to where the model answers.

        Raises:
            TaskError: it does not render, or what comes out does not hold the text whole and once.
        """
        rendered = self._render(text, self.content, self._given, where)
        problem = _problem(rendered, text, self._frame)
        if problem is not None:
            raise _refused(problem, where)
        return rendered

    def _try(self, where: str) -> tuple[str, Mapping[str, object], _Frame]:
        errors: list[TaskError] = []
        shown: list[int] = []
        for content, given in _MANNERS:
            try:
                before, *rest = self._render(_PROBE, content, given, where).split(_PROBE)
            except TaskError as error:
                errors.append(error)
                continue
            if any(_DUMPED.search(text) for text in (before, *rest)):
                shown.append(0)  # the list as it is, not what it says
                continue
            if len(rest) == 1:
                return content, given, _Frame(before, rest[0])
            shown.append(len(rest))
        if not shown:
            raise errors[0]
        times = max(shown)
        raise _refused(f"shows the question {times} times" if times else "does not show the question", where)

    def _render(self, text: str, content: str, given: Mapping[str, object], where: str) -> str:
        said: object = text if content == TEXT else [{"type": "text", "text": text}]
        variables = {
            "messages": [{"role": "user", "content": said}],
            "add_generation_prompt": True,
            **given,
            **self._tokens,
        }
        return render_template(self._source, variables, where=_place(where))


def _place(where: str) -> str:
    return f"chat template, for {where}"


def _refused(problem: str, where: str) -> TaskError:
    return TaskError(problem, file=_place(where), expected=_EXPECTED)


def _problem(rendered: str, text: str, frame: _Frame) -> str | None:
    """What became of a question in its prompt; None where it is there whole and once."""
    around = len(frame.before) + len(frame.after)
    if len(rendered) >= around and rendered.startswith(frame.before) and rendered.endswith(frame.after):
        inside = rendered[len(frame.before) : len(rendered) - len(frame.after)]
        if (inside.strip() == text.strip() and inside in text) or inside in set(_as_json(text)):
            return None
    # What stands around may depend on the question; where it is quoted there too, it is not counted.
    core = text.strip()
    if not core:
        return None
    counts = [
        rendered.count(spelt) - f"{frame.before}\0{frame.after}".count(spelt)
        for spelt in dict.fromkeys((core, *_as_json(core)))
    ]
    if 1 in counts:
        return None
    times = max(counts)
    return f"shows the question {times} times" if times > 1 else "does not hold the question whole"


def _as_json(text: str) -> Iterator[str]:
    """How the inside of a JSON string may spell a text, or the text without the white space around it."""
    for part in (text, text.strip(), text.lstrip(), text.rstrip()):
        for ascii_only in (False, True):
            yield json.dumps(part, ensure_ascii=ascii_only)[1:-1]
