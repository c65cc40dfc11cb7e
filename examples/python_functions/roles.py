"""The role of every token of a function: the tokens from `tokenize`, their meaning from `ast`."""

from __future__ import annotations

import ast
import io
import itertools
import keyword
import tokenize
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple


__all__ = ["ROLES", "Token", "own_nodes", "read_tokens", "span", "token_roles"]

# "operator" stands for every operator, bracket and delimiter.
ROLES = (
    "keyword",
    "definition",  # the name that a def or class gives
    "parameter",  # in the signature, and wherever the body uses it
    "variable",  # any other name: local, global or built in
    "call",  # the name that is called: both `f` in `f(x)` and in `x.f(y)`
    "attribute",  # the name after a dot that is not called
    "argument",  # `key` in `f(key=1)`
    "import",  # the names of an import statement
    "string",
    "number",
    "operator",
)

Position = tuple[int, int]  # row (from 1) and column (from 0, in characters), as in `tokenize`
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)


class Token(NamedTuple):
    kind: int  # NAME, NUMBER, STRING or OP of `tokenize`
    string: str
    start: Position
    end: Position
    joined: bool  # no new line began before it: it follows on its line, or on one joined by a backslash


def read_tokens(source: str) -> list[Token]:
    """The tokens without comments and layout. An f-string is one string, as Python saw it before 3.12."""
    opening = {getattr(tokenize, name, None) for name in ("FSTRING_START", "TSTRING_START")} - {None}
    closing = {getattr(tokenize, name, None) for name in ("FSTRING_END", "TSTRING_END")} - {None}
    lines = source.split("\n")
    tokens: list[Token] = []
    depth, begin, joined = 0, (1, 0), False
    for kind, string, start, end, _ in tokenize.generate_tokens(io.StringIO(source).readline):
        if kind in opening:
            begin = start if depth == 0 else begin
            depth += 1
        if kind in closing:
            depth -= 1
            kind, start, string = tokenize.STRING, begin, _between(lines, begin, end)
        if depth:
            continue
        if kind in (tokenize.NAME, tokenize.NUMBER, tokenize.STRING, tokenize.OP):
            tokens.append(Token(kind, string, start, end, joined))
            joined = True
        elif kind in (tokenize.NEWLINE, tokenize.NL):
            joined = False
    return tokens


def span(lines: list[str], node: ast.AST) -> tuple[Position, Position]:
    """First and last position of a node as `tokenize` counts: `ast` counts columns in bytes of UTF-8."""
    begin = node.lineno, _characters(lines[node.lineno - 1], node.col_offset)
    return begin, (node.end_lineno, _characters(lines[node.end_lineno - 1], node.end_col_offset))


def _characters(line: str, num_bytes: int) -> int:
    return num_bytes if line.isascii() else len(line.encode()[:num_bytes].decode())


