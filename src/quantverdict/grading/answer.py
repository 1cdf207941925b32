"""Which text is the answer: the one step between what a model generated and whatever reads it.

What a model says to itself is no answer, whether it stands in marks of its own, in a harmony channel, or was split off
by a server; nor is a further turn that a build which does not stop goes on with. A mark that is quoted, stands in a
code block or is spoken of is a word like others. Strong marks are tokens of chat templates. Weak ones (`User:` at the
start of a line) are also how people write dialogues: they end an answer only where nothing announces one.

Every pattern is bounded and every pass linear, so that no text can make it slow.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

from quantverdict.backends.base import CLOSE, END, OPEN, OTHER, TURN
from quantverdict.grading.base import EMPTY_ANSWER, cleaned
from quantverdict.grading.wrapper import Wrapper, unwrap
from quantverdict.records import WITHHELD, Response

KEPT_BACK = "the answer was kept back by a filter of the server"
CUT_IN_REASONING = "the answer is cut inside the reasoning"
NO_ANSWER = "no answer follows the reasoning"
ONLY_CONTROL = "the answer is nothing but control tokens"
ONLY_TURN = "the answer is a further turn alone"
PASSES = 8
"""How often a text is read again for marks that the last reading laid bare."""
_NEAR = 200


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered.

    Attributes:
        text: the answer as written, without reasoning, control tokens and further turns; empty where there is none.
        reasoning: what was thought before or between, None where nothing was.
        wrapper: what the answer as a whole stands in.
        content: the answer out of its wrapper: what it says. Without a wrapper it is `text`.
        complete: the model came to its end, by a stop or by going on into another turn.
        cut: the reasoning was never left.
        runs_on: a further turn followed, and was cut off.
        reason: why nothing can be graded, empty where something can.
    """

    text: str
    reasoning: str | None = None
    wrapper: Wrapper = "none"
    content: str = ""
    complete: bool = True
    cut: bool = False
    runs_on: bool = False
    reason: str = ""


def answer_of(response: Response, *, dialogue: bool = False) -> Answer:
    """The answer in a stored response; see `read_answer`. One that a filter kept back is none of the model's."""
    if response.finish == WITHHELD:
        return Answer("", complete=False, reason=KEPT_BACK)
    return read_answer(
        response.text, response.finish, opened=response.opened, reasoning=response.reasoning, dialogue=dialogue
    )


@lru_cache(maxsize=1 << 14)
def read_answer(
    text: str, finish: str = "stop", *, opened: bool = False, reasoning: str | None = None, dialogue: bool = False
) -> Answer:
    """Tell the answer in a raw text; never raises.

    Args:
        text: as it was generated.
        finish: `length` where the limit of tokens ended it.
        opened: the prompt ended inside a thought.
        reasoning: what a server split off.
        dialogue: the task asks for dialogues, so weak marks of a turn are a part of the answer.
    """
    split = reasoning is not None and bool(reasoning.strip())
    found = _read(text, finish, opened=opened and not split, dialogue=dialogue)
    thoughts = [thought for thought in (reasoning or "", *found.thoughts) if thought.strip()]
    said = found.text.strip() if split else found.text
    empty = not cleaned(_TOKENS.sub("", said))
    cut = found.cut or (bool(thoughts) and empty and not found.runs_on)
    reason = ""
    if cut:
        said, reason = "", CUT_IN_REASONING if finish == "length" else NO_ANSWER
    elif empty:
        said = "" if cleaned(said) else said
        reason = ONLY_TURN if found.runs_on else ONLY_CONTROL if cleaned(text) else EMPTY_ANSWER
    wrapper, content = unwrap(said)
    if wrapper != "none":
        inner = _read(content, "stop", opened=False, dialogue=True)
        content = content if inner.cut else inner.text
        thoughts += [] if inner.cut else inner.thoughts
        if inner.thoughts and not inner.cut and not cleaned(content):
            said, content, cut, reason = "", "", True, NO_ANSWER
    return Answer(
        text=said,
        reasoning="\n\n".join(thought.strip() for thought in thoughts) if thoughts else None,
        wrapper=wrapper,
        content=content,
        complete=not cut and (finish == "stop" or found.runs_on),
        cut=cut,
        runs_on=found.runs_on,
        reason=reason,
    )


