"""The exception tree and the exit codes.

QuantverdictError            exit 2
├── InputError               what the user gave is wrong: file, line, field, what was expected
│   ├── StudyError           a study, policy or sources file
│   ├── TaskError            a task file, its template or its filters
│   ├── ArtifactError        a model file: missing, truncated, corrupt, of another format
│   └── DataError            responses, scored samples, a matrix
├── BundleError              a bundle: locked, of another version, changed since it was written
├── PluginError              a plugin that cannot be loaded, or that registers a name which is taken
└── EngineError              a backend could not run a cell: the cell fails, the run goes on
    ├── PromptTooLongError   a prompt does not fit the context; nothing was computed
    └── ReplicaLostError     a node is gone with what ran there; its batch is asked again elsewhere
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path


class ExitCode(IntEnum):
    """What the process returns."""

    OK = 0
    CANNOT_RUN = 2
    REJECTED = 3
    NOT_MEASURED = 4
    NOT_RESOLVABLE = 5


_OS_REASONS = {
    errno.ENOENT: "no such file or folder",
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.EISDIR: "it is a folder",
    errno.ENOTDIR: "a part of its path is a file",
    errno.ENAMETOOLONG: "its name is too long",
    errno.ELOOP: "its links go in a circle",
    errno.ENOSPC: "the disk is full",
    errno.EROFS: "the disk is read-only",
    errno.EMFILE: "too many files are open",
}


def os_reason(error: OSError) -> str:
    """Why the operating system refused, in words of ours where the reason is a common one."""
    return _OS_REASONS.get(error.errno or 0, error.strerror or str(error))


class QuantverdictError(Exception):
    """Root of everything this package raises on purpose; its text is one line."""

    exit_code: ExitCode = ExitCode.CANNOT_RUN


def count_of(number: int, noun: str, several: str | None = None) -> str:
    """`1 prompt`, `2 prompts`: a count with its noun.

    Args:
        several: the plural, where it is not the noun with an s.
    """
    return f"{number} {noun if number == 1 else several or noun + 's'}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` (did you mean NEAREST?)` where a known name is near to a misspelt one, else nothing."""
    names = {other.casefold(): other for other in known}
    near = difflib.get_close_matches(name[:100].casefold(), names, n=1, cutoff=0.6)
    return f" (did you mean {names[near[0]]}?)" if near else ""


MOST_NAMES = 6
"""Of more, a message names these, the nearest, and the command that lists them all."""


def one_of(name: str, known: Iterable[str], listed_by: str | None = None) -> str:
    """What is expected in place of a name that is not known, and the nearest known one.

    Args:
        name: as it was given.
        known: the names that may stand there.
        listed_by: the command that lists them.
    """
    names = tuple(known)
    near = did_you_mean(name, names)
    if len(names) <= MOST_NAMES:
        return f"one of {', '.join(names)}{near}"
    if listed_by is not None:
        return f"one of {len(names)} names that `{listed_by}` lists{near}"
    return f"one of {', '.join(names[:MOST_NAMES])} and {len(names) - MOST_NAMES} more{near}"


class InputError(QuantverdictError):
    """Bad input, said as `FILE:LINE: FIELD: what is wrong; expected ...`.

    Args:
        problem: what is wrong, without a full stop.
        file: the file it was found in.
        line: its line, counted from 1.
        field: the key, column or tensor concerned.
        expected: what would have been right.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: Path | str | None = None,
        line: int | None = None,
        field: str | None = None,
        expected: str | None = None,
    ) -> None:
        self.problem, self.file, self.line, self.field, self.expected = problem, file, line, field, expected
        where = str(file) if file is not None else ""
        if where and line is not None:
            where += f":{line}"
        text = ": ".join(part for part in (where, field, problem) if part)
        super().__init__(f"{text}; expected {expected}" if expected else text)


class StudyError(InputError):
    """A study, policy or sources file."""


class TaskError(InputError):
    """A task file, its prompt template or its filters."""


class ArtifactError(InputError):
    """A model file."""


class DataError(InputError):
    """Responses, scored samples, judgements or a matrix."""


class BundleError(QuantverdictError):
    """A bundle that is locked, incomplete, of another version, or changed since it was written."""


class PluginError(QuantverdictError):
    """A plugin that cannot be loaded, or what it registers: named with its package."""


class EngineError(QuantverdictError):
    """A backend could not load or run a build."""

    def of_prompt(self, prompt: str) -> EngineError:
        """The same of one prompt, named TASK/SAMPLE."""
        return EngineError(f"{prompt}: {self}")


class PromptTooLongError(EngineError):
    """A prompt that does not fit the context; nothing of its batch was computed.

    Args:
        prompt: TASK/SAMPLE, empty where it is not known yet.
    """

    def __init__(self, problem: str, prompt: str = "") -> None:
        super().__init__(problem)
        self.prompt = prompt

    def of_prompt(self, prompt: str) -> PromptTooLongError:
        return PromptTooLongError(f"{prompt}: {self}", prompt)


class ReplicaLostError(EngineError):
    """A loaded build that is gone with its process or its node, through no fault of the engine."""
