"""Fenced blocks of the documents: what they hold, and how each kind is run.

```python title="theirs/x.py"    a file (any language); written before the blocks after it run
```python                        run; the blocks of a document share their names, like the cells of a notebook
```bash                          run line by line; esvit-* at the size of a test, make only as `make -n`
```yaml                          must parse
```text, or none                 output and drawings: not run
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(?P<language>\w*)(?P<info>[^\n]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
LANGUAGES = {"", "text", "python", "bash", "yaml", "bibtex"}


class Block(NamedTuple):
    document: str
    line: int
    language: str
    title: str | None
    slow: bool
    body: str


def documents() -> list[Path]:
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def blocks(path: Path) -> list[Block]:
    text = path.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        info = match["info"].strip()
        title = re.search(r'title="([^"]+)"', info)
        line = text.count("\n", 0, match.start()) + 1
        name = path.relative_to(ROOT).as_posix()
        found.append(
            Block(name, line, match["language"], title[1] if title else None, "slow" in info.split(), match["body"])
        )
    return found


def commands(body: str) -> list[str]:
    """The lines of a shell block, continued ones joined, without comments."""
    lines = re.sub(r"\\\n\s*", " ", body).splitlines()
    return [line for line in (re.sub(r"(^|\s)#.*$", "", line).strip() for line in lines) if line]
