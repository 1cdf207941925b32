"""What a study means, whatever its file looks like: defaults filled in, order and comments gone."""

from __future__ import annotations

from fractions import Fraction

import yaml
from pydantic import BaseModel

from quantverdict.collect.files import Json


def plain(value: object) -> Json:
    """Fractions as text, as newer releases of pydantic give them; tuples as lists; the rest as it is."""
    match value:
        case dict():
            return {str(key): plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case Fraction():
            return str(value)
    return value


def as_yaml(config: BaseModel) -> str:
    """The configuration with every default written out; loads to an equal one."""
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # loads the same, three times as fast
    return yaml.dump(plain(config.model_dump()), Dumper=dumper, sort_keys=False, allow_unicode=True, width=120)


def first_difference(stored: BaseModel, given: BaseModel) -> str | None:
    """`KEY was A, is B` for the first key that differs, None where both mean the same."""
    return _difference(plain(stored.model_dump()), plain(given.model_dump()), "")


def _difference(stored: Json, given: Json, where: str) -> str | None:
    if isinstance(stored, dict) and isinstance(given, dict):
        pairs = [(f"{where}.{key}".lstrip("."), stored.get(key), given.get(key)) for key in {**stored, **given}]
    elif isinstance(stored, list) and isinstance(given, list) and len(stored) == len(given):
        pairs = [(f"{where}.{index}", was, new) for index, (was, new) in enumerate(zip(stored, given, strict=True))]
    else:
        return None if stored == given else f"{where} was {_short(stored)}, is {_short(given)}"
    found = (_difference(was, new, key) for key, was, new in pairs)
    return next((item for item in found if item), None)


def _short(value: object) -> str:
    text = f"{len(value)} entries" if isinstance(value, list) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
