"""What several commands have: the options of a gate, and how a result is printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quantverdict.cli.options import MessageOptions, gate_reports
from quantverdict.errors import ExitCode, InputError
from quantverdict.reporting.formats import escaped_json, harmless, is_utf8, json_text, one_line

if TYPE_CHECKING:
    from quantverdict.config import Study
    from quantverdict.protocol.gate import Gate
    from quantverdict.reporting.terminal import LineProgress

gate_options = (
    click.option("--gate", "wanted", is_flag=True, help="Exit 3, 4 or 5 where a build is not accepted. Without it: 0."),
    click.option("--gate-policy", "gate_policy", help="The gate's policy (YAML): builds, margins, floors, waivers."),
    *gate_reports,
)


@dataclass(frozen=True, slots=True)
class GateOptions:
    """The options of a gate."""

    wanted: bool
    gate_policy: str | None
    build: str | None
    junit: Path | None
    summary: Path | None
    inconclusive: str = "skipped"
    constraints: dict[str, object] | None = None

    def read(self, study: Study | None = None) -> None:
        """Refuse a gate that cannot be asked, before anything runs; `study` is what will run."""
        from quantverdict import api

        if self.wanted:
            api.load_gate(self.gate_policy, self.build, study=study)
        elif any((self.gate_policy, self.build, self.junit, self.summary, self.inconclusive != "skipped")):
            raise click.UsageError("--gate-policy, --build, --junit, --summary and --inconclusive go with --gate")


def gated(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a gate, as one argument `gating`."""

    @wraps(command)
    def call(**options: Any) -> None:  # noqa: ANN401 - whatever click parsed
        gating = GateOptions(*(options.pop(name) for name in GateOptions.__slots__ if name != "constraints"))
        command(**options, gating=gating)

    for option in reversed(gate_options):
        call = option(call)
    return call


def require_verified(bundle: Path, as_json: bool) -> None:
    """Print what of a bundle does not hold, a line each, and exit; nothing where all holds."""
    from quantverdict import api

    if problems := api.verify(bundle):
        show({"ok": False, "problems": problems}, lambda: problems, as_json)
        raise click.exceptions.Exit(ExitCode.CANNOT_RUN)


def show(document: object, lines: Callable[[], list[str]], as_json: bool) -> None:
    """Print a result for a program or for a person."""
    print(json_text(document, sys.stdout) if as_json else "\n".join(map(harmless, lines())))


def show_decision(bundle: Path, as_json: bool, gating: GateOptions | None = None) -> None:
    """Print a bundle's decision: the document, or the table and where the report is; then the gate, where wanted."""
    found = through_gate(bundle, gating) if gating is not None and gating.wanted else None
    if as_json:
        print_document(bundle, found)
    else:
        from quantverdict.reporting.terminal import print_decision
        from quantverdict.stages import run as pipeline

        print_decision(pipeline.decision_of(bundle), bundle / "report.html")
    if found is not None:
        from quantverdict.reporting.summary import gate_lines

        if not as_json:
            print("\n".join(map(harmless, gate_lines(found))))
        raise click.exceptions.Exit(found.exit_code)


def print_document(bundle: Path, found: Gate | None) -> None:
    """`decision.json` as it is, with the gate under the key `gate` where there is one."""
    text = (bundle / "decision.json").read_text(encoding="utf-8")
    if found is None and is_utf8(sys.stdout):
        print(escaped_json(text))
        return
    from quantverdict.reporting.summary import gate_json

    gated = {} if found is None else {"gate": gate_json(found)}
    print(json_text({**json.loads(text), **gated}, sys.stdout))


def through_gate(bundle: Path, gating: GateOptions) -> Gate:
    """The verdicts on a bundle; JUnit and summary are written."""
    from quantverdict import api

    asked = {name: getattr(gating, name) for name in ("build", "junit", "summary", "inconclusive", "constraints")}
    return api.gate(bundle, gating.gate_policy, **asked)


# Messages: what goes to stderr besides results, and what is said where a command fails


def progress() -> LineProgress:
    """Who is told of the progress of this command, as loud as it was asked to be."""
    from quantverdict.reporting.terminal import progress_view

    options = click.get_current_context().find_root().ensure_object(MessageOptions)
    return progress_view(quiet=options.quiet, verbose=options.verbose, log=noted(options))


def noted(options: MessageOptions) -> Callable[[str], object] | None:
    """What adds a line to the log, where there is one: with the time in UTC."""
    path = options.log
    if path is None:
        return None

    def note(line: str) -> None:
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {line}\n")

    return note


def failed(options: MessageOptions, arguments: Sequence[str], error: BaseException, told: tuple[str, int]) -> int:
    """Say in one line on stderr why a command ends, and with --json as the one document on stdout.

    Args:
        told: the line and the exit code.

    Returns:
        The exit code.
    """
    message, code = told
    print(one_line(message), file=sys.stderr)
    if (note := noted(options)) is not None:
        note(one_line(message))
    given = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if "--json" in given and not getattr(sys.stdout, "written", 0):
        kind = "Interrupted" if code >= SIGNALLED else type(error).__name__
        kind = "UsageError" if isinstance(error, click.ClickException) else kind
        document: dict[str, object] = {
            "kind": kind,
            "message": message.removeprefix("error: ").removeprefix("Error: "),
            "exit_code": code,
        }
        if isinstance(error, InputError):
            document |= {"problem": error.problem, "expected": error.expected, "field": error.field, "line": error.line}
            document |= {"file": None if error.file is None else str(error.file)}
        print(json_text({"error": document}, sys.stdout))
    return code


SIGNALLED = 128
"""And the number of the signal: the exit code of what a signal ended."""
