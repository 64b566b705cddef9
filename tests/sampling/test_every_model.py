"""Every model of the tests of the sites, sampled: passes differ, the model is as before, and reuse changes no number.

The tables stand with the adapters of each library; a row added there is sampled here.
"""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from lightning_dropout.sampling import MCPrediction, mc_sample
from lightning_dropout.sampling import sample as sample_file
from lightning_dropout.sampling.reuse import PrefixReuse
from lightning_dropout.sites import Kind, Site, find_sites

TABLES = Path(__file__).parent.parent / "sites" / "adapters"
KINDS = get_args(Kind)

Row = tuple[Callable[[], nn.Module], Callable[[nn.Module], Tensor]]


def table_of(library: str) -> Any:
    """Return the file that tests the adapters of ``library``; ``None`` if it is not installed."""
    spec = importlib.util.spec_from_file_location(f"table_of_{library}", TABLES / f"test_{library}.py")
    assert spec is not None
    assert spec.loader is not None
    table = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(table)
    except pytest.skip.Exception:
        return None
    return table


def rows() -> Iterator[tuple[str, Row]]:
    for library in ("torch", "timm", "torchvision"):
        for name, (build, *others) in getattr(table_of(library), "ROWS", {}).items():
            (run,) = (other for other in others if callable(other))
            yield f"{library}: {name}", (build, run)
    transformers = table_of("transformers")
    for name, (_, _, run, _) in getattr(transformers, "ROWS", {}).items():
        for attention in ["eager"] if name.startswith(transformers.EAGER_ONLY) else ["eager", "sdpa"]:
            yield (
                f"transformers, {attention}: {name}",
                (lambda name=name, attention=attention: transformers.build(name, attention), run),
            )


ROWS = dict(rows())
# The models in which switching on the Dropout layers alone switches on nothing.
LEFT_OUT_BY_OTHERS = [
    "torch: MultiheadAttention",
    "timm: attention, fused: its child only holds the rate",
    "timm: ResNet: a number at the root",
    "torchvision: DenseNet: a number in every layer",
    "transformers, sdpa: Llama: a float on the attention",
    "transformers, sdpa: BART: floats everywhere, layerdrop",
]

pytestmark = [
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning"),
    pytest.mark.filterwarnings("ignore:dropout option adds dropout after all but last:UserWarning"),
]


class Runs(nn.Module):
    """A model together with its inputs."""

    def __init__(self, model: nn.Module, run: Callable[[nn.Module], Tensor]) -> None:
        super().__init__()
        self.model, self.run = model, run

    def forward(self) -> Tensor:
        return self.run(self.model)


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    build, run = ROWS[name]
    model = build()
    model.train()
    with torch.no_grad():
        run(model)  # statistics of normalisation layers away from where they begin
    return Runs(model, run).eval()


def snapshot(model: nn.Module) -> tuple[Any, ...]:
    return (
        [module.training for module in model.modules()],
        [sorted(set(vars(module)) - {"_output_capturing_hooks_installed"}) for module in model.modules()],
        {name: tensor.clone() for name, tensor in (*model.state_dict().items(), *model.named_buffers())},
        [(site.name, site.rate) for site in find_sites(model)],
        [list(module._forward_hooks) + list(module._forward_pre_hooks) for module in model.modules()],
    )


def in_full(self: PrefixReuse, prepare: Callable[[], object], forward: Callable[[], Any]) -> Any:
    prepare()
    return forward()


def check(name: str, context: Callable[[], Any], sites: Callable[[Sequence[Site]], list[str]]) -> MCPrediction:
    """Sample, compare with passes that run in full, and see that nothing has changed."""
    model = built(name)
    chosen = sites(find_sites(model))

    def sample() -> MCPrediction:
        with context():
            return mc_sample(model, num_samples=8, task="raw", kinds=KINDS, sites=chosen, seed=1, return_samples=True)

    before = snapshot(model)
    prediction = sample()
    after = snapshot(model)
    assert prediction.samples is not None
    assert len(prediction.samples.flatten(1).unique(dim=0)) > 1
    assert before[:2] == after[:2]
    assert before[3:] == after[3:]
    assert before[2].keys() == after[2].keys()
    assert all(torch.equal(tensor, after[2][key]) for key, tensor in before[2].items())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PrefixReuse, "run", in_full)
        expected = sample()
    assert expected.samples is not None
    assert torch.equal(prediction.samples, expected.samples)
    assert torch.equal(prediction.mean, expected.mean)
    assert torch.equal(prediction.variance, expected.variance)
    assert prediction.reuse is not None
    assert prediction.reuse.note == ""
    assert prediction.reuse.passes > 0
    return prediction


@pytest.mark.parametrize("context", [contextlib.nullcontext, torch.inference_mode])
@pytest.mark.parametrize("name", ROWS)
def test_all_sites_at_once(name: str, context: Callable[[], Any]) -> None:
    check(name, context, lambda sites: [site.name for site in sites])


def last_that_drops(sites: Sequence[Site]) -> list[str]:
    return [site.name for site in sites if site.kind != "layer_drop" and site.rate > 0.0][-1:]


@pytest.mark.parametrize("name", ROWS)
def test_the_last_site_alone(name: str) -> None:
    """All but the last of the model runs once."""
    check(name, torch.inference_mode, last_that_drops)


@contextlib.contextmanager
def dropout_layers_only(sites: Sequence[Site], *_: Any) -> Iterator[None]:
    layers = {id(site.holder): site.holder for site in sites if isinstance(site.holder, nn.Dropout)}
    for layer in layers.values():
        layer.train()
    try:
        yield
    finally:
        for layer in layers.values():
            layer.eval()


def first_that_others_leave_out(sites: Sequence[Site]) -> list[str]:
    return [site.name for site in sites if site.kind == "attention" or site.attribute == "drop_rate"][:1]


@pytest.mark.parametrize("name", [name for name in LEFT_OUT_BY_OTHERS if name in ROWS])
def test_dropout_layers_alone_leave_passes_equal(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_file, "dropping", dropout_layers_only)
    with pytest.raises(RuntimeError, match="Expected passes that differ"):
        check(name, contextlib.nullcontext, first_that_others_leave_out)


def test_the_models_that_others_leave_out_are_there() -> None:
    installed = {name.partition(":")[0] for name in ROWS}
    assert [name for name in LEFT_OUT_BY_OTHERS if name.partition(":")[0] in installed and name not in ROWS] == []
