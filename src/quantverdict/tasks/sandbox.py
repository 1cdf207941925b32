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
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter, safe_range
from jinja2.utils import Cycler, Joiner, Namespace

from quantverdict.errors import TaskError
from quantverdict.tasks.metering import BUDGET, BUDGET_PER_INPUT, MAX_BITS, STEP_COST, Meter, Metered

PROMPT_DATE = datetime(2024, 7, 26, tzinfo=UTC)
"""What `strftime_now` says: one fixed day (the one Llama 3 templates default to), so that prompts never drift."""

MAX_SOURCE = 100_000
"""Characters of template source."""
WIDEST = 1000
"""Characters that a format, an indent or a padding may ask for, whatever it is given."""
_FILTERS = (
    *("abs", "attr", "capitalize", "count", "d", "default", "dictsort", "escape", "e", "first", "float", "groupby"),
    *("int", "items", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse"),
    *("select", "selectattr", "sort", "string", "title", "truncate", "unique", "upper", "wordcount"),
)
_NARROW_FILTERS = ("batch", "center", "indent", "round", "slice")
"""Filters that make as much as a number among their arguments says."""
_TEXT_METHODS = (
    *("capitalize", "casefold", "center", "count", "endswith", "find", "format", "format_map", "index", "isalnum"),
    *("isalpha", "isascii", "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric", "isprintable", "isspace"),
    *("istitle", "isupper", "join", "ljust", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace"),
    *("rfind", "rindex", "rjust", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip"),
    *("swapcase", "title", "upper", "zfill"),
)
_SHORT_ARGUMENTS = ("lstrip", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "strip")
"""Text methods that take time in proportion to the length of text times argument."""
_NARROW_METHODS = ("center", "ljust", "rjust", "zfill")
_METHODS: dict[type, tuple[str, ...]] = {
    str: _TEXT_METHODS,
    dict: ("copy", "get", "items", "keys", "values"),
    list: ("copy", "count", "index"),
    tuple: ("count", "index"),
    int: (),
    float: ("is_integer",),
    range: (),
}
_PERCENT = re.compile(
    r"%(?:\((?P<name>[^()]*)\))?[#0\- +]*(?P<width>\*|\d*)(?:\.(?P<precision>\*|\d*))?(?P<kind>.?)", re.DOTALL
)
_WRONG = (
    jinja2.TemplateError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    NameError,
    RuntimeError,
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
    if isinstance(error, NameError):  # Jinja writes what it computes beforehand as `inf` and `nan`
        text = "makes a number beyond what a float holds"
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
    """`dict`, without the methods of the class but one: called unbound they would change a value in place."""
    return dict(*args, **kwargs)


_dict.fromkeys = dict.fromkeys  # type: ignore[attr-defined]


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
        own |= {"trim": self._trim, "sum": self._sum, "format": self._percent_of}
        own |= {"safe": str, "_emit": _plain(self._text), "_made": _plain(self._made)}
        own |= {"_concat": _plain(self._concat), "_steps": _plain(self._steps)}
        narrow = {name: self._metered(FILTERS[name], narrow=True) for name in _NARROW_FILTERS}
        self.filters = {name: self._metered(FILTERS[name]) for name in _FILTERS} | narrow | own
        self.globals = {"range": safe_range, "dict": _dict, "namespace": _Opaque, "cycler": Cycler, "joiner": Joiner}
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        for kind, names in _METHODS.items():
            if isinstance(obj, kind):
                return attr in names
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """Leave `str.format` to `call`, which bounds what a format may ask for."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise SecurityError(f"{type(obj).__name__}.{attribute} is not for templates")

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        self.meter.spend(STEP_COST)
        # Inside a loop Jinja adds the names that are set there.
        given = {name: value for name, value in kwargs.items() if name not in ("_loop_vars", "_block_vars")}
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, str):
            guards: dict[str, Callable[..., str]] = {
                "join": self._join_of, "replace": self._replace, "format": self._format, "format_map": self._format_map,
            }  # fmt: skip
            if name in guards:
                return guards[name](owner, *args, **given)
            if name in _SHORT_ARGUMENTS:
                _refuse_long(*args, *given.values())
            if name in _NARROW_METHODS:
                _refuse_wide(*args)
        self.meter.weigh((args, given))
        return self.meter.weigh(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            self._weigh_percent(left, right)
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

    def _metered(self, function: Callable[..., Any], *, narrow: bool = False) -> Callable[..., Any]:
        @wraps(function)
        def metered(*args: Any, **kwargs: Any) -> Any:
            self.meter.spend(STEP_COST)
            if narrow:
                self._pay_widths(*args, *kwargs.values())
            return self.meter.weigh(function(*args, **kwargs))

        return metered

    def _pay_widths(self, value: Any, *arguments: Any) -> None:
        """For every line of what a filter is given and every width, a number or the text of an indent."""
        widths = [len(one) if isinstance(one, str) else one for one in arguments if isinstance(one, str | int)]
        _refuse_wide(*widths)
        lines = len(value.splitlines()) if isinstance(value, str) else 0
        self.meter.spend((lines + 1) * sum(map(abs, widths)))

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
        parts = value if attribute is None else (self._at(part, attribute) for part in value)
        return self._join_of(d, parts)

    def _join_of(self, separator: str, values: Iterable[Any]) -> str:
        texts = [self._text(value) for value in values]
        self.meter.spend(len(separator) * len(texts))
        return separator.join(texts)

    def _format(self, pattern: str, *args: Any, **kwargs: Any) -> str:
        return self._format_map(pattern, kwargs, args)

    def _format_map(self, pattern: str, names: Mapping[str, Any], args: tuple[Any, ...] = ()) -> str:
        self.meter.weigh((pattern, args, names))
        text: str = self.meter.weigh(_Formatter(self).vformat(pattern, args, names))
        return text

    def _percent_of(self, value: Any, *args: Any, **kwargs: Any) -> str:
        """The filter `format`: `'%s' | format(x)`."""
        if args and kwargs:
            raise TypeError("format takes values by place or by name, not both")
        pattern, given = self._text(value), kwargs or args
        self._weigh_percent(pattern, given)
        text: str = self.meter.weigh(pattern % given)
        return text

    def _weigh_percent(self, pattern: str, given: Any) -> None:
        """Pay for what `pattern % given` makes, before it does."""
        self.meter.weigh((pattern, given))
        for directive in _PERCENT.finditer(pattern):
            if directive["kind"] == "(":
                raise SecurityError("text % value with brackets inside a name is not for templates")
            _refuse_format(directive["width"] or "", directive["precision"] or "")
            self.meter.spend(1 + WIDEST * bool(directive["width"] or directive["precision"]))
            if directive["name"] is not None and isinstance(given, Mapping):
                self.meter.weigh(given.get(directive["name"]))

    def _sum(self, iterable: Iterable[Any], attribute: str | int | None = None, start: Any = 0) -> Any:
        if isinstance(start, str):
            raise TypeError("sum takes no text; join does")
        total = start
        for value in iterable:
            self.meter.spend(STEP_COST)
            total = self.meter.weigh(total + (value if attribute is None else self._at(value, attribute)))
        return total

    def _at(self, value: Any, attribute: str | int) -> Any:
        for part in str(attribute).split("."):
            value = self.getitem(value, int(part) if part.isdigit() else part)
        return value

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


class _Formatter(SandboxedFormatter):
    """`str.format` with bounds; what it looks into is checked as everywhere in the sandbox."""

    _env: _Environment

    def format_field(self, value: Any, format_spec: str) -> str:
        _refuse_format(*re.findall(r"\d+", format_spec))
        text: str = super().format_field(value, format_spec)
        self._env.meter.spend(1 + len(text))
        return text


def _plain(function: Callable[[Any], Any]) -> Callable[..., Any]:
    """A filter that Jinja never computes while it compiles: it asks for the context."""

    @jinja2.pass_context
    def at_run_time(_context: Context, value: Any) -> Any:
        return function(value)

    return at_run_time


def _bounded_power(base: Any, exponent: Any) -> None:
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * exponent > MAX_BITS:
        raise SecurityError("makes too large a number")


def _refuse_format(*numbers: str) -> None:
    """Widths and precisions as they are written; `*` takes one from the values."""
    if any(number == "*" or len(number) > 9 or int(number or 0) > WIDEST for number in numbers):
        raise SecurityError(f"formats to more than {WIDEST} characters")


def _refuse_wide(*arguments: Any) -> None:
    if any(isinstance(argument, int) and abs(argument) > WIDEST for argument in arguments):
        raise SecurityError(f"asks for more than {WIDEST} characters")


def _refuse_long(*arguments: Any) -> None:
    if any(isinstance(argument, str) and len(argument) > 64 for argument in arguments):
        raise SecurityError("searches for too long a text")


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    if re.sub(r"%-?[A-Za-z%]", "", pattern).count("%") or len(pattern) > 100:
        raise SecurityError("strftime_now takes plain directives such as %d %b %Y")
    return PROMPT_DATE.strftime(pattern)
