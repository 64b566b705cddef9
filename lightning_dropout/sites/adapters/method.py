"""One method's source: which rates its code uses, who switches each drop on, and what else it mentions.

Reads the syntax of a method and never runs it. Understood is what the libraries and most people write: a rate handed to
a function beside ``self.training``, behind a question for it, or compared with a draw; local names and switches of the
module are followed. What is called like a rate and used in another way is reported as unexplained, never guessed.
"""

import ast
import inspect
import re
import textwrap
import types
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

from lightning_dropout.sites.adapters.registry import Kind

__all__ = [
    "DROP_PATH",
    "IS_NONE",
    "RATE_NAME",
    "Facts",
    "MethodSource",
    "Reading",
    "may_drop",
    "mentions",
    "names_in",
    "read_method",
]

# What may be a rate, by name. "p" and "prob" are too short to be allowed inside other names.
RATE_NAME = re.compile(r"p|prob|.*drop.*|.*(keep|survival)_prob", re.IGNORECASE)
_KEEPS = re.compile(r".*(keep|survival)_prob", re.IGNORECASE)  # the opposite of a rate: never driven as one
_LAYER_DROP = re.compile(r"layer_?drop(?!out)", re.IGNORECASE)
DROP_PATH = re.compile(r"drop_?path|stochastic_?depth", re.IGNORECASE)
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_DROPOUT_FUNCTION = re.compile(r"(feature_)?(alpha_)?dropout(1d|2d|3d)?_?")
_DROP_PATH_FUNCTION = re.compile(r"drop_path|stochastic_depth|drop_block_?(2d|3d)")
_DROPOUT_CLASS = re.compile(r"(Feature)?(Alpha)?Dropout([123]d)?|DropPath")
_FUSED_ATTENTION = "scaled_dot_product_attention"
_KEYWORDS = frozenset({"dropout", "dropout_p", "dropout_prob", "drop_prob", "p_dropout"})
_DISTRIBUTIONS = frozenset({"Bernoulli", "RelaxedBernoulli", "Binomial", "Geometric"})
_DRAWS = _DISTRIBUTIONS | {"rand", "rand_like", "bernoulli", "bernoulli_", "random", "uniform_", "randn", "randn_like"}

_DEEPEST = 3  # self.config.text_config.dropout
_HARMLESS_CALLS = frozenset(
    {"log", "log_dict", "log_metrics", "add_scalar", "add_scalars", "print", "info", "debug", "warning"}
    | {"format", "round", "str", "repr"}
)
# Large libraries: what is called like a rate there is one only in code that draws or asks for train mode.
_LIBRARIES = ("timm.", "torchvision.", "transformers.", "peft.", "accelerate.")
IS_NONE = " is None"  # ends the name of a switch that asks whether an attribute is
_HANDED = " handed in"  # a train mode that only the caller knows

# Switches of a module and what they are, such as ("fused_attn", True), ("shortcut is None", False).
Facts = tuple[tuple[str, bool], ...]


@dataclass(frozen=True)
class Reading:
    """One expression in which a method uses a rate.

    Args:
        path: Where the rate lives, from the module: ``"dropout"``, ``"attn_drop.p"``, ``"config.layerdrop"``.
        kind: What is dropped.
        owner: Path of the module whose ``training`` flag is asked: ``""`` is the module itself, ``None`` nobody.
        conditions: Switches of the module under which the expression is reached.
        own_mask: Whether the method draws the mask itself.
        method: Name of the method.
    """

    path: str
    kind: Kind
    owner: str | None
    conditions: Facts
    own_mask: bool = False
    method: str = ""


@dataclass(frozen=True)
class MethodSource:
    """What one method says.

    Args:
        readings: The rates that it uses.
        unexplained: What is called like a rate and read in another way.
        mentions: Children of the module and the switches under which they are mentioned, otherwise than to read their
            ``p``; ``None`` where the source was not read.
    """

    readings: tuple[Reading, ...] = ()
    unexplained: frozenset[str] = frozenset()
    mentions: tuple[tuple[str, Facts], ...] | None = None


_cache: "WeakKeyDictionary[types.FunctionType, MethodSource]" = WeakKeyDictionary()
_cached_names: "WeakKeyDictionary[types.CodeType, frozenset[str]]" = WeakKeyDictionary()


