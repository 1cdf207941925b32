"""How large the report page is, and how long a browser takes until it can be used.

    python benchmarks/page.py BUNDLE_OR_PAGE...
    python benchmarks/page.py --sheet SHEET.webp BUNDLE_OR_PAGE      how it looks at four widths, in light and in dark

Of each page: bytes, bytes as a server would send them, and the median of five openings in headless Chromium from the
request to the end of the script, when everything in it can be used, with the processor time in it.
"""

from __future__ import annotations

import base64
import statistics
import sys
import tempfile
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.browser import Browser

ROUNDS = 5
TIMED = "performance.getEntriesByType('navigation')[0].loadEventEnd"


def opened(browser: Browser, page: Path) -> tuple[float, float, float]:
    """Milliseconds from the request to the end of the script; of processor time of the page, and of its script."""
    browser.open(page)
    spent = {one["name"]: 1000 * one["value"] for one in browser.send("Performance.getMetrics")["metrics"]}
    return float(browser.run(TIMED)), spent["ThreadTime"], spent["ScriptDuration"]


SHEET = """<!DOCTYPE html><meta charset="utf-8"><style>
body { margin: 0; padding: 8px; background: #888; display: flex; flex-wrap: wrap; gap: 8px; width: 2010px; }
img { display: block; height: 560px; } </style>"""
WIDTHS = (390, 800, 1440, 1920)


def sheet(target: Path, page: Path, folder: Path) -> None:
    """One picture of a page as it opens: a row in light, a row in dark."""
    browser = Browser(folder / "browser")
    shown = []
    for dark in (False, True):
        browser.media(dark=dark)
        for width in WIDTHS:
            browser.size(width, 1300)
            browser.open(page.resolve())
            shown.append(folder / f"{width}-{dark}.png")
            browser.picture(shown[-1])
    listed = folder / "sheet.html"
    listed.write_text(SHEET + "".join(f'<img src="{one.as_uri()}">' for one in shown), encoding="utf-8")
    browser.media()
    browser.size(2026, 1152)
    browser.open(listed)
    data = browser.send("Page.captureScreenshot", format="webp", quality=70)["data"]
    target.write_bytes(base64.b64decode(data))
    browser.close()


def report_of(name: str) -> Path:
    return (Path(name) / "report.html" if Path(name).is_dir() else Path(name)).resolve()


def main(names: list[str]) -> None:
    if not names:
        sys.exit(__doc__)
    if names[0] == "--sheet":
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            sheet(Path(names[1]), report_of(names[2]), Path(folder))
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        browser = Browser(Path(folder))
        browser.size(1440)
        browser.send("Performance.enable", timeDomain="threadTicks")
        print("| page | kB | compressed | ms until it can be used | of processor time | of its script |")
        print("| --- | ---: | ---: | ---: | ---: | ---: |")
        for name in names:
            page = report_of(name)
            times = [opened(browser, page) for _ in range(ROUNDS)]
            shown = (f"{statistics.median(column):.0f}" for column in zip(*times, strict=True))
            data = page.read_bytes()
            kilobytes, packed = (f"{len(text) / 1000:,.0f}" for text in (data, zlib.compress(data)))
            print(f"| {page.parent.name} | {kilobytes} | {packed} | {' | '.join(shown)} |")
            assert not browser.console, browser.console
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1:])