class _ReadResult(NamedTuple):
    """What one reading made of a text."""

    text: str
    thoughts: list[str]
    cut: bool = False
    runs_on: bool = False


def _read(text: str, finish: str, *, opened: bool, dialogue: bool) -> _ReadResult:
    """Read a text until another reading changes nothing more; white space goes only where something else did."""
    found = _ReadResult(text, [])
    for turn in range(PASSES):
        before = found
        again = _read_once(found.text, finish, opened=opened and turn == 0, dialogue=dialogue)
        found = _ReadResult(again.text, before.thoughts + again.thoughts, again.cut, before.runs_on or again.runs_on)
        finish = "stop"
        if found.cut or found.text == before.text:
            break
        found = found._replace(text=found.text.strip())
    return found


def _read_once(text: str, finish: str, *, opened: bool, dialogue: bool) -> _ReadResult:
    found = _channels(text, opened=opened) or _announced(text, finish)
    if found is None:
        marked = opened or any(sign in text for sign in "<＜[◁&")  # noqa: RUF001
        found = _scan(text, finish, inside=opened) if marked else _ReadResult(text, [])
    echo = _ECHO.match(found.text)  # a header of the answer's own turn, its tokens left out
    found = found._replace(text=found.text[echo.end() :]) if echo else found
    end = None if dialogue else _weak_turn(found.text)
    if end is not None:
        return _ReadResult(found.text[:end], found.thoughts, cut=False, runs_on=True)
    return found


_ECHO = re.compile(r"\s{0,20}(?:assistant|model)[ \t]{0,3}\n")

# Marks of reasoning and turns

_MARK = re.compile(
    f"(?P<open>{OPEN})|(?P<close>{CLOSE})|(?P<end>{END})|(?P<turn>{TURN})|(?P<other>{OTHER})", re.IGNORECASE
)
_TOKENS = re.compile(
    r"<[|｜][^<>|｜\s]{1,40}[|｜]>|<(?:unused|extra_(?:id_)?|reserved_|dummy_?)\d{1,6}>|<0x[0-9A-Fa-f]{2}>"  # noqa: RUF001
    r"|\[(?:UNK|SEP|CLS|PAD|MASK|BOS|EOS)\]|<mask>|\ufffd"
)
"""What has the form of a control token: an answer of nothing else says nothing, whatever the tokens are called."""
_CONTROL = re.compile(f"{END}|{TURN}|{OTHER}", re.IGNORECASE)
_THEIRS = re.compile(
    r"user|human|prompter|system|tool|observation|developer|ipython|environment|\[INST|<SYS", re.IGNORECASE
)
_FENCE = re.compile(r"^[ \t]{0,3}(`{3,10}|~{3,10})", re.MULTILINE)
_QUOTES = frozenset("`\"'“”‘’«»")  # noqa: RUF001
_SPOKEN_OF = re.compile(r"[ \t]?(?:tags?|marks?|markers?|tokens?|elements?|blocks?|delimiters?)\b", re.IGNORECASE)
_NAMED = re.compile(
    r"\b(?:the|a|an|and|or|between|opening|closing|called|named|literal|like|use|using|inside|in|with|of)[ \t]$",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?:[.!?:…>)\]*]|\n|^)[ \t]{0,3}$")


def _scan(text: str, finish: str, *, inside: bool) -> _ReadResult:
    """Follow the marks from left to right."""
    marks = list(_structural(text, inside=inside))
    scan = _Scan(text, inside=inside)
    scan.tail = _control_tail(text, marks)
    scan.closes_until = max((mark.start() for mark in marks if mark["close"]), default=-1)
    for mark in marks:
        kind = mark.lastgroup
        (scan.in_thought if scan.inside else scan.in_answer)(mark, kind or "")
        if scan.ended:
            return scan.read()
    scan.leave(len(text))
    scan.cut = scan.cut or (finish == "length" and scan.nested > 0)  # an inner thought was left, the outer one not
    return scan.read()


