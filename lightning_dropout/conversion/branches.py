"""Branches in source code: ``x + self.drop_path(branch(x))`` in a method, rewritten so that the branch is a function.

    x = x + self.drop_path1(self.attn(self.norm1(x), mask))

becomes what one would write by hand,

    x = self.drop_path1.residual(x, lambda x, mask: self.attn(self.norm1(x), mask), lambda _x: x, kwargs={"mask": mask})

and where the branch is made of several statements they become an inner function. What a drop path zeroes need not be
computed, wherever the zeros are added: so nothing need be known of the method but which statements serve the branch
alone. Whatever is not certain stays as it is, with the reason. Syntax is read and written here; no model is run.
"""

import ast
import copy
import dis
import inspect
import re
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_dropout.conversion.sums import insert_calls
from lightning_dropout.conversion.syntax import (
    SCOPES,
    always_stored,
    batch_sizes,
    free_names,
    grown_list,
    is_read,
    loads,
    stores,
)

__all__ = ["Editor", "Rewriting", "rewrite"]

_UNKNOWN = object()
# What nobody can follow safely: a method with any of it stays as it is.
_UNCERTAIN = (
    *(ast.Global, ast.Nonlocal, ast.NamedExpr, ast.Yield, ast.YieldFrom, ast.Await, ast.Try),
    *(ast.Match, ast.ClassDef, ast.AsyncFunctionDef, getattr(ast, "TryStar", ast.Try)),
)
# Scopes that may be run after the statement that holds them.
_LATE = (ast.Lambda, ast.GeneratorExp, ast.FunctionDef)
_LOOKING_AT_NAMES = {"locals", "vars", "eval", "exec", "dir"}

# Methods of lists, dictionaries and sets that change them; those of tensors end in `_`.
_CHANGING = re.compile(r"append|extend|insert|pop|popitem|remove|clear|update|setdefault|sort|reverse|.*[^_]_")

# What is for all samples unless it has so many dimensions; its first size may be by chance that of the batch.
_SHARED_BELOW = {
    re.compile(r"rope|rel(ative)?_?pos|bias|freqs"): 4,
    re.compile(r"(attn|src|tgt|memory)_mask$"): 3,
    re.compile(r"^pos(ition)?_?(emb|enc)"): 3,
}


@dataclass
class Rewriting:
    """A method with its branches as functions.

    Args:
        function: The new method; None if nothing could be rewritten.
        done: The drop paths whose branches are functions now.
        left: Why the others are not, by drop path.
        inserted: The drop paths that the method calls now, and did not before.
        switches: What must hold of attributes for a drop path to be called at all, by drop path.
        entered: Attributes that are given what enters the branch, by drop path. Must not change it in place.
    """

    function: types.FunctionType | None = None
    done: set[str] = field(default_factory=set)
    left: dict[str, str] = field(default_factory=dict)
    inserted: tuple[str, ...] = ()
    switches: dict[str, frozenset[str]] = field(default_factory=dict)
    entered: dict[str, set[str]] = field(default_factory=dict)

    def off(self, module: object) -> dict[str, str]:
        """Return the drop paths that ``module`` never calls, with what would have to hold for it."""
        off: dict[str, str] = {}  # such as a block that changes the shape, and so has no shortcut
        for path, conditions in self.switches.items():
            off.update((path, condition) for condition in sorted(conditions) if not _may_hold(module, condition))
        return off


def _may_hold(module: object, condition: str) -> bool:
    name, _, none = condition.partition(" ")
    value = getattr(module, name, _UNKNOWN)
    if value is _UNKNOWN:
        return True
    return (value is None) is (none == "is None") if none else value is not False


