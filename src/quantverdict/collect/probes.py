"""What was read inside a build: one append-only `whitebox/BASE__QUANT.jsonl` a cell, a line a prompt.

A line is found again by the hash of all that it depends on, so that a line of other openings or another answer of the
baseline is never taken for one of these.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from quantverdict.collect.files import json_line, make_file, whole_lines
from quantverdict.collect.store import append_bytes, cut, responses_path
from quantverdict.errors import DataError
from quantverdict.records import CellId

Kind = Literal["margin", "drift"]


@dataclass(frozen=True, slots=True)
class Probe:
    """One prompt of one cell.

    Attributes:
        kind: `margin` (log-probabilities of openings) or `drift` (distance from the baseline along its answer).
        key: hash of what was asked, see `probe_key`.
        values: of a margin the log-probability of each opening; of a drift the sum of KL in nats, the tokens whose
            likeliest one agrees, and the tokens.
    """

    kind: Kind
    task: str
    sample_id: str
    key: str
    values: tuple[float, ...]


def probe_key(*parts: str) -> str:
    """Of what one probe asks, in order."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class ProbeStore:
    """The probes of one cell, open for appending; what a killed run left unfinished is cut off.

    Attributes:
        name: of the artefact inside the bundle.
        known: by key.

    Raises:
        DataError: a line that is not a probe, by file and line.
        BundleError: the file cannot be written.
    """

    def __init__(self, bundle: Path, cell: CellId) -> None:
        self.name = probes_file(cell)
        self._path = bundle / self.name
        make_file(self._path)
        data = self._path.read_bytes()
        cut(self._path, data.rfind(b"\n") + 1, len(data))
        self.known = read_probes(bundle, cell)

    def append(self, probes: Iterable[Probe]) -> None:
        """Store probes: all of them, or on failure none."""
        new = list(probes)
        append_bytes(self._path, b"".join(json_line(asdict(probe)) for probe in new), sync=True)
        self.known |= {probe.key: probe for probe in new}


def probes_file(cell: CellId) -> str:
    return f"whitebox/{responses_path(Path(), cell).name}"


def read_probes(bundle: Path, cell: CellId) -> dict[str, Probe]:
    """The stored probes of a cell by key, none where there is no file.

    Raises:
        DataError: a line that is not a probe, by file and line.
    """
    path = bundle / probes_file(cell)
    found: dict[str, Probe] = {}
    for number, line in enumerate(whole_lines(path.read_bytes()) if path.exists() else [], start=1):
        try:
            values = json.loads(line)
            probe = Probe(**{**values, "values": tuple(map(float, values["values"]))})
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise DataError(f"is not a probe ({error})", file=path, line=number) from error
        found[probe.key] = probe
    return found
