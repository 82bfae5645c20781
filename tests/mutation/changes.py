"""
Small faults to put into a module: each is one edit of its text that still compiles.

Only faults that the type checker would let through and that change what the code does: no annotation, docstring,
import, assertion, log line or text of an error is touched, no decorator, and no module constant that is a plain number
(a tuned size: no promise names it).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

COMPARISONS = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}
ARITHMETIC = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "*"),
    ast.Pow: ("**", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
}
# The other function or method of a pair: max(a, b) or scores.max(dim=1).
SWAPS = {
    "min": "max",
    "max": "min",
    "amin": "amax",
    "amax": "amin",
    "argmin": "argmax",
    "argmax": "argmin",
    "any": "all",
    "all": "any",
    "sorted": "list",
    "reversed": "iter",
    "desc": "asc",
    "asc": "desc",
    "floor": "ceil",
    "ceil": "floor",
    "zeros": "ones",
    "ones": "zeros",
    "popleft": "pop",
    "cumsum": "cumprod",
}
# Calls whose arguments are conditions that must all hold: each is left out in turn.
CONDITIONS = ("where", "and_", "or_")
SQL = re.compile(r"\s*(INSERT|UPDATE|DELETE|SELECT|CREATE)\b")
SQL_FAULTS = ((" + ", " - "), ("= 0", "<> 0"), (" AND ", " OR "), ("SUM(", "MAX("), (":sign * ", ""))


@dataclass(frozen=True)
class Change:
    """
    Bytes *start* to *end* of a module's text become *after*; on *line* it then says otherwise than *before*.

    *scope* names the function or class around it, ``Batcher.close``, and is empty at the module's top.
    """

    scope: str
    line: int
    start: int
    end: int
    before: str
    after: str

    def apply(self, source: bytes) -> bytes:
        """The module's text with the fault in it."""
        return source[: self.start] + self.after.encode() + source[self.end :]

    def __str__(self) -> str:
        before, after = (re.sub(r"\s+", " ", text) for text in (self.before, self.after))
        return f"{before} -> {after or '(left out)'}"


def changes_of(source: bytes) -> list[Change]:
    """
    Every fault that can be put into the module, in the order of its text.

    >>> [str(change) for change in changes_of(b"def f(a):\\n    return a + 1 < 2\\n")]
    ['a + 1 -> a - 1', 'a + 1 < 2 -> a + 1 <= 2', '1 -> 2', '2 -> 3']
    """
    found = {(change.start, change.end, change.after): change for change in _Walk(source).changes()}
    return [found[key] for key in sorted(found) if _compiles(found[key].apply(source))]


def _compiles(source: bytes) -> bool:
    try:
        compile(source, "mutant", "exec", dont_inherit=True)
    except SyntaxError:
        return False
    return True