def rewrite(method: types.FunctionType, paths: Sequence[str], insert: bool = False) -> Rewriting:
    """Rewrite the branches that end in a call of one of ``paths``, attributes of the first argument.

    With ``insert`` residual sums get such calls first, whose attributes are then the paths.

    Example:
        >>> from lightning_dropout.models.block import ResidualBlock
        >>> rewrite(ResidualBlock.forward, ["drop_path"]).done  # it is written that way already
        set()
    """
    try:
        tree = _parse(method)
    except _UnreadableError as error:
        return Rewriting(left=dict.fromkeys(paths, str(error)))
    editor = Editor(tree)
    rewriting = editor.rewriting
    if insert:
        rewriting.inserted = tuple(insert_calls(tree, editor))
    else:
        editor.paths = {*paths}
    editor.edit(tree.body, _arguments_of(tree), [])
    if rewriting.done or rewriting.inserted:
        rewriting.function = _compiled(tree, method)
    return rewriting


class _UnreadableError(Exception):
    pass


def _parse(method: types.FunctionType) -> ast.FunctionDef:
    if inspect.unwrap(method) is not method or method.__closure__:
        raise _UnreadableError("its method is decorated or calls `super()`")
    try:
        lines, first = inspect.getsourcelines(method)
    except (OSError, TypeError):
        raise _UnreadableError("its source code is not at hand") from None
    # Not dedented: comments and texts may begin further to the left.
    body = ast.parse("if True:\n" + "".join(lines) if lines[0][0].isspace() else "".join(lines)).body
    tree = body[0].body[0] if isinstance(body[0], ast.If) else body[0]
    first -= isinstance(body[0], ast.If)
    if not isinstance(tree, ast.FunctionDef) or not _parameters(tree):
        raise _UnreadableError("it is no method")
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    if any(isinstance(node, _UNCERTAIN) for node in ast.walk(tree)) or names & _LOOKING_AT_NAMES:
        raise _UnreadableError("its method is written in a way that is not known (`try`, `match`, `:=`, `global`, ...)")
    if _parameters(tree)[0] in stores(tree.body):
        raise _UnreadableError("its method gives `self` another value")
    private = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    if any(name.startswith("__") and not name.endswith("__") for name in private):
        raise _UnreadableError("its method uses private names of its class")
    ast.increment_lineno(tree, first - 1)
    if not _is_same(_code(copy.deepcopy(tree), method), method.__code__):
        raise _UnreadableError("its source code was changed since it was loaded")
    return tree


def _parameters(tree: ast.FunctionDef) -> list[str]:
    return [each.arg for each in (*tree.args.posonlyargs, *tree.args.args)]


def _arguments_of(tree: ast.FunctionDef) -> set[str]:
    return {each.arg for each in ast.walk(tree.args) if isinstance(each, ast.arg)}


def _is_same(code: types.CodeType, other: types.CodeType) -> bool:
    """Tell whether both do the same; texts apart, since those of several lines are indented otherwise."""
    ours, theirs = ([*_steps(each)] for each in (code, other))
    inner, others = ([each for each in one.co_consts if isinstance(each, types.CodeType)] for one in (code, other))
    return ours == theirs and len(inner) == len(others) and all(map(_is_same, inner, others))


def _steps(code: types.CodeType) -> Iterator[tuple[str, str]]:
    for each in dis.get_instructions(code):
        name = each.opname.replace("LOAD_METHOD", "LOAD_ATTR")  # which of them, depends on the imports of the file
        if name not in ("EXTENDED_ARG", "NOP"):
            jump = each.opcode in dis.hasjrel or each.opcode in dis.hasjabs
            text = each.opcode in dis.hasconst and isinstance(each.argval, str | types.CodeType)
            yield name, "" if jump or text else repr(each.argval)


