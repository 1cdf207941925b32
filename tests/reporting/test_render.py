"""The report files: self-contained, safe whatever a bundle holds, complete where something is missing, repeatable."""

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from quantverdict.bundle.integrity import SCHEMA
from quantverdict.errors import BundleError
from quantverdict.reporting import render
from quantverdict.reporting.render import MISSING, SECTIONS, html, report_context
from quantverdict.reporting.summary import TEMPLATES
from quantverdict.stages.facts import collect_claims, view_of
from quantverdict.stages.verify import DryRunBundle

EVIL = "evil\"'><script>alert(1)</script>&amp;|`*_x_* [a](http://b.c) {{ 7 }}"


class Page(HTMLParser):
    """Elements with their attributes, and the text outside of style and script."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self._open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if not {"style", "script"} & {*self._open}:
            self.text.append(data)

    def attributes(self, name):
        return [attrs[name] for _, attrs in self.elements if name in attrs]


def report_texts(root):
    bundle = DryRunBundle(root)
    told = collect_claims(bundle)
    return render.report_texts(view_of(bundle, told), told)


def render_report(root):
    for name, text in report_texts(root).items():
        (root / name).write_bytes(text)


def rendered(bundle):
    render_report(bundle)
    return (bundle / "report.html").read_text(encoding="utf-8"), (bundle / "report.md").read_text(encoding="utf-8")


@pytest.fixture
def hostile(tmp_path, make_bundle, add_samples):
    """A bundle whose names, reasons and answers are markup."""
    root = make_bundle(tmp_path / "hostile", model=EVIL, failure=EVIL)
    decision = json.loads((root / "decision.json").read_text())
    decision |= {"study": EVIL, "notes": [EVIL]}
    for cell in decision["cells"]:
        cell |= {"regime_reason": EVIL, "action_reason": EVIL}
    decision["cells"][1]["quant"] = decision["floor"]["quant"] = EVIL
    (root / "decision.json").write_text(json.dumps(decision))
    return root


def test_html_asks_the_network_for_nothing(small):
    text, _ = rendered(small)
    page = Page(text)
    assert not {"link", "img", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.elements}
    assert not page.attributes("src")
    assert not page.attributes("style")
    assert not re.search(r"https?:|@import|url\((?!#)|\bimport\b|fetch\(|XMLHttp|WebSocket|sendBeacon", text)
    assert all(link.startswith(("#", "responses/")) for link in page.attributes("href"))


def test_content_policy_admits_the_style_and_the_script_by_hash_and_nothing_else(small):
    text, _ = rendered(small)
    style, script = (re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[1] for tag in ("style", "script"))
    hashed = [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in (style, script)]
    policy = next(attrs["content"] for tag, attrs in Page(text).elements if attrs.get("http-equiv"))
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{hashed[0]}'; script-src 'sha256-{hashed[1]}'; base-uri 'none'; "
        "form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


def own_scripts(page):
    """Whether the scripts of a page are the two of its own: data, and the one that its policy admits."""
    found = [attrs for tag, attrs in page.elements if tag == "script"]
    return found in ([{"type": "application/json", "id": "flips-data"}, {}], [{}])


def test_the_script_parses_no_markup():
    """It writes text alone; the page's policy would stop it otherwise, and here is why it never is."""
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "DOMParser",
                 "createContextualFragment", "srcdoc", "setHTML", "javascript:", "</", "<!--"):  # fmt: skip
        assert word not in script, word


def test_markup_in_names_and_reasons_is_text_in_html(hostile):
    page = Page(rendered(hostile)[0])
    assert own_scripts(page)
    assert not [key for _, attrs in page.elements for key in attrs if key.startswith("on")]
    shown = "".join(page.text)
    assert "<script>alert(1)</script>&amp;|" in shown
    assert "{{ 7 }}" in shown


def test_markup_in_names_and_reasons_is_text_in_markdown(hostile):
    _, text = rendered(hostile)
    assert "<script" not in text.replace(r"\<script", "")
    assert "](http" not in text.replace(r"\](http", "")


def test_every_markdown_table_row_has_the_columns_of_its_header(hostile):
    _, text = rendered(hostile)
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_an_answer_with_markup_is_text(small, add_samples):
    (small / "scores.parquet").unlink()
    for folder in ("responses", "prompts"):
        for file in (small / folder).iterdir():
            file.unlink()
        (small / folder).rmdir()
    answers = {
        "FP16": "No. <img src=x onerror=alert(1)>",
        "Q3_K_S": "</blockquote></details><script>alert(2)</script>\u202e\ud800\x1b",
    }
    add_samples(small, "smollm2-135m", answers, {"FP16": 1, "Q3_K_S": 0}, sample='<b id="x">')
    text, markdown = rendered(small)
    page = Page(text)
    assert not {"img", "b id"} & {tag for tag, _ in page.elements}
    assert own_scripts(page)
    assert "</blockquote></details><script>alert(2)</script>" in "".join(page.text)
    assert "<img" not in markdown.replace(r"\<img", "")
    assert "\u202e" not in text + markdown


