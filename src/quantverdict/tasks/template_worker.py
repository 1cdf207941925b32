"""The process that renders templates: Jinja's immutable sandbox, bounds on what one step makes, and the process's own.

Run as `python -m`, one JSON line in and one out; a template's fault is in its line. What grows past the process's
memory ends the process, what runs on is ended by `sandbox`, and either is that template's refusal.
"""

# ruff: noqa: ANN401 - the values of a template are of any type
from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache, wraps
from typing import Any, NoReturn

import jinja2
from jinja2 import meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from markupsafe import Markup

PROMPT_DATE = datetime(2024, 7, 26, tzinfo=UTC)
"""What `strftime_now` says: one fixed day (the one Llama 3 templates default to), so that prompts never drift."""
MAX_SOURCE = 100_000
"""Characters of template source."""
MADE = 2_000_000
"""Characters or elements that a rendering, or one value in it, may have, besides `MADE_PER_INPUT` for each character
it is given."""
MADE_PER_INPUT = 20
WIDEST = 1000
"""Characters that a format, an indent or a padding may ask for, whatever it is given."""
MAX_BITS = 4096
"""Of a whole number."""
MEMORY = 256 << 20
"""Bytes of address space besides those of the process at its start."""
TOO_MUCH = "makes too much text or too many steps"
_WIDTH_FILTERS = ("batch", "center", "indent", "round", "slice", "wordwrap")
_WIDTH_METHODS = ("center", "expandtabs", "ljust", "rjust", "to_bytes", "zfill")
_PERCENT = re.compile(r"%(?:\([^()]*\))?[#0\- +]*(?P<width>\*|\d*)(?:\.(?P<precision>\*|\d*))?(?P<kind>.?)", re.DOTALL)
_WRONG = (
    jinja2.TemplateError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)
"""What a template, being somebody else's program, can raise while it is compiled or runs."""


_WARM_UP = (
    "{{ '\\n\\N{BULLET}{}'.format(x) ~ 1.5 }}{{ [x]|pprint }}{{ x|wordwrap(9) }}{{ x|urlize }}",
    "{{ strftime_now('%d %b') }}",
    "{{ x.y.z }}",
    "{% wrong",
)


def main() -> None:
    """Answer each line of the input until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program, which then closes the input
    for source in _WARM_UP:  # what Jinja and Python load when it is first needed must be there: no file opens after
        _reply({"source": source, "variables": {"x": "é"}, "strict": False}, 0)
    _limit()
    print("ready", flush=True)  # noqa: T201 - the other side reads it
    for line in sys.stdin.buffer:
        print(json.dumps(_reply(json.loads(line), len(line))), flush=True)  # noqa: T201


def _limit() -> None:
    """Bound this process's memory and let it open no file, where the system can."""
    try:
        import resource
    except ImportError:
        return
    page, pages = os.sysconf("SC_PAGE_SIZE"), 1 << 14
    with suppress(OSError), open("/proc/self/statm", encoding="ascii") as status:  # noqa: PTH123
        pages = int(status.read().split()[0])
    limits = {resource.RLIMIT_AS: page * pages + MEMORY, resource.RLIMIT_FSIZE: 0, resource.RLIMIT_NOFILE: 3}
    for kind, limit in (limits | {resource.RLIMIT_CORE: 0}).items():
        with suppress(OSError, ValueError):  # a lower limit is active
            resource.setrlimit(kind, (limit, limit))


def _reply(request: dict[str, Any], size: int) -> dict[str, Any]:
    try:
        if "variables" not in request:
            return {"fields": _fields(request["source"])}
        form = request.get("harness", False)
        return {"text": _render(request["source"], request["strict"], request["variables"], size, form)}
    except _WRONG as error:
        return {"problem": _problem(error)}


def _render(source: str, strict: bool, variables: dict[str, Any], size: int, harness: bool = False) -> str:
    template = _template(source, strict, harness)
    left = MADE + MADE_PER_INPUT * size
    _environment(strict, harness).most = left
    pieces = []
    for piece in template.generate(variables):
        left -= len(piece)
        if left < 0:
            raise SecurityError(TOO_MUCH)
        pieces.append(piece)
    return "".join(pieces)


def _fields(source: str) -> list[str]:
    environment = _template(source, strict=True).environment
    tree = environment.parse(source)
    for name in meta.find_referenced_templates(tree):
        _no_files(name)
    return sorted(meta.find_undeclared_variables(tree) - set(environment.globals))


def _problem(error: BaseException) -> str:
    line = f" (template line {error.lineno})" if isinstance(error, jinja2.TemplateSyntaxError) else ""
    text = " ".join(str(error).split())[:200] or type(error).__name__
    if isinstance(error, RecursionError):
        text = "nests or calls itself too deeply"
    if isinstance(error, NameError):  # Jinja writes what it computes beforehand as `inf` and `nan`
        text = "makes a number beyond what a float holds"
    return text + line


