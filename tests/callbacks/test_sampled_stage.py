"""A stage around compiled modules, structured outputs and ranks: what runs, what the step gets, what is said."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.data import DataLoader
from transformers.modeling_outputs import SequenceClassifierOutput

from lightning_dropout.callbacks import MCDropout, sampled_stage
from lightning_dropout.callbacks.patched_forward import PatchedForwards
from lightning_dropout.randomness import derive_seed, seed_everywhere
from lightning_dropout.sampling import mc_sample

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]
MakeTrainer = Callable[..., Any]
T = 6


def small_net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))


class Module(LightningModule):
    """Calls itself or its net in each step and keeps what it got."""

    def __init__(self, net: nn.Module | None = None, calls: str = "self") -> None:
        super().__init__()
        self.net = net or small_net()
        self.calls = calls
        self.seen: list[Any] = []

    def forward(self, x: Tensor) -> Any:
        return self.net(x)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.seen.append(self(batch[0]) if self.calls == "self" else self.net(batch[0]))

    validation_step = test_step

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch[0]) if self.calls == "self" else self.net(batch[0])


def mean_probabilities(net: nn.Module, loader: DataLoader[Any]) -> Tensor:
    """Return the mean of T eager passes for all batches, with the seeds of the callback."""
    means = []
    with torch.random.fork_rng(), torch.no_grad():
        net.train()
        for index, batch in enumerate(loader):
            outputs = []
            for number in range(T):
                seed_everywhere(derive_seed(0, 0, 0, index, 0, number))
                outputs.append(net(batch[0]).double().softmax(-1))
            means.append(torch.stack(outputs).mean(0))
        net.eval()
    return torch.cat(means)


def said_by(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.message.startswith("MCDropout")]


# --- compiled modules -----------------------------------------------------------------------------------------------

STYLES = ["child", "in place", "module in place", "whole module", "forward", "step"]


def compiled(style: str, module: Module, **arguments: Any) -> Any:
    """Compile ``module`` and return what the trainer is given."""
    if style == "child":
        module.net = torch.compile(module.net, **arguments)  # type: ignore[assignment]
    elif style == "in place":
        module.net.compile(**arguments)
    elif style == "module in place":
        module.compile(**arguments)
    elif style == "forward":
        module.forward = torch.compile(module.forward, **arguments)  # type: ignore[method-assign]
    elif style == "whole module":
        return torch.compile(module, **arguments)
    elif style == "step":
        module.test_step = torch.compile(module.test_step, **arguments)  # type: ignore[method-assign]
    return module


def attributes(module: nn.Module) -> dict[str, dict[str, Any]]:
    return {name: {**vars(part)} for name, part in module.named_modules()}


@pytest.mark.parametrize("fullgraph", [False, True])
@pytest.mark.parametrize("calls", ["self", "net"])
@pytest.mark.parametrize("style", STYLES)
def test_compiled_code_is_what_runs(
    make_trainer: MakeTrainer,
    loader: DataLoader[Any],
    caplog: pytest.LogCaptureFixture,
    style: str,
    calls: str,
    fullgraph: bool,
) -> None:
    """Two graphs, of the plain forward and of a pass, for all passes of all batches; and the results of eager code."""
    torch._dynamo.reset()
    backend, module = CompileCounterWithBackend("eager"), Module(calls=calls)
    eager = small_net()
    eager.load_state_dict(module.net.state_dict())
    given = compiled(style, module, backend=backend, fullgraph=fullgraph)
    module.seen = []
    trainer = make_trainer(MCDropout(T, task="multiclass"))
    module.test_step = module.test_step  # type: ignore[method-assign]  # Lightning puts compiled ones there as well
    before = attributes(module)
    with caplog.at_level("INFO"):
        trainer.test(given, loader, verbose=False)
    torch.testing.assert_close(
        torch.cat(module.seen).double().exp(), mean_probabilities(eager, loader), atol=1e-5, rtol=1e-5
    )
    runs_eagerly = style == "step" or (calls == "net" and style in ("module in place", "forward"))
    assert backend.frame_count == (0 if runs_eagerly else 2)
    for name, held in before.items():
        for attribute in ("forward", "test_step", "_compiled_call_impl", "training"):
            if not (name == "" and style == "whole module"):
                assert vars(module.get_submodule(name)).get(attribute) is held.get(attribute)
    notes = [line for line in said_by(caplog) if "compiled" in line]
    assert notes == ([] if runs_eagerly else ["MCDropout: Passes ran in full: compiled code cannot be watched."])


@pytest.mark.parametrize("style", STYLES[:-1])
def test_no_pass_compiles_anew(make_trainer: MakeTrainer, loader: DataLoader[Any], style: str) -> None:
    torch._dynamo.reset()
    module = Module()
    backend = CompileCounterWithBackend("eager")
    given = compiled(style, module, backend=backend)
    with torch._dynamo.config.patch(error_on_recompile=True):
        make_trainer(MCDropout(T, task="multiclass", compare=False)).test(given, loader, verbose=False)
    assert backend.frame_count == 1


class LeavesStepsCompiled(sampled_stage.SampledStage):
    """A planted bug: each sampled call breaks the compiled step, and runs eagerly inside it."""

    def _uncompile_step(self) -> None: ...


class StaysPatched(PatchedForwards):
    """A planted bug: wrappers are met inside compiled code."""

    @contextmanager
    def suspended(self) -> Iterator[None]:
        yield


@pytest.mark.parametrize(
    ("name", "mutant", "style", "calls"),
    [
        ("SampledStage", LeavesStepsCompiled, "whole module", "net"),
        ("PatchedForwards", StaysPatched, "forward", "self"),
    ],
)
def test_that_check_fails_for_planted_bugs(
    make_trainer: MakeTrainer,
    loader: DataLoader[Any],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    mutant: Any,
    style: str,
    calls: str,
) -> None:
    for place in (sampled_stage, sys.modules["lightning_dropout.callbacks.mc_dropout"]):
        monkeypatch.setattr(place, name, mutant, raising=False)
    torch._dynamo.reset()
    given = compiled(style, Module(calls=calls), backend="eager", fullgraph=True)
    with pytest.raises(RuntimeError):  # there is no whole graph
        make_trainer(MCDropout(T, task="multiclass", compare=False)).test(given, loader, verbose=False)


def test_a_stage_restores_what_lightning_has_compiled(make_trainer: MakeTrainer, loader: DataLoader[Any]) -> None:
    torch._dynamo.reset()
    module = Module()
    given = torch.compile(module, backend="eager")
    trainer = make_trainer()
    trainer.test(given, loader, verbose=False)
    before = attributes(module)
    make_trainer(MCDropout(T, task="multiclass")).test(module, loader, verbose=False)
    for attribute in ("forward", "training_step", "validation_step", "test_step", "predict_step"):
        assert vars(module)[attribute] is before[""][attribute]
    assert "forward" not in vars(module.net)


def test_hooks_of_the_user_run_around_the_whole_call(make_trainer: MakeTrainer, loader: DataLoader[Any]) -> None:
    """Once on what the step gets, not once for each pass."""
    module = Module()
    outputs: list[Tensor] = []
    module.register_forward_hook(lambda layer, args, output: outputs.append(output))
    make_trainer(MCDropout(T, task="multiclass")).test(module, loader, verbose=False)
    assert len(outputs) == len(module.seen) == 3
    assert all(torch.equal(one, other) for one, other in zip(outputs, module.seen, strict=True))


# --- one sampler for the stage --------------------------------------------------------------------------------------


def test_the_model_is_walked_at_the_start_and_never_again(
    make_trainer: MakeTrainer, loader: DataLoader[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    searches: list[Any] = []

    class Counted(sampled_stage.Sampler):
        def __init__(self, *args: Any, **arguments: Any) -> None:
            made.append(args[0])
            super().__init__(*args, **arguments)

    def find_sites(*args: Any) -> Any:
        searches.append(args)
        return original(*args)

    original = sampled_stage.find_sites
    monkeypatch.setattr(sampled_stage, "Sampler", Counted)
    monkeypatch.setattr(sampled_stage, "find_sites", find_sites)
    module = Module()
    make_trainer(MCDropout(T, task="multiclass")).test(module, [loader, loader][:1], verbose=False)
    assert made == [module, module.net]
    assert len(searches) == 1


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("inference_mode", [True, False])
def test_passes_are_reused_bit_for_bit(
    make_trainer: MakeTrainer,
    loader: DataLoader[Any],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    inference_mode: bool,
) -> None:
    module = Module()
    results = []
    for way in ("reuse", "in full"):
        with caplog.at_level("INFO"):
            make_trainer(MCDropout(T, task="multiclass"), precision=precision, inference_mode=inference_mode).test(
                module, loader, verbose=False
            )
        results.append(torch.cat(module.seen))
        module.seen = []
        lines = [line for line in said_by(caplog) if "first random draw" in line]
        # of the first batch one pass was watched and one compared, of the two others one was watched
        assert [line.partition(" passes")[0] for line in lines] == (["MCDropout: 14 of 18"] if way == "reuse" else [])
        caplog.clear()
        monkeypatch.setattr(sampled_stage, "Sampler", InFull)
    assert torch.equal(*results)


class InFull(sampled_stage.Sampler):
    def __init__(self, *args: Any, **arguments: Any) -> None:
        super().__init__(*args, **arguments)
        self.obstacle = "a test"


# --- outputs of any form --------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    logits: Tensor
    features: Tensor


class Wrapping(nn.Module):
    """Returns more than logits."""

    def __init__(self, wrap: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.body, self.drop, self.head = nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        features = self.drop(self.body(x))
        return self.wrap(self.head(features), features)


FORMS: list[tuple[Callable[[Tensor, Tensor], Any], str | None, Callable[[Any], Tensor]]] = [
    (lambda logits, features: {"logits": logits, "features": features}, None, lambda out: out["logits"]),
    (lambda logits, features: {"out": {"y": logits}, "z": features}, "out.y", lambda out: out["out"]["y"]),
    (lambda logits, features: (features, logits), "1", lambda out: out[1]),
    (lambda logits, features: [logits], None, lambda out: out[0]),
    (Pair, None, lambda out: out.logits),
    (
        lambda logits, features: SequenceClassifierOutput(logits=logits, hidden_states=(features,)),
        None,
        lambda out: out.logits,
    ),
]


@pytest.mark.parametrize(("wrap", "output", "logits_of"), FORMS)
@pytest.mark.parametrize("stage", ["test", "predict", "validate"])
def test_the_step_gets_the_models_own_form(
    make_trainer: MakeTrainer, loader: DataLoader[Any], wrap: Any, output: Any, logits_of: Any, stage: str
) -> None:
    torch.manual_seed(3)
    net = Wrapping(wrap)
    module, bare = Module(net), Module(Wrapping(lambda logits, features: logits))
    bare.load_state_dict(module.state_dict())
    results = []
    for one, field in ((module, output), (bare, None)):
        callback = MCDropout(T, task="multiclass", stages=["test", "predict", "validate"], output=field)
        outcome = getattr(make_trainer(callback), stage)(one, loader)
        results.append((one.seen or outcome, outcome))
    (structures, metrics), (tensors, bare_metrics) = results
    with torch.no_grad():
        own = net(loader.dataset.tensors[0])
    for structure, tensor in zip(structures, tensors, strict=True):
        assert type(structure) is type(own)
        torch.testing.assert_close(logits_of(structure), tensor)
    if stage != "predict":
        assert metrics == bare_metrics
        assert {key.split("/")[1] for key in metrics[0]} == {"mc", "det"}


def test_uncertainty_beside_a_structure(make_trainer: MakeTrainer, loader: DataLoader[Any]) -> None:
    module = Module(Wrapping(Pair))
    trainer = make_trainer(MCDropout(T, task="multiclass", return_uncertainty=True))
    for batch in trainer.predict(module, loader):
        assert isinstance(batch["prediction"], Pair)
        torch.testing.assert_close(batch["prediction"].logits.exp(), batch["mean"])
        assert batch["std"].shape == (4, 3)


class WithLoss(nn.Module):
    """What models of transformers do with labels."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_net()

    def forward(self, x: Tensor, labels: Tensor) -> Any:
        logits = self.net(x)
        return SequenceClassifierOutput(loss=F.cross_entropy(logits, labels), logits=logits)