class _Scan:
    """Where a scan is: what was said and thought up to `start`."""

    def __init__(self, text: str, *, inside: bool) -> None:
        self.text, self.inside, self.start = text, inside, 0
        self.said: list[str] = []
        self.thoughts: list[str] = []
        self.closed = self.cut = self.runs_on = self.visible = self.ended = False
        self.nested = self.opening = 0
        self.tail = self.closes_until = len(text)

    def read(self) -> _ReadResult:
        return _ReadResult("".join(self.said), self.thoughts, self.cut, self.runs_on)

    def leave(self, end: int) -> None:
        """End what goes on, thought or answer, at `end`."""
        part = self.text[self.start : end]
        (self.thoughts if self.inside else self.said).append(part)
        self.cut = self.cut or self.inside
        self.visible = self.visible or (not self.inside and bool(part.strip()))

    def in_thought(self, mark: re.Match[str], kind: str) -> None:
        """A mark inside a thought."""
        if kind == "close":
            self.leave(mark.start())
            self.inside, self.cut, self.closed, self.start = False, False, True, mark.end()
        elif kind == "open":
            self.nested += bool(self.text[self.opening : mark.start()].strip())
            self.opening = mark.end()
        elif kind in ("end", "turn") and mark[0].lower() != "</s>":
            self.leave(mark.start())
            self.ended = True

    def in_answer(self, mark: re.Match[str], kind: str) -> None:
        """A mark outside of thoughts."""
        if kind == "open":
            if self._is_block(mark):
                self.leave(mark.start())
                self.opening = mark.end()
                self.inside, self.start = not mark[0].rstrip(" \t>＞").endswith("/"), mark.end()  # noqa: RUF001
            return
        if kind == "close":
            self._close_unopened(mark)
            return
        self.visible = self.visible or bool(self.text[self.start : mark.start()].strip())
        if kind == "other":
            if not self.visible or mark.start() >= self.tail:
                self.leave(mark.start())
                self.start = mark.end()
            return
        if kind == "turn" and not self.visible and not _THEIRS.search(mark[0]):
            self.start = mark.end()
            return
        if mark[0].lower() == "</s>" and "<s>" in _before(self.text, mark, _NEAR):
            return  # struck through
        self.leave(mark.start())
        self.runs_on = mark.start() < self.tail
        self.ended = True

    def _is_block(self, mark: re.Match[str]) -> bool:
        """Whether an opening mark opens: without a close to come, only where a thought may begin."""
        word, before = mark[0], _before(self.text, mark, 8)
        return (
            mark.start() < self.closes_until
            or word.endswith(("/>", "/＞"))  # noqa: RUF001
            or ((not word.startswith("[") or word.isupper() or "unused" in word.lower())
                and _SENTENCE_END.search(before) is not None)
        )  # fmt: skip

    def _close_unopened(self, mark: re.Match[str]) -> None:
        """A close whose opening stands in the prompt, or of an outer thought: all before it was thought."""
        self.leave(mark.start())
        self.start = mark.end()
        if self.closed and mark.end() >= self.tail:
            return  # said once too often, at the end
        self.nested = 0
        self.thoughts.append("".join(self.said))
        self.said, self.visible, self.closed = [], False, True
        self.cut = mark.end() >= self.tail


def _structural(text: str, *, inside: bool) -> Iterator[re.Match[str]]:
    """The marks that are more than words: not quoted, not in a closed code block, not spoken of."""
    fences = [] if inside else _code_blocks(text)
    at, thinking = 0, inside
    for mark in _MARK.finditer(text):
        while at < len(fences) and fences[at][1] <= mark.start():
            at += 1
        fenced = at < len(fences) and fences[at][0] <= mark.start()
        if _is_quoted(text, mark, thinking=thinking) or (fenced and not thinking):
            continue
        thinking = (thinking or mark["open"] is not None) and mark["close"] is None
        yield mark


