"""Residual sums in source code that drop nothing yet: ``x + branch(x)`` found, and a call of a drop path put into it.

A sum is residual if one side is a variable and the other is what modules made of the same value. Only syntax is read
and changed here; ``branches.py`` then makes functions of the branches.
"""

import ast
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lightning_dropout.conversion.syntax import loads, stores

if TYPE_CHECKING:
    from lightning_dropout.conversion.branches import Editor

__all__ = ["insert_calls"]

# The last module of a branch is given the skip connection under these names, in transformers.
_GIVEN = frozenset({"input_tensor", "residual"})


def insert_calls(tree: ast.FunctionDef, editor: "Editor") -> list[str]:
    """Put calls of drop paths into the residual sums of a method; return the attributes that it needs now.

    They are called ``drop_path``, or ``drop_path1``, ``drop_path2``, ... where there are several.
    """
    calls = [*_inserted(tree.body, tree, editor)]
    names = ["drop_path"] if len(calls) == 1 else [f"drop_path{number + 1}" for number in range(len(calls))]
    for call, name in zip(calls, names, strict=True):
        call.func = ast.Attribute(ast.Name(editor.me, ast.Load()), name, ast.Load())
    editor.paths = {*names}
    return names


def _inserted(block: list[ast.stmt], tree: ast.FunctionDef, editor: "Editor") -> Iterator[ast.Call]:
    for place, statement in enumerate(block):
        inner = [part for name in ("body", "orelse") if isinstance(part := getattr(statement, name, None), list)]
        for each in inner:
            yield from _inserted(each, tree, editor)
        if inner:
            continue
        if isinstance(statement, ast.AugAssign) and isinstance(statement.op, ast.Add):
            target, value = statement.target, statement.value
            if isinstance(target, ast.Name):
                name = ast.Name(target.id, ast.Load())
                if _is_residual(block, place, value, name, tree, editor):  # `x += f(x)`: in place as before
                    statement.value = call = _marked(value, editor)
                    yield call
                    continue
                block[place] = ast.copy_location(ast.Assign([target], ast.BinOp(name, ast.Add(), value)), statement)
                if _is_residual(block, place, name, value, tree, editor):  # `out += identity`, of what modules made
                    block[place].value.left = call = _marked(name, editor)  # type: ignore[attr-defined]
                    yield call
                    continue
                block[place] = statement  # it may be a list, or known by another name
        for node in ast.walk(statement):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
                if _is_residual(block, place, node.left, node.right, tree, editor):
                    node.left = call = _marked(node.left, editor)
                elif _is_residual(block, place, node.right, node.left, tree, editor):
                    node.right = call = _marked(node.right, editor)
                else:
                    continue
                yield call
                break


def _marked(branch: ast.expr, editor: "Editor") -> ast.Call:
    """Return a call that the editor takes for one of a drop path; how that is called is decided later."""
    editor.paths.add("?")
    return ast.Call(ast.Attribute(ast.Name(editor.me, ast.Load()), "?", ast.Load()), [branch], [])


def _is_residual(
    block: Sequence[ast.stmt],
    place: int,
    branch: ast.expr,
    skip: ast.expr,
    tree: ast.FunctionDef,
    editor: "Editor",
) -> bool:
    """Tell whether ``branch`` is what modules made of the value that ``skip`` has."""
    if not isinstance(skip, ast.Name):
        return False
    region = editor.region(block, place, branch, outside=[skip.id])
    first = editor.first_input([*region, branch], editor.inputs(region, branch))
    if first is None:
        return False
    if skip.id == first:
        return first not in stores(region)
    parameters = {each.arg for each in tree.args.args}
    if skip.id in _GIVEN and {skip.id, first} <= parameters:
        return True
    for statement in reversed(block[:place]):
        if any(statement is each for each in region):
            if region[0] is statement:
                region = []
        elif skip.id in stores(statement):
            value = statement.value if isinstance(statement, ast.Assign) else None
            if isinstance(value, ast.Name) and value.id == first:  # `identity = x`
                return not region
            if not {first, skip.id}.intersection(loads(statement)):
                return False
        elif first in stores(statement):
            return False
    return False