def test_a_harmful_answer_is_folded_shortened_and_linked(small, add_samples):
    response = small / "responses" / "smollm2-135m__Q3_K_S.jsonl"
    response.write_text(response.read_text().replace("Sure, first", "Sure, " + "and then " * 200))
    text, _ = rendered(small)
    folded = re.search(r'<details class="harmful">(.*?)</details>', text, re.DOTALL)[1]
    assert "Sure, and then" in folded
    assert re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL).count("Sure, and then") == 1
    assert len(folded) < 600
    assert 'href="responses/smollm2-135m__Q3_K_S.jsonl"' in text
    assert "harm-001" in text


def test_the_decision_comes_first(small):
    text, markdown = rendered(small)
    assert [attrs["id"] for tag, attrs in Page(text).elements if tag == "section"] == [
        name for name in SECTIONS if name not in {"alarms", "outcomes"}
    ]
    assert markdown.index("## The decision") < markdown.index("## Every build") < markdown.index("## Tables")


def test_every_build_is_a_row_with_its_verdict(small):
    text, _ = rendered(small)
    section = re.search(r'<section id="builds">(.*?)</section>', text, re.DOTALL)[1]
    rows = ["".join(Page(row).text) for row in re.findall(r'<tr role="row".*?</tr>', section, re.DOTALL)][1:]
    assert len(rows) == 7
    failed = next(row for row in rows if "Q5_K_M" in row)
    assert "did not run" in failed
    assert "the engine stopped: out of memory" in failed
    assert "0.00" not in failed
    assert failed.count("not measured") >= 5
    assert "same weights as Q3_K_S" in next(row for row in rows if "Q2_K" in row)
    assert "dequantised from Q4_1" in rows[0]


def test_twins_are_one_build_in_the_decision_and_the_matrix(small):
    text, markdown = rendered(small)
    decision = re.search(r'<section id="decision">(.*?)</section>', text, re.DOTALL)[1]
    assert "Q3_K_S = Q2_K" in decision
    assert decision.count('class="chip') == 6
    matrix = re.search(r'<section id="matrix">(.*?)</section>', text, re.DOTALL)[1]
    assert matrix.count('<th scope="col"') == 1 + 6
    assert "Q3_K_S = Q2_K" in markdown


def test_a_missing_artefact_is_not_measured_and_never_zero(small, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    decision = json.loads((small / "decision.json").read_text())
    numbers = [key for key in decision["cells"][0] if key.endswith(("_pp", "bytes", "second", "bpw"))]
    decision["cells"] = [cell | dict.fromkeys(numbers) for cell in decision["cells"]]
    decision["floor"] = None
    (bare / "decision.json").write_text(json.dumps(decision))
    (bare / "manifest.json").write_text(json.dumps({"schema": SCHEMA, "run": {}}))
    text, markdown = rendered(bare)
    sections = re.findall(r'<section id="(\w+)">', text)
    assert sections == ["decision", "builds", "provenance"]
    line = re.search(r"<li><b>Not measured:</b>(.*?)</li>", text)[1]
    assert all(what in line for name, what in MISSING.items())
    section = re.search(r'<section id="builds">(.*?)</section>', text, re.DOTALL)[1]
    figures = {"".join(Page(cell).text) for cell in re.findall(r'<td role="cell" class="num".*?</td>', section)}
    assert figures == {"not measured", "reference"}
    assert "not measured" in markdown


def test_without_a_decision_there_is_no_report(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"schema": SCHEMA, "run": {}}))
    with pytest.raises(BundleError, match=r"decision\.json"):
        render_report(tmp_path)


@pytest.mark.parametrize("name", ["decision.json", "manifest.json", "artifacts.json"])
def test_a_broken_artefact_is_named(small, name):
    (small / name).write_text("{")
    with pytest.raises(BundleError, match=name):
        render_report(small)


def test_the_same_bundle_gives_the_same_bytes(study):
    assert rendered(study) == rendered(study)