def names_in(code: types.CodeType) -> frozenset[str]:
    """Return every attribute and global that a function mentions, those of its inner functions included."""
    if code not in _cached_names:
        inner = [names_in(const) for const in code.co_consts if isinstance(const, types.CodeType)]
        _cached_names[code] = frozenset(code.co_names).union(*inner)
    return _cached_names[code]


def mentions(method: types.FunctionType) -> Sequence[tuple[str, Facts]]:
    """Return the names of children that a method mentions otherwise than to read their ``p``, and where."""
    mentions = read_method(method).mentions
    return [(name, ()) for name in names_in(method.__code__)] if mentions is None else mentions  # None: not parsed


def read_method(method: types.FunctionType) -> MethodSource:
    """Return what a method says; read once, since a method does not change."""
    if method not in _cache:
        _cache[method] = _analyse(method)
    return _cache[method]


def _analyse(method: types.FunctionType) -> MethodSource:
    names = names_in(method.__code__)
    rates = [name for name in names if RATE_NAME.fullmatch(name)]
    keywords = {word for each in method.__code__.co_consts if isinstance(each, tuple) for word in each}
    if not method.__code__.co_argcount or not (
        any(may_drop(name) for name in names) or not keywords.isdisjoint(_KEYWORDS) or _FUSED_ATTENTION in names
    ):  # almost every method: nothing to parse
        return MethodSource()
    library = f"{method.__module__}.".startswith(_LIBRARIES)
    draws = not _DRAWS.isdisjoint(names)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
    except (OSError, TypeError, SyntaxError, IndentationError):  # typed at a prompt, built by exec, a lambda
        return MethodSource(unexplained=frozenset(rates))
    definition = tree.body[0]
    if not isinstance(definition, (ast.FunctionDef, ast.AsyncFunctionDef)) or not _is_of(definition, method.__code__):
        return MethodSource(unexplained=frozenset(rates))
    reader = _Reader(definition, draws=draws)
    reader.visit_body(definition.body)
    result = reader.result()
    if library and not draws and "training" not in names:
        return replace(result, unexplained=frozenset())  # what is called like a rate there is none
    return result


def _is_of(definition: ast.FunctionDef | ast.AsyncFunctionDef, code: types.CodeType) -> bool:
    """Tell whether a source belongs to the code that runs: the file may have been edited since it was imported."""
    arguments = [argument.arg for argument in [*definition.args.posonlyargs, *definition.args.args]]
    words = {getattr(node, "attr", getattr(node, "id", "")) for node in ast.walk(definition)}
    rates = {name for name in names_in(code) if may_drop(name)}
    return definition.name == code.co_name and arguments == list(code.co_varnames[: len(arguments)]) and rates <= words