def _before(text: str, mark: re.Match[str], most: int) -> str:
    """What stands before a mark, at most so many characters."""
    return text[max(0, mark.start() - most) : mark.start()]


def _is_quoted(text: str, mark: re.Match[str], *, thinking: bool) -> bool:
    before, after = _before(text, mark, _NEAR), text[mark.end() : mark.end() + _NEAR]
    if before[-1:] in _QUOTES and after[:1] in _QUOTES and before and after:
        return True
    line = before.rpartition("\n")[2]
    if line.count("`") % 2 and "`" in after.partition("\n")[0]:
        return True
    named = not thinking and after.startswith((" ", ".", ",")) and (mark["open"] or mark["close"])
    spoken_of = _SPOKEN_OF.match(after) or (named and _NAMED.search(line))
    return bool(line.strip()) and bool(spoken_of)


def _code_blocks(text: str) -> list[tuple[int, int]]:
    """Where closed code blocks stand."""
    found: list[tuple[int, int]] = []
    opened: re.Match[str] | None = None
    for fence in _FENCE.finditer(text):
        if opened is None:
            opened = fence
        elif fence[1].startswith(opened[1]):
            found.append((opened.start(), fence.end()))
            opened = None
    return found


def _control_tail(text: str, marks: Sequence[re.Match[str]]) -> int:
    """From where on a text is nothing but control tokens and white space."""
    end = _last_visible(text, len(text))
    for mark in reversed(marks):
        if mark["open"] or mark.end() < end:
            break
        end = _last_visible(text, mark.start())
    return end


def _last_visible(text: str, end: int) -> int:
    while end > 0 and text[end - 1].isspace():
        end -= 1
    return end


# Harmony channels, and thoughts that are announced in words

_HEADER = re.compile(
    r"(?:<[|｜]start[|｜]>\s{0,3}(?P<role>\w{1,20})[^<\n]{0,80})?"  # noqa: RUF001
    r"<[|｜]channel[|｜]>\s{0,3}(?P<channel>analysis|final|commentary|thought)\b[^<]{0,120}"  # noqa: RUF001
    r"(?:<[|｜]constrain[|｜]>[^<]{0,40})?<[|｜]message[|｜]>",  # noqa: RUF001
    re.IGNORECASE,
)
_OTHER_TURN = re.compile(
    r"<[|｜]start[|｜]>\s{0,3}(?:user|system|developer|tool)\b[^<\n]{0,80}<[|｜]message[|｜]>",  # noqa: RUF001
    re.IGNORECASE,
)
_PART_END = re.compile(r"<[|｜](?:end|return|call|start|channel|endoftext)[|｜]>", re.IGNORECASE)  # noqa: RUF001
_HARMONY = re.compile(r"<[|｜](?:channel|message|constrain|start|end|return|call)[|｜]>", re.IGNORECASE)  # noqa: RUF001
_BARE_PART = re.compile(
    r"assistant(?:<[|｜]channel[|｜]>)?\s?(final|analysis|commentary)(?=\S|\n|(?<=assistantfinal) )"  # noqa: RUF001
)
_BARE_START = re.compile(r"\s{0,20}(?:assistant)?(analysis|commentary|final)(?=[A-Z\"'(<*\d]|\n\n?[A-Z])")
_ANNOUNCED = (
    (re.compile(r"\s{0,20}Here(?:'s| is) my thought process:"), re.compile(r"Here(?:'s| is) my response:")),
    (re.compile(r"\s{0,20}Thinking\.{3}\n"), re.compile(r"^\.{3}done thinking\.$", re.MULTILINE)),
)
"""How Granite announces a thought and its end, and how `ollama run` prints them."""


