"""Which decision documents are read."""

from pathlib import Path

import pytest

from quantverdict.errors import BundleError
from quantverdict.protocol.document import SCHEMA, check_schema

FILE = Path("b", "decision.json")


@pytest.mark.parametrize("schema", [SCHEMA, str(SCHEMA)])
def test_a_decision_of_this_version_is_read_from_json_and_from_a_row_of_text(schema):
    check_schema({"schema": schema}, FILE)


@pytest.mark.parametrize("decision", [{"schema": 0}, {"schema": 10**9}, {"schema": f"{SCHEMA} "}, {}, None, [], "x", 1])
def test_any_other_is_refused_by_its_file(decision):
    with pytest.raises(BundleError, match=r"decision\.json: a decision of schema version"):
        check_schema(decision, FILE)
