"""Write the parts of docs/ that follow from the code: `python tools/reference.py` writes them, `--check` compares.

A page has the lines `<!-- reference: NAME -->` and `<!-- end of reference -->`; what stands between them is
written here by the function of that name in `PARTS`. tests/test_docs.py fails where a page is not what this gives.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from enum import IntEnum
from fractions import Fraction
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

DOCS = Path(__file__).parents[1] / "docs"
SCHEMA = DOCS / "reference" / "study.schema.json"
"""What the keys of a study may be, for editors; `quantverdict init --schema` writes the same."""
TASK_SCHEMA = DOCS / "reference" / "task.schema.json"
"""What the keys of a task file may be, for editors."""
PART = re.compile(r"(<!-- reference: ([a-z_]+) -->\n).*?(<!-- end of reference -->)", re.DOTALL)
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<why>[^\n]+) -->\n)?(?P<indent>[ ]*)```(?P<kind>\w+)(?: title=\"(?P<file>[^\"]+)\")?\n"
    r"(?P<body>.*?)^[ ]*```$",
    re.MULTILINE | re.DOTALL,
)
"""A fenced block of a page, with the reason why its commands are not run."""
WHERE = {
    "study": "quantverdict.config:Study",
    "policy": "quantverdict.policy:Policy",
    "margins": "quantverdict.registry:built_in_margins",
    "gate policy": "quantverdict.protocol.gate:GatePolicy",
    "sources": "quantverdict.bundle.sources:Sources",
    "metrics": "quantverdict.registry:METRICS",
    "gated": "quantverdict.registry:gated",
    "task types": "quantverdict.registry:TASK_TYPES",
    "metrics of": "quantverdict.registry:metrics_of",
    "task list": "quantverdict.tasks.catalog:task_summaries",
    "filters": "quantverdict.tasks.catalog:FILTERS",
    "task schema": "quantverdict.tasks.draft:task_schema",
    "rubrics": "quantverdict.registry:judge_rubrics",
    "load rubric": "quantverdict.judges.rubrics:load_rubric",
    "name check": "quantverdict.registry.listing:NameCheck",
    "commands": "quantverdict.cli:commands",
    "examples": "quantverdict.cli.options:EXAMPLES",
    "exit codes": "quantverdict.cli.options:EXIT_CODES",
    "schema": "quantverdict.stages.init:study_schema",
    "written key": "quantverdict.stages.init:written_key",
    "key notes": "quantverdict.stages.init:key_notes",
}
"""Everything that is read of the code: module and name."""


def code(what: str) -> Any:
    module, name = WHERE[what].split(":")
    return getattr(import_module(module), name)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    cells = [tuple(cell.replace("|", "\\|") for cell in row) for row in (head, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], f"|{' --- |' * len(head)}", *lines[1:]])


def ticked(names: typing.Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


# Keys of YAML files, from the models that read them


def key_notes(model: type) -> Mapping[str, str]:
    """What is written below each key of a model, and of those that it inherits from."""
    return code("key notes")(model)


def of_type(hint: Any, elsewhere: frozenset[type]) -> str:
    """A type as somebody who writes YAML would name it; `elsewhere` are the models that the study's page describes."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return names_of(args[1:]) or of_type(args[0], elsewhere)
    if origin in (typing.Union, types.UnionType):
        return ", ".join(of_type(arg, elsewhere) for arg in args if arg is not type(None))
    if origin is typing.Literal:
        return "one of " + ticked(map(str, args))
    if origin is tuple:
        return f"list of: {of_type(args[0], elsewhere)}"
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return f"mapping of names to: {of_type(args[1], elsewhere)}"
    if isinstance(hint, type) and hasattr(hint, "model_fields"):
        return f"[{hint.__name__}]({'study.md' if hint in elsewhere else ''}#{hint.__name__.lower()})"
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", Fraction: "number"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def names_of(metadata: Iterable[Any]) -> str:
    """The names that a value is checked against, or the page that has them; empty where it is not so checked."""
    for one in metadata:
        if isinstance(check := getattr(one, "func", None), code("name check")):
            known = tuple(check.known())
            others = [name for name in known if name not in code("metrics")]
            if len(others) == len(known):
                return f"one of {ticked(known)}"
            return " or ".join(["a [metric](metrics.md)", *([ticked(others)] if others else [])])
    return ""


def bounds(field: Any) -> str:
    """The limits of a number, or of how long a text is."""
    signs = {"gt": "above {}", "ge": "at least {}", "lt": "below {}", "le": "at most {}"}
    found = {
        name: getattr(one, name) for one in field.metadata for name in signs if getattr(one, name, None) is not None
    }
    return ", ".join(signs[name].format(f"{limit:,}") for name, limit in found.items())


