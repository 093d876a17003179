"""The documentation as a whole: every page is reached, every link leads somewhere, what is generated is up to date."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
INDEX = DOCS / "README.md"
PAGES = (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))
GENERATED = ("settings", "metrics", "errors", "messages")  # others have tests of their own
_FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def find_links(page: Path) -> Iterator[tuple[Path, str]]:
    """Yield file and anchor of each link of a page to another file."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    for found in re.finditer(r"\]\((?!https?:|mailto:)([^)\s]*)\)", text):
        target, _, anchor = found[1].partition("#")
        yield ((page.parent / target).resolve() if target else page), anchor


def list_anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page: Path) -> None:
    broken = []
    for target, anchor in find_links(page):
        if not target.exists():
            broken.append(str(target))
        elif anchor and target.suffix == ".md" and anchor not in list_anchors(target):
            broken.append(f"{target.name}#{anchor}")
    assert broken == []


def test_the_index_leads_to_every_page() -> None:
    linked = {target for target, _ in find_links(INDEX)}
    assert [page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md") if page not in (INDEX, *linked)] == []
    assert INDEX in {target for target, _ in find_links(ROOT / "README.md")}


def test_what_is_written_from_the_source_is_what_it_says_now() -> None:
    script = DOCS / "reference" / "write_pages.py"
    done = subprocess.run(
        [sys.executable, str(script), "--check", *GENERATED], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_page_that_was_changed_by_hand_is_found(tmp_path: Path) -> None:
    for path in (DOCS / "reference").glob("*"):
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with (tmp_path / "metrics.md").open("a") as page:
        page.write("more\n")
    done = subprocess.run(
        [sys.executable, str(tmp_path / "write_pages.py"), "--check", "metrics"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )
    assert done.returncode == 1
    assert "metrics" in done.stderr
