"""Listings of names that plugins add to: the machinery of the registry, without what is listed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from quantverdict import errors
from quantverdict.errors import PluginError

if TYPE_CHECKING:
    from importlib import metadata

GROUP = "quantverdict.plugins"
"""The entry-point group: each entry is a function that calls `register_*`, or a module that does so when imported."""


class NamedSpec(Protocol):
    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=NamedSpec)
BUILT_IN, OF_BUNDLE, OF_STUDY = "quantverdict", "the bundle", "the study"
ADOPTED = (OF_BUNDLE, OF_STUDY)


class Listing(dict[str, T], Generic[T]):
    """Everything of one kind by name, in the order it was registered; only `register_*` and `adopt` write to it.

    Args:
        key: of the kind, as a bundle's manifest has it.
        kind: for a message.
        listed_by: the command that lists the names.
    """

    def __init__(self, key: str, kind: str, entries: Iterable[T] = (), listed_by: str | None = None) -> None:
        super().__init__({entry.name: entry for entry in entries})
        self.kind, self.listed_by = kind, listed_by
        self.owners: dict[str, str] = {}
        LISTINGS[key] = self

    def owner(self, name: str) -> str:
        """The package that registered it."""
        return self.owners.get(name, BUILT_IN)

    def find(self, name: str) -> T:
        """What a name means; plugins are loaded where it is not known.

        Raises:
            PluginError: a plugin cannot be loaded.
            ValueError: nobody has registered it; its text is what is expected.
        """
        found = self.get(name)
        return self[known_among(name, lambda: self)] if found is None else found

    def add(self, entry: T, owner: str) -> None:
        """Register an entry; the same one twice is one.

        Raises:
            PluginError: the name is taken.
        """
        held, name = self.get(entry.name), entry.name
        if held is not None and self.owner(name) not in ADOPTED:
            if held == entry:
                return
            if owner == OF_BUNDLE and self.owner(name) != BUILT_IN:
                problem = f"{self.kind} {name} is not the one that {self.owner(name)} registers here"
                raise PluginError(f"{problem}; install the release of it that the bundle was made with")
            raise PluginError(f"{owner}: cannot register {self.kind} {name}: {self.owner(name)} has it already")
        self[name], self.owners[name] = entry, owner

    def is_registered(self, name: str) -> bool:
        """Whether a name is built in, or a plugin's here: nothing that a study or a bundle brought along."""
        return name in self and self.owner(name) not in ADOPTED

    def of_plugins(self) -> list[T]:
        """What the plugins that are installed here have."""
        return [self[name] for name, owner in self.owners.items() if owner not in ADOPTED]

    def drop(self, owner: str) -> None:
        """Forget what was adopted from a study or a bundle."""
        for name in [name for name, held in self.owners.items() if held == owner]:
            del self[name], self.owners[name]


LISTINGS: dict[str, Listing[Any]] = {}
"""All of them, by the key that a bundle's manifest has them under."""


# Names that are not known


def one_of(name: str, known: Iterable[str]) -> str:
    """As `errors.one_of`, with the command that lists names of that kind."""
    names = tuple(known)
    listed = (found.listed_by for found in LISTINGS.values() if found.listed_by and set(names) <= set(found))
    return errors.one_of(name, names, next(listed, None))


def known_among(name: str, known: Callable[[], Iterable[str]]) -> str:
    """A name that is known, by what plugins register too.

    Raises:
        PluginError: a plugin cannot be loaded.
        ValueError: it is not known; its text is what is expected.
    """
    if name not in (names := tuple(known())):
        load_plugins()
        if name not in (names := tuple(known())):
            raise ValueError(one_of(name, names))
    return name


@dataclass(frozen=True, slots=True)
class NameCheck:
    """A validator of names: it gives a known one back, and says what is expected in place of any other."""

    known: Callable[[], Iterable[str]]

    def __call__(self, name: str) -> str:
        return known_among(name, self.known)


def load(target: str) -> Any:  # noqa: ANN401 - whatever stands there
    """What "module:name" names.

    Raises:
        PluginError: there is no such module or name.
    """
    module, _, name = target.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise PluginError(f"{target} cannot be loaded ({error}); install the package that has it") from error


def resource(place: str) -> Path:
    """Where a file of a package is: "package:path", or a path.

    Raises:
        PluginError: there is no such package.
    """
    package, _, name = place.partition(":")
    if not name or Path(place).is_absolute():
        return Path(place)
    try:
        return Path(str(resources.files(package))) / name
    except (ImportError, TypeError) as error:
        raise PluginError(f"{place} cannot be found ({error}); install the package that has it") from error


# Plugins

_FAULTS = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, OSError, RuntimeError,
    SyntaxError, TypeError, ValueError,
)  # fmt: skip
"""What somebody else's code may raise while it registers."""


@dataclass(slots=True)
class _State:
    """Whose code is registering, and whether plugins were loaded or may not be."""

    owner: str = "this program"
    loaded: bool = False
    closed: int = 0
    versions: dict[str, str] = field(default_factory=dict)


_state = _State()


def load_plugins() -> None:
    """Let every installed plugin register what it has, once; nothing where they are shut out.

    Raises:
        PluginError: one of them fails, or takes a name; it then has registered nothing.
    """
    if _state.loaded or _state.closed:
        return
    from importlib import metadata

    entries = sorted(metadata.entry_points(group=GROUP), key=lambda entry: (_package(entry), entry.name))
    for entry in entries:
        before = [(listing, dict(listing), dict(listing.owners)) for listing in LISTINGS.values()]
        outer, _state.owner = _state.owner, _package(entry)
        try:
            found = entry.load()
            if callable(found):
                found()
        except (PluginError, *_FAULTS) as error:
            for listing, entries_before, owners in before:
                listing.clear()
                listing.update(entries_before)
                listing.owners = owners
            _forget(entry.module)
            if isinstance(error, PluginError):
                raise
            message = f"{type(error).__name__}: {error}"
            raise PluginError(f"the plugin {entry.name} of {_state.owner} cannot be loaded ({message})") from error
        finally:
            _state.owner = outer
        _state.versions[_package(entry)] = entry.dist.version if entry.dist else "?"
    _state.loaded = True


def _package(entry: metadata.EntryPoint) -> str:
    return entry.dist.name if entry.dist else entry.value


def _forget(module: str) -> None:
    """So that a module which registers as it is imported does so again when it is tried again."""
    sys.modules.pop(module, None)


@contextmanager
def without_plugins() -> Iterator[None]:
    """While it is open no plugin's code is loaded: what checks a bundle trusts nobody's code but its own."""
    _state.closed += 1
    try:
        yield
    finally:
        _state.closed -= 1


def plugin_versions() -> dict[str, str]:
    """The packages that were loaded."""
    return dict(_state.versions)


def owner_now() -> str:
    """Whose code is registering."""
    return _state.owner