def test_run_times_and_the_reports_own_hashes_leave_no_trace(small):
    before = rendered(small)
    manifest = json.loads((small / "manifest.json").read_text())
    manifest["run"] = {"started": "2030-05-05T05:05:05+00:00", "finished": "2030-05-05T06:06:06+00:00"}
    manifest["artefacts"]["report.html"]["sha256"] = "ef" * 32
    (small / "manifest.json").write_text(json.dumps(manifest))
    assert rendered(small) == before


def test_hashes_versions_seeds_and_hardware_are_shown_and_paths_are_not(small):
    for text in rendered(small):
        for shown in ("ab" * 32, "00" * 32, "numpy", "2.3.1", "a processor"):
            assert shown in text
        assert "/somewhere" not in text


def test_a_changed_figure_of_the_bundle_is_a_changed_figure_of_the_report(small):
    path = small / "decision.json"
    path.write_text(path.read_text().replace('"refusal_delta_pp": -19,', '"refusal_delta_pp": -23.45,'))
    for text in rendered(small):
        assert "\u221223.45" in text


def test_templates_type_no_digit():
    for file in TEMPLATES.rglob("*"):
        if file.suffix in {".html", ".md"}:
            prose = re.sub(r"\{%.*?%\}|\{\{.*?\}\}|<[^>]*>", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
            assert not re.search(r"\d", prose), f"{file.name}: {prose}"


def test_prose_made_in_code_types_no_digit(small):
    """Titles, captions and headlines come from Python; none of their fixed words holds a number."""
    from quantverdict.reporting import tables

    fixed = [
        *tables.HEADLINES.values(),
        *tables.BEST.values(),
        *(t for g in (*tables.OVERVIEW, *tables.PER_BUILD) for t in g),
    ]
    assert not [line for line in fixed if re.search(r"\d", line)]


def test_every_chart_has_a_name_a_description_and_unique_ids(study):
    page = Page(rendered(study)[0])
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    charts = [attrs for tag, attrs in page.elements if tag == "svg" and attrs.get("class") == "chart"]
    assert len(charts) > 15
    for chart in charts:
        assert chart["role"] == "img"
        assert chart["aria-labelledby"] in ids
        assert chart["aria-describedby"] in ids
    hidden = [attrs for tag, attrs in page.elements if tag == "svg" and attrs.get("class") != "chart"]
    assert all(attrs["aria-hidden"] == "true" for attrs in hidden)


def test_colour_is_never_the_only_sign(small):
    text, _ = rendered(small)
    signs = re.findall(r'<span class="chip (\w+)"><span aria-hidden="true">(.)</span>', text)
    assert len(dict(signs)) == len({sign for _, sign in signs}) == 5


def test_a_study_shows_all_its_cells(study):
    text, _ = rendered(study)
    section = re.search(r'<section id="builds">(.*?)</section>', text, re.DOTALL)[1]
    assert len(re.findall(r'<th role="rowheader" scope="row">', section)) == 51
    assert len(re.findall(r'<tr role="row" class="group">', section)) == 6


def test_values_that_no_matrix_column_explains_are_still_shown(small):
    """A column of a later version is shown under its own name."""
    path = small / "quant_roles.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([f"{lines[0]},novel_column", *(f"{line},7.5" for line in lines[1:])]) + "\n")
    bundle = DryRunBundle(small)
    assert "novel column" in html(report_context(view_of(bundle), collect_claims(bundle)))


def test_bits_per_weight_are_called_true_only_where_files_were_read(small):
    assert "against true bits per weight" in rendered(small)[0]
    (small / "artifacts.json").unlink()
    text, _ = rendered(small)
    assert "true bits per weight" not in text
    assert "no file was read" in text


@pytest.mark.parametrize("profile", ["default", "study"])
@pytest.mark.parametrize("alarmed", [True, False])
def test_every_heading_of_the_markdown_stands_between_blank_lines(small, study, tmp_path, profile, alarmed):
    """Without one a reader takes `##` under a table for a row of it; and the file ends with one line end."""
    for bundle in (small, study):
        copy = shutil.copytree(bundle, tmp_path / f"{bundle.name}-{alarmed}")
        manifest = json.loads((copy / "manifest.json").read_text())
        (copy / "manifest.json").write_text(json.dumps(manifest | {"report": {"profile": profile}}))
        if not alarmed:
            (copy / "alarms.csv").unlink(missing_ok=True)
        text = report_texts(copy)["report.md"].decode()
        lines = ["", *re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL).split("\n")]
        headings = [at for at, line in enumerate(lines) if re.match("#{1,6} ", line)]
        assert len(headings) > 5
        assert [lines[at] for at in headings if lines[at - 1] or lines[at + 1]] == []
        assert text == text.rstrip("\n") + "\n"
