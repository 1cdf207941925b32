"""Make the text along which builds are compared with their baselines: `python tools/kl_text.py CLONES`.

CLONES is a folder with clones of the repositories named in `LITERATURE` and `LANGUAGES`, each in a folder named as it.
What it writes is kept in the repository; it is made anew only when the text is to be another.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUT = ROOT / "src" / "quantverdict" / "tasks" / "kl_text.txt"
LITERATURE = {
    "prose": ("News-from-Nowhere--Or-An-Epoch-of-Rest--13-Being-Some-Chapters-from-a-Utopian-Romance_3261",
              "3261.txt", 44_000, 30_000),
    "stage": ("The-Mind-the-Paint-Girl--13-A-Comedy-in-Four-Acts_21849", "21849-8.txt", 24_000, 20_000),
}  # fmt: skip
"""Of each kind: repository, file, bytes to take, and those to skip first. William Morris 1890, Arthur Pinero 1912."""
LANGUAGES = {
    "es": ("HEAD", "tutorial/classes"), "fr": ("3.13", "faq/design"), "it": ("3.13", "tutorial/introduction"),
    "ja": ("HEAD", "faq/general"), "ko": ("3.13", "tutorial/errors"), "pt-br": ("3.13", "tutorial/controlflow"),
    "uk": ("3.13", "tutorial/modules"), "zh-cn": ("3.13", "howto/sorting"),
}  # fmt: skip
"""Translations of Python's documentation, given into the public domain (CC0): branch, and the page to begin with."""
PAGES = ("tutorial/appetite", "faq/general", "faq/design", "tutorial/introduction", "tutorial/classes",
         "tutorial/errors", "tutorial/inputoutput", "tutorial/controlflow", "howto/regex")  # fmt: skip
A_LANGUAGE = 9_000
"""Bytes."""
CODE = ("src/quantverdict/stats/paired.py", "src/quantverdict/backends/http.py", "src/quantverdict/bundle/files.py",
        "src/quantverdict/reporting/templates/style.css", "src/quantverdict/artifacts/quantize.py")  # fmt: skip
DOCS = ("docs/concepts.md", "docs/decisions.md", "docs/gate.md", "docs/labels.md")
A_PASSAGE = 1_800
_ROLE = re.compile(r":[a-z][\w:+-]*:`[~!]?([^`<]+?)(?:\s*<[^>]*>)?`")
_LINK = re.compile(r"`([^`<]+?)\s*<[^>]*>`__?")


def shown(clone: Path, ref: str, file: str) -> bytes:
    """A file of a clone; nothing where it has none."""
    asked = ["git", "-C", clone, "show", f"{ref}:{file}"]
    return subprocess.run(asked, capture_output=True, check=False).stdout


def literature(clones: Path, kind: str) -> str:
    repository, file, size, begin = LITERATURE[kind]
    data = shown(clones / repository, "HEAD", file)
    text = data.decode("latin-1").replace("\r\n", "\n")
    start = re.search(r"^\*\*\* ?START OF .*$", text, re.MULTILINE)
    body = text[start.end() if start else 0 :][begin:]
    paragraphs = [" ".join(part.split()) for part in body.split("\n\n")[1:]]
    return "\n\n".join(taken((part for part in paragraphs if part), size))


def translation(clones: Path, language: str) -> str:
    """Paragraphs of pages that are translated, without the marks of their markup."""
    ref, first = LANGUAGES[language]
    found: list[str] = []
    for page in dict.fromkeys((first, *PAGES)):
        found += messages(shown(clones / f"python-docs-{language}", ref, f"{page}.po").decode())
    return "\n\n".join(taken(dict.fromkeys(found), A_LANGUAGE))


def messages(catalogue: str) -> Iterator[str]:
    for entry in catalogue.split("\n\n")[1:]:
        if "#, fuzzy" in entry or "msgstr" not in entry:
            continue
        lines = re.findall(r'^(?:msgstr )?"(.*)"$', entry[entry.index("msgstr") :], re.MULTILINE)
        text = "".join(lines).replace('\\"', '"').replace("\\n", "\n").replace("\\\\", "\\")
        text = _LINK.sub(r"\1", _ROLE.sub(r"\1", text)).replace("``", "`").replace("::", ":")
        if len(text.encode()) >= 150 and "\\" not in text:
            yield text.strip()


def taken(parts: Iterable[str], size: int) -> Iterator[str]:
    """Parts until they make up so many bytes."""
    left = size
    for part in parts:
        if left <= 0:
            return
        left -= len(part.encode())
        yield part


def files(names: Iterable[str], size: int) -> str:
    """The beginnings of files of this repository, equally long, cut at an empty line."""
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in names]
    return "\n\n".join("\n\n".join(taken(text.split("\n\n"), size // len(texts))) for text in texts)


def passages(text: str) -> list[str]:
    found: list[str] = [""]
    for part in text.split("\n\n"):
        if len(found[-1].encode()) >= A_PASSAGE:
            found.append("")
        found[-1] += f"\n\n{part}" if found[-1] else part
    return [part.strip("\n") for part in found if part.strip()]


def main(clones: Path) -> None:
    kinds = {kind: literature(clones, kind) for kind in LITERATURE}
    kinds |= {language: translation(clones, language) for language in LANGUAGES}
    kinds |= {"dialogue": (ROOT / "tools" / "kl_dialogue.txt").read_text(encoding="utf-8")}
    kinds |= {"code": files(CODE, 30_000), "docs": files(DOCS, 24_000)}
    placed = []
    for kind, text in kinds.items():
        own = passages(text)
        placed += [((at + 0.5) / len(own), kind, part) for at, part in enumerate(own)]
        print(f"{kind:9} {len(text.encode()):7,} bytes, {len(own)} passages")
    whole = "\n\n".join(part for _, _, part in sorted(placed)) + "\n"
    OUT.write_text(whole, encoding="utf-8")
    print(f"{OUT.relative_to(ROOT)}: {len(whole.encode()):,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