def _code(tree: ast.FunctionDef, method: types.FunctionType) -> types.CodeType:
    tree.decorator_list = []
    tree.returns = None
    tree.type_params = []  # type: ignore[attr-defined]  # from Python 3.12
    for argument in ast.walk(tree.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    # Defaults need values only so that the compiler accepts their places; the real ones are the method's.
    tree.args.defaults = [ast.Constant(None) for _ in tree.args.defaults]
    tree.args.kw_defaults = [each and ast.Constant(None) for each in tree.args.kw_defaults]
    program = compile(ast.fix_missing_locations(ast.Module([tree], [])), method.__code__.co_filename, "exec")
    return next(each for each in program.co_consts if isinstance(each, types.CodeType) and each.co_name == tree.name)


def _compiled(tree: ast.FunctionDef, method: types.FunctionType) -> Any:
    function: Any = types.FunctionType(_code(tree, method), method.__globals__, method.__name__, method.__defaults__)
    function.__kwdefaults__ = method.__kwdefaults__
    function.__annotations__ = method.__annotations__
    function.__dict__.update(vars(method))
    function.__qualname__, function.__module__, function.__doc__ = (
        method.__qualname__,
        method.__module__,
        method.__doc__,
    )
    return function


class Editor:
    """Reads and changes the syntax tree of one method.

    Args:
        tree: The method, changed in place.
    """

    def __init__(self, tree: ast.FunctionDef) -> None:
        self.rewriting = Rewriting()
        self.me = _parameters(tree)[0]
        self.paths: set[str] = set()
        self._locals = stores(tree.body) | _arguments_of(tree)
        self._locals.discard(self.me)
        self._batch_sizes = batch_sizes(tree.body)
        # What runs later than it is written, and sees the values that names have then.
        self._late = [each for each in ast.walk(tree) if each is not tree and isinstance(each, _LATE)]
        self._set = {
            each.attr for each in ast.walk(tree) if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store)
        }
        self._of_weights = self._made_of_weights(tree)

    def _made_of_weights(self, tree: ast.FunctionDef) -> set[str]:
        """Return the names of what is made of attributes alone, ``scale = self.scale.exp()``, so of no sample."""
        found = stores(tree.body) - _arguments_of(tree)
        simple = [each for each in ast.walk(tree) if isinstance(each, ast.stmt | ast.withitem)]
        for _ in simple:
            for each in simple:
                if isinstance(each, ast.Assign):
                    if self._local(loads(each.value)) - found or self._may_know_samples(each.value):
                        found -= stores(each)
                elif isinstance(each, ast.For):
                    found -= stores(each.target)
                elif not _blocks(each) and each is not tree:
                    found -= stores(each)
        return found

    def _may_know_samples(self, value: ast.expr) -> bool:
        """Tell whether a value is made by a method, or of what methods leave in attributes."""
        parts = [*ast.walk(value)]
        return (
            any(isinstance(each, ast.Attribute) and each.attr in self._set for each in parts)
            or any(isinstance(each, ast.Call) and self._path(each) for each in parts)
            or any(
                isinstance(each, ast.Call)
                and any(isinstance(given, ast.Name) and given.id == self.me for given in each.args)
                for each in parts
            )
        )

    def edit(
        self, block: list[ast.stmt], known: set[str], after: Sequence[ast.stmt], switches: frozenset[str] = frozenset()
    ) -> None:
        """Rewrite the branches that end in ``block``.

        Args:
            block: Statements, changed in place.
            known: The names that have a value where it begins.
            after: What may run after it.
            switches: What holds of attributes where it runs.
        """
        place = 0
        while place < len(block):
            statement = block[place]
            if isinstance(statement, ast.If):
                place -= self._move_into(block, place)
            rest = [*block[place + 1 :], *after]
            for inner in _blocks(statement):
                loop = [statement] if isinstance(statement, ast.For | ast.While) else []
                before = known.union(*map(always_stored, block[:place]))
                switch = self._switch(statement, inner)
                self.edit(inner, before, [*rest, *loop], switches | switch)
            if not _blocks(statement):
                for call in self._drops(statement):
                    path = str(self._path(call))
                    self.rewriting.switches[path] = self.rewriting.switches.get(path, switches) & switches
                place -= self._outline(block, place, known, rest)
            place += 1

    def _switch(self, statement: ast.stmt, way: list[ast.stmt]) -> frozenset[str]:
        """Return what holds of an attribute if ``way`` is gone: ``"use_shortcut"``, ``"proj is None"``."""
        if not isinstance(statement, ast.If):
            return frozenset()
        yes, test, asks = way is statement.body, statement.test, ""
        if isinstance(test, ast.Compare) and ast.unparse(test.comparators[0]) == "None" and len(test.ops) == 1:
            asks = {ast.Is: "is None", ast.IsNot: "is not None"}.get(type(test.ops[0]), "?")
            test = test.left
        if asks == "?" or not (isinstance(test, ast.Attribute) and ast.unparse(test.value) == self.me):
            return frozenset()
        if test.attr in self.paths or test.attr == "training":  # will be there; comes and goes
            return frozenset()
        if not asks:
            return frozenset([test.attr]) if yes else frozenset()
        holds = asks if yes else {"is None": "is not None", "is not None": "is None"}[asks]
        return frozenset([f"{test.attr} {holds}"])

    def _drops(self, node: ast.AST) -> list[ast.Call]:
        return [each for each in ast.walk(node) if isinstance(each, ast.Call) and self._path(each) in self.paths]

    def _path(self, call: ast.Call) -> str | None:
        """Return the attribute of the module that is called."""
        function = call.func
        if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
            return function.attr if function.value.id == self.me else None
        return None

    def _move_into(self, block: list[ast.stmt], place: int) -> int:
        """Move what the first drop inside an ``if`` works on into it, and into its ``else``; return how much that is.

        ``x = self.block(x)`` then ``if self.drop_path is not None: x = self.drop_path(x)``: afterwards both ways begin
        with the first.
        """
        branch = block[place]
        assert isinstance(branch, ast.If)  # noqa: S101  (its caller looked)
        first = branch.body[0]
        while isinstance(first, ast.If):
            first = first.body[0]
        drops = [] if _blocks(first) else self._drops(first)
        if len(drops) != 1 or not drops[0].args:
            return 0
        needed = self._local(loads(drops[0].args))
        start = place
        while start and self._serves(block[start - 1], needed):
            if stores(block[start - 1]) & {*loads(branch.test)} or changed(branch.test):
                break
            needed = (needed - always_stored(block[start - 1])) | self._local(loads(block[start - 1]))
            start -= 1
        moved = block[start:place]
        branch.body[:0] = moved
        branch.orelse[:0] = copy.deepcopy(moved)
        del block[start:place]
        return len(moved)

    def _outline(self, block: list[ast.stmt], place: int, known: set[str], after: Sequence[ast.stmt]) -> int:
        """Make the branch whose drop stands in ``block[place]`` a function; return how many statements became less."""
        statement = block[place]
        drops = self._drops(statement)
        if not drops:
            return 0
        path = str(self._path(drops[0]))
        call = drops[0]
        inside = [each for scope in ast.walk(statement) if isinstance(scope, SCOPES) for each in ast.walk(scope)]
        if (
            not isinstance(statement, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Return | ast.Expr)
            or call in inside
            or len(drops) > 1
            or len(call.args) != 1
            or call.keywords
            or isinstance(call.args[0], ast.Starred)
        ):
            self._leave(path, "it is called in a way that is not known")
            return 0
        value = call.args[0]
        outside = loads(_without(statement, call))
        region = self.region(block, place, value, outside, after)
        while region and self._obstacle(block[:place], region, known, value):
            del region[0]
        if obstacle := self._obstacle(block[:place], region, known, value):
            self._leave(path, obstacle)
            return 0
        inputs = self.inputs(region, value)
        first = self.first_input([*region, value], inputs)
        if first is None:
            self._leave(path, "its branch is not told apart from the rest of the method")
            return 0
        others = [name for name in inputs if name != first]
        names = [first, *others]
        function: ast.expr
        if region:
            name = f"branch_of_{path}_{len(self.rewriting.done)}"
            block[: place + 1] = [
                *_except(block[:place], region),
                _inner_function(name, names, region, value),
                statement,
            ]
            function = _name(name)
        else:
            function = ast.Lambda(_arguments(names), value)
        self.rewriting.entered.setdefault(path, set()).update(self._entered([*region, value], {*inputs}))
        self._replace(statement, call, self._residual(call, first, function, others))
        self.rewriting.done.add(path)
        return max(0, len(region) - 1)

    def _leave(self, path: str, reason: str) -> None:
        self.rewriting.left[path] = reason

    def _local(self, names: Sequence[str]) -> set[str]:
        return self._locals.intersection(names)

    def _serves(self, statement: ast.stmt, needed: set[str]) -> bool:
        """Tell whether ``statement`` computes something ``needed``, does nothing else, and may be run elsewhere."""
        return _is_movable(statement) and not self._drops(statement) and bool(stores(statement) & needed)

    def region(
        self,
        block: Sequence[ast.stmt],
        place: int,
        value: ast.expr,
        outside: Sequence[str],
        after: Sequence[ast.stmt] = (),
    ) -> list[ast.stmt]:
        """Return the statements before ``place`` that compute ``value``.

        Others may stand between them (``shortcut = self.downsample(x)``) if these can as well be run before them.

        Args:
            block: Where ``value`` stands.
            place: In which statement of it.
            value: What the branch returns.
            outside: What that statement reads besides. Nothing is taken that writes it,
            after: or what may run afterwards and reads it.
        """
        needed, written = self._local(loads(value)), set[str]()
        around = _without(block[place], value)
        if changed(around.value if isinstance(around, ast.AugAssign) else around) or _may_be_skipped(
            value, block[place]
        ):
            return []
        left_over = always_stored(block[place])
        region: list[ast.stmt] = []
        between: list[ast.stmt] = []
        for statement in reversed(block[:place]):
            if not _is_movable(statement) or self._drops(statement):
                break
            if not self._serves(statement, needed):
                if changed(statement):
                    break
                between.append(statement)
                continue
            read, wrote = loads(statement), stores(statement)
            if wrote.intersection(loads(between)) or stores(between).intersection([*read, *wrote]):
                break
            if not self._attributes(statement).isdisjoint(self._looked_into([*between, around])):
                break  # `aux = self.moe.aux` would be that of the last call
            written |= wrote
            # A value that outlives the branch would be one of the kept samples only.
            if written.intersection(outside) or any(is_read(name, after) for name in written - left_over):
                break
            region.insert(0, statement)
            needed = (needed - always_stored(statement)) | self._local(read)
        return region

    def _attributes(self, node: ast.AST) -> set[str]:
        return {each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute) and self._is_me(each.value)}

    def _looked_into(self, nodes: Sequence[ast.AST]) -> set[str]:
        """Return the attributes that are read other than by a call: ``self.moe.aux``, ``f(self.moe)``."""
        called = {id(call.func) for node in nodes for call in ast.walk(node) if isinstance(call, ast.Call)}
        parts = (each for node in nodes for each in ast.walk(node) if isinstance(each, ast.Attribute))
        return {each.attr for each in parts if self._is_me(each.value) and id(each) not in called}

    def _is_me(self, node: ast.AST) -> bool:
        return isinstance(node, ast.Name) and node.id == self.me

    def _obstacle(
        self, above: Sequence[ast.stmt], region: Sequence[ast.stmt], known: set[str], value: ast.expr
    ) -> str | None:
        """Return why a branch may not begin where ``region`` does; None if it may."""
        inputs = {*self.inputs(region, value)}
        if not inputs.isdisjoint(self._batch_sizes):
            return "its branch needs the number of samples"
        if not inputs <= known.union(*map(always_stored, _except(above, region))):
            return "its branch needs what may have no value"
        parts = [each for node in (*region, value) for each in ast.walk(node)]
        if any(isinstance(each, ast.Attribute) and each.attr in self._set for each in parts):
            return "its branch reads an attribute that its method sets"
        within = {id(each) for each in parts}
        late = {*loads([each for each in self._late if id(each) not in within])}
        if not late.isdisjoint(stores(region)):
            return "an inner function reads what its branch computes"
        if not inputs.isdisjoint(_changed_by(region, value)):
            return "its branch changes in place what it is given"
        return None

    def inputs(self, region: Sequence[ast.stmt], value: ast.expr) -> list[str]:
        """Return the local names whose values from before the branch it reads, in the order of evaluation."""
        return [name for name in free_names([*region, value]) if name in self._locals]

    def first_input(self, nodes: Sequence[ast.AST], inputs: Sequence[str]) -> str | None:
        """Return the input that the first module of the branch is given; None if no module is called."""
        for node in nodes:
            for call in _calls(node):
                if loads(call.func)[:1] == [self.me]:
                    given = [name for name in loads([*call.args, *call.keywords]) if name in inputs]
                    if given:
                        return given[0]
        return None

    def _entered(self, nodes: Sequence[ast.AST], given: set[str]) -> Iterator[str]:
        """Yield the attributes that are called with one of the names ``given``, or with an alias of it."""
        for node in nodes:
            for call in _calls(node):
                attribute = self._path(call)
                if attribute and any(isinstance(each, ast.Name) and each.id in given for each in call.args):
                    yield attribute
            if isinstance(node, ast.Assign):
                alias = not _is_new(node.value) and not given.isdisjoint(loads(node.value))
                given = given | stores(node) if alias else given - stores(node)

    def _residual(self, call: ast.Call, first: str, function: ast.expr, others: Sequence[str]) -> ast.Call:
        keywords = []
        if others:
            values = ast.Dict([ast.Constant(name) for name in others], [_name(name) for name in others])
            keywords.append(ast.keyword("kwargs", values))
        shared = {name: ndim for name in others for pattern, ndim in _SHARED_BELOW.items() if pattern.search(name)}
        shared |= {name: 0 for name in others if name in self._of_weights}
        if shared:
            listed = ", ".join(
                # Tables may come in pairs, (cos, sin).
                f"*({name!r},) * (getattr({name}[0] if isinstance({name}, tuple) else {name}, 'ndim', 0) < {ndim})"
                if ndim
                else repr(name)
                for name, ndim in shared.items()
            )
            keywords.append(ast.keyword("shared_inputs", ast.parse(f"({listed},)", mode="eval").body))
        method = ast.Attribute(call.func, "residual", ast.Load())
        return ast.Call(method, [_name(first), function, ast.Constant(0)], keywords)

    def _replace(self, statement: ast.stmt, call: ast.Call, residual: ast.Call) -> None:
        """Put ``residual`` where ``call`` stands; the sum around it, if there is one, is done by it."""
        for parent in ast.walk(statement):
            if isinstance(parent, ast.BinOp) and isinstance(parent.op, ast.Add) and call in (parent.left, parent.right):
                skip = parent.right if parent.left is call else parent.left
                if isinstance(skip, ast.Constant) or (skip is parent.right and not isinstance(skip, ast.Name)):
                    break  # a number is no tensor, and what stands on the right is to be computed after the branch
                residual.args[2] = ast.Lambda(_arguments([_unlike("_x", self._locals)]), skip)
                residual.keywords.append(ast.keyword("broadcast", ast.Constant(True)))
                _swap(statement, parent, residual)
                return
        _swap(statement, call, residual)


