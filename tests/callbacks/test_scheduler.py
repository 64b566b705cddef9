"""The arguments of both schedulers, and what is particular to either family of sites."""

import sys
from pathlib import Path
from typing import Any

import lightning.pytorch
import lightning.pytorch.cli
import pytest
import pytorch_lightning
import pytorch_lightning.cli
from torch import nn

from lightning_dropout.callbacks import DropoutScheduler, MCDropout, RankRandomness, StochasticDepthScheduler
from lightning_dropout.callbacks.rate_arguments import Assignment
from lightning_dropout.models import ResNet, ViT
from lightning_dropout.nn import DropPath, depth_rates
from lightning_dropout.schedules import Cyclic, Late, Linear, Piecewise
from lightning_dropout.sites import find_sites

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
]
BOTH = [DropoutScheduler, StochasticDepthScheduler]


@pytest.mark.parametrize("scheduler", BOTH)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Expected exactly one of `rate` .* and `scale` .*, but got neither"),
        ({"rate": 0.1, "scale": 0.5}, "Expected exactly one of .*, but got both"),
        ({"rate": 1.5}, r"Expected `rate` to be a probability of dropping.*but got 1\.5"),
        ({"rate": "0.1"}, r"Expected `rate` to be a probability of dropping.*but got '0\.1'"),
        ({"rate": lambda progress: progress}, "Expected `rate` to be .* or a schedule of them.*`Schedule` of your own"),
        ({"rate": Linear}, "Expected `rate` to be .* or a schedule of them.*e.g. `rate=Linear"),
        ({"rate": 0.1, "sites": None}, 'Expected `sites` to be a pattern or a list of patterns such as "blocks'),
        ({"rate": 0.1, "exclude": [1]}, r"Expected `exclude` to be a pattern .* but got \[1\]"),
        ({"rate": True}, "Expected `rate` to be a probability of dropping.*but got True"),
        ({"rate": float("nan")}, "Expected `rate` to be a probability of dropping.*but got nan"),
        ({"rate": {"*": -0.1}}, r"Expected `rate` to be a probability of dropping.*but got -0\.1"),
        ({"rate": Linear(0.0, 1.5)}, r"Expected `rate` to give probabilities in \[0, 1\].*use `scale` for factors"),
        ({"scale": "linear"}, "Expected `scale` to be a factor or a schedule of factors.* but got 'linear'"),
        ({"scale": -1.0}, "finite values of at least 0, but got -1"),
        ({"rate": {}}, "Expected `rate` to map at least one pattern"),
        ({"rate": {"*": 0.1}, "sites": "blocks.*"}, "Expected `sites` to be left out .* write it into the keys"),
        ({"rate": 0.1, "name": "no/slash"}, "Expected `name` to consist of letters, digits and underscores"),
        ({"rate": 0.1, "name": ""}, "Expected `name` to consist of"),
        ({"rate": 0.1, "name": "mean"}, r"Expected a log key of its own for each group, but `drop.*/mean`"),
        ({"rate": {"a.b": 0.1, "a_b": 0.2}}, "Expected a log key of its own for each group, but `drop.*/a_b`"),
        ({"rate": 0.1, "unit": "batch"}, 'Expected `unit` to be "step" or "epoch", but got \'batch\''),
        ({"rate": 0.1, "begin": 10}, "Expected `begin` to be epochs .* but got 10"),
        ({"rate": 0.1, "begin": 0.5, "end": 0.25}, "Expected `begin` to lie before `end`"),
        ({"rate": 0.1, "total": 5}, r'Expected `total` to be epochs \("10ep"\) or optimizer steps .* but got 5'),
        ({"rate": 0.1, "total": 0.5}, "Expected `total` to be e.g."),
    ],
)
def test_impossible_arguments_are_refused_at_construction(scheduler: Any, arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scheduler(**arguments)


def test_depth_rules_are_known_and_belong_to_rates() -> None:
    with pytest.raises(ValueError, match="Expected `depth_rule` to be one of keep, linear, uniform, but got 'cosine'"):
        StochasticDepthScheduler(rate=0.1, depth_rule="cosine")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='Expected `depth_rule="keep"` beside `scale`'):
        StochasticDepthScheduler(scale=0.1, depth_rule="linear")


def test_filling_needs_rates() -> None:
    with pytest.raises(ValueError, match=r"Expected `rate` beside `fill_identity=True`, but got `scale`.*no factor"):
        StochasticDepthScheduler(scale=0.1, fill_identity=True)