def test_a_loss_is_that_of_the_mean(make_trainer: MakeTrainer, loader: DataLoader[Any]) -> None:
    class Losing(Module):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            outputs = self.net(batch[0], labels=batch[1])
            self.log("loss", outputs.loss, batch_size=len(batch[0]))

    (metrics,) = make_trainer(MCDropout(T, task="multiclass")).test(Losing(WithLoss()), loader, verbose=False)
    assert metrics["loss"] == pytest.approx(metrics["test/mc/nll"], rel=1e-5)
    assert metrics["loss"] != pytest.approx(metrics["test/det/nll"], rel=1e-3)


@pytest.mark.parametrize(
    ("wrap", "output", "message"),
    [
        (lambda logits, features: (logits, features), None, "pass `output=` the name of the one to average"),
        (lambda logits, features: {"a": logits}, "b", "Expected `output` to name a field.* but got 'b'"),
        (lambda logits, features: {"logits": logits, "loss": logits.sum()}, None, "Expected `loss` in the output to"),
        (
            lambda logits, features: {"logits": logits, "boxes": [features[features[:, 0] > 0]]},
            None,
            r"Expected `boxes\.0` in the output to have one shape in all passes",
        ),
    ],
)
def test_outputs_that_cannot_be_averaged_are_refused_by_name(
    make_trainer: MakeTrainer, loader: DataLoader[Any], wrap: Any, output: Any, message: str
) -> None:
    module = Module(Wrapping(wrap))
    with pytest.raises(ValueError, match=message):
        make_trainer(MCDropout(T, task="multiclass", output=output)).test(module, loader, verbose=False)
    assert all(part.training and "forward" not in vars(part) for part in module.modules())