def _channels(text: str, *, opened: bool) -> _ReadResult | None:
    """Harmony: the final channel is the answer; None where the text has no channels."""
    if "channel" not in text and "assistant" not in text and not _BARE_START.match(text):
        return None
    turn = _OTHER_TURN.search(text)
    if turn is not None and not opened and turn.start() > 0:  # whatever is answered to another, it is not this answer
        found = _channels(text[: turn.start()], opened=False)
        return None if found is None else found._replace(runs_on=True)
    first = _HEADER.search(text)
    if first is None:
        return _stripped_channels(text)
    before = text[: first.start()]
    ended = _PART_END.search(before)
    if not opened and ended is None and _CONTROL.sub("", before).strip() not in ("", "assistant"):
        return None  # channels are spoken of
    lead = before[: ended.start()] if ended else before
    lead_channel = "analysis" if opened or not ended or first["channel"].lower() == "final" else "final"
    parts = [(lead_channel, "assistant", lead)] if lead.strip() else []
    header: re.Match[str] | None = first
    while header is not None:
        end = _PART_END.search(text, header.end())
        body = text[header.end() : end.start() if end else len(text)]
        parts.append((header["channel"].lower(), (header["role"] or "assistant").lower(), body))
        header = _HEADER.search(text, end.start()) if end else None
    return _final_of(parts)


def _stripped_channels(text: str) -> _ReadResult | None:
    """The same where an engine left the tokens out: `analysisWe need ...assistantfinalThe answer`."""
    begun = _BARE_START.match(text)
    found = [mark for mark in _BARE_PART.finditer(text) if _before(text, mark, 1) not in (" ", "\t")]
    if begun is None and not any(mark[1] == "final" for mark in found):
        return None
    bounds = [(begun.end(), begun[1]) if begun else (0, "analysis")]
    ends = []
    for mark in found:
        if mark.end() <= bounds[0][0]:
            continue
        ends.append(mark.start())
        bounds.append((mark.end(), mark[1]))
    ends.append(len(text))
    parts = [(name, "assistant", text[start:end]) for (start, name), end in zip(bounds, ends, strict=True)]
    return _final_of([part for part in parts if part[2].strip()] or [("analysis", "assistant", "")])


def _final_of(parts: Sequence[tuple[str, str, str]]) -> _ReadResult:
    """The first final part is the answer, what comes before it is thought, what comes after it a further turn."""
    thoughts: list[str] = []
    for index, (channel, role, body) in enumerate(parts):
        if role in ("user", "system", "developer", "tool"):
            return _ReadResult("", thoughts, cut=bool(thoughts), runs_on=True)
        if channel == "final":
            return _ReadResult(
                _HARMONY.sub("", body), thoughts, runs_on=any(more.strip() for *_, more in parts[index + 1 :])
            )
        thoughts.append(_HARMONY.sub("", body))
    return _ReadResult("", thoughts, cut=True)


def _announced(text: str, finish: str) -> _ReadResult | None:
    """`Here is my thought process: ... Here is my response: ...`, and the like."""
    for opening, closing in _ANNOUNCED:
        begun = opening.match(text)
        if begun is None:
            continue
        response = closing.search(text, begun.end())
        if response is not None:
            return _ReadResult(text[response.end() :], [text[begun.end() : response.start()]])
        return _ReadResult("", [text[begun.end() :]], cut=True) if finish == "length" else None
    return None


# Turns without control tokens

