"""Render a Jinja template that came with an untrusted file.

Jinja's immutable sandbox keeps a template from attributes and files; it does not bound time or memory. Here the
syntax tree is rewritten so that every value a template makes, every loop step and every piece of output is paid for
from one budget before it can grow: methods and filters are those chat templates use, each linear in what it is given.
"""

# ruff: noqa: ANN401 - the values of a template are of any type
from __future__ import annotations

import json
import re
import time
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
from jinja2.visitor import NodeTransformer

from quantverdict.errors import TaskError

PROMPT_DATE = datetime(2024, 7, 26, tzinfo=UTC)
"""What `strftime_now` says: one fixed day (the one Llama 3 templates default to), so that prompts never drift."""

MAX_SOURCE = 100_000
"""Characters of template source."""
BUDGET = 2_000_000
"""Characters, elements and steps a rendering may make, besides `BUDGET_PER_INPUT` for each one it is given."""
BUDGET_PER_INPUT = 20
CPU_SECONDS = 1.0
"""Of this thread: the stop for work that makes nothing, such as comparing."""
STEP_COST = 4
MAX_BITS = 4096

_FILTERS = (
    *("abs", "capitalize", "count", "d", "default", "dictsort", "first", "float", "groupby", "int", "items", "last"),
    *("length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "select", "selectattr"),
    *("sort", "string", "title", "trim", "unique", "upper"),
)
_TEXT_METHODS = (
    *("capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isdigit", "islower"),
    *("isnumeric", "isspace", "isupper", "join", "lower", "lstrip", "partition", "removeprefix", "removesuffix"),
    *("replace", "rfind", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase"),
    *("title", "upper"),
)
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
        environment = _Environment(strict)
        environment.meter.weigh(variables)
        environment.meter = _Meter(BUDGET + BUDGET_PER_INPUT * environment.meter.spent)
        template = jinja2.Template.from_code(environment, _compile(source), {**environment.globals})
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
    tree = _Metered().visit(environment.parse(source))
    tree.set_environment(environment)
    code: CodeType = environment.compile(tree)
    return code


class _Meter:
    """The budget of one rendering."""

    def __init__(self, budget: int) -> None:
        self.budget, self.spent = budget, 0
        self.deadline = time.thread_time() + CPU_SECONDS

    def spend(self, units: int) -> None:
        self.spent += units
        if self.spent > self.budget or time.thread_time() > self.deadline:
            raise SecurityError("makes too much text or too many steps")

    def weigh(self, value: Any) -> Any:
        """Pay for a value and all it holds, a shared part as often as it shows, and give it back."""
        waiting = [value]
        while waiting:
            part = waiting.pop()
            if isinstance(part, str):
                self.spend(1 + len(part))
            elif isinstance(part, int):
                self.spend(1 + part.bit_length() // 8)
            else:
                self.spend(1)
                if isinstance(part, Mapping):
                    waiting.extend(part)
                    waiting.extend(part.values())
                elif isinstance(part, list | tuple | set | frozenset):
                    waiting.extend(part)
        return value


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
        self.meter = _Meter(10**9)
        own: dict[str, Callable[..., Any]] = {"tojson": self._tojson, "join": self._join, "replace": self._replace}
        own |= {"safe": str, "_emit": _plain(self._text), "_made": _plain(self._made)}
        own |= {"_concat": _plain(self._concat), "_steps": _plain(self._steps)}
        self.filters = {name: self._metered(FILTERS[name]) for name in _FILTERS} | own
        self.globals = {"range": safe_range, "dict": dict, "namespace": _Opaque}
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

    def _replace(self, s: Any, old: str, new: str, count: int | None = None) -> str:
        text = str(s)
        self.meter.spend(STEP_COST + len(text) + text.count(old) * len(new))
        return text.replace(old, new, -1 if count is None else count)

    def _tojson(self, value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None) -> str:
        """JSON as chat templates expect it: not escaped for HTML, keys in their order."""
        if indent is not None and not 0 <= int(indent) <= 16:
            raise SecurityError("tojson indents by at most 16")
        encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators)
        return "".join(map(self._text, encoder.iterencode(value)))


class _Metered(NodeTransformer):
    """Puts the meter's filters around loops, output, and expressions that make a value."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - the names are Jinja's
        if node.recursive:
            raise SecurityError("recursive loops are not for templates")
        self.generic_visit(node)
        node.iter = _wrapped(node.iter, "_steps")
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.nodes = [
            _wrapped(
                nodes.Const(part.data, lineno=part.lineno) if isinstance(part, nodes.TemplateData) else part, "_emit"
            )
            for part in node.nodes
        ]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _wrapped(nodes.List(node.nodes, lineno=node.lineno), "_concat")

    def _container(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") != "load" else _wrapped(node, "_made")

    visit_List = visit_Dict = visit_Tuple = _container  # noqa: N815

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _wrapped(node, "_made") if isinstance(node.arg, nodes.Slice) else node

    def _elsewhere(self, node: nodes.Node) -> nodes.Node:
        raise SecurityError(f"{type(node).__name__.lower()} is not for templates: they have no other files")

    visit_Include = visit_Import = visit_FromImport = visit_Extends = _elsewhere  # noqa: N815


def _wrapped(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _plain(function: Callable[[Any], Any]) -> Callable[..., Any]:
    """A filter that Jinja never computes while it compiles: it asks for the context."""

    @jinja2.pass_context
    def at_run_time(_context: Context, value: Any) -> Any:
        return function(value)

    return at_run_time


def _bounded_power(base: Any, exponent: Any) -> None:
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * exponent > MAX_BITS:
        raise SecurityError("makes too large a number")


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    if re.sub(r"%-?[A-Za-z%]", "", pattern).count("%") or len(pattern) > 100:
        raise SecurityError("strftime_now takes plain directives such as %d %b %Y")
    return PROMPT_DATE.strftime(pattern)