def test_filling_is_no_cure_for_a_wrong_word_in_exclude() -> None:
    """As timm keeps an ``Identity`` in the first block, whose rate is 0."""
    model = nn.ModuleDict({"a": nn.Module(), "b": nn.Module()})
    model["a"].drop_path = nn.Identity()
    with pytest.raises(ValueError, match="Or pass `fill_identity=True`"):
        StochasticDepthScheduler(rate=0.1)._find(model, "*")
    model["b"].drop_path = DropPath(0.1)
    with pytest.raises(ValueError, match=r"Expected `exclude` .* but got 'ab'") as error:
        StochasticDepthScheduler(rate=0.1, exclude="ab")._find(model, "*")
    assert "fill_identity" not in str(error.value)


def test_the_key_of_the_state_depends_on_the_name_alone() -> None:
    assert DropoutScheduler(rate=0.1).state_key == DropoutScheduler(scale=Linear(0, 1), sites="a").state_key
    assert DropoutScheduler(rate=0.1, name="a").state_key == "DropoutScheduler[a]"
    assert StochasticDepthScheduler(rate=0.1).state_key == "StochasticDepthScheduler"


EVERYTHING = {"p": 0.1, "attention_p": 0.2, "projection_p": 0.3, "drop_path": 0.4}


def rates(net: nn.Module, *kinds: Any) -> list[float]:
    return [site.rate for site in find_sites(net, kinds=kinds)]


@pytest.mark.parametrize("pattern", ["*", "blocks.*", ["blocks.*", "dropout"]])
def test_patterns_never_cross_the_line_between_the_families(
    make_trainer: Any, make_recorder: Any, loader: Any, pattern: Any
) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Unflatten(1, (1, 2, 2)), ViT((1, 2, 2), 3, "digits", depth=2, **EVERYTHING))
    for scheduler, mine, others in (
        (DropoutScheduler, ("dropout", "attention"), ("drop_path",)),
        (StochasticDepthScheduler, ("drop_path",), ("dropout", "attention")),
    ):
        module, before = make_recorder(net), rates(net, *others)
        make_trainer(scheduler(rate=0.75, sites=pattern), max_epochs=1).fit(module, loader)
        kinds = {site.name: site.kind for site in module.sites()}
        seen = module.trained[-1]
        assert {seen[name] for name, kind in kinds.items() if kind in mine and name.startswith("2.blocks")} == {0.75}
        assert [seen[name] for name, kind in kinds.items() if kind in others] == before


def test_recurrent_dropout_is_dropout(make_trainer: Any, make_recorder: Any, loader: Any) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(1, 4, num_layers=2, dropout=0.5, batch_first=True), nn.Linear(4, 3)

        def forward(self, x: Any) -> Any:
            return self.head(self.lstm(x[..., None])[0][:, -1])

    module = make_recorder(Recurrent())
    make_trainer(DropoutScheduler(rate=Linear(0.0, 0.75)), max_epochs=1).fit(module, loader)
    assert module.trace("lstm") == [0.0, 0.25, 0.5]


# --- depth ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [{"rate": Linear(0.0, 0.6), "depth_rule": "linear"}, {"scale": Linear(0.0, 2.0)}])
def test_the_linear_rule_is_that_of_the_models(
    make_trainer: Any, make_recorder: Any, loader: Any, arguments: Any
) -> None:
    """Imposed on a model, or kept of one that was built with it: the same rates in every block."""
    vit = ViT((1, 2, 2), 3, "digits", depth=4, drop_path=0.3)
    module = make_recorder(nn.Sequential(nn.Unflatten(1, (1, 2, 2)), vit))
    make_trainer(StochasticDepthScheduler(**arguments), max_epochs=1).fit(module, loader)
    expected = [rate for rate in depth_rates(0.6 * 2 / 3, 4, rule="linear") for _ in ("drop_path1", "drop_path2")]
    names = [site.name for site in find_sites(module.net, kinds="drop_path")]
    assert [module.trace(name)[-1] for name in names] == pytest.approx(expected)
    assert {module.trace(name)[0] for name in names} == {0.0}


@pytest.mark.parametrize("depth_rule", ["keep", "uniform"])
def test_without_a_depth_rule_every_site_gets_the_value(
    make_trainer: Any, make_recorder: Any, loader: Any, depth_rule: Any
) -> None:
    module = make_recorder(nn.Sequential(nn.Unflatten(1, (1, 2, 2)), ResNet((1, 2, 2), 3, depth=20, drop_path=0.1)))
    make_trainer(StochasticDepthScheduler(rate=0.2, depth_rule=depth_rule), max_epochs=1).fit(module, loader)
    assert [module.trace(site.name)[-1] for site in find_sites(module.net, kinds="drop_path")] == [0.2] * 9


