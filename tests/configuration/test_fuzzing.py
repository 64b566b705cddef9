"""Configs that are wrong in ways nobody thought of: each gives an object, or one line that names the key.

Whole configs are composed once and one thing in them is changed, then the part that was changed is checked and built
as ``scripts/train.py`` does. Nothing is trained. Memory is limited, so that a size taken at its word is noticed.
"""

import contextlib
import functools
import resource
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf, open_dict

from lightning_dropout.configuration import (
    build,
    build_each,
    check_run,
    check_seed,
    explain,
    fill_from_data,
    refuse_secrets,
)

CONF = Path(__file__).parents[2] / "conf"
BASES = {
    "net": ["model=net"],
    "vit": ["model=vit", "callbacks/dropout=curriculum", "logger=tensorboard"],
    "resnet": ["model=resnet", "callbacks/dropout=piecewise", "callbacks/stochastic_depth=late"],
    "sinusoid": ["model=mlp", "data=sinusoid", "module=regressor", "callbacks/mc_dropout=gaussian"],
    "tabular": ["experiment=tabular", "callbacks/dropout=cyclic"],
    "sequential": ["experiment=sinusoid", "callbacks/dropout=early", "logger=wandb"],
}
PARTS = ("data", "model", "module", "callbacks", "logger", "trainer", "seed", "ckpt_path", "run_group")
_ALWAYS = ("output_dir", "seed", "run_group", "resume")  # what other parts refer to
MEMORY = 4 * 2**30  # bytes beyond what the process has; no tiny model comes near
SECONDS = 10.0
WARNINGS = 3

HUGE = (10**9, 2**31, 2**63, 10**30, -(10**30), 1e308)
ODD_NUMBERS = (0, -1, 1, 2, 7, 1.5, -0.5, 1e-300, float("nan"), float("inf"), float("-inf"), *HUGE)
ODD_TEXTS = ("", " ", "abc", "nan", "null", "0.1", "1e3", "a\nb", "\x00", "\x1b[2J", "../../x", "/etc/passwd", "ä😀",
             "x" * 5000, "???", "${seed}", "${nowhere}", "${model.${x}}", "${", "${oc.env:NO_SUCH_VARIABLE}", "$(true)",
             "torch.nn.Dropout", "os.system", "lightning_dropout.nn.Nothing", "auto", "-1", "[]", "yes")  # fmt: skip
odd_values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.sampled_from(ODD_NUMBERS),
        st.sampled_from(ODD_TEXTS),
        st.integers(-3, 40),
        st.integers(1, 8),
        st.floats(-2, 2),
        st.floats(0, 1),
        st.text(st.characters(codec="utf-8"), max_size=8),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(("a", "_target_", "_args_", "_partial_", "*", "api", "p")), inner, max_size=2),
    ),
    max_leaves=4,
)