def default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value in ((), {}, ""):
        return ""
    if hasattr(type(value), "model_fields") or isinstance(value, Mapping):
        return "see below"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def models_in(hint: Any) -> Iterator[type]:
    if isinstance(hint, type) and hasattr(hint, "model_fields"):
        yield hint
    for arg in typing.get_args(hint):
        yield from models_in(arg)


def reachable(root: type) -> list[type]:
    """A model and all that its keys hold, in the order in which they are met."""
    found = [root]
    for model in found:  # it grows
        for field in model.model_fields.values():  # type: ignore[attr-defined]
            found += [one for one in models_in(field.annotation) if one not in found]
    return found


def readable(note: str) -> str:
    """A note in the code as a page has it: files of docs/ are links."""
    note = re.sub(r" \(SPEC [^)]*\)", "", note)
    return re.sub(r"docs/(\w+)\.md", r"[\1](../\1.md)", note)


def places(model: type, root: type) -> list[str]:
    """The keys that hold a model: `variants.source`."""
    owners = [(one, f"{key}.") for other in reachable(root) for key, one in holds(other) if other is root]
    return [f"{prefix}{key}" for owner, prefix in [(root, ""), *owners] for key, one in holds(owner) if one is model]


def holds(model: type) -> list[tuple[str, type]]:
    fields = model.model_fields.items()  # type: ignore[attr-defined]
    return [(key, one) for key, field in fields for one in models_in(field.annotation)]


def keys(root: type, elsewhere: frozenset[type] = frozenset()) -> str:
    """A section for a model, and for every model that its keys hold."""
    parts = []
    for model in reachable(root):
        if model in elsewhere:
            continue
        notes, rows = key_notes(model), []
        for name, field in model.model_fields.items():  # type: ignore[attr-defined]
            if not field.exclude:
                named = names_of(field.metadata) or of_type(field.annotation, elsewhere)
                kind = ", ".join(part for part in (named, bounds(field)) if part)
                rows.append(
                    (
                        f"`{code('written key')(name, field)}`",
                        kind,
                        default(field),
                        readable(" ".join(notes.get(name, "").split())),
                    )
                )
        doc = readable(inspect.cleandoc(model.__doc__ or ""))
        at = ticked(places(model, root))
        doc += f"\n\nUnder {at}." if at else ""
        parts.append(f"### {model.__name__}\n\n{doc}\n\n" + table(("key", "value", "default", "what it does"), rows))
    return "\n\n".join(parts)


def study() -> str:
    return keys(code("study"), frozenset({code("policy")})).replace("study.md#policy", "#policy")


def policy() -> str:
    margins = [(f"`{metric}`", f"{float(margin):g}") for metric, margin in code("margins")().items()]
    said = "The margins of policy `quantverdict`, beside that of the quality metric:"
    return f"{keys(code('policy'))}\n\n{said}\n\n{table(('metric', 'margin in pp'), margins)}"


def gate_policy() -> str:
    return keys(code("gate policy"), frozenset({code("policy")}))


def sources() -> str:
    return keys(code("sources"), frozenset(reachable(code("study"))))


# Metrics, tasks, rubrics


def registered() -> list[Any]:
    """The metrics of this package and of plugins, without those that some bundle brought along."""
    listing = code("metrics")
    return [metric for name, metric in listing.items() if listing.is_registered(name)]


def metrics() -> str:
    margins, gated = code("margins")(), code("gated")()
    direction = {True: "more is better", False: "less is better", None: "neither"}
    parts = []
    for group in dict.fromkeys(metric.group for metric in registered()):
        rows = [
            (f"`{one.name}`", one.meaning, "count of n" if one.proportion else {"1": "share"}.get(one.unit, one.unit),
             direction[one.higher_is_better], one.interval,
             f"{float(margins[one.name]):g} pp" if one.name in margins else "may have one" if one.name in gated else "")
            for one in registered() if one.group == group
        ]  # fmt: skip
        parts.append(
            f"### {group}\n\n" + table(("metric", "what it is", "value", "direction", "interval", "margin"), rows)
        )
    return "\n\n".join(parts)


def task_types() -> str:
    rows = [
        (f"`{one.name}`", ticked(one.fields) or "none", ticked(code("metrics of")(one)).replace("{A}", "ACCURACY"))
        for one in code("task types").values()
    ]
    return table(("`task_type`", "fields that each item needs", "metrics"), rows)


def task_keys() -> str:
    """The keys of a task file, those of its data set apart."""
    found = code("task schema")()
    parts = {"key": found["properties"], "key of `data`": found["$defs"]["DataSource"]["properties"],
             "key of `fewshot`": found["$defs"]["FewShot"]["properties"]}  # fmt: skip
    tables = (table((title, "what it holds"), [(f"`{key}`", said["description"]) for key, said in keys.items()])
              for title, keys in parts.items())  # fmt: skip
    return "\n\n".join(tables)


