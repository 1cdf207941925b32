"""The page in headless Chromium: complete without script, a tool with it; it says nothing, and asks for nothing."""

import json
import re
import zlib

import pytest
from tests import test_golden as golden
from tests.browser import Browser, chromium

from quantverdict.cli import execute
from quantverdict.reporting.flips import page_json

pytestmark = [
    pytest.mark.skipif(chromium() is None, reason="no Chromium on the PATH (apt-get install chromium)"),
    pytest.mark.xdist_group("browser"),
]
LT = "<script>document.title='PWNED'</script>"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The report of a replay study of hundreds of changed answers with an A/A replicate; one answer is markup."""
    folder = tmp_path_factory.mktemp("page")
    text = golden.STUDY
    study = re.sub(r"judges:.*", "", text, flags=re.DOTALL).replace("stopping: sequential\n", "")
    study = re.sub(r"whitebox:.*\n", "statistics: {bootstrap_samples: 40}\n", study)
    study = study.replace("quality_metric: rouge_l}", "quality_metric: rouge_l, instruments: {refusal: pattern}}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(golden, "STUDY", study)
        patch.chdir(folder)
        golden.write_study(folder)
        recorded = folder / "recorded" / "tiny__Q2_K.jsonl"
        lines = [json.loads(line) for line in recorded.read_text().splitlines()]
        lines[0]["text"] = f"<think>Let me see.</think>Of course! {LT}"
        recorded.write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert execute(["run", "golden.yaml", "--out", "b"]) == 0
    return folder / "b" / "report.html"


@pytest.fixture(scope="module")
def shared_browser(tmp_path_factory):
    one = Browser(tmp_path_factory.mktemp("browser"))
    yield one
    one.close()


@pytest.fixture
def browser(shared_browser, page):
    """The page, just opened; at the end it has said nothing, asked for nothing and opened no dialog."""
    one = shared_browser
    one.media()
    one.size(1440)
    one.send("Emulation.setScriptExecutionDisabled", value=False)
    one.open(page)
    yield one
    assert (one.console, one.requests, one.dialogs) == ([], [], [])


def column(browser, table, at):
    return browser.run(
        f"[...document.querySelectorAll({json.dumps(table)} + ' tbody tr:not(.group):not([hidden])')]"
        f".map(row => row.cells[{at}].innerText.trim())"
    )


DELTAS = "table[data-source=deltas]"


def test_a_heading_sorts_and_sorts_back(browser):
    browser.run("document.querySelector('#table-deltas').open = true")
    browser.run("new Promise(requestAnimationFrame)")
    names = column(browser, DELTAS, 2)
    browser.click(f"{DELTAS} thead th:nth-child(3) button")
    assert column(browser, DELTAS, 2) == sorted(names, key=str.lower)
    assert browser.run(f"document.querySelector('{DELTAS} thead th:nth-child(3)').ariaSort") == "ascending"
    browser.click(f"{DELTAS} thead th:nth-child(3) button")
    assert column(browser, DELTAS, 2) == sorted(names, key=str.lower, reverse=True)
    browser.click(f"{DELTAS} thead th:nth-child(7) button")
    shown = column(browser, DELTAS, 6)
    measured = [text for text in shown if text != "not measured"]
    assert shown[: len(measured)] == measured, "what was not measured stands last"
    numbers = [float(text.replace("\u2212", "-")) for text in measured]
    assert numbers == sorted(numbers)
    assert numbers


def test_a_filter_leaves_the_rows_that_match_and_the_csv_has_those(browser):
    browser.run("document.querySelector('#table-deltas').open = true")
    browser.run("new Promise(requestAnimationFrame)")
    browser.run(
        "(() => { const select = document.querySelector('#table-deltas select[aria-label=\"any build\"]');"
        "select.value = 'Q8_0'; select.dispatchEvent(new Event('change')) })()"
    )
    browser.run("document.querySelector('#table-deltas input').focus()")
    browser.type("refusal")
    assert set(column(browser, DELTAS, 1)) == {"Q8_0"}
    shown = column(browser, DELTAS, 2)
    assert shown
    assert all("refusal" in name for name in shown)
    browser.run("navigator.clipboard.writeText = async (text) => { window.copied = text }")
    browser.click("#table-deltas .tools button")
    lines = browser.run("window.copied").splitlines()
    assert lines[0].startswith("base model,build,metric,unit")
    assert len(lines) == 1 + len(shown)


def test_a_cell_opens_what_is_behind_it_and_its_link_opens_it_again(browser, page):
    browser.click("table.heat tr:has([data-metric=refusal_rate]) td:nth-child(2)")
    drawer = browser.run("document.querySelector('#drawer[open]').innerText")
    assert "refusal rate by pattern, Q2_K of tiny" in drawer
    for shown in ("Deltas", "Criteria", "lost", "gained", "matrix.csv, row base_model=tiny;quant=Q2_K"):
        assert shown.lower() in drawer.lower(), drawer
    fragment = browser.run("location.hash")
    assert fragment == "#cell/tiny/Q2_K/refusal_rate"
    browser.press("Escape")
    assert browser.run("document.querySelector('#drawer').open") is False
    assert browser.run("document.activeElement.closest('tr').cells[0].dataset.metric") == "refusal_rate"
    browser.open(page, fragment)
    assert (
        browser.run("document.querySelector('#drawer[open] h2').innerText") == "refusal rate by pattern, Q2_K of tiny"
    )


def test_a_cell_leads_to_the_answers_that_changed(browser):
    browser.click("table.heat tr:has([data-metric=refusal_rate]) td:nth-child(2)")
    (count,) = re.findall(r"Show the (\d+) answers", browser.run("document.querySelector('#drawer').innerText"))
    browser.click("#drawer .actions button")
    assert browser.run("document.querySelectorAll('.flip-list li').length") == min(int(count), 201)
    assert f"of {count} prompts" in browser.run("document.querySelector('#flips-app').innerText")
    ways = browser.run("[...document.querySelectorAll('.flip-list .way')].map(e => e.innerText)")
    assert all("Q2_K" in way or "Q4_K_M" in way or "Q8_0" in way for way in ways)


def flip(browser):
    return browser.run("document.querySelector('.flip h3').firstChild.textContent")


def test_flips_go_on_by_keyboard_and_open_again_by_their_link(browser, page):
    names = browser.run("[...document.querySelectorAll('.flip-list b')].slice(0, 3).map(e => e.innerText)")
    assert flip(browser) == names[0]
    browser.run("document.querySelector('.flip-list button').focus()")
    browser.press("j")
    browser.press("j")
    assert flip(browser) == names[2]
    browser.press("k")
    assert flip(browser) == names[1]
    assert browser.run("document.querySelector('.flip-list [aria-current=true] b').innerText") == names[1]
    fragment = browser.run("location.hash")
    browser.open(page, fragment)
    assert flip(browser) == names[1]
    browser.press("/")
    browser.type("harmful-000")
    assert flip(browser) == "harmful-000"


def test_a_flip_shows_both_answers_with_what_differs_and_what_decided(browser, page):
    browser.open(page, "#flip/tiny/harmful/harmful-000")
    shown = browser.run("document.querySelector('.flip').textContent")
    assert LT in shown  # as text
    assert browser.run("document.title") == "golden: which build can ship?"
    assert browser.run("[...document.querySelectorAll('.answer h4')].map(e => e.firstChild.textContent)") == [
        "FP16", "FP16~null1", "Q2_K", "Q8_0", "Q4_K_M",
    ]  # fmt: skip
    build = "document.querySelectorAll('.answer')[2]"
    assert browser.run(f"{build}.querySelector('.scores .moved').innerText") == "refusal rate by pattern 0"
    assert browser.run(f"[...{build}.querySelectorAll('ins')].length") >= 3
    assert browser.run(f"{build}.querySelector('details.harmful').open") is False
    assert "Let me see." in browser.run(f"{build}.querySelectorAll('details')[1].textContent")
    browser.click("#flips-app [aria-pressed]")
    assert browser.run(f"{build}.querySelector('details.harmful').open") is True


def test_flips_are_narrowed_by_task_metric_direction_build_and_search(browser):
    total = browser.run("JSON.parse(document.querySelector('#flips-data').textContent).prompts.length")
    assert total > 300

    def choose(label, value):
        browser.run(
            f"(() => {{ const one = document.querySelector('#flips-app select[aria-label=\"{label}\"]');"
            f"one.value = {json.dumps(value)}; one.dispatchEvent(new Event('change')) }})()"
        )
        (count,) = re.findall(
            r"(?:of|none of) (\d+) prompts", browser.run("document.querySelector('#flips-app').innerText")
        )
        return int(count)

    assert choose("any task", "safe") < total
    assert choose("any build", "Q8_0") <= 40
    assert choose("any build", "") == choose("either direction", "") == choose("any task", "safe")
    lost, gained = choose("either direction", "lost"), choose("either direction", "gained")
    assert lost + gained >= choose("either direction", "")


def test_the_whole_of_the_page_goes_by_keyboard(browser):
    """The skip link comes first; a chart, the forest plot and the matrix are one stop each, with arrows inside."""
    browser.press("Tab")
    assert browser.run("document.activeElement.className") == "skip"
    browser.press("Enter")
    assert browser.run("document.activeElement.id") == "main"
    stops = browser.run(
        "['.forest-table', '.heat', 'svg.chart'].map(s => document.querySelectorAll(`${s} [tabindex=\"0\"]`).length)"
    )
    assert stops[:2] == [1, 1]
    browser.run("document.querySelector('.forest-table [tabindex=\"0\"]').focus()")
    assert "of 320 pairs, margin 5 pp" in browser.run("document.querySelector('#hint').innerText")
    browser.press("ArrowDown")
    assert browser.run("document.activeElement.id") == "build-tiny-Q2_K-safety"
    browser.press("Enter")
    assert "safety, Q2_K of tiny" in browser.run("document.querySelector('#drawer[open]').innerText")
    browser.press("Escape")
    browser.run("document.querySelector('.heat [tabindex=\"0\"]').focus()")
    browser.press("ArrowRight")
    browser.press("ArrowDown")
    assert re.match(r"FP16 of tiny, .*; n \d+$", browser.run("document.querySelector('#hint').innerText"))
    browser.press("Enter")
    assert "FP16 of tiny" in browser.run("document.querySelector('#drawer[open]').innerText")
    browser.press("Escape")


@pytest.mark.parametrize("width", [390, 800, 1440, 1920])
def test_nothing_is_wider_than_the_window(browser, page, width):
    browser.size(width)
    browser.open(page)
    assert browser.run("document.documentElement.scrollWidth") <= width


def test_text_has_contrast_in_light_and_in_dark(browser):
    """Ink, soft ink and each verdict's colour on page and panel: 4.5 to 1 at least (WCAG AA)."""
    ratios = (
        "(() => { const lum = (c) => { const v = c.match(/[\\d.]+/g).slice(0, 3).map(x => x / 255)"
        ".map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);"
        "return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2] };"
        "const probe = document.createElement('i'); document.body.append(probe);"
        "const of = (name) => { probe.style.color = `var(--${name})`; return lum(getComputedStyle(probe).color) };"
        "const found = []; for (const ground of ['page', 'panel']) for (const ink of "
        "['ink', 'soft', 'accent', 'ship', 'reject', 'unknown', 'failed']) { const a = of(ground), b = of(ink);"
        "found.push([`${ink} on ${ground}`, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)]) }"
        "probe.remove(); return found })()"
    )
    for dark in (False, True):
        browser.media(dark=dark)
        assert [one for one in browser.run(ratios) if one[1] < 4.5] == []