def decoder(kind: str) -> nn.Module:
    """Keeps a cache of keys and values, by default."""
    import transformers

    if kind == "GPT2":
        gpt2 = transformers.GPT2Config(
            n_embd=8, n_layer=2, n_head=2, n_positions=8, vocab_size=11, bos_token_id=0, eos_token_id=0
        )
        return transformers.GPT2LMHeadModel(gpt2)
    llama = transformers.LlamaConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, vocab_size=11,
        attention_dropout=0.5, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(llama)


@pytest.mark.parametrize("chunk_size", [1, 3])
@pytest.mark.parametrize("kind", ["GPT2", "Llama"])
def test_decoders_with_a_cache(make_trainer: MakeTrainer, kind: str, chunk_size: int) -> None:
    class Decoding(Module):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.seen.append(self.net(input_ids=batch["input_ids"]))

    tokens = torch.randint(0, 11, (4, 6), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": tokens, "labels": tokens.masked_fill(tokens > 8, -100)}
    net = decoder(kind).eval()
    assert net(tokens).past_key_values is not None
    arguments: dict[str, Any] = {"task": "multiclass", "class_dim": 2, "chunk_size": chunk_size}
    prediction = mc_sample(net, tokens, num_samples=T, output="logits", **arguments)
    module = Decoding(net)
    loader = DataLoader([batch], batch_size=None)  # type: ignore[arg-type]
    (metrics,) = make_trainer(MCDropout(T, output="logits", **arguments)).test(module, loader, verbose=False)
    for outputs in (prediction.predictive, *module.seen):
        assert outputs.past_key_values is None
        torch.testing.assert_close(outputs.logits.exp().sum(2), torch.ones(4, 6))
    logs, kept = module.seen[0].logits, batch["labels"] != -100
    nll = F.cross_entropy(logs[kept], tokens[kept]).item()
    assert metrics["test/mc/nll"] == pytest.approx(nll, rel=1e-4)
    message = r'pass `output="logits"`, .*, for decoders `use_cache=False`\.'
    with pytest.raises(ValueError, match=message):
        mc_sample(net, tokens, num_samples=T, **arguments)
    with pytest.raises(ValueError, match=message):
        make_trainer(MCDropout(T, **arguments)).test(module, loader, verbose=False)
    plain = mc_sample(net, tokens, num_samples=T, use_cache=False, **arguments)
    torch.testing.assert_close(plain.mean, prediction.mean)


# --- values that are none -------------------------------------------------------------------------------------------


class Diverged(nn.Module):
    """Gives no value for samples whose first feature is large."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.net, self.value = small_net(), value

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x[:, :1] > 0.5, self.value, self.net(x))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_none_are_counted(make_trainer: MakeTrainer, loader: DataLoader[Any], value: float) -> None:
    samples = int((loader.dataset.tensors[0][:, 0] > 0.5).sum())
    assert 0 < samples < 12
    module = Module(Diverged(value))
    with pytest.warns(UserWarning, match=rf"MCDropout: {samples * T} of {12 * T} outputs held NaN or infinity"):
        (metrics,) = make_trainer(MCDropout(T, task="multiclass")).test(module, loader, verbose=False)
    assert metrics["test/mc/num_invalid"] == samples * T
    with pytest.warns(UserWarning, match="outputs held NaN or infinity"):
        predictions = make_trainer(MCDropout(T, task="multiclass")).predict(module, loader)
    assert int(torch.cat(predictions).isnan().any(1).sum()) == samples


def test_no_count_where_all_are_values(make_trainer: MakeTrainer, loader: DataLoader[Any]) -> None:
    (metrics,) = make_trainer(MCDropout(T, task="multiclass")).test(Module(), loader, verbose=False)
    assert "test/mc/num_invalid" not in metrics


# --- ranks ----------------------------------------------------------------------------------------------------------

RANKS = """
import hashlib, json, sys, warnings
from pathlib import Path
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from lightning_dropout import MCDropout

warnings.filterwarnings("ignore")
T = 4


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 32), nn.Dropout(0.5), nn.ReLU(), nn.Dropout(0.25), nn.Linear(32, 3))
        with torch.no_grad():
            self.net[0].bias.fill_(10.0)  # so that a 0 behind dropout is one that was dropped
        self.masks, self.outputs = [], {}
        for layer in (1, 3):
            self.net[layer].register_forward_hook(self.note)

    def note(self, layer, args, output):
        if layer.training:
            self.masks.append((args[0] != 0, output != 0))

    def forward(self, x):
        return self.net(x)

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        for number, output in zip(batch[1].tolist(), self(batch[0])):
            self.outputs[number] = output.exp().tolist()

    predict_step = test_step


