"""What the arguments of a target may be, read from its source: neither torch nor the target itself is imported.

So a setting of a wrong type is refused within a second, and a target that nobody has loaded yet can be asked, too.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_PLAIN = {
    "int": "int",
    "float": "float",
    "bool": "bool",
    "str": "str",
    "Path": "str",
    "PathLike": "str",
    "_PATH": "str",
}
_LISTS = ("Sequence", "list", "List", "tuple", "Tuple", "Iterable", "Collection", "set")
_DICTS = ("Mapping", "dict", "Dict")


@dataclass(frozen=True)
class Kinds:
    """The kinds of values that a setting may have.

    Attributes:
        names: of int, float, bool, str, none, list, dict; "any" where nothing is known.
        items: the kinds of a list's items.
        options: single values that are allowed beside, of a ``Literal``.

    >>> of_default([1, 2]).names, of_default([1, 2]).items.names
    (frozenset({'list'}), frozenset({'float'}))
    """

    names: frozenset[str]
    items: Kinds | None = None
    options: tuple[Any, ...] = ()

    @property
    def known(self) -> bool:
        return "any" not in self.names

    def __or__(self, other: Kinds) -> Kinds:
        items = self.items | other.items if self.items and other.items else self.items or other.items
        return Kinds(self.names | other.names, items, (*self.options, *other.options))


ANY = Kinds(frozenset({"any"}))


def of_default(value: Any) -> Kinds:
    """What a value beside this default may be: a whole number stands for any number, null for anything."""
    if value is None or isinstance(value, dict):
        return ANY
    if isinstance(value, list):
        items = {of_default(item) for item in value}
        return Kinds(frozenset({"list"}), items.pop() if len(items) == 1 else ANY)
    name = next(
        name
        for kind, name in ((bool, "bool"), (int, "float"), (float, "float"), (object, "str"))
        if isinstance(value, kind)
    )
    return Kinds(frozenset({name}))


@dataclass(frozen=True)
class Signature:
    """The arguments of a target.

    Attributes:
        name: of the class or function.
        arguments: name -> kinds.
        is_open: it takes other arguments, too (``**kwargs``).
    """

    name: str
    arguments: dict[str, Kinds]
    is_open: bool


@cache
def signature(target: str) -> Signature | None:
    """The arguments of the class or function with this dotted name; None where no source is found."""
    module, _, name = target.rpartition(".")
    found = _find(module, name)
    if found is None:
        return None
    node, home = found
    if isinstance(node, ast.ClassDef):
        return _of_class(node, home)
    return _of_function(node, home, name) if isinstance(node, ast.FunctionDef) else None


def _of_class(node: ast.ClassDef, home: str) -> Signature | None:
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and part.name == "__init__":
            return _of_function(part, home, node.name)
    bases = [signature(f"{home}.{base.id}") for base in node.bases if isinstance(base, ast.Name)]
    if not any("dataclass" in ast.unparse(mark) for mark in node.decorator_list):
        return next((Signature(node.name, base.arguments, base.is_open) for base in bases if base), None)
    inherited = {name: kinds for base in bases if base for name, kinds in base.arguments.items()}
    fields = [part for part in node.body if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)]
    return Signature(
        node.name, inherited | {ast.unparse(part.target): _kinds(part.annotation, home) for part in fields}, False
    )


def _of_function(node: ast.FunctionDef, home: str, name: str) -> Signature:
    given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    arguments = {arg.arg: ANY if arg.annotation is None else _kinds(arg.annotation, home) for arg in given}
    arguments.pop("self", None)
    return Signature(name, arguments, node.args.kwarg is not None)


def _kinds(annotation: ast.expr, home: str) -> Kinds:
    """The kinds in an annotation; what it names elsewhere (``_PRECISION_INPUT``) is looked up."""
    match annotation:
        case ast.Constant(value=None):
            return Kinds(frozenset({"none"}))
        case ast.Constant(value=str(text)):
            return _kinds(ast.parse(text, mode="eval").body, home)
        case ast.BinOp(left=left, right=right, op=ast.BitOr()):
            return _kinds(left, home) | _kinds(right, home)
        case ast.Subscript(value=base, slice=inner):
            return _of_generic(ast.unparse(base).rpartition(".")[2], inner, home)
        case ast.Attribute(attr=name) if name in _PLAIN:
            return Kinds(frozenset({_PLAIN[name]}))
        case ast.Name(id=name) if name in _PLAIN:
            return Kinds(frozenset({_PLAIN[name]}))
        case ast.Name(id=name) if name in (*_LISTS, *_DICTS):
            return Kinds(frozenset({"list" if name in _LISTS else "dict"}))
        case ast.Name(id=name) if name.startswith("_") or _is_here(home, name):  # looking up every class takes a second
            found = _find(home, name)
            if found is not None and isinstance(found[0], ast.expr):
                return _kinds(found[0], found[1])
    return ANY


def _of_generic(base: str, inner: ast.expr, home: str) -> Kinds:
    parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    if base == "Literal":
        return Kinds(frozenset(), options=tuple(ast.literal_eval(part) for part in parts))
    if base in ("Union", "Optional"):
        kinds = [_kinds(part, home) for part in parts]
        kinds += [Kinds(frozenset({"none"}))] if base == "Optional" else []
    elif base in _LISTS:
        kinds = [_kinds(part, home) for part in parts if not (isinstance(part, ast.Constant) and part.value is ...)]
    else:
        return Kinds(frozenset({_PLAIN.get(base, "dict" if base in _DICTS else "any")}))
    joined = kinds[0]
    for kind in kinds[1:]:
        joined = joined | kind
    return Kinds(frozenset({"list"}), joined) if base in _LISTS else joined


def _find(module: str, name: str) -> tuple[ast.AST, str] | None:
    """The node that defines `name`, wherever `module` imports it from, and the module that it stands in."""
    for node in _statements(module):
        match node:
            case ast.ClassDef() | ast.FunctionDef() if node.name == name:
                return node, module
            case ast.Assign(targets=[ast.Name(id=assigned)], value=value) if assigned == name:
                return value, module
            case ast.ImportFrom(module=source, names=names, level=level):
                for alias in names:
                    if (alias.asname or alias.name) == name:
                        return _find(_absolute(module, source or "", level), alias.name)
    return None


def _is_here(module: str, name: str) -> bool:
    return any(isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name for node in _statements(module))


def _absolute(module: str, source: str, level: int) -> str:
    if not level:
        return source
    path = _file(module)
    depth = level - (path is not None and path.name == "__init__.py")
    above = module.split(".")[: len(module.split(".")) - depth]
    return ".".join([*above, *filter(None, [source])])


@cache
def _statements(module: str) -> tuple[ast.stmt, ...]:
    path = _file(module)
    if path is None:
        return ()
    try:
        return tuple(_flat(ast.parse(path.read_text(encoding="utf-8")).body))
    except (OSError, SyntaxError, ValueError):
        return ()


def _flat(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements at the top of a module, those inside ``if TYPE_CHECKING:`` and ``try:`` among them."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try):
            yield from _flat([*node.body, *node.orelse])


def _file(module: str) -> Path | None:
    """The source of a module. Only the place of its outermost package is asked for, since nothing may be imported."""
    outermost, *parts = module.split(".")
    loaded = sys.modules.get(outermost)
    try:
        spec = getattr(loaded, "__spec__", None) or find_spec(outermost)
    except (ImportError, ValueError):
        return None
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec is not None else []
    if not folders and not parts and spec is not None and spec.origin:
        folders = [Path(spec.origin).with_suffix("")]
    for folder in folders:
        base = folder.joinpath(*parts)
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.is_file():
                return path
    return None