def changed(nodes: ast.AST | Sequence[ast.AST]) -> set[str]:
    """Return the names of what is visibly changed in place: ``x += y``, ``x.add_(y)``, ``f(x, inplace=True)``.

    Whether it is something of its own, or known by another name, too, is not told.
    """
    found = set[str]()
    for node in (each for one in (nodes if isinstance(nodes, Sequence) else [nodes]) for each in ast.walk(one)):
        if isinstance(node, ast.AugAssign):
            found |= stores(node.target)
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute) and _CHANGING.fullmatch(node.func.attr):
                found |= {*loads(node.func)}
                if node.func.attr.endswith("_"):  # `torch.relu_(x)`
                    found |= {*loads(node.args[:1])}
            if any(each.arg == "inplace" for each in node.keywords):
                found |= {*loads(node.args)}
            found |= {name for each in node.keywords if each.arg == "out" for name in loads(each.value)}
    return found


def _changed_by(region: Sequence[ast.stmt], value: ast.expr) -> set[str]:
    """Return what is changed in place by statements and a value, whatever name it had before them."""
    found = changed(value)
    for statement in reversed(region):
        if not isinstance(statement, ast.Assign):
            found |= changed(statement)
        for _ in region:  # an alias of an alias
            for each in ast.walk(statement):
                if isinstance(each, ast.Assign | ast.AnnAssign) and stores(each) & found and not _is_new(each.value):
                    found |= {*loads(each)}
        if isinstance(statement, ast.Assign) and _is_new(statement.value):
            found -= stores(statement)
        found |= changed(statement)
    return found