def filters() -> str:
    rows = [(f"`{name}`", inspect.cleandoc(function.__doc__)) for name, function in code("filters").items()]
    return table(("`type`", "what it leaves"), rows)


def starter() -> str:
    rows = [(f"`{one.name}`", f"`{one.task_type}`", str(one.items), one.description) for one in code("task list")()]
    return table(("task", "type", "items", "what it asks"), rows)


def rubrics() -> str:
    parts = []
    for one in code("rubrics")():
        rubric = code("load rubric")(one.name)
        parts.append(
            f"### {one.name}\n\nFor tasks graded by `{one.of}`. Labels: {ticked(rubric.labels)}.\n\n"
            f"```text\n{rubric.text.strip()}\n```"
        )
    return "\n\n".join(parts)


# The command line, as click holds it


def cli() -> str:
    codes = table(("exit code", "when"), list(code("exit codes").items()))
    return "\n\n".join([codes, *commands_of(code("commands"))])


def commands_of(group: Any, before: str = "") -> Iterator[str]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands_of(command, f"{before}{name} ")
        else:
            yield from described_command(before + name, command)


def described_command(name: str, command: Any) -> Iterator[str]:
    import click

    context = click.Context(command, info_name=name)
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"### {name}\n\n{inspect.cleandoc(command.help or '')}\n\n```text\nquantverdict {name} {usage}\n```"
    options = [option for option in command.params if isinstance(option, click.Option)]
    yield table(("option", "what it does"), [described_option(option, context) for option in options])
    examples = [f"    quantverdict {example}" for example in code("examples").get(name, ())]
    yield "\n".join(["Examples:", "", *examples]) if examples else ""


def described_option(option: Any, context: Any) -> tuple[str, str]:
    names = "`, `".join([*option.opts, *option.secondary_opts])
    takes = "" if option.is_flag else f" {option.make_metavar(context)}"
    given = option.get_default(context)
    shown = option.opts[0] if given is True else given if isinstance(given, str | int | float) else None
    said = "" if option.required or shown in (None, False) else f" Default: `{shown}`."
    return f"`{names}`{takes}", f"{option.help or ''}{' Required.' if option.required else ''}{said}"


# The Python API, from docstrings


def api() -> str:
    package = import_module("quantverdict")
    names = [name for name in getattr(package, "__all__", ()) if not name.startswith("_")]
    public = {name: getattr(package, name) for name in names}
    errors = {name: one for name, one in public.items() if inspect.isclass(one) and issubclass(one, Exception)}
    values = {name: one for name, one in public.items() if inspect.isclass(one) and name not in errors}
    functions = {name: one for name, one in public.items() if inspect.isfunction(one)}
    told = [(f"`{name}`", f"`{one.__bases__[0].__name__}`", summary(one)) for name, one in errors.items()]
    return "\n\n".join(
        [
            "## Functions", *(described_function(name, one) for name, one in functions.items()),
            "## Values", *(described_class(name, one) for name, one in values.items()),
            "## Errors", table(("error", "is a", "what is wrong"), told),
        ]
    )  # fmt: skip


def summary(value: Any) -> str:
    """The first paragraph of a docstring, in one line."""
    first = (inspect.getdoc(value) or "").split("\n\n")[0]
    return "" if first.startswith("Raises:") else " ".join(first.split())


def described_function(name: str, value: Any) -> str:
    """A public function: its signature and its docstring, as Markdown."""
    signature = inspect.signature(value)
    shown = f"{name}{plain(str(signature))}"
    if len(shown) > 100:
        head, _, gives = shown.rpartition(" -> ")
        parameters = [plain(str(one)) for one in signature.parameters.values()]
        star = [at for at, one in enumerate(signature.parameters.values()) if one.kind is one.KEYWORD_ONLY]
        if star and not any(one.kind is one.VAR_POSITIONAL for one in signature.parameters.values()):
            parameters.insert(star[0], "*")
        lines = "".join(f"    {one},\n" for one in parameters)
        shown = f"{head.partition('(')[0]}(\n{lines}) -> {gives}"
    return f"### {name}\n\n```python\n{shown}\n```\n\n{markdown(inspect.getdoc(value) or '')}"