_Side = Literal["theirs", "ours"]
_WEAK = re.compile(
    r"^[ \t]{0,3}(?:"
    r"(?P<hash>#{3} ?(?:human|user|instruction|input|question|assistant|system)s?:)"
    r"|(?P<label>(?:\*\*|__)?(?P<name>user|human|assistant|ai|question|q|answer|a|instruction|system"
    r"|text|review|sentence|tweet|passage|headline|problem|statement|premise|category|label|sentiment|class|topic)"
    r"(?:\*\*|__)?[ ]?:)"
    r"|(?P<bare>(?-i:user|assistant|model|human|system))[ \t]{0,3}$"
    r"|(?P<set>below is an instruction that describes a task)"
    r")"
    r"|(?P<line>(?<=\S)[ \t]{0,3}(?-i:USER:[^\n]{1,300}?\sASSISTANT:))"
    r"|(?P<run>(?<=[.!?\"')\]])(?-i:(?:Human|User):)(?=[^\n]{1,300}\n{1,2}(?-i:Assistant):))"
    r"|(?P<glued>(?<=[.!?:\"')\]*])(?-i:user|assistant|model)(?=[ \t]{0,3}\n)|(?<=\w)(?-i:assistant)(?=\n\n))",
    re.IGNORECASE | re.MULTILINE,
)
_OURS = re.compile(r"assistant|model|\bai\b|answer|\ba\b|category|label|sentiment|class|topic", re.IGNORECASE)
_LABELS = frozenset(["answer", "category", "label", "sentiment", "class", "topic"])
_REPLIES = {
    "q": frozenset(["a", "answer"]),
    **dict.fromkeys(("question", "problem"), frozenset(["answer"])),
    **dict.fromkeys(("text", "review", "sentence", "tweet", "passage", "headline", "statement", "premise"), _LABELS),
}
"""What an item of a list of examples is followed by: a build that does not stop goes on with the next one."""
_AHEAD = 6
"""So many labels are looked ahead."""
_INTRODUCES = re.compile(
    r":[*_ ]{0,4}$|\b(?:here|below|following|sample|example)\b[^\n]{0,120}\b(?:dialogues?|conversations?|transcripts?"
    r"|scripts?|chats?|exchanges?|interviews?|scenes?|skits?|prompts?|questions?|faqs?)\b"
    r"|^[\W_]{0,8}(?:[\w'-]{1,20} ){0,4}(?:dialogue|conversation|transcript|script|chat(?: log)?|exchange|interview"
    r"|scene|skit|quiz|faqs?|questions(?: and answers)?)\W{0,8}$",
    re.IGNORECASE,
)
_SPEAKER = re.compile(r"^[*_]{0,2}[A-Z][\w.' -]{0,24}[*_]{0,2}:[*_]{0,2} \S", re.MULTILINE)
_NO_SPEAKER = re.compile(
    r"[*_]{0,2}(?:answer|note|warning|step|example|final|response|assistant|ai|tip|important)", re.I
)


def _weak_turn(text: str) -> int | None:
    """Where a further turn begins that is marked in words only; None where the answer is all there is."""
    marks, begun = list(_WEAK.finditer(text)), len(text) - len(text.lstrip())
    code, at = _code_blocks(text), 0
    for index, mark in enumerate(marks):
        if mark.start() <= begun:
            if _side(mark) == "theirs":
                return None if mark["label"] else mark.start()
        elif _is_turn(text, mark, marks[index + 1 : index + _AHEAD]):
            while at < len(code) and code[at][1] <= mark.start():
                at += 1
            if at < len(code) and code[at][0] <= mark.start():
                continue
            return None if _is_dialogue(text[: mark.start()]) else mark.start()
    return None


def _side(mark: re.Match[str]) -> _Side:
    return "ours" if _OURS.search(mark[0]) else "theirs"


def _is_turn(text: str, mark: re.Match[str], following: Sequence[re.Match[str]]) -> bool:
    """Whether a label begins a turn, by what follows: a question its answer, a text its label, a user an assistant."""
    name = (mark["name"] or "").lower()
    if not name:
        return True
    if name in ("assistant", "ai"):
        return bool(text[mark.end() : mark.end() + 20].strip())
    apart = _before(text, mark, 3).count("\n") > 1
    names = [(one["name"] or one[0]).lower() for one in following]
    if name in _REPLIES:
        return (apart or name in ("question", "q")) and not _REPLIES[name].isdisjoint(names)
    turns = [one for one, other in zip(following, names, strict=True) if other not in _REPLIES and other != "a"]
    theirs = name in ("user", "human", "instruction")
    return theirs and (_side(turns[0]) == "ours" if turns else apart and name != "instruction")


def _is_dialogue(before: str) -> bool:
    """Whether what stands before a turn announces a dialogue, or is one."""
    near = before.rstrip()[-600:]
    if _INTRODUCES.search(near[near.rfind("\n") + 1 :]):
        return True
    return sum(not _NO_SPEAKER.match(line[0]) for line in _SPEAKER.finditer(near)) > 1
