"""Text from models, tasks and logs is shown and never acted on: by a browser that opens a report, or by a terminal."""

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from tests.browser import Browser, chromium

REFUSED = "I'm sorry, but I can't help with that."
ACT = "document.title='PWNED';document.documentElement.setAttribute('data-pwned','1');new Image().src='URL/script'"
PAYLOADS = (
    "<script>ACT</script>", "</script><script>ACT</script>", "</style><script>ACT</script>", "</title><script>ACT</script>",
    "<img src=x onerror=\"ACT\">", "<img src='URL/img'>", "\"><img src=x onerror=ACT>", "' onmouseover='ACT' autofocus onfocus='ACT' x='",
    "<svg onload=\"ACT\">", "<svg><script href='URL/svg'></script></svg>", "<svg><animate onbegin=\"ACT\" attributeName=x dur=1s>",
    "<iframe src='URL/frame'></iframe>", "<iframe srcdoc=\"<script>parent.ACT</script>\">", "<body onload=\"ACT\">",
    "<details open ontoggle=\"ACT\">", "<video><source onerror=\"ACT\"></video>", "<input autofocus onfocus=\"ACT\">",
    "<meta http-equiv='refresh' content='0;url=URL/refresh'>", "<base href='URL/'>", "<link rel=stylesheet href='URL/css'>",
    "<style>@import 'URL/import'; body{background:url(URL/style)}</style>", "<p style=\"background:url('URL/inline')\">",
    "<object data='URL/object'></object>", "<embed src='URL/embed'>", "<form action='URL/form'><input type=submit>",
    "javascript:ACT", "[x](javascript:ACT)", "![x](URL/markdown)", "[x]: URL/ref \"t\"\n![x]", "<URL/auto>", "| a | b |\n|---|---|\n| <script>ACT</script> | x |",
    "```\n</code></pre><script>ACT</script>\n```", "<!-- --><script>ACT</script><!--", "--><script>ACT</script>", "<![CDATA[<script>ACT</script>]]>",
    "{{ 7*7 }}{% raw %}{{ self }}", "${7*7} #{7*7} <%= 7*7 %>", "&lt;script&gt;ACT&lt;/script&gt;", "&#60;script&#62;ACT&#60;/script&#62;",
    "\u003cscript\u003eACT", "<scr\0ipt>ACT</scr\0ipt>", "<a href='data:text/html,<script>ACT</script>'>x", "<math href='javascript:ACT'>x</math>",
    "<template><script>ACT</script></template>", "<noscript><p title=\"</noscript><script>ACT</script>\">", "=cmd|' /C calc'!A0",
    "\x1b]0;PWN\x07\x1b[2J\x1b[31m", "\x9b31m\x9d0;PWN\x9c", "\u202egnp.exe", "##[error]PWN", "::error::PWN", "\r\nPWN: 1",
)  # fmt: skip