def own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a body, those of functions and classes inside it left out (these themselves are yielded)."""
    todo = list(function.body)
    while todo:
        node = todo.pop()
        yield node
        if not isinstance(node, SCOPES):
            todo += ast.iter_child_nodes(node)


def token_roles(function: ast.FunctionDef | ast.AsyncFunctionDef, tokens: list[Token], lines: list[str]) -> list[str]:
    """
    The role of each token.

    Args:
        function (`ast.FunctionDef` or `ast.AsyncFunctionDef`): The function they come from.
        tokens (`list[Token]`): All or some of its tokens.
        lines (`list[str]`): The lines of the file, to translate the columns of `ast`.
    """
    reader = _Reader(tokens, lines)
    reader.visit(function)
    return [reader.roles.get(token.start) or _plain_role(token) for token in tokens]


def _plain_role(token: Token) -> str:
    if token.kind == tokenize.NAME:
        return "keyword" if keyword.iskeyword(token.string) else "variable"
    return {tokenize.NUMBER: "number", tokenize.STRING: "string"}.get(token.kind, "operator")


def _between(lines: list[str], begin: Position, end: Position) -> str:
    rows = lines[begin[0] - 1 : end[0]]
    rows[-1] = rows[-1][: end[1]]
    rows[0] = rows[0][begin[1] :]
    return "\n".join(rows)


@dataclass(frozen=True)
class _Scope:
    names: dict[str, str]  # "parameter" or "variable" for each name that it binds
    of_class: bool = False  # seen by the statements of the class, not by the functions in it


def _is_bound(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)


def _bound_names(function: ast.AST) -> dict[str, str]:
    """What the body of a function or class binds itself."""
    bound: dict[str, str] = {}
    passed_on = set()
    for node in own_nodes(function):
        if _is_bound(node):
            bound[node.id] = "variable"
        elif isinstance(node, ast.alias):
            bound[node.asname or node.name.partition(".")[0]] = "variable"
        elif isinstance(node, (ast.ExceptHandler, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and node.name:
            bound[node.name] = "variable"
        elif isinstance(node, ast.Global):
            bound.update(dict.fromkeys(node.names, "variable"))
        elif isinstance(node, ast.Nonlocal):
            passed_on.update(node.names)
    return {name: role for name, role in bound.items() if name not in passed_on}


class _Reader(ast.NodeVisitor):
    """Notes the roles that the kind of a token does not tell, by position. Follows names through nested scopes."""

    def __init__(self, tokens: list[Token], lines: list[str]) -> None:
        self.lines = lines
        self.names = [token for token in tokens if _plain_role(token) == "variable"]
        self.roles: dict[Position, str] = {}
        self.scopes: list[_Scope] = []  # innermost last

    def note(self, role: str, begin: Position, end: Position, which: slice = slice(None)) -> None:
        """Gives `role` to those names (not keywords) from `begin` to `end` that `which` selects."""
        first, last = (bisect_left(self.names, position, key=lambda token: token.start) for position in (begin, end))
        self.roles.update((token.start, role) for token in self.names[first:last][which])

    def visit_all(self, *groups: Iterable[ast.AST | None], scope: _Scope | None = None) -> None:
        if scope is not None:
            self.scopes.append(scope)
        for node in itertools.chain(*groups):
            if node is not None:
                self.visit(node)
        if scope is not None:
            self.scopes.pop()

    # Names

    def visit_Name(self, node: ast.Name) -> None:
        seen = [scope for scope in self.scopes[:-1] if not scope.of_class] + self.scopes[-1:]
        role = next((scope.names[node.id] for scope in reversed(seen) if node.id in scope.names), "variable")
        self.note(role, *span(self.lines, node))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.note("attribute", *span(self.lines, node), slice(-1, None))
        self.visit(node.value)

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        if isinstance(node.func, (ast.Name, ast.Attribute)):
            self.note("call", *span(self.lines, node.func), slice(-1, None))

    def visit_keyword(self, node: ast.keyword) -> None:
        if node.arg is not None:
            begin, _ = span(self.lines, node)
            self.note("argument", begin, (begin[0], begin[1] + 1))
        self.visit(node.value)

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        self.note("import", *span(self.lines, node))

    visit_ImportFrom = visit_Import

    def visit_Match(self, node: ast.Match) -> None:
        """`match` and `case` are names to `tokenize`, and `ast` does not say where `case` stands."""
        begin, _ = span(self.lines, node)
        self.note("keyword", begin, (begin[0], begin[1] + 1))
        self.generic_visit(node)
        for case in node.cases:
            pattern, _ = span(self.lines, case.pattern)
            before = [name.start for name in self.names if name.string == "case" and begin < name.start < pattern]
            self.roles[before[-1]] = "keyword"

    def visit_TypeAlias(self, node: ast.AST) -> None:
        begin, _ = span(self.lines, node)
        self.note("keyword", begin, (begin[0], begin[1] + 1))
        self.generic_visit(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """An f-string is one token; before Python 3.12 the positions inside it are wrong besides."""

    visit_TemplateStr = visit_JoinedStr

    # Scopes

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.note("definition", *span(self.lines, node), slice(0, 1))
        self.visit_all(node.decorator_list, [node.returns])
        self.visit_all(node.body, scope=_Scope(_bound_names(node) | self.signature(node.args)))

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self.visit_all([node.body], scope=_Scope(self.signature(node.args)))

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.note("definition", *span(self.lines, node), slice(0, 1))
        self.visit_all(node.decorator_list, node.bases, node.keywords)
        self.visit_all(node.body, scope=_Scope(_bound_names(node), of_class=True))

    def visit_ListComp(self, node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp) -> None:
        first, *others = node.generators
        self.visit(first.iter)  # evaluated outside, where the names of the comprehension are not yet bound
        results = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        names = [name.id for generator in node.generators for name in ast.walk(generator.target) if _is_bound(name)]
        inside = _Scope(dict.fromkeys(names, "variable"))
        self.visit_all(results, [first.target], first.ifs, others, scope=inside)

    visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_ListComp

    def signature(self, arguments: ast.arguments) -> dict[str, str]:
        """Notes the parameters and returns them; defaults and annotations belong to the scope outside."""
        parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        parameters += [argument for argument in (arguments.vararg, arguments.kwarg) if argument is not None]
        for parameter in parameters:
            begin, _ = span(self.lines, parameter)
            self.note("parameter", begin, (begin[0], begin[1] + 1))
        annotations = (parameter.annotation for parameter in parameters)
        self.visit_all(arguments.defaults, arguments.kw_defaults, annotations)
        return {parameter.arg: "parameter" for parameter in parameters}
