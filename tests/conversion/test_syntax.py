"""What a piece of syntax reads and writes, with the traps of Python's scopes."""

import ast

import pytest

from lightning_dropout.conversion.syntax import (
    always_stored,
    batch_sizes,
    free_names,
    grown_list,
    is_read,
    loads,
    stores,
)


def statement(text: str) -> ast.stmt:
    return ast.parse(text).body[0]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("x = f(y, z=w)", ["f", "y", "w"]),
        ("x += y", ["x", "y"]),
        ("x[i] += y", ["x", "i", "y"]),
        ("x.weight = y", ["y", "x"]),
        ("x = y = z", ["z"]),
        ("a, (b, *c) = f(a)", ["f", "a"]),
        ("del x", ["x"]),
        ("x: Tensor = y", ["Tensor", "y"]),
        ("[i * y for i in x]", ["x", "y"]),
        ("[x for x in x.chunk(2)]", ["x"]),
        ("[x for y in z for x in y]", ["z"]),
        ("{k: v for k, v in d.items() if k != n}", ["d", "n"]),
        ("lambda x, *a, k=k, **o: x + y + k", ["k", "y"]),
        ("lambda x=x: x", ["x"]),
        ("def f(x, y=y):\n    z = x\n    return z + w", ["y", "w"]),
        ("def f():\n    return (lambda h: h)(h)", ["h"]),
        ("if a:\n    x = b\nelse:\n    x = c", ["a", "b", "c"]),
        ("for i in x:\n    y = i", ["x", "i"]),
        ("with f() as y:\n    g(y)", ["f", "g", "y"]),
        ("return f'{x:{n}}'", ["x", "n"]),
    ],
)
def test_loads(text: str, names: list[str]) -> None:
    assert loads(statement(text)) == names


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("x = y = z", {"x", "y"}),
        ("(a, [b, *c]), d.e, f[0] = z", {"a", "b", "c"}),
        ("x += 1", {"x"}),
        ("x: int = 1", {"x"}),
        ("del x", {"x"}),
        ("for i in x:\n    y = i\nelse:\n    z = 1", {"i", "y", "z"}),
        ("if a:\n    x = 1\nelse:\n    y = 1", {"x", "y"}),
        ("with f() as y: pass", {"y"}),
        ("f(x := 1)", {"x"}),
        ("[i for i in x]", set()),
        ("y = lambda a: a", {"y"}),
        ("def f(x):\n    y = x", {"f"}),
        ("xs.append(y)", {"xs"}),
        ("xs.extend(y)", {"xs"}),
        ("self.xs.append(y)", set()),
        ("xs.index(y)", set()),
    ],
)
def test_stores(text: str, names: set[str]) -> None:
    assert stores(statement(text)) == names


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("x, y = z", {"x", "y"}),
        ("x: int = 1", {"x"}),
        ("def f(): pass", {"f"}),
        ("if a:\n    x = y = 1\nelse:\n    x = 2", {"x"}),
        ("if a:\n    x = 1", set()),
        ("if a:\n    x = 1\nelif b:\n    x = 1", set()),
        ("if a:\n    if b:\n        x = 1\n    else:\n        x = 2\nelse:\n    x = 3", {"x"}),
        ("for i in x:\n    y = 1", set()),
        ("while a:\n    y = 1", set()),
        ("x += 1", set()),
        ("xs.append(y)", set()),
        ("with f():\n    x = 1", set()),  # which may swallow an exception
        ("try:\n    x = 1\nfinally: pass", set()),
    ],
)
def test_always_stored(text: str, names: set[str]) -> None:
    assert always_stored(statement(text)) == names


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("y = x\nz = y + n", ["x", "n"]),
        ("x += y", ["x", "y"]),
        ("if c:\n    y = x\nz = y", ["c", "x", "y"]),
        ("if c:\n    y = x\nelse:\n    y = w\nz = y", ["c", "x", "w"]),
        ("for i in xs:\n    y = i\nz = y", ["xs", "y"]),
        ("for i in xs:\n    a = a + i", ["xs", "a"]),
        ("for i in xs:\n    pass\nelse:\n    y = z", ["xs", "z"]),
        ("ys = []\nfor i in xs:\n    ys.append(f(i))\ny = ys", ["xs", "f"]),
        ("ys.append(x)", ["ys", "x"]),
        ("y = [y for y in y]", ["y"]),
    ],
)
def test_free_names(text: str, names: list[str]) -> None:
    assert free_names(ast.parse(text).body) == names


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("y = x", True),
        ("x = 1\ny = x", False),
        ("x = x + 1", True),
        ("x += 1", True),
        ("if c:\n    x = 1\ny = x", True),
        ("if c:\n    x = 1\nelse:\n    x = 2\ny = x", False),
        ("for i in z:\n    x = 1\ny = x", True),
        ("del x", True),
        ("y = [x for x in z]\nx = 1", False),
        ("x, y = z\nw = x", False),
        ("if c:\n    continue\nx = 1\ny = x", True),
        ("if c:\n    break\nx = 1", False),
        ("if c:\n    break\nx = 1\nfor i in z:\n    x = x + 1", True),
        ("def f():\n    return x\nx = 1", True),
    ],
)
def test_is_read(text: str, read: bool) -> None:
    assert is_read("x", ast.parse(text).body) is read


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("B, N, C = x.shape", {"B"}),
        ("(B, N), C = x.shape[:2], 3", {"B"}),
        ("B, *_ = x.size()", {"B"}),
        ("B, N = x.shape[:2]", {"B"}),
        ("H, W = x.shape[-2:]", set()),
        ("H, W = x.shape[2], x.shape[3]", set()),
        ("B, N = x.shape[0], x.shape[1]", {"B"}),
        ("B = x.shape[0]", {"B"}),
        ("B = n = x.size(0)", {"B", "n"}),
        ("B: int = len(x)", {"B"}),
        ("shape = x.shape", {"shape"}),
        ("shape = x.size()", {"shape"}),
        ("N = x.shape[1]\nM = N * 2", set()),
        ("rows = x.shape[0] * x.shape[1]", {"rows"}),
        ("B = x.shape[0]\nrows = B * 2\nshape = (rows, 3)", {"B", "rows", "shape"}),
        ("rows = 0\nrows += x.shape[0]", {"rows"}),
        ("n = x.numel() // 3", {"n"}),
        ("B = x.shape[0]\ny = self.f(x, B)", {"B"}),  # a tensor
        ("y = x", set()),
    ],
)
def test_batch_sizes(text: str, names: set[str]) -> None:
    assert batch_sizes(ast.parse(text)) == names


def test_grown_list() -> None:
    assert grown_list(statement("xs.append(y)")) == "xs"
    assert grown_list(statement("y = xs.append(y)")) is None
    assert grown_list(statement("xs.pop()")) is None
    assert grown_list(statement("append(y)")) is None
