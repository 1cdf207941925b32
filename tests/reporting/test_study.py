"""The study's report: every table with what it shows, every number in prose a claim, whatever is missing said."""

import csv
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from quantverdict.errors import BundleError
from quantverdict.reporting import render
from quantverdict.reporting.artefacts import profile_of
from quantverdict.reporting.formats import DisplayNames
from quantverdict.reporting.statements import SECTIONS, study_sections
from quantverdict.reporting.study import StudyData
from quantverdict.reporting.summary import TEMPLATES
from quantverdict.reporting.tables import Citation, ClaimLedger, Sentence, marked, sources, spoken, written
from quantverdict.stages import run as pipeline
from quantverdict.stages.facts import artefacts_of, collect_claims, view_of
from quantverdict.stages.verify import DryRunBundle

MATRIX = Path(__file__).parents[1] / "data" / "published_matrix.csv"


class Page(HTMLParser):
    """Ids, the claims with their numbers, and the paragraphs of sentences with those numbers left out."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.claims, self.prose, self._open = [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids += [attrs["id"]] if "id" in attrs else []
        if tag == "p" and attrs.get("class") == "shows":
            self.prose.append("")
        if tag == "span" and attrs.get("class", "").startswith("claim"):
            self._open = attrs

    def handle_endtag(self, tag):
        if tag == "span":
            self._open = None
        if tag == "p":
            self.prose.append(None)

    def handle_data(self, data):
        if self._open is not None:
            self.claims.append((self._open["data-claim"], self._open["title"], data))
        elif self.prose and self.prose[-1] is not None:
            self.prose[-1] += data


def report_texts(root):
    bundle = DryRunBundle(root)
    told = collect_claims(bundle)
    return render.report_texts(view_of(bundle, told), told)


def book_of(root):
    return StudyData(artefacts_of(DryRunBundle(root)), DisplayNames())


def render_report(root):
    for name, text in report_texts(root).items():
        (root / name).write_bytes(text)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    root = pipeline.analyze_matrix(MATRIX, tmp_path_factory.mktemp("bundles") / "study", "tr125")
    pipeline.report(root, "study")
    return root


@pytest.fixture(scope="module")
def page(bundle):
    return Page((bundle / "report.html").read_text(encoding="utf-8"))


def test_every_section_stands_in_order_with_unique_ids(page):
    assert len(page.ids) == len(set(page.ids))
    names = [section.__name__ for section in SECTIONS]
    assert [name for name in page.ids if name in names] == names
    assert {"decision", "provenance", "claims"} <= set(page.ids)


def test_every_table_is_numbered_and_followed_by_what_it_shows(bundle):
    text = (bundle / "report.md").read_text(encoding="utf-8")
    numbers = [int(number) for number in re.findall(r"^### Table (\d+)\.", text, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > 25
    for block in re.split(r"^##+ ", text, flags=re.MULTILINE):
        if block.startswith("Table"):
            after = re.split(r"(?m)^\|.*\n(?!\|)", block)[1]
            assert len(after.split()) > 5, block[:80]


def test_a_section_without_data_says_what_is_missing(bundle):
    text = (bundle / "report.md").read_text(encoding="utf-8")
    assert "### Style of refusals\n\nNot in the data: the answers to the plain harmful prompts" in text
    assert "### Judge against judge\n\nNot in the data: a second judge" in text


def test_no_number_stands_in_prose_outside_of_a_claim(page):
    prose = [text for text in page.prose if text]
    assert len(prose) > 30
    assert not [text for text in prose if re.search(r"\d", text)]


def test_every_marked_number_is_in_the_ledger_with_its_source(bundle, page):
    with (bundle / "claims.csv").open(encoding="utf-8", newline="") as lines:
        ledger = {row["claim_id"]: row for row in csv.DictReader(lines)}
    assert len(page.claims) > 100
    for claim_id, title, _ in page.claims:
        row = ledger[claim_id]
        assert row["artefact"] in title
        assert row["value"]


def test_sentences_in_code_type_no_digit(bundle, small, study):
    for root in (bundle, small, study):
        for section in study_sections(book_of(root)):
            for part in section.parts:
                for sentence in part.sentences:
                    assert not re.search(r"\d", re.sub(r"\{\w+\}", "", sentence.text)), sentence
                    assert set(re.findall(r"\{(\w+)\}", sentence.text)) == set(sentence.cites), sentence
                assert not re.search(r"\d", part.missing + section.title)


def test_no_template_of_any_kind_types_a_digit():
    for file in TEMPLATES.rglob("*"):
        if file.is_file() and file.suffix not in {".css", ".js"}:
            prose = re.sub(r"\{%.*?%\}|\{\{.*?\}\}|<[^>]*>", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
            assert not re.search(r"\d", prose), file.name


def test_claim_ids_are_unique_over_all_sentences(bundle, study):
    for root in (bundle, study):
        book = book_of(root)
        names = [one.name for section in study_sections(book) for part in section.parts for one in part.sentences]
        assert len(names) == len(set(names))


def test_other_numbers_make_other_sentences(bundle, tmp_path):
    """Nothing is fitted to the published case."""
    text = MATRIX.read_text()
    other = tmp_path / "other.csv"
    other.write_text("\n".join(line for line in text.splitlines() if ",GPTQ," not in line and "phi-2" not in line))
    root = pipeline.analyze_matrix(other, tmp_path / "b", "tr125")
    one, two = (collect_claims(DryRunBundle(path)).everything.claims for path in (bundle, root))
    assert (one["validation_shape_rows"].value, two["validation_shape_rows"].value) == ("51", "38")
    assert one["danger_at"].value != two["danger_at"].value
    assert one["asymmetry_n"].value == "41" != two["asymmetry_n"].value


@pytest.mark.parametrize("name", ["small", "study"])
def test_a_run_and_a_bare_matrix_both_render(name, request, tmp_path):
    root = Path(shutil.copytree(request.getfixturevalue(name), tmp_path / "copy"))
    manifest = json.loads((root / "manifest.json").read_text())
    (root / "manifest.json").write_text(json.dumps(manifest | {"report": {"profile": "study"}}))
    assert profile_of(json.loads((root / "manifest.json").read_text())) == "study"
    render_report(root)
    first = (root / "report.html").read_bytes(), (root / "report.md").read_bytes()
    render_report(root)
    assert ((root / "report.html").read_bytes(), (root / "report.md").read_bytes()) == first


def test_a_build_that_did_not_run_and_one_that_does_not_exist_are_not_the_same(small, bundle, tmp_path):
    failed, absent = (
        next(p for s in study_sections(book_of(root)) for p in s.parts if p.name == "wide_rouge_l")
        for root in (small, bundle)
    )
    (row,) = failed.grid.rows
    assert row[failed.grid.columns.index("FP16")] == "0.301"
    mistral = next(row for row in absent.grid.rows if row[0] == "mistral-7b")
    assert mistral[absent.grid.columns.index("FP16")] == "no build"
    assert mistral[absent.grid.columns.index("AWQ")] == "not measured"


def test_markup_in_names_is_text(small, make_bundle, tmp_path):
    root = make_bundle(tmp_path / "evil", model="<b onclick=x>|`*e*")
    manifest = json.loads((root / "manifest.json").read_text())
    (root / "manifest.json").write_text(json.dumps(manifest | {"report": {"profile": "study"}}))
    render_report(root)
    text = (root / "report.html").read_text(encoding="utf-8")
    assert "<b onclick" not in text
    assert "&lt;b onclick" in text
    assert "<b onclick" not in (root / "report.md").read_text(encoding="utf-8").replace(r"\<b", "")


# Sentences and claims

ROWS = {"t.csv": [{"quant": "Q8_0", "delta": "-61.818181818182", "share": "0.804878048780", "p": "0.00001"}]}


@pytest.mark.parametrize(
    ("column", "unit", "text"),
    [("delta", "pp change", "\u221261.82 pp"), ("share", "share", "80.5 %"), ("p", "p", "1.0e\u221205"),
     ("delta", "r", "\u221261.818"), ("quant", "", "Q8_0"), ("delta", "pp size", "61.8182 pp")],
)  # fmt: skip
def test_a_claim_is_written_in_its_unit(column, unit, text):
    said = ClaimLedger(ROWS.get, DisplayNames()).say(
        Sentence("s", "It is {x}.", {"x": Citation("t.csv", "", column, unit=unit)})
    )
    assert spoken(DisplayNames(), said) == f"It is {text}."


def test_a_sentence_with_an_unknown_number_is_not_said_and_leaves_no_claim():
    ledger = ClaimLedger(ROWS.get, DisplayNames())
    cites = {"x": Citation("t.csv", "", "delta"), "y": Citation("gone.csv", "", "delta")}
    assert ledger.say(Sentence("s", "{x} and {y}", cites)) is None
    assert ledger.claims == {}


def test_a_marked_claim_names_its_artefact_row_and_column():
    ledger = ClaimLedger(ROWS.get, DisplayNames())
    ledger.say(Sentence("s", "{x}", {"x": Citation("t.csv", "quant=Q8_0", "delta", unit="pp")}))
    claim = ledger.claims["s_x"]
    assert sources(claim) == "s_x: t.csv, row quant=Q8_0, value of delta"
    shown = written(DisplayNames(), claim)
    assert (
        marked(DisplayNames(), claim) == f'<span class="claim" data-claim="s_x" title="{sources(claim)}">{shown}</span>'
    )


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text(""), lambda path: path.write_text("a\n")])
def test_a_bundle_that_lost_a_table_has_no_report(bundle, tmp_path, damage):
    """Missing, emptied, or without its rows: one line, and the old report stays."""
    root = Path(shutil.copytree(bundle, tmp_path / "copy"))
    before = (root / "report.md").read_bytes()
    damage(root / "regimes.csv")
    with pytest.raises(BundleError, match=r"regimes\.csv: .*analyze the bundle again"):
        pipeline.report(root)
    assert (root / "report.md").read_bytes() == before
