"""What a piece of syntax reads and writes: local names, in the order of evaluation. Judges nothing, changes nothing."""

import ast
import re
from collections.abc import Iterator, Sequence, Set
from typing import TypeAlias

__all__ = ["SCOPES", "always_stored", "batch_sizes", "free_names", "grown_list", "is_read", "loads", "stores"]

Nodes: TypeAlias = ast.AST | Sequence[ast.AST]

_FIRST_SIZE = re.compile(r"(\.shape|\.size\(\))\[(0|:\d*)\]|\.size\((dim=)?0\)|\.numel\(\)|\blen\(")

SCOPES = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.FunctionDef)


def loads(nodes: Nodes) -> list[str]:
    """Return the names that are read, each once, in the order in which they are first read.

    Example:
        >>> loads(ast.parse("x = self.norm(h) + mask"))
        ['self', 'h', 'mask']
    """
    return list(dict.fromkeys(_loads(nodes)))


def _loads(nodes: Nodes) -> Iterator[str]:
    if isinstance(nodes, Sequence):
        for node in nodes:
            yield from _loads(node)
    elif isinstance(nodes, ast.Name):
        if not isinstance(nodes.ctx, ast.Store):  # to delete a name it must have a value
            yield nodes.id
    elif isinstance(nodes, ast.AugAssign):
        yield from (name.id for name in ast.walk(nodes.target) if isinstance(name, ast.Name))
        yield from _loads(nodes.value)
    elif isinstance(nodes, ast.Assign):
        yield from _loads([nodes.value, *nodes.targets])
    elif isinstance(nodes, SCOPES):
        if isinstance(nodes, ast.Lambda | ast.FunctionDef):
            yield from _loads([*nodes.args.defaults, *(each for each in nodes.args.kw_defaults if each)])
            bound = {argument.arg for argument in ast.walk(nodes.args) if isinstance(argument, ast.arg)}
            bound |= stores(nodes.body)
        else:
            yield from _loads(nodes.generators[0].iter)  # outside of the scope
            bound = stores([each.target for each in nodes.generators])
        for node in ast.iter_child_nodes(nodes):
            yield from (name for name in _loads(node) if name not in bound)
    else:
        yield from _loads([*ast.iter_child_nodes(nodes)])


def stores(nodes: Nodes) -> set[str]:
    """Return the names that may be written, comprehensions and inner functions apart.

    Example:
        >>> sorted(stores(ast.parse("x, (y, z) = f(w); n += 1")))
        ['n', 'x', 'y', 'z']
    """
    if isinstance(nodes, Sequence):
        return {name for node in nodes for name in stores(node)}
    if isinstance(nodes, ast.FunctionDef):
        return {nodes.name}
    if isinstance(nodes, ast.Name):
        return {nodes.id} if isinstance(nodes.ctx, ast.Store | ast.Del) else set()
    if isinstance(nodes, SCOPES):
        return set()
    if isinstance(nodes, ast.Expr) and (grown := grown_list(nodes)):
        return {grown}
    return stores([*ast.iter_child_nodes(nodes)])


def grown_list(statement: ast.stmt) -> str | None:
    """Return the name of the list that ``statement`` appends to, if it does just that."""
    call = statement.value if isinstance(statement, ast.Expr) else None
    method = call.func if isinstance(call, ast.Call) else None
    if isinstance(method, ast.Attribute) and method.attr in ("append", "extend") and isinstance(method.value, ast.Name):
        return method.value.id
    return None


def always_stored(statement: ast.stmt) -> set[str]:
    """Return the names that ``statement`` writes whichever way it goes."""
    if isinstance(statement, ast.If):
        ways = [{name for each in way for name in always_stored(each)} for way in (statement.body, statement.orelse)]
        return ways[0] & ways[1]
    if isinstance(statement, ast.Assign | ast.AnnAssign | ast.FunctionDef):
        return stores(statement)
    return set()


