"""Empty slots: which places are some, which of them are filled, and that giving back leaves no trace."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_dropout.models import ViT
from lightning_dropout.nn import DropPath
from lightning_dropout.sites import Slot, empty_slots, fill_paths, find_sites, path_slots


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Block(nn.Module):
    """Built with a rate of 0, in each of the ways in which libraries do it."""

    def __init__(self) -> None:
        super().__init__()
        self.drop_path = nn.Identity()
        self.fc = nn.Linear(4, 4)
        self.drop_path2 = None
        self.attn_drop = None
        self.act = nn.Identity()
        self.register_module("stochastic_depth", None)
        self.register_module("dropout", None)
        self.drop_rate = 0.0

    def forward(self, x: Tensor) -> Tensor:
        for path in (self.drop_path, self.drop_path2, self.stochastic_depth):
            branch = self.fc(x)
            x = x + (branch if path is None else path(branch))
        return x


PATHS = ["0.drop_path2", "0.drop_path", "0.stochastic_depth"]


def names(slots: list[Slot]) -> list[str]:
    return [slot.name for slot in slots]


# What is a slot.


def test_a_slot_is_an_identity_or_none_that_is_called_like_a_drop() -> None:
    assert empty_slots(nn.Sequential(Block())) == [
        "0.drop_path2",
        "0.attn_drop",
        "0.drop_path",
        "0.stochastic_depth",
        "0.dropout",
    ]


def test_slots_are_not_made_up() -> None:
    assert empty_slots(ViT((1, 8, 8), preset="digits")) == []
    assert empty_slots(nn.Sequential(nn.Dropout(0.0), DropPath(0.0))) == []
    norm = type("LayerNormWithDrop", (Block,), {})  # timm's norms have a slot that no rate fills
    assert empty_slots(norm()) == []
    filled = Block()
    filled.drop_path = type("MyIdentity", (nn.Identity,), {})()
    assert "drop_path" not in empty_slots(filled)


@pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated")
def test_torchscript_is_no_obstacle() -> None:
    assert empty_slots(nn.Sequential(torch.jit.script(nn.Sequential(nn.Linear(4, 4))))) == []


def test_a_slot_says_where_it_is() -> None:
    model = nn.Sequential(Block())
    slot = path_slots(model, "drop_path")[0]
    assert (slot.name, slot.parent, slot.key, slot.held) == ("0.drop_path", model[0], "drop_path", model[0].drop_path)


def test_only_those_of_paths_can_be_filled() -> None:
    assert names(path_slots(nn.Sequential(Block()))) == PATHS


@pytest.mark.parametrize("name", ["drop_path_rate", "drop_path_prob", "drop_path_rates", "stochastic_depth_prob"])
def test_a_rate_that_is_none_is_no_place_for_a_layer(name: str) -> None:
    block = Block()
    setattr(block, name, None)
    assert names(path_slots(nn.Sequential(block))) == PATHS


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ("*", (), PATHS),
        ("drop_path*", (), PATHS[:2]),
        ("*", "drop_path", ["0.drop_path2", "0.stochastic_depth"]),
        (["0.drop_path", "stochastic_depth"], (), PATHS[1:]),
        ("1.*", (), []),
        ("0.*", "0.*", []),
        ("attn_drop", (), []),
    ],
    ids=str,
)
def test_patterns_choose(include: Any, exclude: Any, expected: list[str]) -> None:
    assert names(path_slots(nn.Sequential(Block()), include, exclude)) == expected
    assert names(fill_paths(nn.Sequential(Block()), include, exclude)) == expected


def test_a_slot_of_a_shared_block_is_one() -> None:
    block = Block()
    model = nn.Sequential(block, block)
    assert names(fill_paths(model)) == PATHS
    assert len(find_sites(model)) == 3


def test_wrappers_leave_the_names_alone() -> None:
    assert names(path_slots(nn.DataParallel(torch.compile(nn.Sequential(Block()), backend="eager")))) == PATHS


# Filling, and giving back.


def trace(model: nn.Module) -> list[Any]:
    """Everything in which a model that was filled and given back could differ, objects by identity."""

    def entries(book: dict[str, Any]) -> list[tuple[str, int]]:
        return [(key, id(value)) for key, value in book.items()]

    books = [(set(entries(vars(each))), entries(each._modules)) for each in model.modules()]
    return [repr(model), [type(each) for each in model.modules()], books, list(model.state_dict())]


class NaiveSlot(Slot):
    """Assigns what was there, as one would."""

    def give_back(self) -> None:
        setattr(self.parent, self.key, self.held)


def test_giving_back_leaves_no_trace() -> None:
    model = nn.Sequential(Block())
    before = trace(model)
    slots = fill_paths(model)
    assert trace(model) != before
    for slot in slots:
        slot.give_back()
    assert trace(model) == before
    assert "drop_path2" in vars(model[0])
    assert "stochastic_depth" in model[0]._modules


def test_assigning_none_would_leave_a_trace() -> None:
    model = nn.Sequential(Block())
    before = trace(model)
    for slot in fill_paths(model):
        NaiveSlot(**vars(slot)).give_back()
    assert trace(model) != before


@pytest.mark.parametrize("training", [True, False])
def test_what_is_filled_is_in_the_mode_of_its_parent(training: bool) -> None:
    model = nn.Sequential(Block(), Block())
    model[0].train(training)
    fill_paths(model)
    assert model[0].drop_path.training is training
    assert model[1].drop_path.training


def test_a_copy_of_a_filled_model_is_filled() -> None:
    model = nn.Sequential(Block())
    slots = fill_paths(model)
    other = copy.deepcopy(model)
    for slot in slots:
        slot.give_back()
    assert {site.name for site in find_sites(other)} == set(PATHS)
    assert names(path_slots(model)) == PATHS


# Models of the libraries.


def vision_transformer() -> nn.Module:
    timm = pytest.importorskip("timm", reason="needs timm, an optional library")
    model: nn.Module = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=16, embed_dim=8, depth=2, num_heads=2, num_classes=3
    )
    return model


def resnet() -> nn.Module:
    timm = pytest.importorskip("timm", reason="needs timm, an optional library")
    models = timm.models.resnet
    model: nn.Module = models.ResNet(
        models.BasicBlock, (1, 1, 1, 1), num_classes=3, stem_width=8, channels=(8, 8, 8, 8), zero_init_last=False
    )
    return model


def convnext() -> nn.Module:
    timm = pytest.importorskip("timm", reason="needs timm, an optional library")
    model: nn.Module = timm.models.convnext.ConvNeXt(
        depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), num_classes=3, ls_init_value=1.0
    )
    return model


def segformer() -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="needs transformers, an optional library")
    config = transformers.SegformerConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 8, 8],
        num_attention_heads=[1, 1, 1, 1],
        mlp_ratios=[1, 1, 1, 1],
        drop_path_rate=0.0,
        classifier_dropout_prob=0.0,
        num_labels=3,
    )
    return transformers.SegformerForImageClassification(config).train()


MODELS: dict[str, tuple[Callable[[], nn.Module], int, type]] = {
    "timm's ViT": (vision_transformer, 4, nn.Identity),
    "timm's ResNet": (resnet, 4, type(None)),
    "timm's ConvNeXt": (convnext, 4, nn.Identity),
    "transformers' Segformer": (segformer, 4, nn.Identity),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_a_library_that_was_built_with_0_is_filled_and_given_back(name: str) -> None:
    build, number, held = MODELS[name]
    model, x = build(), torch.randn(8, 3, 32, 32)

    def forward() -> Tensor:
        torch.manual_seed(1)
        output = model(x)
        logits: Tensor = output if isinstance(output, Tensor) else output.logits
        return logits.detach()

    model.eval()  # batch normalisation would move its statistics
    for module in model.modules():
        module.training = not isinstance(module, nn.BatchNorm2d)
    before, plain = trace(model), forward()
    slots = fill_paths(model)
    assert len(slots) == number
    assert {type(slot.held) for slot in slots} == {held}
    assert path_slots(model) == []
    sites = find_sites(model, kinds="drop_path")
    assert [site.name for site in sites] == names(slots)
    assert all(type(site.holder) is DropPath and site.rate == 0.0 for site in sites)
    assert torch.equal(forward(), plain)
    for site in sites:
        site.rate = 0.5
    assert not torch.equal(forward(), plain)
    for site in sites:
        site.rate = 1.0
    assert not torch.equal(forward(), plain)
    model.eval()
    dropped_nothing = forward()
    for slot in slots:
        slot.give_back()
    assert torch.equal(forward(), dropped_nothing)
    for module in model.modules():
        module.training = not isinstance(module, nn.BatchNorm2d)
    assert trace(model) == before
    assert torch.equal(forward(), plain)