def described_class(name: str, value: Any) -> str:
    """A class whose values are given, not made by a caller: what it is and what can be read of it."""
    parts = [f"### {name}", markdown(inspect.getdoc(value) or "")]
    if hasattr(value, "model_fields"):
        parts.append("Its fields are the [keys of the file](study.md).")
    elif issubclass(value, IntEnum):
        parts.append(table(("name", "value"), [(f"`{one.name}`", str(int(one))) for one in value]))
    kinds = (property, cached_property, types.FunctionType)
    members = {key: one for key, one in vars(value).items() if not key.startswith("_") and isinstance(one, kinds)}
    rows = [(f"`{key}{called(one)}`", f"`{gives(one)}`", summary(one)) for key, one in members.items()]
    return "\n\n".join([*parts, *([table(("member", "gives", "what it is"), rows)] if rows else [])])


def called(member: Any) -> str:
    if not isinstance(member, types.FunctionType):
        return ""
    return f"({', '.join(name for name in inspect.signature(member).parameters if name != 'self')})"


def gives(member: Any) -> str:
    function = getattr(member, "fget", None) or getattr(member, "func", None) or member
    return plain(str(inspect.signature(function).return_annotation))


def plain(signature: str) -> str:
    """Without quotes and the names of modules, as a reader would write it."""
    return re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Z])", "", signature.replace("'", ""))


def markdown(doc: str) -> str:
    """A docstring with `Args:`, `Returns:` and `Raises:` as lists."""
    out: list[str] = []
    section = ""
    for line in doc.splitlines():
        head = re.fullmatch(r"(Args|Returns|Raises|Attributes|Yields):", line)
        entry = re.match(r" {4}(\S[^:]*): (.*)", line)
        if head:
            section = head[1]
            out += [section + ":", ""]
        elif section and entry and section != "Returns":
            out.append(f"- {ticked(part.strip() for part in entry[1].split(','))}: {entry[2]}")
        elif section and line.startswith(" "):
            out.append(line.strip() if section == "Returns" else f"  {line.strip()}")
        else:
            section = section if not line else ""
            out.append(line)
    return "\n".join(out).strip()


# Commands that tests do not run


def commands_in(kind: str, body: str) -> list[tuple[str, str]]:
    """Each command of a block with what is shown below it."""
    if kind == "sh":
        lines = body.replace("\\\n", " ").splitlines()
        stripped = (line.split("  #", maxsplit=1)[0].strip() for line in lines)
        return [(line, "") for line in stripped if line and line[0] != "#"]
    parts = re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]
    return [(command, shown) for command, _, shown in (part.partition("\n") for part in parts)]


def unrun() -> Iterator[tuple[str, str, str]]:
    """Page, command and reason; those of the README have names of its own, and the tutorial runs the same."""
    for path in [DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))]:
        for block in BLOCK.finditer(path.read_text(encoding="utf-8")):
            why = block["why"] or (
                "its files are examples; the tutorial runs the same" if path.stem == "README" else ""
            )
            for command, _ in commands_in(block["kind"], block["body"]) if block["kind"] in ("sh", "console") else ():
                if why:
                    yield path.relative_to(DOCS.parent).as_posix(), command, why


def not_run() -> str:
    rows = [(page, f"`{command}`", why) for page, command, why in unrun()]
    return table(("page", "command", "why"), rows)


PARTS = {
    part.__name__: part
    for part in (
        study,
        policy,
        gate_policy,
        sources,
        metrics,
        task_types,
        task_keys,
        filters,
        starter,
        rubrics,
        cli,
        api,
        not_run,
    )
}


def written(page: str) -> str:
    """A page with every part of it as the code says it now."""
    return PART.sub(lambda found: f"{found[1]}\n{PARTS[found[2]]()}\n\n{found[3]}", page)


def task_keys() -> str:
    """The keys of a task file, those of its data set apart."""
    found = code("task schema")()
    parts = {"Key of the file": found["properties"], "Key of `data`": found["$defs"]["DataSource"]["properties"],
             "Key of `fewshot`": found["$defs"]["FewShot"]["properties"]}  # fmt: skip
    lines = []
    for title, keys in parts.items():
        rows = [f"| `{key}` | {said['description']} |" for key, said in keys.items()]
        lines.append("\n".join([f"| {title} | what it holds |", "| --- | --- |", *rows]))
    return "\n\n".join(lines)


def schema(which: str = "schema") -> str:
    return json.dumps(code(which)(), indent=1, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> int:
    stale = []
    parts = {path: written(path.read_text(encoding="utf-8")) for path in sorted(DOCS.rglob("*.md"))}
    parts |= {SCHEMA: schema(), TASK_SCHEMA: schema("task schema")}
    for path, new in parts.items():
        if not path.exists() or new != path.read_text(encoding="utf-8"):
            stale.append(path.relative_to(DOCS.parent).as_posix())
            if "--check" not in arguments:
                path.write_text(new, encoding="utf-8")
    print("\n".join(stale) or "every page is as the code says")
    return int(bool(stale) and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
