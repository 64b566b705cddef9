"""The README: its Python runs as it stands, and its words are those of the command line."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_dropout.cli import main
from lightning_dropout.nn import DropPath

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


class ResidualNet(nn.Module):
    """Somebody's model: both kinds of dropping."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.drop, self.drop_path = nn.Dropout(0.2), DropPath(0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        logits: Tensor = self.head(self.drop(x + self.drop_path(self.block(x).relu())))
        return logits


class SomebodysModule(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = ResidualNet()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings(
    "ignore:The number of training batches",
    "ignore:Starting from v1.9.0, `tensorboardX`",
    "ignore:You have overridden `LightningModule.training_step`",
    "ignore:.*does not have a `val_dataloader`",
)
def test_the_python_of_the_readme_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    data = DataLoader(TensorDataset(torch.randn(64, 8), torch.randint(0, 3, (64,))), batch_size=16)
    names: dict[str, Any] = {"my_module": SomebodysModule(), "my_data": data}
    assert len(BLOCKS) >= 2
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), names)
    metrics = names["trainer"].callback_metrics
    assert metrics["loss"] == pytest.approx(metrics["test/mc/nll"].item(), abs=1e-4)
    assert "test/det/nll" in metrics
    printed = capsys.readouterr().out
    assert "[('dropout1', 0.25), ('dropout2', 0.25)]" in printed
    assert "[('pos_drop', 'rate 0')]" in printed
    assert names["prediction"].votes.shape == (8, 10)


@pytest.mark.parametrize(
    "group", ["model", "data", "module", "trainer", "logger", "experiment", "callbacks/mc_dropout", "callbacks/dropout"]
)
def test_every_option_stands_in_the_table(group: str) -> None:
    (row,) = [line for line in README.splitlines() if line.startswith(f"| `{group}=")]
    words = set(re.findall(r"`(\w+)`", row.partition("|")[2].partition("|")[2]))
    options = {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}
    assert words == options


def test_no_number_is_missing() -> None:
    assert "@@" not in README


def test_the_counts_of_killed_trainings_are_those_of_the_script() -> None:
    found = json.loads((ROOT / "scripts" / "benchmarks" / "kill_and_resume.json").read_text())
    told = " ".join(README.split())
    for way, row in (
        ("with the above", found),
        ('plain Lightning, `ckpt_path=".../last.ckpt"`', found["plain_lightning"]),
    ):
        assert f"| {way} | {row['points']} | {row['bit_equal']} | {row['last_checkpoint_unreadable']} |" in told
    inside, across = found["inside_a_write"], found["inside_a_write_across_file_systems"]
    assert f"Of the {found['kills']} kills {inside} came inside a checkpoint write, {across} of these" in told


def test_pictures_and_links_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_the_audit_of_the_readme_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    (shown,) = re.findall(r"\$ lightning-dropout (audit timm/\S+)\n(.*?)```", README, flags=re.DOTALL)
    main(shown[0].split())
    assert capsys.readouterr().out == shown[1]


def test_the_plot_of_the_readme_is_what_the_command_prints(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shown,) = re.findall(r"\$ lightning-dropout (plot .*?)\n(.*?)```", README, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    main(shown[0].split())
    assert capsys.readouterr().out == shown[1]
