"""What a template's rendering may cost, and the rewriting that makes every step of it pay.

Filters named `_emit`, `_made`, `_concat` and `_steps` are put into the syntax tree; the sandbox supplies them.
"""

# ruff: noqa: ANN401 - the values of a template are of any type
from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.visitor import NodeTransformer

BUDGET = 2_000_000
"""Characters, elements and steps a rendering may make, besides `BUDGET_PER_INPUT` for each one it is given."""
BUDGET_PER_INPUT = 20
CPU_SECONDS = 1.0
"""Of this thread: the stop for work that makes nothing, such as comparing."""
STEP_COST = 4
"""Units of a loop step, a call or a filter."""
MAX_BITS = 4096
"""Of a whole number."""


class Meter:
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
                continue
            self.spend(1)
            if isinstance(part, int) and part.bit_length() > MAX_BITS:
                raise SecurityError("makes too large a number")
            if isinstance(part, Mapping):
                waiting.extend(part.values())
            if isinstance(part, Collection) and not isinstance(part, range | jinja2.Undefined):
                waiting.extend(part)
        return value


class Metered(NodeTransformer):
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