def test_one_block_has_no_depth(make_trainer: Any, make_recorder: Any, loader: Any) -> None:
    module = make_recorder(nn.Sequential(nn.Linear(4, 3), DropPath(0.1)))
    with pytest.raises(ValueError, match=r'Expected at least two blocks for `depth_rule="linear"`.*`net\.1`'):
        make_trainer(StochasticDepthScheduler(rate=0.5, depth_rule="linear"), max_epochs=1).fit(module, loader)


def test_drop_paths_built_with_0_want_rates(make_trainer: Any, make_recorder: Any, loader: Any) -> None:
    module = make_recorder(nn.Sequential(nn.Linear(4, 3), DropPath(), DropPath()))
    with pytest.raises(ValueError, match="Expected `scale` to find a rate above 0"):
        make_trainer(StochasticDepthScheduler(scale=Linear(0.0, 1.0)), max_epochs=1).fit(module, loader)
    make_trainer(StochasticDepthScheduler(rate=0.5), max_epochs=1).fit(module, loader)
    assert module.trace() == [0.5] * 3


# --- YAML -----------------------------------------------------------------------------------------------------------

YAML = """
trainer:
  accelerator: cpu
  logger: false
  enable_checkpointing: false
  callbacks:
    - class_path: lightning_dropout.DropoutScheduler
      init_args:
        rate:
          class_path: lightning_dropout.schedules.Late
          init_args: {peak: 0.3, begin: 0.25}
        begin: 1ep
        end: 0.75
        unit: epoch
        sites: [a, b]
        compile_mode: stairs
        stairs: 3
    - class_path: lightning_dropout.DropoutScheduler
      init_args:
        rate:
          head: 0.1
          body: {class_path: lightning_dropout.schedules.Linear, init_args: {start: 0, end: 0.5}}
          tail:
            class_path: lightning_dropout.schedules.Piecewise
            init_args:
              schedules: [{class_path: lightning_dropout.Cyclic, init_args: {start: 0, end: 0.5, cycles: 2}}, 0.25]
              boundaries: [0.5]
        name: groups
    - class_path: lightning_dropout.callbacks.StochasticDepthScheduler
      init_args: {rate: 0.2, depth_rule: linear, total: 500step, fill_identity: true}
    - class_path: lightning_dropout.callbacks.MCDropout
      init_args: {num_samples: 5, task: multiclass, rates: 0.5, stages: [test], labels: "1", kinds: [drop_path]}
    - class_path: lightning_dropout.callbacks.RankRandomness
      init_args: {seed: 3}
"""


@pytest.mark.parametrize("package", [lightning.pytorch, pytorch_lightning])
def test_the_command_line_of_either_package_builds_every_callback(
    make_recorder: Any, package: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["main.py"])  # of this test run, else
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # what Lightning calls in jsonargparse
    config = tmp_path / "config.yaml"
    config.write_text(YAML)
    cli = package.cli.LightningCLI(
        type(make_recorder(package=package)),
        run=False,
        args=["--config", str(config), "--model.net=torch.nn.Identity"],
        save_config_callback=None,
        seed_everything_default=False,
    )
    late, groups, depth, mc, ranks = cli.trainer.callbacks[:5]
    assert late._plan == [Assignment(None, ["a", "b"], Late(0.3, begin=0.25))]
    assert (late._clock.begin, late._clock.end, late._clock.unit) == ("1ep", 0.75, "epoch")
    assert (late._compile_mode, late._stairs) == ("stairs", 3)
    head, body, tail = groups._plan
    assert (head.name, head.pattern) == ("head", "head")
    assert body == Assignment("body", "body", Linear(0, 0.5))
    assert tail.schedule == Piecewise([Cyclic(0, 0.5, cycles=2), 0.25], [0.5])
    assert isinstance(depth, StochasticDepthScheduler)
    assert depth._fill_identity is True
    assert isinstance(mc, MCDropout)
    assert (mc.num_samples, mc.rates, mc.stages, mc.labels, mc.kinds) == (5, 0.5, ("test",), "1", ("drop_path",))
    assert isinstance(ranks, RankRandomness)
    assert ranks.seed == 3
