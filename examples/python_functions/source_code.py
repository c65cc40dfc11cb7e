"""The functions of Python's standard library, and what `ast` and `tokenize` know about them.

Needs nothing but Python itself (3.10 or newer). `data.py` turns the result into data sets.
"""

from __future__ import annotations

import ast
import sys
import sysconfig
import tokenize
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from roles import Token, own_nodes, read_tokens, span, token_roles


__all__ = ["KINDS_OF_RETURN", "TRAITS", "Function", "functions_of", "standard_library"]

KINDS_OF_RETURN = ("nothing", "constant", "call", "expression")
TRAITS = {
    "loops": (ast.For, ast.AsyncFor, ast.While),
    "raises": (ast.Raise,),
    "branches": (ast.If, ast.Match),
    "tries": (ast.Try, *([ast.TryStar] if sys.version_info >= (3, 11) else [])),
    "assigns": (ast.Assign, ast.AugAssign, ast.AnnAssign),
}
# Left out: what some distributions package apart (the data should be the same wherever the version is), and tests.
EXTRAS = {"distutils", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "tkinter", "turtle", "turtledemo"}


@dataclass(frozen=True)
class Function:
    """
    One function, without decorators, comments and return annotation, with its true labels.

    Args:
        module (`str`): Where it stands, such as `"asyncio.base_events"`.
        name (`str`): Its name within the module, such as `"Server.close"`.
        code (`str`): Its text without the docstring.
        documented_code (`str`): Its text with the docstring.
        body (`str`): The tokens of its body in lower case: two functions that share it are copies.
        roles (`tuple[tuple[int, int, str], ...]`):
            Start and end in `code` (in characters) and the role of every token; see `roles.ROLES`.
        returns (`str`, *optional*):
            What the last `return` with a value gives back, one of `KINDS_OF_RETURN` (`"nothing"` where there is none,
            or it is `None`). `None` for a generator, whose `return` gives its caller no value.
        traits (`frozenset[str]`): The `TRAITS` of its statements, those of nested functions included.
        num_statements (`int`): Statements in the body, nested ones (and each `elif`) included, the docstring not.
    """

    module: str
    name: str
    code: str
    documented_code: str
    body: str
    roles: tuple[tuple[int, int, str], ...]
    returns: str | None
    traits: frozenset[str]
    num_statements: int


def standard_library() -> list[tuple[str, Path]]:
    """Name and file of every module of the standard library that is written in Python, sorted by name."""
    root = Path(sysconfig.get_path("stdlib"))
    modules = []
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[0] not in sys.stdlib_module_names or parts[0] in EXTRAS or {"test", "tests"} & set(parts):
            continue
        modules.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    if not modules:
        raise FileNotFoundError(f"No module of the standard library in {root}: use a Python that has it as .py files.")
    return sorted(modules)


def functions_of(module: str, path: Path, min_statements: int = 3) -> Iterator[Function]:
    """
    The functions and methods of a file, in the order of the file. A function inside a function is part of the outer.

    Args:
        module (`str`): Name of the module.
        path (`Path`): Its file.
        min_statements (`int`, *optional*, defaults to 3): Shorter functions are left out.
    """
    with tokenize.open(path) as file:
        source = file.read()
    found = [(name, node) for name, node in _outermost(ast.parse(source)) if len(_statements(node)) >= min_statements]
    if not found:
        return
    lines = source.split("\n")  # not splitlines(): a form feed ends no line for Python
    tokens = read_tokens(source)
    for name, node in found:
        begin, end = span(lines, node)
        inside = slice(*(bisect_left(tokens, position, key=lambda token: token.start) for position in (begin, end)))
        yield _describe(module, name, node, tokens[inside], lines)


def _describe(
    module: str, name: str, node: ast.FunctionDef | ast.AsyncFunctionDef, tokens: list[Token], lines: list[str]
) -> Function:
    documented = _without_return_annotation(node, tokens, lines)
    first, undocumented = node.body[0], documented
    if _has_docstring(node):
        begin, end = span(lines, node.body[0])
        first, undocumented = node.body[1], [token for token in documented if not begin <= token.start < end]
    body, _ = span(lines, first)
    code, starts = _text(undocumented)
    roles = token_roles(node, undocumented, lines)
    statements = _statements(node)
    return Function(
        module=module,
        name=name,
        code=code,
        documented_code=_text(documented)[0],
        body=" ".join(token.string.lower() for token in undocumented if token.start >= body),
        roles=tuple((s, s + len(token.string), role) for token, s, role in zip(undocumented, starts, roles)),
        returns=_kind_of_return(node),
        traits=frozenset(trait for trait, kinds in TRAITS.items() if any(isinstance(s, kinds) for s in statements)),
        num_statements=len(statements),
    )


def _outermost(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield prefix + child.name, child
        elif not isinstance(child, ast.expr):
            yield from _outermost(child, f"{prefix}{child.name}." if isinstance(child, ast.ClassDef) else prefix)


def _has_docstring(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return ast.get_docstring(node, clean=False) is not None


def _statements(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.stmt]:
    found, todo = [], list(node.body[_has_docstring(node) :])
    while todo:
        child = todo.pop()
        if isinstance(child, ast.stmt):
            found.append(child)
        todo += [grandchild for grandchild in ast.iter_child_nodes(child) if not isinstance(grandchild, ast.expr)]
    return found


def _kind_of_return(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str | None:
    own = list(own_nodes(node))
    if any(isinstance(child, (ast.Yield, ast.YieldFrom)) for child in own):
        return None
    values = [child for child in own if isinstance(child, ast.Return) and child.value is not None]
    if not values:
        return "nothing"
    value = max(values, key=lambda child: (child.lineno, child.col_offset)).value
    if isinstance(value, ast.Await):
        value = value.value
    if isinstance(value, ast.Constant) and value.value is None:
        return "nothing"
    if _is_constant(value):
        return "constant"
    return "call" if isinstance(value, ast.Call) else "expression"


def _is_constant(node: ast.expr) -> bool:
    if isinstance(node, ast.UnaryOp):  # -1
        return _is_constant(node.operand)
    if isinstance(node, ast.Tuple):
        return all(_is_constant(element) for element in node.elts)
    return isinstance(node, ast.Constant)


def _without_return_annotation(
    node: ast.FunctionDef | ast.AsyncFunctionDef, tokens: list[Token], lines: list[str]
) -> list[Token]:
    if node.returns is None:
        return tokens
    begin, end = span(lines, node.returns)
    arrow = max(token.start for token in tokens if token.string == "->" and token.start < begin)
    return [token for token in tokens if not arrow <= token.start < end]


def _text(tokens: list[Token]) -> tuple[str, list[int]]:
    """The tokens as source text that starts in column 0, and where each of them starts in it."""
    margin, end, length = tokens[0].start[1], tokens[0].start, 0
    pieces, starts = [], []
    for token in tokens:
        if token.joined or not pieces:
            gap = " " if token.start > end else ""
        else:
            gap = "\n" + " " * max(token.start[1] - margin, 0)
        starts.append(length + len(gap))
        length += len(gap) + len(token.string)
        pieces += [gap, token.string]
        end = token.end
    return "".join(pieces), starts