def _is_new(value: ast.expr | None) -> bool:
    """Tell whether a value is no other name, and no view, of what it is made of, as far as can be seen."""
    if isinstance(value, ast.BinOp | ast.List | ast.ListComp | ast.Dict):
        return True
    method = value.func if isinstance(value, ast.Call) else None  # `self.norm(x)`, but not `x.flatten(2)`
    return isinstance(method, ast.Attribute) and loads(method) == ["self"]


def _unlike(name: str, names: set[str]) -> str:
    while name in names:
        name += "_"
    return name


def _blocks(statement: ast.AST) -> list[list[ast.stmt]]:
    if isinstance(statement, ast.FunctionDef):
        return []
    blocks = [getattr(statement, name, None) for name in ("body", "orelse", "finalbody")]
    found = [block for block in blocks if isinstance(block, list)]
    return found + [handler.body for handler in getattr(statement, "handlers", ())]


def _calls(node: ast.AST) -> Iterator[ast.Call]:
    """Yield calls in the order in which they are made."""
    for child in ast.iter_child_nodes(node):
        yield from _calls(child)
    if isinstance(node, ast.Call):
        yield node


def _is_movable(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.If | ast.For):
        return all(_is_movable(each) for each in (*statement.body, *statement.orelse))
    if grown_list(statement):
        return True
    if not isinstance(statement, ast.Assign | ast.AugAssign | ast.AnnAssign) or statement.value is None:
        return False
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    leaves = [each for target in targets for each in ([*target.elts] if isinstance(target, ast.Tuple) else [target])]
    return all(isinstance(leaf, ast.Name) for leaf in leaves) and not any(
        isinstance(node, ast.NamedExpr | ast.Yield | ast.YieldFrom | ast.Await) for node in ast.walk(statement)
    )