class _Reader(ast.NodeVisitor):
    """Walks one method; knows under which switches of ``self`` it is."""

    def __init__(self, definition: ast.FunctionDef | ast.AsyncFunctionDef, draws: bool) -> None:
        self.me = [*definition.args.posonlyargs, *definition.args.args][0].arg
        self.draws = draws
        self.asks_training = False
        self.known: Facts = ()  # what was asked on the way here, train modes included
        self.readings: list[Reading] = []
        self.mentions: list[tuple[str, Facts]] = []
        self.seen: dict[str, Facts] = {}  # rate-like paths and where they were read
        self.complements: set[str] = set()  # `1 - self.p` stands somewhere
        self.divisors: set[str] = set()  # `... / self.p` does: then p is what is kept
        self.harmless: set[int] = set()
        self.handed = {each.arg for each in ast.walk(definition) if isinstance(each, ast.arg)} - {self.me}
        self.stored = Counter(
            each.id for each in ast.walk(definition) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
        )
        # Local names that are assigned exactly once, with what they stand for.
        self.locals = {name: value for name, value in _assignments(definition) if self.stored[name] == 1}

    @property
    def conditions(self) -> Facts:
        """The switches on the way here."""
        return tuple((path, wanted) for path, wanted in self.known if path.rpartition(".")[2] != "training")

    def result(self) -> MethodSource:
        explained = {reading.path for reading in self.readings}
        rest = {path: where for path, where in self.seen.items() if path not in explained}
        drawn = self.complements - self.divisors if self.draws and self.asks_training else set()
        drawn = {path for path in drawn if not _keeps(path)}
        own = [Reading(path, _kind(path), "", where, own_mask=True) for path, where in rest.items() if path in drawn]
        return MethodSource((*self.readings, *own), frozenset(rest) - drawn, tuple(self.mentions))

    def visit_body(self, statements: Sequence[ast.AST]) -> None:
        before = self.known
        for statement in statements:
            self.visit(statement)
            if isinstance(statement, ast.If) and isinstance(statement.body[-1], (ast.Return, ast.Raise, ast.Continue)):
                # `if not self.training: return x`: what follows runs in training only.
                self.known += self._facts(statement.test)[1]
        self.known = before

    def generic_visit(self, node: ast.AST) -> None:
        for _, value in ast.iter_fields(node):
            values = value if isinstance(value, list) else [value]
            self.visit_body([each for each in values if isinstance(each, ast.AST)])

    def visit_If(self, node: ast.If) -> None:
        self._branch(node.test, node.body, node.orelse)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        path, owner = self._rate(node)
        if path and owner is not None and not _keeps(path):
            self._add(path, _kind(path), owner)
        self._branch(node.test, [node.body], [node.orelse])

    def visit_Call(self, node: ast.Call) -> None:
        name = _function_name(node)
        arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
        called_so = [keyword.value for keyword in node.keywords if keyword.arg in _KEYWORDS]
        flags = [owner for argument in arguments if (owner := self._flag(argument)) is not None]
        given, drops = self._drop(node, name)
        first = node.args[0].id if node.args and isinstance(node.args[0], ast.Name) else ""
        candidates = ([given] if given else []) if drops else arguments
        found = [self._rate(each, named=not drops and each not in called_so) for each in candidates]
        rates = [(path, owner) for path, owner in found if path]
        self.seen.update({path: self.conditions for path, _ in rates if drops})
        told_apart = len(rates) > 1 and any(_ATTENTION.search(path) for path, _ in rates)
        own = name not in _DRAWS and (isinstance(node.func, ast.Name) or self._chain(node.func) is not None)
        for path, owner in rates:
            drop_like = drops or "drop" in name.lower() or (own and "drop" in path)  # not `bernoulli_(self.p)`
            asked = [flag for flag in (*flags, owner, _asked(self.known) if drop_like else None) if flag is not None]
            always = drops == "always" and not any(_HANDED in fact for fact, wanted in self.known if wanted)
            if (asked or always) and name not in _HARMLESS_CALLS and not _keeps(path):
                kind = _kind(path if told_apart else f"{path} {name} {first}")
                self._add(path, kind, asked[0] if asked else None)
        if name in ("div", "div_"):
            self.divisors.update(path for path, _ in rates)
        built = name[:1].isupper() and name not in _DISTRIBUTIONS
        if name in _HARMLESS_CALLS or built:  # logged, or handed to a layer that is being built
            self.harmless.update(id(inner) for argument in arguments for inner in ast.walk(argument))
        self.generic_visit(node)

    def _drop(self, node: ast.Call, name: str) -> tuple[ast.expr | None, str]:
        """Return the rate of ``F.dropout`` and the like, and whether it drops ``"always"`` unless asked."""
        layer = self._meaning(node.func)
        if isinstance(layer, ast.Call) and _DROPOUT_CLASS.fullmatch(_function_name(layer)):
            return _argument(layer, 0, "p", "drop_prob"), "always"  # `nn.Dropout(self.p)(x)`: new, so in train mode
        is_local = isinstance(node.func, ast.Name) and node.func.id in (self.handed | self.stored.keys())
        if is_local or self._chain(node.func) is not None:
            return None, ""
        if name == _FUSED_ATTENTION:
            return _argument(node, 4, "dropout_p"), "always"
        if _DROPOUT_FUNCTION.fullmatch(name):
            return _argument(node, 1, "p"), "always" if _never_off(node) else "asked"
        if _DROP_PATH_FUNCTION.fullmatch(name):
            return _argument(node, 1, "p", "drop_prob"), "asked"
        return None, ""

    def visit_Compare(self, node: ast.Compare) -> None:
        sides = [node.left, *node.comparators]
        asked = [side for side in sides if self._rate(side)[0]]
        if len(asked) < len(sides) and all(isinstance(side, ast.Constant) for side in sides if side not in asked):
            self.harmless.update(map(id, asked))  # `self.p > 0`
        else:
            paths = [path for side in asked for path, _ in [self._rate(side)] if path and _LAYER_DROP.search(path)]
            for each in paths:
                self._add(each, "layer_drop", "")
        lower = node.left if isinstance(node.ops[0], (ast.Lt, ast.LtE)) else sides[-1]
        if path := self._complement(lower):  # `rand > 1 - p` keeps with probability p
            self.divisors.add(path)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if path := self._complement(node):
            self.complements.add(path)
        elif isinstance(node.op, ast.Div) and (path := self._rate(node.right)[0]):
            self.divisors.add(path)
        self.generic_visit(node)

    def _complement(self, node: ast.expr) -> str | None:
        """Return the path of the rate in ``1 - self.p``."""
        node = self._meaning(node)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub) and _is_constant(node.left, 1):
            return self._rate(node.right)[0]
        return None

    def visit_Attribute(self, node: ast.Attribute) -> None:
        chain = self._chain(node)
        self.asks_training |= chain is not None and chain[-1] == "training"
        if chain and isinstance(node.ctx, ast.Load) and id(node) not in self.harmless:
            if len(chain) == 1 or chain[-1] not in ("p", "training"):
                self.mentions.append((chain[0], self.conditions))
            path, _ = self._rate(node)
            if path:
                self.seen.setdefault(path, self.conditions)
        if chain is None:
            self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        pass  # what a local name stands for is visited where it is assigned

    def visit_Assert(self, node: ast.Assert) -> None:
        pass  # asks and prints; so do the next two

    def visit_Raise(self, node: ast.Raise) -> None:
        pass

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        pass

    def _add(self, path: str, kind: Kind, owner: str | None) -> None:
        self.readings.append(Reading(path, kind, owner, self.conditions))

    def _branch(self, test: ast.expr, body: Sequence[ast.AST], orelse: Sequence[ast.AST]) -> None:
        self.harmless.update(map(id, _terms(test)))  # `if self.p:`
        self.visit(test)
        before = self.known
        for known, statements in zip(self._facts(test), (body, orelse), strict=True):
            self.known = (*before, *known)
            self.visit_body(statements)
        self.known = before

    def _facts(self, test: ast.expr) -> tuple[Facts, Facts]:
        """Return what is known of the module's switches and train modes where a test is true, and where it is not."""
        test = self._meaning(test)
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            true, false = self._facts(test.operand)
            return false, true
        if isinstance(test, ast.BoolOp):
            sides = [self._facts(value) for value in test.values]
            true, false = (tuple(fact for side in sides for fact in side[index]) for index in (0, 1))
            # `self.training or self.sampling`: in train mode, or else, so nobody can tell.
            perhaps = tuple((path + _HANDED, True) for path, wanted in true if wanted and path.endswith("training"))
            return (true, ()) if isinstance(test.op, ast.And) else (perhaps, false)
        if isinstance(test, ast.Compare) and len(test.ops) == 1 and _is_constant(test.comparators[0], None):
            chain = self._chain(self._meaning(test.left))
            if chain is None or len(chain) > 1:
                return (), ()
            facts = ((chain[0] + IS_NONE, True),), ((chain[0] + IS_NONE, False),)
            return facts if isinstance(test.ops[0], ast.Is) else (facts[1], facts[0])
        if isinstance(test, ast.Compare) and len(test.ops) == 1 and _is_constant(test.comparators[0], True):
            true, false = self._facts(test.left)
            return (true, false) if isinstance(test.ops[0], (ast.Is, ast.Eq)) else (false, true)
        chain = self._chain(test)
        if isinstance(test, ast.Name) and test.id in self.handed and "train" in test.id:
            chain = (test.id + _HANDED,)
        if chain is None or (len(chain) > 1 and chain[-1] != "training"):
            return (), ()
        return ((".".join(chain), True),), ((".".join(chain), False),)

    def _flag(self, node: ast.expr) -> str | None:
        """Return the path of the module whose ``training`` an expression is, ``""`` for the module itself."""
        chain = self._chain(self._meaning(node))
        return ".".join(chain[:-1]) if chain and chain[-1] == "training" else None

    def _rate(self, node: ast.expr, *, named: bool = True) -> tuple[str | None, str | None]:
        """Return the path of the rate that an expression is, and whose train mode it asks for (``None``: nobody's).

        Sees through ``float(...)``, local names and ``self.p if self.training else 0.0``. ``named``: only what is
        called like a rate is one.
        """
        node = self._meaning(node)
        if isinstance(node, ast.Call) and _function_name(node) == "float" and len(node.args) == 1:
            return self._rate(node.args[0], named=named)
        if isinstance(node, ast.IfExp):
            branches = (node.body, node.orelse)
            for known, on, off in zip(self._facts(node.test), branches, reversed(branches), strict=True):
                if (owner := _asked(known)) is not None:
                    return self._rate(on, named=named)[0], owner if _is_constant(off, 0) else None
            return self._rate(node.body, named=named)[0] or self._rate(node.orelse, named=named)[0], None
        chain = self._chain(node)
        if chain and len(chain) <= _DEEPEST and (RATE_NAME.fullmatch(chain[-1]) or not named):
            return ".".join(chain), None
        return None, None

    def _meaning(self, node: ast.expr) -> ast.expr:
        """Return what a local name stands for: what was assigned to it above."""
        while isinstance(node, ast.Name) and node.id in self.locals:
            value = self.locals[node.id]
            if (value.end_lineno, value.end_col_offset) > (node.lineno, node.col_offset):
                break
            node = value
        return node

    def _chain(self, node: ast.AST) -> tuple[str, ...] | None:
        """Return the attributes of ``self.a.b`` as ``("a", "b")``; ``None`` for any other expression."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = self._meaning(node.value)
        return tuple(reversed(parts)) if parts and isinstance(node, ast.Name) and node.id == self.me else None


def _assignments(definition: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Yield the local names that are assigned, with what they are assigned."""
    for node in ast.walk(definition):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                pairs = [(target, node.value)]
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = list(zip(target.elts, node.value.elts, strict=False))  # `p, training = ...`
                yield from ((name.id, value) for name, value in pairs if isinstance(name, ast.Name))
        elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)) and isinstance(node.target, ast.Name) and node.value:
            yield node.target.id, node.value