class _Walk:
    """One walk through a module's syntax tree."""

    def __init__(self, source: bytes) -> None:
        self.source = source
        self.tree = ast.parse(source)
        self.scope: list[str] = []
        self.line_starts = [0]
        for line in source.splitlines(keepends=True):
            self.line_starts.append(self.line_starts[-1] + len(line))

    def changes(self) -> Iterator[Change]:
        yield from self._visit(self.tree, returns=None)

    def _visit(self, node: ast.AST, *, returns: str | None) -> Iterator[Change]:
        yield from self._faults(node, returns)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            returns = "" if node.returns is None else ast.unparse(node.returns)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            self.scope.append(node.name)
        for child in _children(node):
            yield from self._visit(child, returns=returns)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            self.scope.pop()

    def _faults(self, node: ast.AST, returns: str | None) -> Iterator[Change]:
        match node:
            case ast.Compare():
                operands = [node.left, *node.comparators]
                for left, operator, right in zip(operands, node.ops, node.comparators, strict=False):
                    yield from self._operator(node, left, right, COMPARISONS[type(operator)])
            case ast.BinOp() if type(node.op) in ARITHMETIC and not (_is_text(node.left) or _is_text(node.right)):
                yield from self._operator(node, node.left, node.right, ARITHMETIC[type(node.op)])
            case ast.BoolOp():
                pair = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
                yield from self._operator(node, node.values[0], node.values[1], pair)
                for left_out in node.values:
                    rest = [self._text(value) for value in node.values if value is not left_out]
                    yield self._replace(node, f"({f' {pair[0]} '.join(rest)})")
            case ast.UnaryOp(op=ast.Not() | ast.USub()):
                yield self._replace(node, self._text(node.operand))
            case ast.Constant(value=bool()):
                yield self._replace(node, str(not node.value))
            case ast.Constant(value=int() | float()):
                yield self._replace(node, repr(node.value + 1))
            case ast.Constant(value=str()) if SQL.match(node.value):
                yield from self._sql(node)
            case ast.Call():
                yield from self._call(node)
            case ast.Slice():
                yield from self._slice(node)
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                return
            case ast.If() | ast.While() | ast.IfExp():
                yield from self._negate(node.test)
            case ast.comprehension():
                for condition in node.ifs:
                    yield self._replace(condition, "True")
            case _:
                yield from self._statement(node, returns)

    def _statement(self, node: ast.AST, returns: str | None) -> Iterator[Change]:
        match node:
            case ast.Expr() if _is_log_line(node):
                return
            case ast.Expr(value=ast.Call() | ast.Await()) | ast.Raise():
                yield self._replace(node, "pass")
            case ast.Assign(targets=[ast.Attribute()], value=ast.Name()):
                return  # a part that is not kept: whatever uses it fails
            case ast.Assign(targets=[ast.Subscript() | ast.Attribute()]):
                yield self._replace(node, "pass")
            case ast.AugAssign(op=operator) if type(operator) in ARITHMETIC:
                before, after = ARITHMETIC[type(operator)]
                yield from self._operator(node, node.target, node.value, (f"{before}=", f"{after}="))
            case ast.Break():
                yield self._replace(node, "continue")
            case ast.Continue():
                yield self._replace(node, "break")
            case ast.Return(value=ast.expr() as value) if returns == "bool" and not isinstance(value, ast.Constant):
                yield from self._negate(value)
            case ast.Return(value=ast.expr() as value) if returns and "None" in returns and returns != "None":
                if not isinstance(value, ast.Constant):
                    yield self._replace(value, "None")

    def _call(self, node: ast.Call) -> Iterator[Change]:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in SWAPS:
            end = self._end(node.func)
            yield self._edit(node.lineno, end - len(name), end, SWAPS[name])
        arguments = [*node.args, *node.keywords]
        left_out = node.args if name in CONDITIONS else node.keywords if name == "values" else []
        if name == "where" and isinstance(node.func, ast.Attribute) and _is_torch(node.func.value):
            left_out = []
        for argument in left_out:
            rest = ", ".join(self._text(other) for other in arguments if other is not argument)
            yield self._replace(node, f"{self._text(node.func)}({rest})")

    def _slice(self, node: ast.Slice) -> Iterator[Change]:
        for bound in (node.lower, node.upper):
            if bound is not None:
                yield self._replace(bound, "")

    def _negate(self, condition: ast.expr) -> Iterator[Change]:
        if not isinstance(condition, ast.Compare | ast.UnaryOp | ast.BoolOp):  # those have faults of their own
            yield self._replace(condition, f"(not ({self._text(condition)}))")

    def _sql(self, node: ast.Constant) -> Iterator[Change]:
        text, start = self._text(node), self._start(node)
        for before, after in SQL_FAULTS:
            for found in re.finditer(re.escape(before), text):
                at = start + len(text[: found.start()].encode())
                line = node.lineno + text[: found.start()].count("\n")
                yield self._edit(line, at, at + len(before.encode()), after)

    def _operator(self, node: ast.AST, left: ast.AST, right: ast.AST, pair: tuple[str, str]) -> Iterator[Change]:
        """The operator stands between the two, perhaps among brackets."""
        start, end = self._end(left), self._start(right)
        between = self.source[start:end].decode()
        pattern = r"\s+".join(map(re.escape, pair[0].split()))
        if pair[0].isalpha():
            pattern = rf"\b{pattern}\b"
        if (found := re.search(pattern, between)) is None:
            return
        at, to = start + found.start(), start + found.end()
        whole_start, whole_end = self._start(node), self._end(node)
        after = self.source[whole_start:at].decode() + pair[1] + self.source[to:whole_end].decode()
        yield self._edit(node.lineno, whole_start, whole_end, after)  # type: ignore[attr-defined]

    def _replace(self, node: ast.AST, after: str) -> Change:
        return self._edit(node.lineno, self._start(node), self._end(node), after)  # type: ignore[attr-defined]

    def _edit(self, line: int, start: int, end: int, after: str) -> Change:
        return Change(".".join(self.scope), line, start, end, self.source[start:end].decode(), after)

    def _start(self, node: ast.AST) -> int:
        return self.line_starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]

    def _end(self, node: ast.AST) -> int:
        return self.line_starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]

    def _text(self, node: ast.AST) -> str:
        return self.source[self._start(node) : self._end(node)].decode()


def _children(node: ast.AST) -> Iterator[ast.AST]:
    """Where faults may be: what only the type checker, a reader of errors or a log sees is left out."""
    match node:
        case ast.Assert() | ast.Raise() | ast.JoinedStr() | ast.Import() | ast.ImportFrom():
            return
        case ast.Expr(value=ast.Constant()) | ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return
        case ast.Expr() if _is_log_line(node):
            return
        case ast.Module():
            yield from (child for child in node.body if not _is_tuned_number(child))
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            yield from (default for default in (*node.args.defaults, *node.args.kw_defaults) if default is not None)
            yield from node.body
        case ast.ClassDef():
            yield from node.body
        case ast.keyword(
            arg="strict" | "indent"
        ):  # of zip, as an assertion would; of JSON, which nobody reads by columns
            return
        case ast.AnnAssign():
            if node.value is not None:
                yield node.value
        case _:
            yield from ast.iter_child_nodes(node)


def _is_tuned_number(node: ast.AST) -> bool:
    if not isinstance(node, ast.Assign):
        return False
    values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
    return all(isinstance(value, ast.Constant | ast.BinOp) for value in values)


def _is_log_line(node: ast.Expr) -> bool:
    match node.value:
        case ast.Call(func=ast.Attribute(value=ast.Name(id="log" | "LOG"))):
            return True
    return False


def _is_text(node: ast.AST) -> bool:
    """Texts and paths have one operator each: any other is an error at once."""
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _is_torch(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in ("torch", "np")
