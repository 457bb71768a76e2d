"""What ``make docs`` adds to the pages of this folder: a hook of mkdocs, and an extension of griffe, which reads docstrings.

Each command has a page, all config groups have one, and each room of the package has one. Files outside docs/ that
pages link to become part of the site.
"""

from __future__ import annotations

import html
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import griffe
import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import esvit_pl

ROOT = Path(__file__).parents[1]
CONF, SRC = ROOT / "conf", ROOT / "src"
OUTSIDE = re.compile(r"\]\(\.\./([^)#]+)")
SECTIONS = ("Args:", "Returns:", "Yields:", "Raises:", "Attributes:", "Example:", "Examples:")


def on_config(config: MkDocsConfig) -> None:
    """The generated pages stand at the end of the navigation."""
    commands = [{name: f"commands/{name}.md"} for name in console_scripts()]
    api = [{name: f"api/{name}.md"} for name in modules()]
    config.nav = [*(config.nav or []), {"Reference": ["configs.md", {"Commands": commands}, {"API": api}]}]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add what is generated, and what the pages link to outside docs/."""
    pages = {"configs.md": configs_page()}
    scripts = console_scripts()
    with ThreadPoolExecutor(2) as pool:
        pages |= {f"commands/{name}.md": page for name, page in zip(scripts, pool.map(command_page, scripts), strict=True)}
    pages |= {f"api/{name}.md": api_page(name) for name in modules()}
    linked = {name for file in files.documentation_pages() for name in OUTSIDE.findall(file.content_string)}
    for name in sorted(linked | {"CHANGELOG.md"}):
        if name.endswith(".md"):
            pages[name] = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
        else:
            files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    for uri, content in pages.items():
        files.append(File.generated(config, uri, content=content))


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """A link that leaves docs/ leads to the copy beside the pages. ``slow``, after a fence, is for the tests alone."""
    beside = markdown if "/" in page.file.src_uri else OUTSIDE.sub(r"](\1", markdown)
    return re.sub(r"(?m)^(```.*) slow$", r"\1", beside)


# -- commands and their configs


def console_scripts() -> dict[str, str]:
    """{name of the command: its module}."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = setup["options.entry_points"]["console_scripts"].split("\n")
    return {name: module for name, _, module in (re.split(r"( = |:main$)", line)[:3] for line in lines if line)}


def command_page(name: str) -> str:
    """What ``--help`` says, the settings with their comments, and what each of the config groups offers."""
    done = subprocess.run(
        [sys.executable, "-m", console_scripts()[name], "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    said = re.sub(r"(?s)^Choices .*?\n\n.*?\n\n", "Choices (group=option): below.\n\n", done.stdout, flags=re.MULTILINE)
    primary = (CONF / f"{name.removeprefix('esvit-')}.yaml").read_text(encoding="utf-8")
    settings, _, _ = primary.partition("\nhydra:")
    lines = [f"# {name}\n\n```text\n{said.strip()}\n```\n\n## Settings\n\n```yaml\n{settings.strip()}\n```\n"]
    lines.append("## Config groups\n")
    for group in groups(primary):
        lines.append(f"- [`{group}`](../configs.md#{group}): {', '.join(f'`{path.stem}`' for path in options(group))}")
    return "\n".join(lines)


def groups(primary: str) -> list[str]:
    """The config groups in the defaults list of a primary config."""
    named = [next(iter(entry)) for entry in yaml.safe_load(primary)["defaults"] if isinstance(entry, dict)]
    words = [re.sub(r"^(optional|override) |@.*", "", key) for key in named]
    return [group for group in dict.fromkeys(words) if not group.startswith("hydra")]


def options(group: str) -> list[Path]:
    return sorted((CONF / group).rglob("*.yaml"), key=lambda path: path.stem)


def configs_page() -> str:
    """Every option of every config group: the first line of its comment, and the whole of it to unfold."""
    lines = ["# Config groups\n\n`GROUP=OPTION` chooses one; `GROUP.SETTING=VALUE` changes a setting in it. The comments say what a setting means.\n"]
    for group in sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name not in ("hydra", "__pycache__")):
        lines.append(f"## {group}\n")
        for path in options(group):
            text = path.read_text(encoding="utf-8").strip()
            about = next((line[2:] for line in text.split("\n") if re.match(r"# (?!@)", line)), "")
            title = html.escape(f"`{path.stem}`{about and ': '}{about}")
            lines.append(f'??? abstract "{title}"\n\n    ```yaml\n' + re.sub("(?m)^(?=.)", "    ", text) + "\n    ```\n")
    return "\n".join(lines)


# -- the programming interface


def modules() -> list[str]:
    """The front door and the rooms behind it."""
    paths = [*SRC.glob("esvit_pl/[a-z]*.py"), *(path.parent for path in SRC.glob("esvit_pl/*/__init__.py"))]
    return ["esvit_pl", *sorted(f"esvit_pl.{path.stem}" for path in paths)]


def api_page(module: str) -> str:
    """mkdocstrings writes it. The front door is lazy, and so its names are said one by one."""
    page = f"# {module}\n\n::: {module}\n"
    if module == "esvit_pl":
        page += "    options: {members: false}\n"
        for name in esvit_pl.__all__:
            page += f"\n::: esvit_pl.{name}\n    options: {{show_root_heading: true, show_root_toc_entry: true}}\n"
    return page


class Docstrings(griffe.Extension):
    """Docstrings say ``>>>`` and indent formulas without a fence and an empty line, which Markdown wants."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = "\n".join(as_markdown(obj.docstring.value.split("\n")))


def as_markdown(lines: list[str]) -> Iterator[str]:
    fenced, before = False, ""
    for line in [*lines, ""]:
        if not fenced and line.startswith(">>> "):
            fenced = True
            yield "\n```pycon"
        elif fenced and not line:
            fenced = False
            yield "```"
        elif not fenced and line.startswith("    ") and before and not before.startswith((" ", *SECTIONS)):
            yield ""
        yield line
        before = line