class Uneven(IterableDataset):
    # Rank 0 has all batches and labels, rank 1 has none, or batches without labels.
    def __init__(self, x, y, length):
        self.x, self.y, self.length = x, y, length

    def __iter__(self):
        yield from zip(self.x[: self.length], self.y[: self.length])


def trainer(world_size, callback):
    return Trainer(
        accelerator="cpu", devices=world_size, strategy="ddp" if world_size > 1 else "auto", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[callback],
    )


if __name__ == "__main__":
    folder, world_size = Path(sys.argv[1]), int(sys.argv[2])
    seed_everything(1, verbose=False)
    module, x = Module(), torch.randn(70, 4)
    result = {"shared": [], "independent": []}
    for batch_size in (7, 64):
        for num_workers in (0, 2):
            loader = DataLoader(TensorDataset(x, torch.arange(70)), batch_size, num_workers=num_workers)
            for masks in ("shared", "independent", "independent"):
                if masks == "shared" or num_workers == 0:
                    module.masks, module.outputs = [], {}
                    callback = MCDropout(T, task="multiclass", masks=masks, stages=["test"], labels=None)
                    run = trainer(world_size, callback)
                    run.test(module, loader, verbose=False)
                    hashes = []
                    for before, after in module.masks:
                        kept = after if masks == "independent" else after[:1] | ~before[:1]
                        hashes.append(hashlib.sha256(bytes(kept.flatten().tolist())).hexdigest())
                    same = all(bool((after == after[:1]).all()) for _, after in module.masks)
                    result[masks].append({"hashes": hashes, "outputs": module.outputs, "same": same})
    rank = run.global_rank
    y = torch.randint(0, 3, (70,))
    for name, length, labels in (
        ("no batch", 70 if rank == 0 else 0, y),
        ("ignored", 70, y if rank == 0 else torch.full((70,), -100)),
        ("no labels", 70, y if rank == 0 else torch.full((70,), -1.0)),
    ):
        loaders = [DataLoader(Uneven(x, y, 70), 32), DataLoader(Uneven(x, labels, length), 32)]
        module.outputs = {}
        result[name] = trainer(world_size, MCDropout(T, task="multiclass")).test(module, loaders, verbose=False)
    bad = torch.where((torch.arange(70) == 3)[:, None] & (rank == world_size - 1), float("nan"), x)
    loader = DataLoader(Uneven(bad, y, 70), 32)
    result["invalid"] = trainer(world_size, MCDropout(T, task="multiclass")).test(module, loader, verbose=False)
    (folder / f"{rank}.json").write_text(json.dumps(result))