def free_names(statements: Sequence[ast.AST], known: Set[str] = frozenset()) -> list[str]:
    """Return the names that are read and may have been written before ``statements``, in the order of evaluation.

    Example:
        >>> free_names(ast.parse("y = x; z = y + n").body)
        ['x', 'n']
    """
    written = {*known}
    found: dict[str, None] = {}
    for statement in statements:
        if isinstance(statement, ast.If):
            found |= dict.fromkeys(name for name in loads(statement.test) if name not in written)
            for way in (statement.body, statement.orelse):
                found |= dict.fromkeys(free_names(way, written))
        elif isinstance(statement, ast.For):
            found |= dict.fromkeys(name for name in loads(statement.iter) if name not in written)
            found |= dict.fromkeys(free_names(statement.body, written | stores(statement.target)))
            found |= dict.fromkeys(free_names(statement.orelse, written))
        else:
            found |= dict.fromkeys(name for name in loads(statement) if name not in written)
        if isinstance(statement, ast.stmt):
            written |= always_stored(statement)
    return list(found)


def is_read(name: str, statements: Sequence[ast.stmt]) -> bool:
    """Tell whether the value that ``name`` has may be read by ``statements`` before they write another one.

    Example:
        >>> body = ast.parse("y = x; x = 1; z = x").body
        >>> is_read("x", body), is_read("z", body), is_read("x", body[1:])
        (True, False, False)
    """
    for place, statement in enumerate(statements):
        if name in loads(statement):
            return True
        if any(isinstance(node, ast.Continue | ast.Break) for node in ast.walk(statement)):
            return name in loads(statements[place:])  # what follows may be skipped
        if name in always_stored(statement):
            return False
    return False


def batch_sizes(nodes: Nodes) -> set[str]:
    """Return the names that hold a number of samples: ``B, N, C = x.shape``, ``B = len(x)``, ``B = x.size(0)``.

    Example:
        >>> batch_sizes(ast.parse("B, N, C = x.shape; n = x.size(0); H = x.shape[1]")) == {"B", "n"}
        True
    """
    found = set[str]()
    pairs = [pair for node in (nodes if isinstance(nodes, Sequence) else [nodes]) for pair in _assigned(node)]
    for _ in pairs:  # at most as many steps from one to the next
        for target, value in pairs:
            if isinstance(target, ast.Tuple) and target.elts and _is_shape(value):
                found |= stores(target.elts[0])
            elif _is_first_size(value, found):
                found |= stores(target)
    return found


def _assigned(node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Yield targets with their values, those of ``a, b = c, d`` one by one."""
    for each in ast.walk(node):
        if isinstance(each, ast.Assign):
            for target in each.targets:
                if isinstance(target, ast.Tuple) and isinstance(each.value, ast.Tuple):
                    yield from zip(target.elts, each.value.elts, strict=False)
                else:
                    yield target, each.value
        elif isinstance(each, ast.AugAssign | ast.AnnAssign | ast.NamedExpr) and each.value is not None:
            yield each.target, each.value


def _is_shape(value: ast.expr) -> bool:
    text = ast.unparse(value)
    return text.endswith((".shape", ".size()")) or ".shape[:" in text or ".size()[:" in text


def _is_first_size(value: ast.expr, known: Set[str]) -> bool:
    """Tell whether ``value`` is a number of samples, or is reckoned from one."""
    text = ast.unparse(value)
    if text.endswith((".shape[0]", ".size(0)", ".shape", ".size()")) or text.startswith("len("):
        return True
    if text.startswith(("list(", "tuple(")) and text.endswith((".shape)", ".size())")):
        return True
    if any(isinstance(node, ast.Call) and not _is_reckoning(node) for node in ast.walk(value)):
        return False
    return bool(_FIRST_SIZE.search(text)) or not known.isdisjoint(loads(value))


def _is_reckoning(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else ast.unparse(call.func)
    return name in ("size", "len", "int", "min", "max", "numel", "prod", "sum")