def _terms(test: ast.expr) -> Iterator[ast.expr]:
    """Yield what a condition asks: ``self.training`` and ``self.p`` in ``not self.training or not self.p``."""
    if isinstance(test, ast.BoolOp):
        for value in test.values:
            yield from _terms(value)
    elif isinstance(test, ast.UnaryOp):
        yield from _terms(test.operand)
    else:
        yield test


def _asked(known: Facts) -> str | None:
    """Return the path of the module that is known to be in train mode."""
    flags = [path.rpartition(".") for path, wanted in reversed(known) if wanted]
    return next((owner for owner, _, attribute in flags if attribute == "training"), None)


def _argument(node: ast.Call, position: int, *names: str) -> ast.expr | None:
    keywords = [keyword.value for keyword in node.keywords if keyword.arg in names]
    return next(iter([*keywords, *node.args[position : position + 1]]), None)


def _is_constant(node: ast.expr, value: int | None) -> bool:
    return isinstance(node, ast.Constant) and node.value == value


def _never_off(node: ast.Call) -> bool:
    """Tell whether a call of ``F.dropout`` drops in evaluation too: no flag, or the constant ``True``."""
    flags = [keyword.value for keyword in node.keywords if keyword.arg == "training"] or node.args[2:3]
    return all(isinstance(flag, ast.Constant) and flag.value is True for flag in flags)


def _function_name(node: ast.Call) -> str:
    function = node.func
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def may_drop(name: str) -> bool:
    """Tell whether a rate, or a child that drops, may be called so."""
    return RATE_NAME.fullmatch(name) is not None or DROP_PATH.search(name) is not None


def _keeps(path: str) -> bool:
    return _KEEPS.fullmatch(path) is not None


def _kind(text: str) -> Kind:
    if _LAYER_DROP.search(text):
        return "layer_drop"
    if DROP_PATH.search(text):
        return "drop_path"
    return "attention" if _ATTENTION.search(text) else "dropout"
