"""Rates in checkpoints: plain, complete, and back in the model that they belong to."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from lightning_dropout import mc_sample
from lightning_dropout.callbacks import DropoutScheduler, StochasticDepthScheduler, restore_rates
from lightning_dropout.callbacks.trained_rates import rates_in, rates_of, state_of, trained_sites
from lightning_dropout.nn import DropPath
from lightning_dropout.schedules import Linear
from lightning_dropout.sites import find_sites

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create"),
]


def rates(model: nn.Module) -> list[float]:
    return [site.rate for site in find_sites(model)]


@pytest.fixture
def checkpoint(make_trainer: Any, make_recorder: Any, loader: Any, tmp_path: Path) -> Path:
    """Return the checkpoint of a run with two schedulers, saved at its end."""
    schedulers = [DropoutScheduler(rate=Linear(0.0, 0.75), name="all"), StochasticDepthScheduler(rate=0.25)]
    trainer = make_trainer(*schedulers, max_epochs=1)
    trainer.fit(make_recorder(), loader)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    return tmp_path / "end.ckpt"


def test_the_rates_of_all_schedulers_are_restored(make_recorder: Any, checkpoint: Path) -> None:
    module = make_recorder()
    restored = restore_rates(module, checkpoint)
    assert restored == {"net.1:p": 0.5, "net.3:p": 0.5, "net.4:drop_prob": 0.25}
    assert rates(module) == [0.5, 0.5, 0.25]


def test_a_part_of_the_module_is_enough(make_recorder: Any, checkpoint: Path) -> None:
    net = make_recorder().net.eval()
    assert restore_rates(net, str(checkpoint)) == {"1:p": 0.5, "3:p": 0.5, "4:drop_prob": 0.25}
    assert rates(net) == [0.5, 0.5, 0.25]
    prediction = mc_sample(net, torch.ones(2, 4), num_samples=5, task="multiclass")
    assert prediction.std.max() > 0


def test_a_model_without_the_sites_is_refused_and_keeps_its_rates(make_recorder: Any, checkpoint: Path) -> None:
    other = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.125))
    for model in (other, make_recorder(other)):
        with pytest.raises(
            ValueError, match=r"Expected the sites that DropoutScheduler\[all\] and Stochastic.*without"
        ):
            restore_rates(model, checkpoint)
        assert rates(model) == [0.125]


def test_a_checkpoint_without_schedulers_is_refused(
    make_trainer: Any, make_recorder: Any, loader: Any, tmp_path: Path
) -> None:
    trainer = make_trainer(max_epochs=1)
    trainer.fit(module := make_recorder(), loader)
    trainer.save_checkpoint(path := tmp_path / "plain.ckpt")
    with pytest.raises(ValueError, match=r"the rates of a scheduler, but got .* with no callbacks, which has none"):
        restore_rates(module, path)


def test_a_folder_of_shards_has_its_rates_beside_them(make_recorder: Any, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "sharded").mkdir()
    checkpoint.rename(tmp_path / "sharded" / "meta.pt")
    restore_rates(module := make_recorder(), tmp_path / "sharded")
    assert rates(module) == [0.5, 0.5, 0.25]


class Evil:
    """Runs when it is unpickled."""

    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('unpickled')",)


def test_code_in_a_checkpoint_does_not_run(make_recorder: Any, tmp_path: Path) -> None:
    torch.save(
        {"callbacks": {"DropoutScheduler": {"version": 1, "rates": {"net.1:p": Evil()}}}}, tmp_path / "evil.ckpt"
    )
    with pytest.raises(ValueError, match=r"no plain values \(.*exec\).* if you trust them") as caught:
        restore_rates(make_recorder(), tmp_path / "evil.ckpt")
    assert "weights_only=False" not in str(caught.value)


def test_what_is_no_checkpoint_is_told(make_recorder: Any, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("epoch,loss")
    (tmp_path / "empty").write_bytes(b"")
    torch.save([1, 2], tmp_path / "list")
    for name in ("text", "empty", "list"):
        with pytest.raises(ValueError, match=rf"Expected `ckpt_path` to be a checkpoint, .*{name}.*Lightning wrote"):
            restore_rates(make_recorder(), tmp_path / name)
    with pytest.raises(FileNotFoundError):
        restore_rates(make_recorder(), tmp_path / "nothing")
    state = torch.load(checkpoint, weights_only=True)
    state["callbacks"]["DropoutScheduler[all]"]["version"] = 9
    torch.save(state, tmp_path / "later")
    with pytest.raises(ValueError, match="version 1 at most, but got 9; upgrade"):
        restore_rates(make_recorder(), tmp_path / "later")


def test_only_the_names_of_other_callbacks_are_told(
    make_trainer: Any, make_recorder: Any, loader: Any, tmp_path: Path
) -> None:
    trainer = make_trainer(ModelCheckpoint(tmp_path, monitor=None), max_epochs=1)
    trainer.fit(module := make_recorder(), loader)
    trainer.save_checkpoint(path := tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="with ModelCheckpoint, which has none"):
        restore_rates(module, path)


def test_a_fit_that_trains_no_batch_forgets_nothing(
    make_trainer: Any, make_recorder: Any, loader: Any, checkpoint: Path, tmp_path: Path
) -> None:
    schedulers = [DropoutScheduler(rate=Linear(0.0, 0.75), name="all"), StochasticDepthScheduler(rate=0.25)]
    trainer = make_trainer(*schedulers, max_epochs=1)
    trainer.fit(module := make_recorder(), loader, ckpt_path=checkpoint)  # it is finished already
    assert module.trained == []
    trainer.test(module, loader)
    assert list(module.evaluated["test"][0].values()) == [0.5, 0.5, 0.25]
    trainer.save_checkpoint(tmp_path / "again.ckpt")
    assert restore_rates(make_recorder(), tmp_path / "again.ckpt")["net.1:p"] == 0.5


def vit() -> nn.Module:
    sizes: dict[str, int] = {"img_size": 2, "patch_size": 1, "in_chans": 1, "num_classes": 3}
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)),
        VisionTransformer(**sizes, embed_dim=8, depth=2, num_heads=2),  # type: ignore[arg-type]
    )


def test_filled_slots_are_filled_again(make_trainer: Any, make_recorder: Any, loader: Any, tmp_path: Path) -> None:
    def scheduler() -> Any:
        return StochasticDepthScheduler(rate=0.5, fill_identity=True)

    trainer = make_trainer(scheduler(), max_epochs=1)
    trainer.fit(module := make_recorder(vit()), loader)
    assert not [part for part in module.modules() if isinstance(part, DropPath)]
    trainer.save_checkpoint(path := tmp_path / "end.ckpt")

    module = make_recorder(vit())
    with pytest.raises(ValueError, match="built as it was, with `fill_identity`"):
        restore_rates(module, path)
    restore_rates(module, path, fill_identity=True)
    assert [part.drop_prob for part in module.modules() if isinstance(part, DropPath)] == [0.5] * 4

    module = make_recorder(vit())
    make_trainer(scheduler()).test(module, loader, ckpt_path=path)
    seen = module.evaluated["test"][0]
    assert [rate for name, rate in seen.items() if "drop_path" in name] == [0.5] * 4
    assert not [part for part in module.modules() if isinstance(part, DropPath)]


def test_slots_that_do_not_help_are_given_back(checkpoint: Path) -> None:
    model = vit()
    before = repr(model)
    with pytest.raises(ValueError, match="Expected the sites"):
        restore_rates(model, checkpoint, fill_identity=True)
    assert repr(model) == before


def test_rates_are_kept_by_place_and_checked_when_read() -> None:
    model = nn.Sequential(nn.Dropout(0.25), nn.LSTM(2, 2, num_layers=2, dropout=0.5))
    kept = rates_of(find_sites(model))
    assert kept == {"0:p": 0.25, "1:dropout": 0.5}
    assert [(site.name, rate) for site, rate in trained_sites(model, kept, "me")] == [("0", 0.25), ("1", 0.5)]
    with pytest.raises(ValueError, match=r"Expected `0:p` to be a probability of dropping.*but got 1\.5"):
        rates_in({"version": 1, "rates": {"0:p": 1.5}})
    assert rates_in(state_of(kept)) == kept


def test_a_run_of_another_length_is_told(
    make_trainer: Any, make_recorder: Any, loader: Any, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def resume(epochs: int) -> list[str]:
        caplog.clear()
        schedulers = [DropoutScheduler(rate=Linear(0.0, 0.75), name="all"), StochasticDepthScheduler(rate=0.25)]
        with caplog.at_level("INFO"):
            make_trainer(*schedulers, max_epochs=epochs).fit(make_recorder(), loader, ckpt_path=checkpoint)
        return [line for line in caplog.messages if "the checkpoint is of a run of" in line]

    assert resume(2) == [  # the other one is constant
        "DropoutScheduler[all]: the checkpoint is of a run of 3 steps and this one has 6; rates follow the new length, "
        "so they may jump here."
    ]
    assert resume(1) == []
