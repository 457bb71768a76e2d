"""Names and texts that others made up (files, metrics, checkpoints), made safe for the place that shows them."""

from __future__ import annotations

import html
import re

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")
"""How a formula begins, in East Asian spreadsheets also with the wide forms."""


def for_terminal(text: str) -> str:
    """One line without control characters, which could move the cursor or colour what follows.

    >>> for_terminal("a\\n\\x1b[31mred")
    'a\\\\n\\\\x1b[31mred'
    """
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def lines_for_terminal(text: str) -> str:
    """Several lines, each `for_terminal`."""
    return "\n".join(map(for_terminal, text.split("\n")))


def for_figure(text: str) -> str:
    """Text of a figure in which dollars begin no formula.

    >>> for_figure("$x$")
    '\\\\$x\\\\$'
    """
    return for_terminal(text).replace("$", r"\$")


def for_csv(text: str) -> str:
    """A cell that a spreadsheet does not take for a formula. Numbers stay as they are.

    >>> [for_csv(cell) for cell in ("a.jpg", "=HYPERLINK(1)", "-1")]
    ['a.jpg', "'=HYPERLINK(1)", '-1']
    """
    if not text.lstrip(" \n").startswith(_FORMULA):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def for_markdown(text: str) -> str:
    """Text within a line or a cell of Markdown: nothing of it is HTML, a link, a table or code.

    >>> for_markdown("<img src=x> [a](javascript:b) | `c`")
    '&lt;img src=x&gt; \\\\[a\\\\](javascript:b) \\\\| \\\\`c\\\\`'
    """
    return re.sub(r"([\\`*\[\]|])", r"\\\1", html.escape(for_terminal(text), quote=False))


def as_code(text: str) -> str:
    """A name in Markdown's code style, which it cannot end by itself.

    >>> as_code("a` <b>")
    "`a' ‹b›`"
    """
    return f"`{for_terminal(text).translate(str.maketrans('`<>', chr(39) + '‹›'))}`"


def for_latex(text: str) -> str:
    """Text that LaTeX prints as it stands.

    >>> for_latex("50 % of a_b")
    '50 \\\\% of a\\\\_b'
    """
    signs = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(signs.get(sign, rf"\{sign}" if sign in "&%$#_{}" else sign) for sign in for_terminal(text))


def file_name(title: str) -> str:
    """A title as the name of a file or a folder.

    >>> file_name("L_V + L_R (seed 0)")
    'L_V_+_L_R_seed_0'
    """
    return re.sub(r"[^\w.+-]+", "_", title).strip("_") or "picture"