@lru_cache(maxsize=4)
def _environment(strict: bool, harness: bool = False) -> _Environment:
    return _Environment(strict, harness)


@lru_cache(maxsize=16)
def _template(source: str, strict: bool, harness: bool = False) -> jinja2.Template:
    if len(source) > MAX_SOURCE:
        raise SecurityError(f"is {len(source)} characters long, more than {MAX_SOURCE}")
    return _environment(strict, harness).from_string(source)


class _Generation(Extension):
    """`{% generation %}`: training frameworks mark the assistant's words with it; here it is its body."""

    tags = {"generation"}  # noqa: RUF012 - as the base class has it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox as Transformers sets it up, without what is random, and with bounds.

    Args:
        harness: as lm-evaluation-harness has it: blocks are not trimmed, the last newline stays, `regex_replace`.

    Attributes:
        most: characters or elements that one value may have.
    """

    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self, strict: bool, harness: bool = False) -> None:
        undefined = jinja2.StrictUndefined if strict else jinja2.Undefined
        extensions = ["jinja2.ext.loopcontrols", _Generation]
        super().__init__(
            trim_blocks=not harness,
            lstrip_blocks=not harness,
            keep_trailing_newline=harness,
            undefined=undefined,
            extensions=extensions,
            loader=jinja2.FunctionLoader(_no_files),
        )
        self.most = MADE
        self.filters["tojson"] = _tojson
        if harness:
            self.filters["regex_replace"] = _regex_replace
        self.filters = {
            name: self._within(function, widths=name in _WIDTH_FILTERS)
            for name, function in self.filters.items()
            if name != "random"
        }
        del self.globals["lipsum"]
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise SecurityError(f"{type(obj).__name__}.{attribute} is not for templates")

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None or isinstance(value.__self__, Markup):
            return wrapped

        def bounded(*args: Any, **kwargs: Any) -> str:
            names = args[0] if value.__name__ == "format_map" else kwargs
            return _Formatter(self).vformat(value.__self__, args, names)

        return bounded

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(obj, "__name__", "") in _WIDTH_METHODS:
            _check_widths(*args, *kwargs.values())
        return self._bounded(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            _check_percent(left)
        elif isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            _check_bits(bits)
        elif operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, str | list | tuple) and isinstance(times, int) and len(value) * times > self.most:
                    raise SecurityError(TOO_MUCH)
        return self._bounded(super().call_binop(context, operator, left, right))

    def _within(self, function: Callable[..., Any], *, widths: bool) -> Callable[..., Any]:
        """A filter with its bounds."""

        @wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            if widths:
                _check_widths(*args[1:], *kwargs.values())
            return self._bounded(function(*args, **kwargs))

        return bounded

    def _bounded(self, value: Any) -> Any:
        if isinstance(value, str | list | tuple) and len(value) > self.most:
            raise SecurityError(TOO_MUCH)
        if isinstance(value, int):
            _check_bits(value.bit_length())
        return value


class _Formatter(SandboxedFormatter):
    """`str.format` with bounds; what it looks into is checked as everywhere in the sandbox."""

    def format_field(self, value: Any, format_spec: str) -> str:
        _check_format(*re.findall(r"\d+", format_spec))
        text: str = super().format_field(value, format_spec)
        return text


def _check_percent(pattern: str) -> None:
    for directive in _PERCENT.finditer(pattern):
        if directive["kind"] == "(":
            raise SecurityError("text % value with brackets inside a name is not for templates")
        _check_format(directive["width"] or "", directive["precision"] or "")


def _check_format(*numbers: str) -> None:
    """Widths and precisions as they are written; `*` takes one from the values."""
    if any(number == "*" or len(number) > 9 or int(number or 0) > WIDEST for number in numbers):
        raise SecurityError(f"formats to more than {WIDEST} characters")


def _check_widths(*arguments: Any) -> None:
    widths = (len(argument) if isinstance(argument, str) else argument for argument in arguments)
    if any(isinstance(width, int) and abs(width) > WIDEST for width in widths):
        raise SecurityError(f"asks for more than {WIDEST} characters")


def _check_bits(bits: int) -> None:
    if bits > MAX_BITS:
        raise SecurityError("makes too large a number")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """JSON as chat templates expect it: not escaped for HTML, keys in their order."""
    if indent is not None and not 0 <= int(indent) <= 16:
        raise SecurityError("tojson indents by at most 16")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _regex_replace(text: str, pattern: str, new: str, count: int = 0) -> str:
    return re.sub(pattern, new, text, count=count)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    if re.sub(r"%-?[A-Za-z%]", "", pattern).count("%") or len(pattern) > 100:
        raise SecurityError("strftime_now takes plain directives such as %d %b %Y")
    return PROMPT_DATE.strftime(pattern)


def _no_files(_name: str | None) -> NoReturn:
    raise SecurityError("include, import and extends are not for templates: they have no other files")


if __name__ == "__main__":
    main()
