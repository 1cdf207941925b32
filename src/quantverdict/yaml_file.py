"""A YAML file into a strict pydantic model; a mistake is answered with its line."""

from __future__ import annotations

import codecs
import re
import reprlib
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ValidationError

from quantverdict.errors import StudyError, one_of, os_reason

Config = TypeVar("Config", bound=BaseModel)

_DEEP = 20
"""Levels of nesting that nothing here has."""
_UNFOLDED = 100_000
"""Values that aliases may come to."""
_LONG = 1_000_000
"""Characters from which the slower reader is not asked what is wrong."""
_BOUNDS = {
    "greater_than": ("a number above {}", "gt"),
    "greater_than_equal": ("a number of at least {}", "ge"),
    "less_than": ("a number under {}", "lt"),
    "less_than_equal": ("a number of at most {}", "le"),
    "too_short": ("at least {} item", "min_length"),
    "string_too_short": ("text of at least {} character", "min_length"),
    "string_too_long": ("text of at most {} characters", "max_length"),
}
_WORDS = {
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "finite_number": "a finite number",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a smaller number",
    "int_type": "a valid integer",
    "model_type": "a mapping of keys",
    "string_type": "text",
    "string_unicode": "text that UTF-8 can hold",
    "tuple_type": "a list",
}
_PATTERNS = {
    "^[^/]+/[^/]+$": "BASE_MODEL/QUANT",
    "^[0-9a-f]{64}$": "64 hexadecimal digits in lower case",
    "^[A-Za-z0-9][A-Za-z0-9._+-]*$": "a name of letters, digits and ._+-, beginning with a letter or digit",
}
"""What pydantic calls a mistake, in words."""
_LOGIN = re.compile(r"//[^/\s]*@|//[^/\s.]*\.\.\.")
"""A user or a key in an address, whole or cut."""
_EXPONENT = re.compile(r"[+-]?[0-9.]+[eE][+-]?[0-9]+")
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 57
_SHORT.maxlevel = _SHORT.maxlist = _SHORT.maxdict = 2
"""Of what was given, what one line shows: an alias may stand for a billion values."""
_UNTRUE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What PyYAML raises for a value that is not what its tag says, besides its own errors."""


class InvalidValueError(ValueError):
    """What a validator finds wrong, in words of its own: what was given is not repeated, it may be a secret."""

    def __init__(self, problem: str, expected: str, *at: int | str) -> None:
        super().__init__(f"{problem}; expected {expected}")
        self.problem, self.expected, self.at = problem, expected, at


class InvalidFieldError(ValueError):
    """What a validator of a whole model expects in a part of it: `at` leads there from that model."""

    def __init__(self, message: str, *at: int | str) -> None:
        super().__init__(message)
        self.at = at


def encoding_of(start: bytes) -> str:
    """The encoding of a text file that somebody else's program wrote, by its first four bytes.

    UTF-8, whether it has a byte order mark or not; else as its mark says (Windows PowerShell 5 writes UTF-16).
    """
    if start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    return "utf-16" if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"


def decoded(data: bytes) -> str:
    """The text of such a file, without its byte order mark.

    Raises:
        UnicodeDecodeError: it is none.
    """
    return data.decode(encoding_of(data[:4]))


class UnreadableError(ValueError):
    """What keeps a text from being plain YAML, and the line that says it."""

    def __init__(
        self, problem: str, line: int | None, *, field: str | None = None, expected: str | None = None
    ) -> None:
        super().__init__(problem)
        self.problem, self.line, self.field, self.expected = problem, line, field, expected


def load_yaml(path: Path, model: type[Config]) -> Config:
    """Read a YAML file into a strict model, saying the line of a mistake."""
    text = text_of(path)
    try:
        root, data = read_yaml(text)
    except UnreadableError as error:
        raise StudyError(
            error.problem, file=path, line=error.line, field=error.field, expected=error.expected
        ) from error
    if not isinstance(data, dict):
        raise StudyError("is not a mapping", file=path, line=1, expected=f"the keys of a {model.__name__}")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _explain(error, path, root, model) from error


def text_of(path: Path) -> str:
    """The text of a file.

    Raises:
        StudyError: it cannot be read.
    """
    try:
        return decoded(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StudyError(f"cannot be read ({unread(error)})", file=path, expected="a UTF-8 YAML file") from error


def misplaced(file: str, problem: str, *location: int | str, expected: str) -> StudyError:
    """A mistake that is known only later than a file is read, with the line that it has there."""
    root = read_yaml(text_of(Path(file)))[0] if file else None
    field = ".".join(map(str, location))
    return StudyError(problem, file=file or None, line=line_of(root, location), field=field or None, expected=expected)


def unread(error: OSError | ValueError) -> str:
    """Why a file cannot be read, in words."""
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is no {error.encoding}"
    return os_reason(error) if isinstance(error, OSError) else str(error)


def read_yaml(text: str, *, aliases: bool = True) -> tuple[yaml.Node | None, object]:
    """The root of a YAML document and what it says, by libyaml: a fifth of the time.

    Whoever wrote it may mean harm: nothing nests deeper than a study does, no alias unfolds without end, and a value
    that is not what its tag says is a mistake like any other.

    Args:
        aliases: whether a value may stand in more than one place.

    Raises:
        UnreadableError: it is no YAML, has a key twice, or is more than plain values.
    """
    reader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return _read_by(reader, text, aliases=aliases)
    except yaml.YAMLError as error:
        raise _unreadable(error, text) from error


def _unreadable(error: yaml.YAMLError, text: str) -> UnreadableError:
    """Why, and where: PyYAML's own reader names the fault and its line better, where it finds one too."""
    try:
        if len(text) < _LONG:
            _read_by(yaml.SafeLoader, text, aliases=True)
    except yaml.YAMLError as better:
        error = better
    mark = getattr(error, "problem_mark", None)
    reason = " ".join(str(getattr(error, "problem", None) or error).split())
    return UnreadableError(f"not valid YAML: {reason}", mark.line + 1 if mark else None)


