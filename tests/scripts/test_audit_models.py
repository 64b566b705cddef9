"""The coverage table: what it says of a model that is not as it should be, which models it has, that it is current."""

import difflib
import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

SCRIPT = Path(__file__).parents[2] / "scripts" / "audit_models.py"
TABLE = Path(__file__).parents[2] / "COVERAGE.md"


@pytest.fixture
def coverage(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("script_coverage", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "script_coverage", module)
    spec.loader.exec_module(module)
    return module


# What is said of a model.


@pytest.mark.parametrize(
    ("name", "sites", "result"),
    [
        ("timm/test_vit", (21, 6, 0, 10, 0), "every site drops"),
        ("tv/resnet18", (0, 0, 0, 0, 0), "drops nothing"),
        ("hf/BertForMaskedLM@sdpa", (5, 2, 0, 0, 0), "every site drops"),
        ("hf/BartForCausalLM@eager", (5, 4, 0, 0, 1), "every site drops"),
        ("peft/LlamaForCausalLM", (14, 2, 0, 0, 0), "every site drops"),
    ],
)
def test_models_of_the_table(coverage: ModuleType, name: str, sites: tuple[int, ...], result: str) -> None:
    threads = torch.get_num_threads()
    assert coverage.check(name) == coverage.Record(name, sites, result, ())
    assert torch.get_num_threads() == threads


class Net(nn.Module):
    """Drops as it should, and besides does what ``forward_of`` does with it."""

    def __init__(self, forward_of: Callable[["Net", Tensor], Tensor], p: float = 0.3) -> None:
        super().__init__()
        self.drop, self.spare, self.mute = nn.Dropout(0.3), nn.Dropout(p), nn.Parameter(torch.zeros(8))
        self.forward_of = forward_of

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_of(self, self.drop(x))


NETS: dict[str, tuple[Callable[[Net, Tensor], Tensor], str, str]] = {
    "as it should be": (lambda net, x: net.spare(x), "every site drops", ""),
    "behind a zero": (lambda net, x: x + net.mute * net.spare(x), "every site drops", ""),
    "never called": (lambda net, x: x, "**fails**", "1 silent: `spare` (never reached by this forward)"),
    "unregistered": (
        lambda net, x: F.dropout(net.spare(x), 0.2),
        "**fails**",
        "1 unregistered: `the model` (dropout at",
    ),
    "no effect": (lambda net, x: x + 0 * net.spare(x), "**fails**", "`spare` at 0.5 changes no output"),
    "draws": (lambda net, x: net.spare(x) + torch.rand(1), "every site drops", "draws at random besides: `the model`"),
}


@pytest.mark.parametrize("case", NETS)
def test_what_is_not_as_it_should_be_is_said(coverage: ModuleType, case: str) -> None:
    forward, result, remark = NETS[case]
    record = coverage._check("net", Net(forward), {"x": torch.ones(2, 8)})
    assert (record.result, record.sites) == (result, (2, 0, 0, 0, 0))
    assert remark in "; ".join(record.remarks)
    assert bool(record.remarks) == bool(remark)


def test_a_site_with_rate_0_is_no_fault_and_is_tried_out(coverage: ModuleType) -> None:
    x = {"x": torch.ones(2, 8)}
    assert coverage._check("net", Net(lambda net, x: net.spare(x), p=0.0), x).remarks == ()
    assert coverage._check("net", Net(lambda net, x: x, p=0.0), x).result == "**fails**"


def test_randomness_that_no_audit_sees_is_a_fault(coverage: ModuleType) -> None:
    generator = torch.Generator()
    noise = iter(torch.rand(100, generator=generator).tolist())
    record = coverage._check("net", Net(lambda net, x: net.spare(x) + next(noise)), {"x": torch.ones(2, 8)})
    assert (record.result, record.remarks) == ("**fails**", ("random though every rate is 0",))


def test_a_refusal_is_repeated(coverage: ModuleType) -> None:
    class Odd(nn.Module):
        dropout_rate = 0.3

        def forward(self, x: Tensor) -> Tensor:
            return x * self.dropout_rate

    record = coverage._check("odd", Odd(), {"x": torch.ones(2, 8)})
    assert record.result == "refused"
    assert "`dropout_rate=0.3`, which looks like a rate" in record.remarks[0]


def test_a_model_that_cannot_run_ends_the_sweep_by_name(coverage: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "build", lambda *arguments: (nn.Linear(2, 2), {"input": torch.ones(3)}))
    with pytest.raises(RuntimeError, match=r"^tv/broken cannot be checked: RuntimeError: .*3"):
        coverage.check("tv/broken")


# Which models.


def test_the_smallest_model_of_each_module_of_timm(coverage: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["resnet18", "test_resnet", "resnet10t", "vit_tiny_patch16_224", "test_vit"]
    monkeypatch.setattr("timm.list_models", lambda: names)
    assert coverage.timm_names("") == ["timm/test_resnet", "timm/test_vit"]
    table = "With timm 0.0.1,\n| timm/old | 1 |\n"
    assert coverage.timm_names(table) == coverage.timm_names("")
    assert coverage.timm_names(table.replace("0.0.1", coverage.version("timm"))) == ["timm/old"]


def test_the_architectures_of_transformers(coverage: ModuleType) -> None:
    names, without_sdpa, gone = coverage.transformers_names()
    assert {"hf/BertForMaskedLM@eager", "hf/BertForMaskedLM@sdpa", "hf/LongformerForMaskedLM@eager"} <= set(names)
    assert "hf/LongformerForMaskedLM@sdpa" not in names
    assert "LongformerForMaskedLM" in without_sdpa
    assert gone == ["Speech2Text2ForCausalLM"]
    assert len(names) == len(set(names))


# The page.


def test_the_page_counts_and_groups(coverage: ModuleType) -> None:
    record = coverage.Record
    records = [
        record("timm/a", (1, 2, 0, 0, 0), coverage.PASSED, ()),
        record("timm/b", (3, 0, 0, 4, 0), coverage.FAILED, ("1 silent: `x`",)),
        record("tv/c", (0, 0, 0, 0, 0), coverage.NO_SITE, ()),
        record("hf/d@eager", (1, 0, 0, 0, 0), coverage.REFUSED, ("odd",)),
        record("hf/d@sdpa", (1, 0, 0, 0, 0), coverage.REFUSED, ("odd",)),
        record("peft/e", (0, 0, 5, 0, 6), coverage.PASSED, ("draws",)),
    ]
    page = coverage.page(records, ["D"], ["F"])
    lines = page.splitlines()
    assert "| timm | 2 | 1 | 0 | 0 | 1 | 4 | 2 | 0 | 4 | 0 |" in lines
    assert "| peft | 1 | 1 | 0 | 0 | 0 | 0 | 0 | 5 | 0 | 6 |" in lines
    assert "| timm/b | 3 |  |  | 4 |  | **fails** |" in lines
    assert "- `hf/d@eager`, `hf/d@sdpa`: refused; odd" in lines
    assert "In the list and no longer in transformers: F." in lines
    assert all(
        len({line.count("|") for line in table.splitlines()}) == 1 for table in re.findall(r"(?:^\|.*\n)+", page, re.M)
    )


def test_the_committed_page_has_every_model_and_no_failure(coverage: ModuleType) -> None:
    import timm

    rows = re.findall(r"^\| (\w+/\S+) \|.*\| ([^|]+) \|$", TABLE.read_text(), re.MULTILINE)
    names = [name for name, _ in rows]
    modules = [timm.models.model_entrypoint(name[5:]).__module__ for name in names if name.startswith("timm/")]
    assert len(modules) == len(set(modules)) == len(timm.models.list_modules())
    expected = [*coverage.torchvision_names(), *coverage.transformers_names()[0]]
    assert [name for name in names if not name.startswith(("timm/", "peft/"))] == expected
    assert {result for _, result in rows} <= {coverage.PASSED, coverage.NO_SITE, coverage.REFUSED}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_committed_page_is_what_the_script_writes(tmp_path: Path) -> None:
    output = tmp_path / "COVERAGE.md"
    ran = subprocess.run([sys.executable, str(SCRIPT), "--output", str(output)], capture_output=True, text=True)
    assert output.is_file(), ran.stderr
    before, after = TABLE.read_text().splitlines(), output.read_text().splitlines()
    assert before == after, "\n".join(difflib.unified_diff(before, after, "committed", "generated", lineterm=""))
    assert ran.returncode == 0
