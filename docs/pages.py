"""What ``make docs`` adds to the pages of this folder: a hook of mkdocs, and an extension of griffe for docstrings.

Each command has a page, all config groups have one, and each room of the package has one. Files outside docs/ that
pages link to become part of the site.
"""

from __future__ import annotations

import ast
import html
import io
import re
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from contextlib import redirect_stdout, suppress
from importlib import import_module
from pathlib import Path
from textwrap import indent
from typing import Any
from unittest.mock import patch

import griffe
import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

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
    pages |= {f"commands/{name}.md": command_page(name) for name in console_scripts()}
    pages |= {f"api/{name}.md": api_page(name) for name in modules()}
    linked = {name for file in files.documentation_pages() for name in OUTSIDE.findall(file.content_string)}
    for name in sorted((linked | {"CHANGELOG.md"}) - {"README.md"}):
        if name.endswith(".md"):
            pages[name] = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
        else:
            files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    for uri, content in pages.items():
        files.append(File.generated(config, uri, content=content))


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """A link that leaves docs/ leads to the copy beside the pages. ``slow``, after a fence, is for the tests alone."""
    markdown = re.sub(r"\]\((\.\./)?README\.md", "](index.md", markdown)  # this is what it is here
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
    with patch.object(sys, "argv", [name, "--help"]), redirect_stdout(io.StringIO()) as out, suppress(SystemExit):
        import_module(console_scripts()[name]).main()
    said = re.sub(r"(?ms)^Choices .*?\n\n.*?\n\n", "Choices (group=option): below.\n\n", out.getvalue())
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
    """Every option of every config group: the first sentence of its comment, and all of it to unfold."""
    lines = ["# Config groups\n\n`GROUP=OPTION` chooses one; `GROUP.SETTING=VALUE` changes a setting in it.\n"]
    for group in sorted(path.name for path in CONF.glob("[a-z]*/") if path.is_dir() and path.name != "hydra"):
        lines.append(f"## {group}\n")
        for path in options(group):
            text = path.read_text(encoding="utf-8").strip()
            title = html.escape(f"`{path.relative_to(CONF / group).with_suffix('')}` {first_sentence(text)}")
            title = re.sub(r"docs/(\w+)\.md", r"[\1](\1.md)", title)
            fence = f"```yaml\n{text}\n```"
            lines.append(f'??? abstract "{title}"\n\n{indent(fence, "    ")}\n')
    return "\n".join(lines)


def first_sentence(text: str) -> str:
    """Of the comment at the head of a config, which may begin with Hydra's ``@package`` and a command line."""
    comment = re.search(r"^# ([^@ ].*(?:\n# [^A-Z@ ].*)*)", text, re.MULTILINE)
    return re.split(r"\.(?: (?=[A-Z])|$)", comment[1].replace("\n# ", " "))[0] if comment else ""


# -- the programming interface


def modules() -> list[str]:
    """The front door and the rooms behind it."""
    paths = [*SRC.glob("esvit_pl/[a-z]*.py"), *(path.parent for path in SRC.glob("esvit_pl/*/__init__.py"))]
    return ["esvit_pl", *sorted(f"esvit_pl.{path.stem}" for path in paths)]


def api_page(module: str) -> str:
    """mkdocstrings writes it. Two kinds of names it must be told one by one: those that are loaded when they are first
    used, and functions that are called like the file that holds them."""
    place = SRC / module.replace(".", "/")
    init = (place / "__init__.py").read_text(encoding="utf-8") if place.is_dir() else "__all__"
    imports = [node for node in ast.walk(ast.parse(init)) if isinstance(node, ast.ImportFrom)]
    like_files = [alias.name for node in imports for alias in node.names if node.module == f"{module}.{alias.name}"]
    page, names = f"# {module}\n\n::: {module}\n", like_files
    if "__all__" not in init:
        page += "    options: {show_submodules: true}\n"
    if "def __getattr__" in init:
        page += "    options: {members: false}\n"
        names = import_module(module).__all__
    for name in names:
        path = f"{name}.{name}" if name in like_files else name
        page += f"\n::: {module}.{path}\n    options: {{show_root_heading: true, show_root_toc_entry: true}}\n"
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
