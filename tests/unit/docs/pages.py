"""The pages that people write, as a test reads them: code spans, code blocks, links and headings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
DOCS = ROOT / "docs"
GENERATED = DOCS / "generated"
EVERY = (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))
WRITTEN = tuple(page for page in EVERY if GENERATED not in page.parents)
"""Those that are not made from the code."""

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_COMMENT = re.compile(r"(^|\s)#\s.*$")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block. `before` is the last line of text above it, which says what it is."""

    page: Path
    language: str
    text: str
    before: str


def name(page: Path) -> str:
    """A page as people name it."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> Iterator[Block]:
    """The page's fenced blocks in a language."""
    text = page.read_text()
    for found in _FENCE.finditer(text):
        if found[1] == language:
            before = text[: found.start()].rstrip().rpartition("\n")[2]
            yield Block(page, language, found[2], before)


def spans(page: Path) -> list[str]:
    """What stands in backquotes, outside of fenced blocks."""
    return _SPAN.findall(_FENCE.sub("", page.read_text()))


def command_lines(page: Path) -> Iterator[str]:
    """Lines of shell: of `sh` blocks and of indented ones, without their comments; continued lines are one."""
    text = page.read_text()
    fenced = [block.text for block in blocks(page, "sh")]
    indented = re.findall(r"^ {4}(?![ -])(.*(?:\\\n.*)*)$", _FENCE.sub("", text), flags=re.MULTILINE)
    for chunk in (*fenced, *indented):
        for line in chunk.replace("\\\n", " ").splitlines():
            yield _COMMENT.sub("", line).strip()


def links(page: Path) -> list[str]:
    """Where the page's links go, the ones that stay in this tree."""
    text = re.sub(_FENCE, "", page.read_text())
    return [to for to in _LINK.findall(text) if "://" not in to]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(_FENCE, "", page.read_text())
    heads = (re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", head) for head in _HEADING.findall(text))
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
