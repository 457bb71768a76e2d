"""docs/pages.py and mkdocs.yml: the site of ``make docs``."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from documents import ROOT

import esvit_pl

pytest.importorskip("mkdocstrings_handlers", reason="needs esvit_pl[docs]")
os.environ.setdefault("NO_MKDOCS_2_WARNING", "1")

from markdown import Markdown
from markdown_it import MarkdownIt
from mkdocs.config import load_config
from mkdocs.config.defaults import MkDocsConfig

from docs import pages

PAGES = sorted(
    [*(ROOT / "docs").glob("*.md"), *(ROOT / f"{name}.md" for name in ("CHANGELOG", "CONTRIBUTING", "SECURITY"))]
)


# -- the whole site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr  # a link that leads nowhere, a page that nobody can find
    return folder


class Page(HTMLParser):
    """Tags, ids, and the addresses that a browser fetches without being asked."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.ids, self.fetched = Counter[str](), set[str](), list[str]()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        self.tags[tag] += 1
        self.ids.add(told.get("id") or "")
        if tag in ("script", "img", "iframe") or told.get("rel") in ("stylesheet", "preload", "preconnect"):
            self.fetched.append(told.get("src") or told.get("href") or "")


@pytest.mark.slow
@pytest.mark.parametrize("name", pages.console_scripts())
def test_every_command_has_a_page_with_its_config_groups(site: Path, name: str) -> None:
    page = (site / "commands" / f"{name}.html").read_text(encoding="utf-8")
    assert f"{name}: " in page and "For example:" in page
    for group in pages.groups((ROOT / "conf" / f"{name.removeprefix('esvit-')}.yaml").read_text(encoding="utf-8")):
        assert f'href="../configs.html#{group}"' in page


@pytest.mark.slow
@pytest.mark.parametrize("module", pages.modules())
def test_every_public_name_has_an_anchor(site: Path, module: str) -> None:
    ids = Page((site / "api" / f"{module}.html").read_text(encoding="utf-8")).ids
    room = import_module(module)
    for name in getattr(room, "__all__", []):
        if module == "esvit_pl" or callable(getattr(room, name)):
            assert ids & {f"{module}.{name}", f"{module}.{name}.{name}"}, name  # a function may be called like its file


@pytest.mark.slow
def test_a_function_that_is_called_like_its_file_is_shown(site: Path) -> None:
    page = (site / "api" / "esvit_pl.datasets.html").read_text(encoding="utf-8")
    assert all(f'<h2 id="esvit_pl.datasets.{name}.{name}"' in page for name in ("cifar10", "folder", "table"))


@pytest.mark.slow
def test_search_finds_settings_names_and_text(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]
    for word, place in (("reduced_decoding", "recipes"), ("RegionLoss", "api"), ("view_region", "configs")):
        assert any(word in entry["title"] + entry["text"] for entry in index if entry["location"].startswith(place))


@pytest.mark.slow
def test_nothing_is_fetched_from_another_host(site: Path) -> None:
    for path in site.rglob("*.html"):
        away = [address for address in Page(path.read_text(encoding="utf-8")).fetched if "//" in address]
        assert away == [], path
    for path in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", path.read_text(encoding="utf-8")), path


# -- the pages as they are written


@cache
def config() -> MkDocsConfig:
    return load_config(str(ROOT / "mkdocs.yml"))


@cache
def converted(path: Path) -> Page:
    html = Markdown(extensions=config().markdown_extensions, extension_configs=config().mdx_configs).convert(
        re.sub(r"(?m)^(```.*) slow$", r"\1", path.read_text(encoding="utf-8"))
    )
    return Page(html)


def leaves(nav: Any) -> Iterator[str]:
    for entry in nav.values() if isinstance(nav, dict) else nav:
        yield from [entry] if isinstance(entry, str) else leaves(entry)


def test_the_navigation_has_every_page() -> None:
    assert sorted(leaves(config().nav)) == sorted(path.name for path in PAGES)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_page_is_built_like_on_github(path: Path) -> None:
    """Lists, tables and fences that one of both would take for running text; markdown-it reads as GitHub does."""
    theirs = Page(MarkdownIt("gfm-like", {"linkify": False}).render(path.read_text(encoding="utf-8"))).tags
    ours = converted(path).tags
    for tag in ("h2", "h3", "ul", "ol", "li", "pre", "table", "tr", "td", "blockquote", "img", "strong", "em"):
        assert (tag, ours[tag]) == (tag, theirs[tag])


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_link_to_a_heading_finds_it(path: Path) -> None:
    for target, anchor in re.findall(r"\]\(((?!https?:)[^)#]*)#([^)]+)\)", path.read_text(encoding="utf-8")):
        home = (path.parent / target).resolve() if target else path
        assert anchor in converted(home).ids, f"{target}#{anchor}"


# -- what is generated


def test_the_page_of_all_configs_has_every_option() -> None:
    page = pages.configs_page()
    for path in (ROOT / "conf").glob("*/*.yaml"):
        if path.parent.name != "hydra":
            assert f'??? abstract "`{path.stem}`' in page
    assert "## preset_of_loss\n" in page and '"`embedded/byol`' in page


def test_the_groups_of_a_command_by_hand() -> None:
    entries = (
        "backbone: a",
        "evaluator@x.knn: knn",
        "evaluator@x.linear: linear",
        "optional view: null",
        "hydra: default",
    )
    primary = "defaults:\n" + "".join(
        f"- {entry}\n" for entry in (*entries, "override hydra/job_logging: none", "_self_")
    )
    assert pages.groups(primary) == ["backbone", "evaluator", "view"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "# @package _global_\n#   esvit-pretrain a=b\n# Swin-S, windows of 7.\n# Published with 16 GPUs.\na: 1",
            "Swin-S, windows of 7",
        ),
        (
            "# Windows of photographs, with\n# several things. Goes with b.\n",
            "Windows of photographs, with several things",
        ),
        ("a: 1\n", ""),
    ],
)
def test_the_first_sentence_by_hand(text: str, sentence: str) -> None:
    assert pages.first_sentence(text) == sentence


def test_docstrings_become_markdown() -> None:
    docstring = "Sum:\n    a + b\n\n>>> 1 + 1\n2\n\nArgs:\n    a: one."
    assert "\n".join(pages.as_markdown(docstring.split("\n"))) == (
        "Sum:\n\n    a + b\n\n\n```pycon\n>>> 1 + 1\n2\n```\n\nArgs:\n    a: one.\n"
    )


def test_the_front_door_is_told_name_by_name() -> None:
    page = pages.api_page("esvit_pl")
    assert all(f"\n::: esvit_pl.{name}\n" in page for name in esvit_pl.__all__)
