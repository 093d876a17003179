"""Write the pages of this folder that are made from the source: `python docs/reference/write_pages.py [NAME...]`.

With `--check` nothing is written, and the exit code is 1 when a page is not what its generator says.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
# The command line first: click remembers how a command's help was first asked for.
NAMES = ("cli", "exchange", "settings", "metrics", "errors", "messages")


def main(arguments: list[str]) -> int:
    """Write or compare pages; return the exit code."""
    is_check = "--check" in arguments
    chosen = [name for name in arguments if name != "--check"] or list(NAMES)
    if unknown := [name for name in chosen if name not in NAMES]:
        sys.stderr.write(f"no such page: {', '.join(unknown)}; there are {', '.join(NAMES)}\n")
        return 2
    stale = []
    for name in chosen:
        page = FOLDER / f"{name}.md"
        text = runpy.run_path(str(FOLDER / f"write_{name}.py"))["build_page"]()
        if not is_check:
            page.write_text(text, encoding="utf-8")
        elif not page.exists() or page.read_text(encoding="utf-8") != text:
            stale.append(name)
    if stale:
        sys.stderr.write(f"not what the source says: {', '.join(stale)}; run `python docs/reference/write_pages.py`\n")
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
