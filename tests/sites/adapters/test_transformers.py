"""The rows of transformers and PEFT: one tiny model for each way in which a Hugging Face model drops."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_dropout.sites import Site, find_sites

transformers = pytest.importorskip("transformers", reason="needs transformers, an optional library")

WORDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 50,
    "max_position_embeddings": 32,
    **WORDS,
}
ENCODER_DECODER = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "vocab_size": 50,
    "dropout": 0.1,
    "attention_dropout": 0.2,
    "activation_dropout": 0.3,
    "encoder_layerdrop": 0.1,
    "decoder_layerdrop": 0.2,
    "decoder_start_token_id": 1,
    **WORDS,
}
IMAGE = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 8,
    "patch_size": 4,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.2,
}
SPEECH = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 50,
    "conv_dim": (8, 8),
    "conv_stride": (2, 2),
    "conv_kernel": (3, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "apply_spec_augment": False,  # masks of its own, which are no dropout
}


def words() -> Tensor:
    return torch.arange(12).view(2, 6) + 3


def text(model: nn.Module) -> Tensor:
    return model(input_ids=words()).last_hidden_state


def text_to_text(model: nn.Module) -> Tensor:
    return model(input_ids=words(), decoder_input_ids=words()).last_hidden_state


def image(model: nn.Module) -> Tensor:
    return model(pixel_values=torch.linspace(-1, 1, 2 * 3 * 64).view(2, 3, 8, 8)).last_hidden_state


def speech(model: nn.Module) -> Tensor:
    return model(input_values=torch.linspace(-9, 9, 2 * 120).sin().view(2, 120)).last_hidden_state


def spectrogram(model: nn.Module) -> Tensor:
    features = torch.linspace(-9, 9, 2 * 8 * 32).sin().view(2, 8, 32)
    return model(input_features=features, decoder_input_ids=words()).last_hidden_state


def layer(name: str) -> Any:
    """The site of a ``nn.Dropout``."""
    return name, "dropout", "Dropout", "p", ("Dropout",)


def read(name: str, kind: str, cls: str) -> Any:
    """The site of a float that a module's own code reads."""
    return name, kind, cls, name.rpartition(".")[2], (cls,)


def bart_like(name: str) -> list[Any]:
    """The sites of a model after BART: floats on its stacks, every layer and its attentions."""
    expected = []
    for stack in ("encoder", "decoder"):
        cls = f"{name}{stack.capitalize()}"
        expected += [
            read(f"{stack}.dropout", "dropout", cls),
            read(f"{stack}.layerdrop", "layer_drop", cls),
            read(f"{stack}.layers.0.dropout", "dropout", f"{cls}Layer"),
            read(f"{stack}.layers.0.activation_dropout", "dropout", f"{cls}Layer"),
        ]
        attentions = {"encoder": ["self_attn"], "decoder": ["self_attn", "encoder_attn"]}[stack]
        expected += [read(f"{stack}.layers.0.{each}.dropout", "attention", f"{name}Attention") for each in attentions]
    return expected


