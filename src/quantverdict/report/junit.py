"""A gate as JUnit XML: a testsuite a build, a testcase a gated metric; only what was shown to hold is passed."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from quantverdict.protocol.gate import Gate, Verdict
from quantverdict.report import formats

_NO_XML = re.compile("[\ufffe\uffff]")
"""Of what `formats.plain` leaves, the characters that XML 1.0 cannot hold."""


def junit_xml(gate: Gate) -> str:
    """The document, without times: nothing in it is run. What a rate is by stands in the text, and names stay."""
    with formats.judged_by(gate.judges):
        return _document(gate)


def _document(gate: Gate) -> str:
    root = ET.Element("testsuites", _counts(gate.study, gate.verdicts))
    for cell in gate.cells:
        suite = ET.SubElement(root, "testsuite", _counts(str(cell), gate.of(cell)))
        for one in gate.of(cell):
            _case(suite, one)
    if not gate.verdicts:
        suite = ET.SubElement(root, "testsuite", _counts("gate", ()) | {"tests": "1", "skipped": "1"})
        case = ET.SubElement(suite, "testcase", {"classname": "gate", "name": "builds"})
        ET.SubElement(case, "skipped", {"message": "not measured: no build was gated"})
    ET.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _counts(name: str, verdicts: tuple[Verdict, ...]) -> dict[str, str]:
    failed = sum(one.status == "failed" for one in verdicts)
    skipped = sum(one.status not in ("failed", "passed") for one in verdicts)
    counts = {"tests": len(verdicts), "failures": failed, "errors": 0, "skipped": skipped}
    return {"name": _text(name), **{key: str(value) for key, value in counts.items()}}


def _case(suite: ET.Element, one: Verdict) -> None:
    case = ET.SubElement(suite, "testcase", {"classname": _text(one.cell), "name": _text(one.metric)})
    by = formats.instrument(one.metric)
    by = f"{by}: " if by else ""
    match one.status:
        case "passed":
            ET.SubElement(case, "system-out").text = _text(f"{by}{one.reason}")
        case "failed":
            failure = ET.SubElement(case, "failure", {"type": "rejected", "message": _text(f"{by}{one.reason}")})
            failure.text = _text(f"{one.cell}: {formats.measured(one.metric)}: {one.reason}")
        case _:
            said = one.reason if one.status == "waived" else f"{formats.words(one.status)}: {one.reason}"
            ET.SubElement(case, "skipped", {"message": _text(f"{by}{said}")})


def _text(value: object) -> str:
    return _NO_XML.sub("\ufffd", formats.plain(value))
