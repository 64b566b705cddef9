"""The zoo: every library's names, rates wherever they are taken, inputs that fit, and randomness that is given back."""

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from lightning_dropout.sites import find_sites
from lightning_dropout.zoo import build

# One of each way to a rate, an input or a size.
NAMES = [
    "timm/test_vit",  # drops patches and positions, too
    "timm/test_efficientnet",  # its constructor refuses most rates, one by one
    "timm/ese_vovnet19b_slim_dw",  # and this one refuses them together
    "timm/test_resnet.r160_in1k",  # a tag
    "tv/squeezenet1_1",
    "tv/mobilenet_v3_small",
    "tv/quantized_mobilenet_v2",
    "tv/googlenet",  # returns branches, warns of its initialisation
    "hf/bert",
    "hf/BertForMaskedLM@eager",
    "hf/BertForMaskedLM@sdpa",
    "hf/BartForCausalLM",  # attends to an encoder that is not there
    "hf/T5ForConditionalGeneration",  # an encoder and a decoder
    "hf/GPT2ForSequenceClassification",  # needs a padding token
    "hf/GPTNeoForCausalLM",  # lists its layers
    "hf/ReformerForMaskedLM",  # wants as many tokens as its axes have
    "hf/ViTForImageClassification",
    "hf/CLIPModel",  # nested configs, two inputs
    "hf/Gemma3ForConditionalGeneration",  # an image in the text
    "hf/HubertForSequenceClassification",  # sounds
    "hf/WhisperForConditionalGeneration",  # spectrograms
    "hf/LxmertForPreTraining",
    "hf/levit",  # says that its rate is a whole number
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the config of a model, narrow as it is."""
    transformers.BertConfig(
        vocab_size=99, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    ).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_a_model_runs_on_its_inputs_in_train_mode(name: str) -> None:
    model, inputs = build(name, 0.3)
    with torch.no_grad():
        model.train()(**inputs)
    assert all(len(value) == 2 for value in inputs.values())


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("timm/test_vit", {"blocks.0.attn.attn_drop.p", "pos_drop.p", "patch_drop.prob", "head_drop.p"}),
        ("timm/ese_vovnet19b_slim_dw", {"head.drop.p", "stages.3.blocks.0.drop_path.drop_prob"}),
        ("tv/googlenet", {"dropout.p", "aux1.dropout.p"}),
        ("tv/densenet121", {"features.denseblock1.denselayer1.drop_rate"}),
        ("hf/BertForMaskedLM", {"bert.embeddings.dropout.p", "bert.encoder.layer.1.attention.self.dropout.p"}),
        ("hf/BartForConditionalGeneration", {"model.encoder.layerdrop", "model.decoder.layers.0.activation_dropout"}),
        ("hf/GPT2ForSequenceClassification", {"transformer.drop.p", "transformer.h.0.attn.attn_dropout.p"}),
        ("hf/CLIPModel", {"text_model.encoder.layers.0.self_attn.dropout"}),
    ],
)
def test_the_rate_goes_wherever_the_constructor_takes_one(name: str, attributes: set[str]) -> None:
    model, _ = build(name, 0.25)
    holders = {path: (model.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2]) for path in attributes}
    assert {path: getattr(*holder) for path, holder in holders.items()} == dict.fromkeys(attributes, 0.25)


def test_a_list_of_rates_is_filled() -> None:
    model, _ = build("hf/cvt", 0.25)
    assert set(model.config.attention_drop_rate) == set(model.config.drop_path_rate) == {0.25}


def test_without_a_rate_the_library_keeps_its_own() -> None:
    assert {site.rate for site in find_sites(build("hf/bert")[0])} == {0.1}
    assert build("tv/alexnet")[0].classifier[0].p == 0.5
    with pytest.raises(ValueError, match="rate of 0"):
        find_sites(build("timm/test_vit")[0], kinds="drop_path")


def test_zero_and_one_are_rates() -> None:
    for rate in (0, 1):
        assert build("hf/bert", rate)[0].embeddings.dropout.p == rate


def test_no_rate_is_given_to_what_only_looks_like_one() -> None:
    model, _ = build("hf/esm", 0.25)
    assert model.config.token_dropout is False
    assert model.config.hidden_dropout_prob == 0.25


def test_a_tiny_model_is_tiny_and_has_the_attention_that_was_asked_for() -> None:
    for attention in ("eager", "sdpa"):
        model, _ = build(f"hf/BertForMaskedLM@{attention}")
        assert type(model) is transformers.BertForMaskedLM
        assert model.config._attn_implementation == attention
        assert sum(parameter.numel() for parameter in model.parameters()) < 100_000
    assert type(build("hf/bert")[0]) is transformers.BertModel


def test_a_folder_is_built_at_its_full_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    for name in (f"hf/{folder}", f"hf/./{folder.name}@eager"):
        model, inputs = build(name, 0.3)
        assert type(model) is transformers.BertModel
        assert model.config.hidden_size == 24
        assert model.config.hidden_dropout_prob == 0.3
        model(**inputs)
    assert model.config._attn_implementation == "eager"


def test_a_folder_names_its_architecture_and_keeps_single_precision(folder: Path) -> None:
    config = transformers.BertConfig.from_pretrained(folder, architectures=["BertForMaskedLM"], dtype="bfloat16")
    config.save_pretrained(folder)
    model, _ = build(f"hf/{folder}")
    assert type(model) is transformers.BertForMaskedLM
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


# Randomness.


def tensors(name: str, seed: int) -> dict[str, torch.Tensor]:
    model, inputs = build(name, seed=seed)
    return {**model.state_dict(), **inputs}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, second[key]) for key, value in first.items())


@pytest.mark.parametrize("name", ["timm/test_vit", "tv/squeezenet1_1", "hf/bert"])
def test_the_seed_decides_weights_and_inputs_and_nobody_else_notices(name: str) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = tensors(name, 0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])  # noqa: NPY002
    torch.manual_seed(2)
    assert same(first, tensors(name, 0))
    assert not same(first, tensors(name, 1))


# What is refused.


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "timm/vit_tiny_patch16_225",
            r"model of timm, but got 'timm/vit_tiny_patch16_225'; closest: timm/vit_tiny_pat",
        ),
        ("tv/resnet19", r"model of torchvision, but got 'tv/resnet19'; closest: tv/resnet18"),
        ("tv/raft_small", r"model of torchvision, but got 'tv/raft_small'"),  # takes pairs of images
        ("hf/brt", r"model of transformers, but got 'hf/brt'; closest: hf/bert"),
        ("hf/BertForMaskedLn", r"closest: hf/BertForMaskedLM"),
        ("hf/BertConfig", r"model of transformers, but got 'hf/BertConfig'"),
        ("hf/PreTrainedModel", r"model of transformers, but got 'hf/PreTrainedModel'"),
        ("hf/bert@flash_attention_2", r"Expected @eager or @sdpa after a name, but got 'hf/bert@flash_attention_2'"),
        ("hf/bert@some-one/kernel", r"Expected @eager or @sdpa"),
        ("hf/BigBirdForMaskedLM@sdpa", r"can build, but got 'hf/BigBirdForMaskedLM@sdpa' \(ValueError: BigBird"),
        ("hf/mamba2", r"can build, but got 'hf/mamba2' \(.*Inconsistent.*; build it yourself and call `audit"),
        ("hf/patchtst", r"can build, but got 'hf/patchtst' \(KeyError: 'past_values'\); build it yourself"),
        ("hf/./no-folder", r"hf/<folder with a config.json>, but got 'hf/./no-folder'"),
        ("hf/~/no-folder", r"hf/<folder with a config.json>, but got 'hf/~/no-folder'"),
        ("vit", r"to be \"timm/...\", \"tv/...\" or \"hf/...\", but got 'vit'; write e.g."),
        ("timm/", r"but got 'timm/'; write e.g."),
        ("jax/vit", r"but got 'jax/vit'; write e.g."),
    ],
)
def test_a_name_that_cannot_be_built_is_refused_with_a_cure(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(name)


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"can build, but got 'hf/.*JSON"):
        build(f"hf/{tmp_path}")


def test_only_the_config_is_asked_for_on_the_hub_and_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def from_pretrained(name: str, **options: Any) -> None:
        asked.append((name, options))
        raise OSError("no network")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", from_pretrained)
    with pytest.raises(ValueError, match=r"can build, but got 'hf/some-one/model@sdpa' \(OSError: no network\)"):
        build("hf/some-one/model@sdpa")
    assert asked == [("some-one/model", {"trust_remote_code": False, "attn_implementation": "sdpa"})]


@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan"), True, "0.3"], ids=repr)
def test_a_rate_that_is_none_is_refused_before_anything_is_built(rate: Any) -> None:
    with pytest.raises(ValueError, match="Expected `rate` to be a probability"):
        build("timm/no_such_model", rate)


@pytest.mark.parametrize(
    ("name", "library", "install"),
    [
        ("timm/test_vit", "timm", r'pip install "lightning-dropout\[vision\]"'),
        ("tv/resnet18", "torchvision", r'pip install "lightning-dropout\[vision\]"'),
        ("hf/bert", "transformers", "pip install transformers"),
    ],
)
def test_a_missing_library_names_its_installation(
    name: str, library: str, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [module for module in sys.modules if module.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ValueError, match=f"model of {library}, but {library} cannot be imported.*{install}"):
        build(name)


def test_other_errors_of_a_constructor_are_not_taken_for_a_refused_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> nn.Module:
        raise TypeError("got an unexpected keyword argument 'img_size'. Did you mean 'drop_rate'?")

    monkeypatch.setattr("timm.create_model", broken)
    with pytest.raises(TypeError, match="img_size"):
        build("timm/test_vit", 0.3)


def test_no_library_is_imported_before_a_name_asks_for_it() -> None:
    code = (
        "import sys, lightning_dropout.zoo\n"
        "print([name for name in ('timm', 'torchvision', 'transformers', 'peft') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n", ran.stderr


def test_a_rate_that_a_constructor_asserts_away_is_an_error_of_one_line() -> None:
    with pytest.raises(ValueError, match=r"^Expected `rate` to be one that the layers take, but got 1\.0; lower it\.$"):
        build("timm/test_vit", 1.0)
