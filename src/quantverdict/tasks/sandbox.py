"""Render a Jinja template that came with an untrusted file.

Jinja's immutable sandbox keeps a template from attributes and files; it does not bound time or memory. Here the
syntax tree is rewritten so that every value a template makes, every loop step and every piece of output is paid for
from one budget before it can grow: methods and filters are those chat templates use, each linear in what it is given.
"""

# ruff: noqa: ANN401 - the values of a template are of any type
from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache, wraps
from types import CodeType
from typing import Any, NoReturn

import jinja2
from jinja2 import meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Namespace

from quantverdict.errors import TaskError
from quantverdict.tasks.metering import BUDGET, BUDGET_PER_INPUT, MAX_BITS, STEP_COST, Meter, Metered

PROMPT_DATE = datetime(2024, 7, 26, tzinfo=UTC)
"""What `strftime_now` says: one fixed day (the one Llama 3 templates default to), so that prompts never drift."""

MAX_SOURCE = 100_000
"""Characters of template source."""
_FILTERS = (
    *("abs", "capitalize", "count", "d", "default", "dictsort", "first", "float", "groupby", "int", "items", "last"),
    *("length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "select", "selectattr"),
    *("sort", "string", "title", "unique", "upper"),
)
_TEXT_METHODS = (
    *("capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isdigit", "islower"),
    *("isnumeric", "isspace", "isupper", "join", "lower", "lstrip", "partition", "removeprefix", "removesuffix"),
    *("replace", "rfind", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase"),
    *("title", "upper"),
)
_SHORT_ARGUMENTS = ("lstrip", "rfind", "rpartition", "rsplit", "rstrip", "strip")
"""Text methods that take time in proportion to the length of text times argument."""
_METHODS: dict[type, tuple[str, ...]] = {
    str: _TEXT_METHODS,
    dict: ("get", "items", "keys", "values"),
    list: ("count", "index"),
    tuple: ("count", "index"),
    int: (),
    float: (),
    range: (),
}
_WRONG = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
)
"""What a template, being somebody else's program, can raise while it is compiled or runs."""


def render_template(source: str, variables: Mapping[str, object], *, where: str, strict: bool = False) -> str:
    """The text of a template.

    Blocks are trimmed as chat templates expect (`trim_blocks`, `lstrip_blocks`), one newline at the end is dropped.

    Args:
        source: Jinja source, a task's or a model's chat template.
        variables: JSON-like values.
        where: file (and field) for the message.
        strict: refuse a variable that is missing; else it is empty, as chat templates expect.

    Raises:
        TaskError: a wrong template, one that calls `raise_exception`, reaches for what it may not, or does not end
            within the budget.
    """
    try:
        code = _compile(source)
        environment = _Environment(strict)
        environment.meter = Meter(BUDGET + BUDGET_PER_INPUT * _size(variables))
        template = jinja2.Template.from_code(environment, code, {**environment.globals})
        return "".join(template.generate(**{str(key): value for key, value in variables.items()}))
    except _WRONG as error:
        raise _refusal(error, where) from error


def template_fields(source: str, *, where: str) -> frozenset[str]:
    """Names that a template takes from outside; compiles it, so that a wrong one is refused here.

    Raises:
        TaskError: as `render_template`.
    """
    try:
        _compile(source)
        environment = _Environment(strict=True)
        return frozenset(meta.find_undeclared_variables(environment.parse(source)) - set(environment.globals))
    except _WRONG as error:
        raise _refusal(error, where) from error


def _refusal(error: BaseException, where: str) -> TaskError:
    line = f" (template line {error.lineno})" if isinstance(error, jinja2.TemplateSyntaxError) else ""
    text = " ".join(str(error).split())[:200] or type(error).__name__
    if isinstance(error, RecursionError):
        text = "nests or calls itself too deeply"
    return TaskError(f"template refused: {text}{line}", file=where, expected="a template that renders")


@lru_cache(maxsize=64)
def _compile(source: str) -> CodeType:
    if len(source) > MAX_SOURCE:
        raise SecurityError(f"is {len(source)} characters long, more than {MAX_SOURCE}")
    environment = _Environment(strict=True)
    tree = Metered().visit(environment.parse(source))
    tree.set_environment(environment)
    code: CodeType = environment.compile(tree)
    return code


def _size(variables: Mapping[str, object]) -> int:
    meter = Meter(10**9)
    meter.weigh(variables)
    return meter.spent


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    """`dict`, without the methods of the class: called unbound they would change a value in place."""
    return dict(*args, **kwargs)


class _Opaque(Namespace):
    """`namespace()`, whose text does not show what it holds: nothing walks into it, so nothing need be paid."""

    def __repr__(self) -> str:
        return "<namespace>"


class _Generation(Extension):
    """`{% generation %}`: training frameworks mark the assistant's words with it; here it is its body."""

    tags = {"generation"}  # noqa: RUF012 - as the base class has it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    """One rendering: the sandbox with its meter."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, strict: bool) -> None:
        undefined = jinja2.StrictUndefined if strict else jinja2.Undefined
        extensions = ["jinja2.ext.loopcontrols", _Generation]
        super().__init__(trim_blocks=True, lstrip_blocks=True, undefined=undefined, extensions=extensions, cache_size=0)
        self.meter = Meter(BUDGET)
        own: dict[str, Callable[..., Any]] = {"tojson": self._tojson, "join": self._join, "replace": self._replace}
        own["trim"] = self._trim
        own |= {"safe": str, "_emit": _plain(self._text), "_made": _plain(self._made)}
        own |= {"_concat": _plain(self._concat), "_steps": _plain(self._steps)}
        self.filters = {name: self._metered(FILTERS[name]) for name in _FILTERS} | own
        self.globals = {"range": safe_range, "dict": _dict, "namespace": _Opaque}
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        for kind, names in _METHODS.items():
            if isinstance(obj, kind):
                return attr in names
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """Leave `str.format` to `is_safe_attribute`, which refuses it: a format may ask for any width."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise SecurityError(f"{type(obj).__name__}.{attribute} is not for templates")

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        self.meter.spend(STEP_COST)
        owner = getattr(obj, "__self__", None)
        guards: dict[str, Callable[..., str]] = {"join": self._join_of, "replace": self._replace}
        guard = guards.get(getattr(obj, "__name__", ""))
        if isinstance(owner, str) and guard is not None:
            return guard(owner, *args, **kwargs)
        if isinstance(owner, str) and obj.__name__ in _SHORT_ARGUMENTS:
            _refuse_long(*args, *kwargs.values())
        self.meter.weigh((args, kwargs))
        return self.meter.weigh(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            raise SecurityError("text % value is not for templates")
        if operator == "**":
            _bounded_power(left, right)
        if operator == "*":
            self._bounded_product(left, right)
        return self.meter.weigh(super().call_binop(context, operator, left, right))

    def _bounded_product(self, left: Any, right: Any) -> None:
        if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > MAX_BITS:
            raise SecurityError("makes too large a number")
        for value, times in ((left, right), (right, left)):
            if isinstance(value, str | list | tuple) and isinstance(times, int):
                before = self.meter.spent
                self.meter.weigh(value)
                self.meter.spend((self.meter.spent - before) * max(times, 0))

    def _metered(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def metered(*args: Any, **kwargs: Any) -> Any:
            self.meter.spend(STEP_COST)
            return self.meter.weigh(function(*args, **kwargs))

        return metered

    def _made(self, value: Any) -> Any:
        return self.meter.weigh(value)

    def _text(self, value: Any) -> str:
        text = str(value)
        self.meter.spend(1 + len(text))
        return text

    def _concat(self, values: list[Any]) -> str:
        return "".join(self._text(value) for value in values)

    def _steps(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.meter.spend(STEP_COST)
            yield value

    def _join(self, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
        parts = value if attribute is None else (self.getitem(part, attribute) for part in value)
        return self._join_of(d, parts)

    def _join_of(self, separator: str, values: Iterable[Any]) -> str:
        texts = [self._text(value) for value in values]
        self.meter.spend(len(separator) * len(texts))
        return separator.join(texts)

    def _trim(self, value: Any, chars: str | None = None) -> str:
        _refuse_long(chars)
        return self._text(value).strip(chars)

    def _replace(self, s: Any, old: str, new: str, count: int | None = None) -> str:
        text = str(s)
        self.meter.spend(STEP_COST + len(text) + text.count(old) * len(new))
        return text.replace(old, new, -1 if count is None else count)

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        """JSON as chat templates expect it: not escaped for HTML, keys in their order."""
        if indent is not None and not 0 <= int(indent) <= 16:
            raise SecurityError("tojson indents by at most 16")
        encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        return "".join(map(self._text, encoder.iterencode(value)))


def _plain(function: Callable[[Any], Any]) -> Callable[..., Any]:
    """A filter that Jinja never computes while it compiles: it asks for the context."""

    @jinja2.pass_context
    def at_run_time(_context: Context, value: Any) -> Any:
        return function(value)

    return at_run_time


def _bounded_power(base: Any, exponent: Any) -> None:
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * exponent > MAX_BITS:
        raise SecurityError("makes too large a number")


def _refuse_long(*arguments: Any) -> None:
    if any(isinstance(argument, str) and len(argument) > 64 for argument in arguments):
        raise SecurityError("searches for too long a text")


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    if re.sub(r"%-?[A-Za-z%]", "", pattern).count("%") or len(pattern) > 100:
        raise SecurityError("strftime_now takes plain directives such as %d %b %Y")
    return PROMPT_DATE.strftime(pattern)