def _read_by(
    reader: type[yaml.SafeLoader | yaml.CSafeLoader], text: str, *, aliases: bool
) -> tuple[yaml.Node | None, object]:
    _refuse_deep(reader, text, aliases=aliases)
    loader = reader(text)
    root = loader.get_single_node()
    if root is None:
        return None, None
    wrong = wrong_key(root)
    if wrong is not None:
        name = wrong.value[:60] if isinstance(wrong, yaml.ScalarNode) else None
        problem = "not a name" if name is None else "given twice"
        raise UnreadableError(problem, _line(wrong), field=name, expected="each key once")
    written = _refuse_untrue(loader, root)
    unfolded, _ = _unfolded(root, {})
    if unfolded > max(written, _UNFOLDED):
        raise UnreadableError(f"aliases unfold to over {_UNFOLDED} values", _line(root), expected="values, written out")
    try:
        return root, loader.construct_document(root)
    except _UNTRUE as error:
        raise UnreadableError(f"not valid YAML: {error}", _line(root), expected="plain values") from error


def _line(node: yaml.Node | yaml.Event) -> int | None:
    return node.start_mark.line + 1 if node.start_mark else None


def _refuse_deep(reader: type[yaml.SafeLoader | yaml.CSafeLoader], text: str, *, aliases: bool) -> None:
    """Before nodes are made: libyaml's binding overruns the stack where they nest deeply."""
    depth = 0
    for event in yaml.parse(text, Loader=reader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEP:
            raise UnreadableError("not valid YAML: nested too deeply", _line(event), expected=f"{_DEEP} levels")
        if isinstance(event, yaml.AliasEvent) and not aliases:
            raise UnreadableError("an alias", _line(event), expected="plain values, written out")


def _refuse_untrue(loader: yaml.SafeLoader | yaml.CSafeLoader, root: yaml.Node) -> int:
    """Refuse a scalar that is not what its tag says, such as `!!int x` or the 30th of February; the nodes there are."""
    waiting, met = [root], {id(root)}
    while waiting:
        node = waiting.pop()
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            inner = [item for pair in node.value for item in pair]
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        elif not node.tag.endswith(":str"):
            _try(loader, node)
        fresh = [item for item in inner if id(item) not in met]
        met.update(map(id, fresh))
        waiting += reversed(fresh)
    return len(met)


def _try(loader: yaml.SafeLoader | yaml.CSafeLoader, node: yaml.Node) -> None:
    if node.tag.endswith((":merge", ":value")):  # no values of their own
        return
    try:
        str(loader.construct_object(node))  # which a number of thousands of digits has none of
    except _UNTRUE as error:
        kind = node.tag.rpartition(":")[2]
        problem = f"not valid YAML: {_shown(node.value)} is no {kind}"
        raise UnreadableError(problem, _line(node), expected="a plain value") from error


def _unfolded(node: yaml.Node, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """Values that a node comes to once its aliases are written out, and how deep they are."""
    if isinstance(node, yaml.ScalarNode):
        return 1, 0
    if id(node) in known:
        found = known[id(node)]
        if found is None:
            raise UnreadableError("holds itself", _line(node), expected="plain values")
        return found
    known[id(node)] = None
    inner = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
    inner_parts = [_unfolded(part, known) for part in inner]
    size, depth = 1 + sum(count for count, _ in inner_parts), 1 + max((deep for _, deep in inner_parts), default=0)
    if depth > _DEEP:
        raise UnreadableError("not valid YAML: nested too deeply", _line(node), expected=f"{_DEEP} levels")
    known[id(node)] = size, depth
    return size, depth


def _explain(error: ValidationError, path: Path, root: yaml.Node | None, model: type[BaseModel]) -> StudyError:
    # A misspelt key is both unknown and missing: the unknown one is the mistake to show.
    first = min(error.errors(include_url=False), key=lambda item: item["type"] != "extra_forbidden")
    cause = first.get("ctx", {}).get("error")
    location = (*first["loc"], *(cause.at if isinstance(cause, InvalidFieldError | InvalidValueError) else ()))
    location = tuple(part for part in location if part != "[key]")
    field = ".".join(str(part) for part in location)
    if first["type"] == "extra_forbidden":
        known = _keys_at(model, location[:-1])
        problem = "unknown key"
        expected = one_of(str(location[-1]), known) if known else None
    elif first["type"] == "missing":
        problem, expected = "missing", "this key"
    else:
        problem, expected = explained(first)
    return StudyError(problem, file=path, line=line_of(root, location), field=field or None, expected=expected)


def explained(found: Mapping[str, Any]) -> tuple[str, str]:
    """What is wrong with what was given, and what would be right.

    A validator that says both has its own words stand.
    """
    cause = found.get("ctx", {}).get("error")
    if isinstance(cause, InvalidValueError):
        return cause.problem, cause.expected
    expected = wanted(found)
    # What was given is the whole model where a part of it is wrong; the line shows the part.
    if isinstance(cause, InvalidFieldError) or isinstance(found["input"], dict):
        return "is not valid", expected
    return f"{_shown(found['input'])} is not valid", expected


def wanted(found: Mapping[str, Any]) -> str:
    """What would have been right, where pydantic found something else (one of its `errors()`), in plain words."""
    kind, limits = found["type"], found.get("ctx", {})
    if kind in _BOUNDS:
        word, key = _BOUNDS[kind]
        return word.format(limits[key])
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", str(limits["expected"]))
        return one_of(found["input"] if isinstance(found["input"], str) else "", known)
    if kind == "string_pattern_mismatch":
        return _PATTERNS.get(limits["pattern"], f"text like {limits['pattern']}")
    if kind == "float_type" and isinstance(found["input"], str) and _EXPONENT.fullmatch(found["input"]):
        return "a number: YAML takes 1e-6 for text, and 1.0e-6 for a number"
    message: str = found["msg"]
    return _WORDS.get(kind, message.removeprefix("Value error, ").removeprefix("Input should be "))


def _shown(value: object) -> str:
    try:
        return _LOGIN.sub("//***@", _SHORT.repr(value))
    except ValueError:  # more digits than Python turns into text
        return "a number of thousands of digits"


def _keys_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys a mapping at `location` may have."""
    for part in location:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        inner = [] if field is None else [item for item in _types_in(field.annotation) if _is_model(item)]
        if not inner:
            return []
        model = inner[0]  # type: ignore[assignment]
    return [name for name, field in model.model_fields.items() if not field.exclude]


def _types_in(annotation: object) -> list[object]:
    return [annotation, *(item for argument in get_args(annotation) for item in _types_in(argument))]


def _is_model(item: object) -> bool:
    return isinstance(item, type) and issubclass(item, BaseModel)


def line_of(node: yaml.Node | None, location: tuple[int | str, ...]) -> int | None:
    """Line of the deepest node on the way to `location` that the file has; None for an empty file."""
    line = None if node is None else node.start_mark.line + 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == part), None)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line


def wrong_key(root: yaml.Node) -> yaml.Node | None:
    """A key that is no plain name, or that its mapping has twice: PyYAML keeps the last of two in silence.

    None where every key is right. A node that an alias repeats is looked at once.
    """
    waiting, met = [root], {id(root)}
    while waiting:
        node = waiting.pop()
        inner: list[yaml.Node] = node.value if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            names: set[str] = set()
            pairs: list[tuple[yaml.Node, yaml.Node]] = node.value
            for key, value in pairs:
                if not isinstance(key, yaml.ScalarNode) or key.value in names:
                    return key
                names.add(key.value)
                inner.append(value)
        fresh = [item for item in inner if id(item) not in met]
        met.update(map(id, fresh))
        waiting += reversed(fresh)
    return None


# Numbers as they were written, and with their units

_NUMBER = re.compile(r"[+-]?([0-9]+/[0-9]+|([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?)")
"""A decimal or a fraction; a longer exponent would ask for more memory than there is."""

_MOST = Fraction(10) ** 18
"""Size of a number that is worth stating, as is its inverse: floats, in which results are shown, hold both."""


def exact(text: str) -> Fraction | None:
    """The number that a decimal or a fraction is; None for any other text."""
    try:
        return Fraction(text) if _NUMBER.fullmatch(text) else None
    except (ValueError, ZeroDivisionError):
        return None


def _exact(value: object) -> object:
    """A YAML number as the decimal it was written as, so that -10 pp means exactly -10."""
    if isinstance(value, bool) or not isinstance(value, int | float | str | Fraction):
        raise ValueError("a number")  # noqa: TRY004 - pydantic turns ValueErrors into its own
    try:
        number = exact(str(value))
    except ValueError:  # more digits than Python turns into text
        number = None
    if number is None:
        raise ValueError("a number")
    if number and not 1 / _MOST <= abs(number) <= _MOST:
        raise ValueError("0, or a number from 1e-18 to 1e18 in size")
    return number


Exact = Annotated[Fraction, BeforeValidator(_exact)]
_SIZES = {f"{prefix}{unit}": base**power for unit, base in (("B", 1000), ("IB", 1024)) for power, prefix in
          enumerate("KMGT", start=1)} | {"B": 1}  # fmt: skip
_TIMES = {"MS": 1, "S": 1000}


def _with_unit(units: Mapping[str, int], problem: str, expected: str) -> Callable[[object], object]:
    """Reads a number with its unit as that of the smallest; a number alone is one already."""

    def read(value: object) -> object:
        if not isinstance(value, str):
            return value
        found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)\s*([A-Za-z]{1,3})", value.strip(), re.ASCII)
        if found is None or found[2].upper() not in units:
            raise InvalidValueError(problem, expected)
        return Fraction(found[1]) * units[found[2].upper()]

    return read


_size_of = _with_unit(_SIZES, "is no size", "bytes, or a number and a unit: 2000000000, 2 GB, 120 MiB")
_time_of = _with_unit(_TIMES, "is no time", "milliseconds, or a number and a unit: 500, 500 ms, 1.5 s")


def whole_bytes(value: object) -> object:
    """A size as bytes; what is no text is left to the key's own type."""
    found = _size_of(value)
    return int(found) if isinstance(found, Fraction) else found


def milliseconds(value: object) -> object:
    """A time as milliseconds; what is no text is left to the key's own type."""
    found = _time_of(value)
    return float(found) if isinstance(found, Fraction) else found