@functools.cache
def base(name: str) -> dict[str, Any]:
    """Return one composed config as plain containers, references unresolved."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", ["output_dir=/tmp/fuzzed/run", "trainer=cpu", *BASES[name]])
    plain = OmegaConf.to_container(cfg)
    assert isinstance(plain, dict)
    plain.pop("hydra", None)
    return plain


@functools.cache
def data_of(name: str) -> Any:
    data = build(OmegaConf.create(base(name)), "data")
    data.prepare_data()
    data.setup("fit")
    return data


def paths(node: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if path:
        yield path
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, child in children:
        yield from paths(child, (*path, name))


@functools.cache
def places(name: str) -> list[tuple[str | int, ...]]:
    """Return all places; arguments more often than whole nodes and targets, whose change is nearly always refused."""
    everywhere = [path for path in paths(base(name)) if path[0] in PARTS]
    leaves = [path for path in everywhere if path[-1] != "_target_" and not isinstance(_at(name, path), (dict, list))]
    return everywhere + 5 * leaves


def _at(name: str, path: tuple[str | int, ...]) -> Any:
    return functools.reduce(lambda node, step: node[step], path, base(name))


@st.composite
def mutations(draw: st.DrawFn) -> tuple[str, str, tuple[str | int, ...], Any]:
    """Draw a config, and what is done to it where: a value replaced, a key added or removed."""
    name = draw(st.sampled_from(sorted(BASES)))
    path = draw(st.sampled_from(places(name)))
    action = draw(st.sampled_from(("replace", "replace", "replace", "replace", "add", "remove")))
    return name, action, path, draw(odd_values) if action != "remove" else None


def mutated(name: str, action: str, path: tuple[str | int, ...], value: Any) -> tuple[DictConfig, str]:
    """Return the changed config, as far as the change is seen there, and the key that the line has to lead to."""
    plain, part = _copy(base(name)), str(path[0])
    node = functools.reduce(lambda inner, step: inner[step], path[:-1], plain)
    if action == "remove":
        del node[path[-1]]
    else:
        if action == "add" and isinstance(node, dict):
            path = (*path[:-1], "unknown_key")
        node[path[-1]] = value
    needed = {part, str(path[0]), *_ALWAYS, *(("model", "module") if part in ("model", "module") else ())}
    if part not in _ALWAYS:  # the others cannot see the change
        plain = {key: item for key, item in plain.items() if key in needed}
    return OmegaConf.create(plain), ".".join(str(step) for step in path if isinstance(step, str))


def _copy(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _copy(item) for key, item in node.items()}
    return [_copy(item) for item in node] if isinstance(node, list) else node


def run_part(cfg: DictConfig, part: str, name: str) -> None:
    """Do with one part of the config what scripts/train.py does."""
    check_run(cfg)
    if part == "seed":
        check_seed(cfg.seed)
    elif part == "data":
        data = build(cfg, "data")
        data.prepare_data()
        data.setup("fit")
        if data.num_workers == 0:  # starting processes is the machine's time
            next(iter(data.train_dataloader()))
    elif part in ("model", "module"):
        fill_from_data(cfg, data_of(name))
        build(cfg, "module", net=build(cfg, "model"))
    elif part in ("callbacks", "logger"):
        build_each(cfg, part)
    elif part == "trainer":
        build(cfg, "trainer", callbacks=[], logger=False)


def outcome(mutation: tuple[str, str, tuple[str | int, ...], Any]) -> str:
    """Return ``"valid"`` or ``"refused"``, or what came instead of these."""
    name, _, path, _ = mutation
    try:
        cfg, key = mutated(*mutation)
    except Exception as error:  # OmegaConf refuses the text while the config is made: as Hydra would, with its line
        return "refused" if explain(error) else f"made: {type(error).__name__}: {error}"
    data_of(name)  # imports and data are not the change's doing
    with limited(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            run_part(cfg, str(path[0]), name)
        except BaseException as error:
            line = explain(error)
            if line is None:
                return f"{type(error).__name__}: {str(error)[:300]}"
            if not line.isprintable() or len(line) > 1600:
                return f"no line: {line!r}"
            return "refused" if _names(line, key) else f"no key: {line}"
    return "valid" if len(caught) <= WARNINGS else f"{len(caught)} warnings: {caught[0].message}"


def _names(line: str, key: str) -> bool:
    """Whether the line says the key, or one that it is part of or that depends on it."""
    last = key.rpartition(".")[2]
    return last.removeprefix("run_") in line or key.partition(".")[0] in line.partition(":")[0]


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Bound memory and time; what is over raises where it happens."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    handler = signal.signal(signal.SIGALRM, _too_long)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def _too_long(*_: object) -> None:
    raise TimeoutError(f"more than {SECONDS} seconds")


def fuzz(examples: int, seen: Counter[str]) -> None:
    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(mutations())
    def check(mutation: tuple[str, str, tuple[str | int, ...], Any]) -> None:
        result = outcome(mutation)
        seen[result] += 1
        assert result in ("valid", "refused"), (result, mutation)

    check()


@pytest.mark.filterwarnings("ignore")
def test_a_few_hundred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seen: Counter[str] = Counter()
    fuzz(300, seen)
    assert min(seen["valid"], seen["refused"]) > 15, seen  # both ends are reached


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ten_thousand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seen: Counter[str] = Counter()
    fuzz(10_000, seen)
    print(dict(seen))
    assert sum(seen.values()) >= 9_900, seen


ODD_WORDS = [f"{key}{sign}{value}"
             for key in ("model", "modle", "data", "callbacks/dropout", "callbacks.dropout", "trainer.max_epochs",
                         "experiment", "+model", "~model", "++trainer.x", "logger@x", "hydra", "")
             for sign in ("=", "==", "", "=[", "={")
             for value in ("vit", "vti", "", "null", "../../etc/passwd", "a,b", "1e999", "'", "\\", "${x}", "ä")]  # fmt: skip  # noqa: E501


def line_of_words(words: list[str]) -> str | None:
    """Return None if the words compose a config, else the line; whatever else raises is the caller's."""
    try:
        refuse_secrets(words)
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("train", ["output_dir=/tmp/fuzzed/run", *words])
            with open_dict(cfg):
                cfg.pop("hydra", None)
            check_run(cfg)
    except Exception as error:
        return explain(error) or f"\x00{type(error).__name__}: {error}"
    return None


@pytest.mark.parametrize("part", [pytest.param(1, marks=pytest.mark.slow), 24])
def test_words_of_a_command_line(part: int) -> None:
    lines = [line_of_words([word]) for word in ODD_WORDS[::part]]
    assert None in lines
    assert any(lines)
    assert all(line.isprintable() for line in lines if line)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("module", "check", "mutation"),
    [
        ("signatures", "accepts", ("tabular", "replace", ("data", "feature_columns"), 22)),
        ("explain", "_only_in_libraries", ("sequential", "replace", ("model", "_args_", 3), [])),
    ],
)
def test_the_fuzzing_sees_a_check_that_is_missing(
    module: str, check: str, mutation: tuple[str, str, tuple[str | int, ...], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert outcome(mutation) == "refused"
    # By sys.modules: the function `explain` hides its module. Each check is asked whether a value may pass.
    room = sys.modules[f"lightning_dropout.configuration.{module}"]
    monkeypatch.setattr(room, check, lambda *_: module == "signatures")
    assert outcome(mutation).startswith("TypeError")


def test_a_size_that_no_memory_holds_costs_none() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for size in (10**9, 10**30):
        assert outcome(("sinusoid", "replace", ("data", "num_samples"), size)) == "refused"
        for name, argument in (("net", "hidden"), ("vit", "dim"), ("resnet", "width"), ("tabular", "dim")):
            assert outcome((name, "replace", ("model", argument), size)) == "refused", (name, argument)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19  # KiB: half a GiB, imports included