def _without(statement: ast.stmt, call: ast.expr) -> ast.stmt:
    """Return a copy of ``statement`` with a constant in place of ``call``, a part of it."""
    return copy.deepcopy(statement, {id(call): ast.Constant(None)})


def _may_be_skipped(value: ast.expr, statement: ast.stmt) -> bool:
    """Tell whether ``value`` is not always computed where it stands: ``x + self.drop_path(y) if self.wide else x``."""
    lazy = (each for each in ast.walk(statement) if isinstance(each, ast.IfExp | ast.BoolOp))
    return any(part is value for each in lazy for part in ast.walk(each))


def _except(block: Sequence[ast.stmt], region: Sequence[ast.stmt]) -> list[ast.stmt]:
    return [statement for statement in block if not any(statement is each for each in region)]


def _swap(root: ast.AST, old: ast.AST, new: ast.AST) -> None:
    for parent in ast.walk(root):
        for name, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, name, new)
            elif isinstance(value, list):
                value[:] = [new if each is old else each for each in value]


def _inner_function(name: str, inputs: Sequence[str], body: Sequence[ast.stmt], value: ast.expr) -> ast.FunctionDef:
    function = ast.parse(f"def {name}(): pass").body[0]
    assert isinstance(function, ast.FunctionDef)  # noqa: S101  (it is written above)
    function.args = _arguments(inputs)
    function.body = [*body, ast.Return(value)]
    return ast.copy_location(function, body[0])


def _arguments(names: Sequence[str]) -> ast.arguments:
    return ast.arguments([], [ast.arg(name) for name in names], None, [], [], None, [])


def _name(name: str) -> ast.Name:
    return ast.Name(name, ast.Load())