"""


def run_ranks(folder: Path, world_size: int) -> list[Any]:
    """Run the script above and return the result of each rank."""
    folder.mkdir()
    script = folder / "ranks.py"
    script.write_text(RANKS)
    environment = {key: value for key, value in os.environ.items() if key != "PL_GLOBAL_SEED"}
    done = subprocess.run(
        [sys.executable, str(script), str(folder), str(world_size)],
        env={**environment, "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=240,
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
    )
    (folder / "said.txt").write_text(done.stderr)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world_size)]


@pytest.mark.slow
def test_ranks(tmp_path: Path) -> None:
    (alone,) = run_ranks(tmp_path / "1", 1)
    ranks = run_ranks(tmp_path / "2", 2)

    # shared masks: one set of masks for every batch size, number of workers and of ranks, and one set of predictions
    digests = set()
    for run in (run for result in (alone, *ranks) for run in result["shared"]):
        assert run["same"]
        digests.add(hashlib.sha256("".join(sorted(set(run["hashes"]))).encode()).hexdigest())
        assert len(set(run["hashes"])) == 2 * 4
    assert len(digests) == 1
    expected = alone["shared"][0]["outputs"]
    for run in (run for result in (alone, *ranks) for run in result["shared"]):
        for number, output in run["outputs"].items():
            assert output == pytest.approx(expected[number], rel=1e-5)

    # independent masks: others on each rank, the same again
    for result in (alone, *ranks):
        first, second, *_ = result["independent"]
        assert first == second
        assert not first["same"]
    one, other = (set(result["independent"][0]["hashes"]) for result in ranks)
    assert not one & other

    # ranks of which one has nothing to say come to the same keys and numbers; it lists the loaders that it has seen
    logged: dict[str, dict[str, float]] = {}
    for name in ("no batch", "no labels", "ignored", "invalid"):
        one, other = ({key: value for part in result[name] for key, value in part.items()} for result in ranks)
        assert one == other
        logged[name] = one
    of_second = {"test/mc/nll/dataloader_idx_1", "test/det/nll/dataloader_idx_1"}
    assert logged["no batch"].keys() >= of_second
    assert not logged["no labels"].keys() & of_second
    assert logged["ignored"].keys() >= of_second
    assert logged["no labels"].keys() >= {"test/mc/nll", "test/mc/entropy/dataloader_idx_1"}
    assert logged["invalid"]["test/mc/num_invalid"] == 4
    *_, second_last, last = (tmp_path / "2" / "said.txt").read_text().split("MCDropout: the test metrics of")
    assert "found no labels in the batch" in second_last  # though the rank that speaks has found some
    assert "found no labels in the batch" not in last


# --- what others do in the stage ------------------------------------------------------------------------------------


class WakesByHand(Module):
    """Somebody's own Monte-Carlo dropout."""

    def on_test_start(self) -> None:
        for layer in self.modules():
            if isinstance(layer, nn.Dropout):
                layer.train()