def test_print_is_of_nine_points_or_more_and_without_tools(browser):
    browser.media(printed=True)
    sizes = browser.run(
        "[...document.querySelectorAll('body *')].filter(e => e.checkVisibility() && !e.closest('svg, dialog') && "
        "[...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()))"
        ".map(e => [parseFloat(getComputedStyle(e).fontSize) * 0.75, e.tagName + '.' + e.className])"
        ".filter(([size]) => size < 9)"
    )
    assert sizes == []
    assert browser.run(
        "[...document.querySelectorAll('.tools, .flips, .skip, body > nav')].every(e => !e.checkVisibility())"
    )
    assert browser.pdf().startswith(b"%PDF")


def test_without_script_every_section_and_figure_is_there(browser, page):
    with_script = browser.run("document.querySelectorAll('main section').length")
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    browser.open(page)
    text = browser.run("document.documentElement.outerHTML")
    body = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert len(re.findall("<section", body)) == with_script
    assert "harmful-000" in body  # in the plain table of changed answers
    assert 'id="flips-app" class="flips" hidden' in body


def test_a_screen_reader_finds_landmarks_headings_and_names(browser):
    nodes = browser.send("Accessibility.getFullAXTree")["nodes"]
    found = {(one["role"]["value"], one.get("name", {}).get("value", "")) for one in nodes if not one.get("ignored")}
    roles = {role for role, _ in found}
    assert {"banner", "navigation", "main", "contentinfo", "heading", "table", "columnheader", "rowheader"} <= roles
    assert ("navigation", "Sections") in found
    unnamed = [role for role, name in found if not name and role in {"button", "link", "combobox", "searchbox", "img"}]
    assert unnamed == []


def test_data_in_the_page_ends_no_element():
    """Whatever a text holds, no character of it can close the script element, and it is the same text again."""
    hostile = {"x": f"</script>{LT}<!-- & \u2028 ]]> \\u003c"}
    shown = page_json(hostile)
    assert not {"<", ">", "&", "\u2028"} & {*shown}
    assert json.loads(shown) == hostile


def test_the_page_is_small(page):
    assert len(page.read_bytes()) < 700_000
    assert len(zlib.compress(page.read_bytes())) < 120_000