@pytest.fixture
def listener():
    """Where a payload that acts is heard: its address, and the paths asked for."""
    heard = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            heard.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            """Nothing is printed."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", heard
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    if chromium() is None:
        pytest.skip("no Chromium on the PATH (apt-get install chromium)")
    one = Browser(tmp_path_factory.mktemp("browser"))
    yield one
    one.close()


TOUR = """
(async () => {
  const every = (selector) => [...document.querySelectorAll(selector)];
  const rest = () => new Promise((done) => setTimeout(done, 0));
  let seen = 0;
  for (const one of every("details")) one.open = true;
  await rest();
  const wanted = every("#flips-app button").find((one) => one.textContent === "Show harmful answers");
  wanted?.click();
  const next = every("#flips-app button").find((one) => one.textContent === "Next");
  for (; next && !next.disabled && seen < 500; seen++) { next.click(); every(".flip details").forEach((one) => { one.open = true; }); }
  for (const one of every("[data-hint], table.heat td")) one.dispatchEvent(new MouseEvent("mouseover", {bubbles: true}));
  for (const one of every("table.heat tr:not(.group) td, .forest-table tr[id]")) { one.click(); seen++; document.querySelector("#drawer")?.close(); }
  for (const one of every("th .sort")) one.click();
  for (const one of every("input[type=search]")) { one.value = "<"; one.dispatchEvent(new Event("input")); }
  for (const one of every("select")) { one.selectedIndex = one.options.length - 1; one.dispatchEvent(new Event("change")); }
  await new Promise((done) => setTimeout(done, 300));
  return seen;
})()
"""
"""Everything that the page has to show: each answer, each drawer, each hint, sorted and filtered."""


@pytest.fixture
def opened(browser):
    """What a page did once everything in it was shown: signs that something ran, was fetched or was opened."""

    def browse(page: Path, heard: list[str], tour: bool = True) -> list[str]:
        browser.open(page)
        if tour:
            browser.seen = browser.run(TOUR)
        else:
            browser.run("new Promise((done) => setTimeout(done, 500))")
        signs = [f"asked for {path}" for path in heard]
        signs += ["a script ran"] * browser.run("document.documentElement.hasAttribute('data-pwned')")
        signs += ["the title was changed"] * browser.run("document.title.startsWith('PWNED')")
        return signs + [f"opened a dialog: {one}" for one in browser.dialogs]

    return browse


def test_a_page_that_acts_is_noticed(opened, listener, tmp_path):
    """Without this the campaign could not fail."""
    url, heard = listener
    page = tmp_path / "page.html"
    page.write_text(f"<html><head><title>x</title></head><body>{PAYLOADS[0].replace('ACT', ACT).replace('URL', url)}")
    signs = opened(page, heard, tour=False)
    assert signs == ["asked for /script", "a script ran", "the title was changed"]


def hostile(folder: Path, payloads) -> None:
    """A study in which every text that is not a name of its own is a payload."""
    (folder / "recorded").mkdir(parents=True)
    samples = [{"id": f"{number} {text}", "prompt": f"Do {text}"} for number, text in enumerate(payloads)]
    task = {"name": "harmful", "task_type": "safety_refusal", "prompt_template": "{{ prompt }}", "samples": samples}
    (folder / "harmful.yaml").write_text(json.dumps(task))
    for quant in ("FP16", "Q8_0", "Q2_K"):
        lines = []
        for number, sample in enumerate(samples):
            text = f"{REFUSED} {payloads[-1 - number]}" if quant == "FP16" else f"Sure. {payloads[number]}"
            text = f"<think>{payloads[-1 - number]}</think>{text}" if quant == "Q2_K" else text
            lines.append(json.dumps({"task": "harmful", "sample_id": sample["id"], "text": text}) + "\n")
        (folder / "recorded" / f"tiny__{quant}.jsonl").write_text("".join(lines))
    study = {
        "study": "hostile",
        "models": [{"name": "tiny", "family": "T", "baseline": "FP16", "variants": ["FP16", "Q8_0", "Q2_K", "Q4_0"]}],
        "collect": {"backend": "replay", "replay_dir": "recorded", "batch_size": 8},
        "tasks": [{"path": "harmful.yaml"}],
        "statistics": {"bootstrap_samples": 20},
        "judges": [
            {"name": "j", "model": f"a {payloads[0]}", "source": {"url": "http://127.0.0.1:9/v1", "model": payloads[1]}}
        ],
        "waivers": [{"cell": "tiny/Q8_0", "check": "lineage", "reason": f"because {payloads[2]}"}],
        "policy": {"base": "quantverdict", "quality_metric": "refusal_rate", "quality_margin_pp": 5},
    }
    (folder / "study.yaml").write_text(json.dumps(study))
    waivers = [
        {"cell": f"tiny/{q}", "metric": "refusal_rate", "reason": f"as {payloads[3]}", "expires": "2999-01-01"}
        for q in ("Q8_0", "Q2_K")
    ]
    (folder / "gate.yaml").write_text(json.dumps({"waivers": waivers}))


COMMANDS = (
    ["run", "study.yaml", "--out", "b"], ["report", "b", "--profile", "study"], ["tasks", "show", "harmful.yaml"],
    ["gate", "b", "--policy", "gate.yaml", "--summary", "summary.md", "--junit", "junit.xml"], ["diff", "b", "b"], ["verify", "b"],
    ["plan", "study.yaml", "--no-measure"], ["label", "b", "--out", "sheet.csv", "--n", "5"],
)  # fmt: skip


def controls(text: str) -> set[str]:
    """What a terminal acts on: controls but line feeds and tabs, and marks that turn the direction of text."""
    return {
        char
        for char in text
        if (ord(char) < 32 and char not in "\n\t") or 127 <= ord(char) < 160 or char in "\u202e\u202d\u2066\u2067"
    }


def chosen(draw, n):
    return [draw.sample(PAYLOADS, len(PAYLOADS)) for _ in range(n)]


def test_nothing_in_a_report_acts(warm, opened, browser, listener, tmp_path, draw, rounds, figures):
    """HTML and rendered Markdown, in both profiles, and the gate's summary; every answer and drawer of a page opened.

    A report asks for nothing and says nothing on the console either; rendered Markdown may try to, as HTML is let
    through there.
    """
    url, heard = listener
    bad, pages, seen = [], 0, 0
    sets = chosen(draw, rounds(1, 12))
    for number, payloads in enumerate(sets):
        here = tmp_path / f"world{number}"
        hostile(here, [text.replace("ACT", ACT).replace("URL", url) for text in payloads])
        shown = []
        for args in COMMANDS[:4]:
            result = warm(args, here, judge=True)
            assert result["code"] in (0, 3, 5), result["err"]
            if args[0] in ("run", "report"):
                shown.append((here / "b" / "report.html").read_text())
                shown.append(rendered((here / "b" / "report.md").read_text()))
        shown.append(rendered((here / "summary.md").read_text()))
        for page in shown[: rounds(1, 99)] + shown[-1:]:
            pages += 1
            path = tmp_path / "page.html"
            path.write_text(page)
            heard.clear()
            signs = opened(path, heard)
            if "flips-data" in page:
                assert browser.seen > len(PAYLOADS)
                seen += browser.seen
                signs += [*browser.console, *browser.requests]
            bad += [f"{number}: {sign} ({page[:40]!r})" for sign in signs]
    assert seen
    figures(
        f"payloads: {len(PAYLOADS)} payloads in every place, {pages} pages opened in Chromium, {seen} answers and "
        f"drawers shown in them, {len(bad)} acted"
    )
    assert not bad, "\n".join(bad)


def rendered(markdown: str) -> str:
    """As a viewer shows Markdown: tables, and HTML let through."""
    body = MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)
    return f"<html><head><title>x</title></head><body>{body}</body></html>"


def test_no_terminal_gets_a_control_character(warm, tmp_path, draw, rounds, figures):
    """On stdout and stderr of every command, also of those that fail and say why."""
    bad, asked = [], 0
    for number, payloads in enumerate(chosen(draw, rounds(1, 20))):
        here = tmp_path / f"world{number}"
        hostile(here, payloads)
        for args in (*COMMANDS, *failing(here, payloads, draw, rounds(8, 99))):
            result = warm(args, here, judge=True)
            asked += 1
            if found := controls(result["out"] + result["err"]):
                bad.append(f"{args}: {sorted(map(ascii, found))}: {(result['err'] or result['out'])[:160]!a}")
    figures(f"terminal: {asked} commands over hostile texts, {len(bad)} with a control character on the screen")
    assert not bad, "\n".join(bad)


def failing(here, payloads, draw, n):
    """Commands that name a hostile text as what is wrong."""
    escape = "\x1b]0;PWN\x07 \x9b31m"
    study, task = (json.loads((here / name).read_text()) for name in ("study.yaml", "harmful.yaml"))
    spoilt = {
        "key.yaml": study | {escape: 1},
        "path.yaml": study | {"tasks": [{"path": f"{escape}.yaml"}]},
        "stratify.yaml": study | {"tasks": [{"path": "harmful.yaml", "limit": 3, "stratify": escape}]},
        "package.yaml": study | {"semantic": {"coherence": {"source": {"package": escape}}}},
        "name.yaml": study | {"study": escape},
        "metric.yaml": study | {"policy": {"base": "quantverdict", "quality_metric": escape}},
        "waiver.yaml": study | {"waivers": [{"cell": f"tiny/{escape}", "check": "lineage", "reason": "x"}]},
        "replay.yaml": study | {"collect": {"backend": "replay", "replay_dir": escape}},
        "task_key.yaml": task | {escape: 1},
        "task_type.yaml": task | {"task_type": escape},
        "task_template.yaml": task | {"prompt_template": "{{ raise_exception('" + escape + "') }}"},
        "task_filter.yaml": task | {"filters": [{"type": escape}]},
        "gate_key.yaml": {escape: 1},
        "gate_metric.yaml": {"margins": {escape: 3}},
        "gate_build.yaml": {"builds": [f"tiny/{escape}"]},
    }
    for name, document in spoilt.items():
        (here / name).write_text(json.dumps(document))
    (here / "m.csv").write_text(f"base_model,{escape}\nx,1\n")
    (here / "b" / f"{escape}.txt").parent.mkdir(exist_ok=True)
    shutil.copytree(here / "b", here / "other", dirs_exist_ok=True)
    (here / "other" / "\x1b[31m.txt").write_text("x")
    commands = [["run", name, "--out", "new"] for name in spoilt if not name.startswith(("task", "gate"))]
    commands += [["tasks", "show", name] for name in spoilt if name.startswith("task")]
    commands += [["gate", "b", "--policy", name] for name in spoilt if name.startswith("gate")]
    commands += [["analyze", "--matrix", "m.csv", "--out", "n"], ["verify", "other"], ["inspect", f"{escape}.gguf"], ["gate", escape],
                 ["run", f"{escape}.yaml"], ["lineage", escape, escape], ["report", escape], ["judge", "b", "--judge", escape]]  # fmt: skip
    return commands if n >= len(commands) else draw.sample(commands, n)