def check_plain_side_is_plain(make_trainer: MakeTrainer, loader: DataLoader[Any]) -> None:
    results = []
    for seed in range(2):
        torch.manual_seed(0)
        module = WakesByHand()
        torch.manual_seed(seed)
        results.append(make_trainer(MCDropout(T, task="multiclass")).test(module, loader, verbose=False)[0])
    assert results[0] == results[1]


def test_the_plain_side_drops_nothing_whoever_woke_the_layers(
    make_trainer: MakeTrainer, loader: DataLoader[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_plain_side_is_plain(make_trainer, loader)

    @contextmanager
    def as_they_are(sites: Any) -> Iterator[None]:
        yield

    monkeypatch.setattr(sampled_stage, "resting", as_they_are)  # a planted bug
    with pytest.raises(AssertionError):
        check_plain_side_is_plain(make_trainer, loader)


def test_two_callbacks_for_one_stage_are_refused(make_trainer: MakeTrainer, loader: DataLoader[Any]) -> None:
    one, other = MCDropout(T, task="multiclass"), MCDropout(T, task="multiclass", seed=1)
    module = Module()
    with pytest.raises(ValueError, match='Expected one MCDropout for the stage "test", but got two'):
        make_trainer(one, other).test(module, loader, verbose=False)
    assert "forward" not in vars(module)
    other = MCDropout(T, task="multiclass", stages=["predict"])
    assert make_trainer(one, other).test(module, loader, verbose=False)[0]["test/mc/entropy"] > 0.0


class Differentiates(Module):
    """A step that looks at gradients, as adversarial tests do."""

    def test_step(self, batch: Any, batch_idx: int) -> None:
        with torch.inference_mode(False), torch.enable_grad():
            self.seen.append(self(batch[0].clone().requires_grad_()))


def test_a_step_with_gradients_keeps_those_of_no_pass(make_trainer: MakeTrainer, loader: DataLoader[Any]) -> None:
    module = Differentiates()
    make_trainer(MCDropout(T, task="multiclass")).test(module, loader, verbose=False)
    assert not any(outputs.requires_grad for outputs in module.seen)