# Architecture, its configuration, how it runs, its sites.
ROWS: dict[str, tuple[str, dict[str, Any], Callable[[nn.Module], Tensor], list[Any]]] = {
    "BERT: the attention reads its child's rate": (
        "Bert",
        {**TEXT, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.2},
        text,
        [
            layer("embeddings.dropout"),
            ("encoder.layer.0.attention.self.dropout", "attention", "Dropout", "p", ("BertSelfAttention",)),
            layer("encoder.layer.0.attention.output.dropout"),
            layer("encoder.layer.0.output.dropout"),
        ],
    ),
    "GPT-2: likewise, with a second attention behind a switch": (
        "GPT2",
        {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 50, "n_positions": 32, **WORDS},
        text,
        [
            layer("drop"),
            ("h.0.attn.attn_dropout", "attention", "Dropout", "p", ("GPT2Attention",)),
            layer("h.0.attn.resid_dropout"),
            layer("h.0.mlp.dropout"),
        ],
    ),
    "Llama: a float on the attention": (
        "Llama",
        {**TEXT, "attention_dropout": 0.2},
        text,
        [read("layers.0.self_attn.attention_dropout", "attention", "LlamaAttention")],
    ),
    "ViT: likewise, beside layers": (
        "ViT",
        {**IMAGE, "num_hidden_layers": 1},
        image,
        [
            layer("embeddings.dropout"),
            read("layers.0.attention.attention_dropout", "attention", "ViTAttention"),
            layer("layers.0.dropout"),
        ],
    ),
    "Persimmon: a float in the configuration, read by every layer": (
        "Persimmon",
        {**TEXT, "num_hidden_layers": 2, "attention_dropout": 0.2, "hidden_dropout": 0.1},
        text,
        [
            (
                "layers.0.self_attn.config.attention_dropout",
                "attention",
                "PersimmonConfig",
                "attention_dropout",
                ("PersimmonAttention", "PersimmonAttention"),
            ),
            layer("layers.0.self_attn.attention_dropout"),
            layer("layers.0.dropout"),
            layer("layers.1.self_attn.attention_dropout"),
            layer("layers.1.dropout"),
        ],
    ),
    "BART: floats everywhere, layerdrop": (
        "Bart",
        {**ENCODER_DECODER, "max_position_embeddings": 32, "classifier_dropout": 0.4},
        text_to_text,
        bart_like("Bart"),
    ),
    "Whisper: likewise": (
        "Whisper",
        {**ENCODER_DECODER, "max_source_positions": 16, "max_target_positions": 16, "num_mel_bins": 8},
        spectrogram,
        bart_like("Whisper"),
    ),
    "T5: floats on the attentions, layers elsewhere": (
        "T5",
        {"d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 16, "d_kv": 8, "vocab_size": 50, "dropout_rate": 0.1},
        text_to_text,
        [
            read("encoder.block.0.layer.0.SelfAttention.dropout", "attention", "T5Attention"),
            layer("encoder.block.0.layer.0.dropout"),
            layer("encoder.block.0.layer.1.DenseReluDense.dropout"),
            layer("encoder.block.0.layer.1.dropout"),
            layer("encoder.dropout"),
            read("decoder.block.0.layer.0.SelfAttention.dropout", "attention", "T5Attention"),
            layer("decoder.block.0.layer.0.dropout"),
            read("decoder.block.0.layer.1.EncDecAttention.dropout", "attention", "T5Attention"),
            layer("decoder.block.0.layer.1.dropout"),
            layer("decoder.block.0.layer.2.DenseReluDense.dropout"),
            layer("decoder.block.0.layer.2.dropout"),
            layer("decoder.dropout"),
        ],
    ),
    "wav2vec 2.0: layerdrop in the configuration": (
        "Wav2Vec2",
        {**SPEECH, "num_hidden_layers": 1, "layerdrop": 0.1, "feat_proj_dropout": 0.4, "final_dropout": 0.5},
        speech,
        [
            layer("feature_projection.dropout"),
            ("encoder.config.layerdrop", "layer_drop", "Wav2Vec2Config", "layerdrop", ("Wav2Vec2Encoder",)),
            layer("encoder.dropout"),
            read("encoder.layers.0.attention.dropout", "attention", "Wav2Vec2Attention"),
            layer("encoder.layers.0.dropout"),
            layer("encoder.layers.0.feed_forward.intermediate_dropout"),
            layer("encoder.layers.0.feed_forward.output_dropout"),
        ],
    ),
    "SEW-D: StableDropout": (
        "SEWD",
        {**SPEECH, "num_hidden_layers": 1, "squeeze_factor": 2},
        speech,
        [
            layer("feature_dropout"),
            *(
                (
                    f"encoder.encoder.layer.0.attention.self.{each}",
                    "dropout",
                    "StableDropout",
                    "drop_prob",
                    ("StableDropout",),
                )
                for each in ("pos_dropout", "dropout")
            ),
            layer("encoder.encoder.layer.0.attention.output.dropout"),
            layer("encoder.encoder.layer.0.output.dropout"),
        ],
    ),
    "BEiT: its own copy of DropPath": (
        "Beit",
        {**IMAGE, "num_hidden_layers": 2, "drop_path_rate": 0.2},
        image,
        [
            layer("embeddings.dropout"),
            read("layers.0.attention.attention_dropout", "attention", "BeitAttention"),
            layer("layers.0.dropout"),
            read("layers.1.attention.attention_dropout", "attention", "BeitAttention"),
            layer("layers.1.dropout"),
            ("layers.1.drop_path", "drop_path", "BeitDropPath", "drop_prob", ("BeitDropPath",)),
        ],
    ),
    "ESM: token_dropout is a switch, and the dropout of its embeddings is never called": (
        "Esm",
        {**TEXT, "token_dropout": True, "mask_token_id": 3, "position_embedding_type": "rotary"}
        | {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.2},
        text,
        [
            read("encoder.layer.0.attention.self.dropout", "attention", "EsmSelfAttention"),
            layer("encoder.layer.0.attention.output.dropout"),
            layer("encoder.layer.0.output.dropout"),
        ],
    ),
}
# Layers that the model's own code forgot to call.
DEAD = {
    "Persimmon: a float in the configuration, read by every layer": [
        f"layers.{each}.self_attn.attention_dropout" for each in range(2)
    ],
}


def build(row: str, attn_implementation: str = "eager") -> nn.Module:
    name, arguments, _, _ = ROWS[row]
    config = getattr(transformers, f"{name}Config")(**arguments)
    model: nn.Module = getattr(transformers, f"{name}Model")._from_config(
        config, attn_implementation=attn_implementation
    )
    return model


EAGER_ONLY = ("SEW-D",)  # which has no fused attention


@pytest.mark.parametrize(
    ("row", "attn_implementation"),
    [(row, way) for row in ROWS for way in ("eager", "sdpa") if way == "eager" or not row.startswith(EAGER_ONLY)],
)
def test_the_sites_are_those_of_the_table_and_they_drop(
    row: str, attn_implementation: str, check: Any, described: Any
) -> None:
    model = build(row, attn_implementation)
    sites = find_sites(model)
    assert described(sites) == ROWS[row][3]
    check(model, ROWS[row][2], sites, DEAD.get(row, ()))()


def row(start: str) -> str:
    (found,) = (each for each in ROWS if each.startswith(start))
    return found


# What the table does not say.


def test_a_number_in_the_configuration_is_one_site_for_all_who_read_it() -> None:
    model = build(row("Persimmon"))
    (site,) = find_sites(model, kinds="attention")
    assert [user.name for user in site.users] == [f"layers.{each}.self_attn.config.attention_dropout" for each in "01"]
    assert [user.owners for user in site.users] == [(layer.self_attn,) for layer in model.layers]
    assert site.holder is model.config
    assert find_sites(model, "layers.1.self_attn.*")[0].key == site.key
    site.rate = 0.75
    assert all(layer.self_attn.config.attention_dropout == 0.75 for layer in model.layers)


def test_a_rate_of_1_is_refused_where_the_layer_divides_by_what_it_keeps() -> None:
    for start in ("BEiT", "SEW-D"):
        model = build(row(start)).train()
        for site in (site for site in find_sites(model) if site.below_one):
            with pytest.raises(ValueError, match=r"below 1, since this layer divides by 1 - rate, but got 1\.0"):
                site.rate = 1
            site.holder.drop_prob = 0.9
            assert site.holder(torch.ones(4, 4)).isfinite().all()
            site.holder.drop_prob = 1.0  # the reason
            try:
                assert not site.holder(torch.ones(4, 4)).isfinite().all()
            except ZeroDivisionError:
                assert start == "SEW-D"


def test_a_classifier_on_top_is_found_as_well() -> None:
    config = transformers.BertConfig(**TEXT, classifier_dropout=0.4)
    assert "dropout" in [site.name for site in find_sites(transformers.BertForSequenceClassification(config))]


def test_a_copy_of_droppath_without_a_rate_is_no_site() -> None:
    from transformers.models.beit.modeling_beit import BeitDropPath

    model = nn.Sequential(BeitDropPath(None), BeitDropPath(0.1))
    assert [site.name for site in find_sites(model)] == ["1"]


def test_the_r_of_esmfolds_dropout_is_a_decoy(check: Any, described: Any) -> None:
    from transformers.models.esm.modeling_esmfold import EsmFoldDropout

    model = nn.Sequential(EsmFoldDropout(0.1, 1))
    sites = find_sites(model)
    assert described(sites) == [layer("0.dropout")]
    check(model, lambda model: model(torch.ones(4, 4, 4)), sites)()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # inside peft
def test_lora_drops_in_front_of_its_adapters(check: Any, described: Any) -> None:
    peft = pytest.importorskip("peft", reason="needs peft, an optional library")
    config = peft.LoraConfig(r=2, lora_dropout=0.1, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = peft.get_peft_model(build(row("Llama")), config)
    sites = find_sites(model)
    attention = "base_model.model.layers.0.self_attn"
    assert described(sites) == [
        read(f"{attention}.attention_dropout", "attention", "LlamaAttention"),
        *(layer(f"{attention}.{each}.lora_dropout.default") for each in ("q_proj", "v_proj")),
    ]
    check(model, text, sites)()


# Wrong finders.


def only_dropout_layers(sites: list[Site], model: nn.Module) -> list[Site]:
    return [site for site in sites if isinstance(site.holder, nn.Dropout)]


def the_holder_owns(sites: list[Site], model: nn.Module) -> list[Site]:
    return [
        dataclasses.replace(site, users=(dataclasses.replace(site.users[0], owners=(site.holder,)),))
        if isinstance(site.holder, nn.Module)
        else site
        for site in sites
    ]


def the_first_reader_owns(sites: list[Site], model: nn.Module) -> list[Site]:
    return [dataclasses.replace(site, users=site.users[:1]) for site in sites]


def whatever_is_called_dropout(sites: list[Site], model: nn.Module) -> list[Site]:
    found = [(name, module) for name, module in model.named_modules() if isinstance(getattr(module, "r", None), float)]
    return sites + [
        Site(name, "dropout", module, "r", (dataclasses.replace(sites[0].users[0], owners=(module,)),))
        for name, module in found
    ]


@pytest.mark.parametrize(
    ("start", "wrong"),
    [
        ("BERT", the_holder_owns),
        ("GPT-2", the_holder_owns),
        ("Llama", only_dropout_layers),
        ("ViT", only_dropout_layers),
        ("T5", only_dropout_layers),
        ("BART", only_dropout_layers),
        ("wav2vec", only_dropout_layers),
    ],
)
def test_a_wrong_finder_fails_the_check(start: str, wrong: Any, check: Any) -> None:
    model = build(row(start), "sdpa")
    sites = find_sites(model)
    with pytest.raises(AssertionError):
        check(model, ROWS[row(start)][2], wrong(sites, model))()


def test_a_finder_that_sets_a_decoy_fails_the_check(check: Any) -> None:
    from transformers.models.esm.modeling_esmfold import EsmFoldDropout

    model = nn.Sequential(EsmFoldDropout(0.1, 1))
    wrong = whatever_is_called_dropout(find_sites(model), model)
    with pytest.raises(AssertionError):
        check(model, lambda model: model(torch.ones(4, 4, 4)), wrong)()
