"""Models of timm, torchvision and transformers by name, with random weights and inputs that fit.

For looking at models, not for training them: the audit on the command line and the coverage table build theirs here.
No weights are ever downloaded, and a library is imported only when a name asks for it.
"""

import copy
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_dropout.models.libraries import import_library, unknown_model
from lightning_dropout.probability import check_probability

__all__ = ["build"]

_VISION = '"lightning-dropout[vision]"'

_BATCH = 2  # images or sequences: the fewest with which BatchNorm trains
_TOKENS = 16  # in a sequence
_SAMPLES = 3200  # in a sound: enough for the strides of every speech encoder
_SIDE = 256  # pixels: where a model takes any image, it gets no larger one

_TIMM_RATES = {
    *("drop_rate", "attn_drop_rate", "proj_drop_rate", "pos_drop_rate", "patch_drop_rate"),
    *("drop_path_rate", "drop_block_rate"),
}
# Taken by the constructor, but no forward runs with them: SAM's attention wants every row of the image.
_TIMM_UNUSABLE = {"timm.models.vision_transformer_sam": {"patch_drop_rate"}}
_TORCHVISION_RATES = {
    *("dropout", "dropout_aux", "attention_dropout", "mlp_dropout", "drop_rate", "stochastic_depth_prob"),
}
_CONFIG_RATE = re.compile(r"\w*(dropout|layerdrop|drop_?path|pdrop|drop\w*_rate)\w*")

# The sizes of a tiny model of transformers by the names that its configs use: the same code, fewer and narrower layers.
_SIZES = {
    r"(num_|n_)?(hidden_|encoder_|decoder_|hidden_layers_per_|adapter_)?layers?|num_(en|de)coder_layers|depth": 2,
    r"(\w+_)?attention_heads|num_key_value_heads|num_heads|n_heads?": 4,
    r"num_experts_per_tok|mask_(time|feature)_length": 2,
    r"(qk_\w+_|v_)?head_dim|d_kv|rotary_dim": 8,
    r"num_experts|num_local_experts|n_routed_experts|local_attn_chunk_length|lsh_attn_chunk_length": 4,
    r"hidden_size|d_model|n_embd|dim|embedding_size|word_embed_proj_dim|intra_bottleneck_size|true_hidden_size": 32,
    r"intermediate_size|moe_intermediate_size|\w*ffn_dim|d_ff|d_inner|mlp_dim|hidden_dim|feed_forward_size": 32,
    r"image_size": 32,
    r"vocab_size|max_position_embeddings|n_positions|max_(source|target)_positions": 128,
}
_VOCABULARY = 128  # tokens
_ATTENTIONS = ("eager", "sdpa")  # what runs on a CPU
_LONGEST_WORDS = 300  # characters of another library's message that are repeated
# Where one size depends on another.
_SIZES_OF_TYPE: dict[str, dict[str, Any]] = {
    "big_bird": {"block_size": 2, "num_random_blocks": 1},
    "bigbird_pegasus": {"block_size": 2, "num_random_blocks": 1},
    "esm": {"vocab_size": 33},
    "gemma3": {"mm_tokens_per_image": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "longformer": {"attention_window": 8},
    "reformer": {
        "attn_layers": ["local", "lsh"],
        "axial_pos_shape": [4, _TOKENS // 4],
        "axial_pos_embds_dim": [8, 24],
    },
    "swin": {"image_size": 224},
}


def build(name: str, rate: float | None = None, *, seed: int = 0) -> tuple[nn.Module, dict[str, Any]]:
    """Return a model with random weights, in the mode its library leaves it in, and keyword inputs that fit.

    ``"timm/<entrypoint>"`` and ``"tv/<name>"`` build the image classifiers of timm and torchvision at their full size.
    ``"hf/<model type>"`` and ``"hf/<architecture class>"`` build a transformers model with the same code in fewer and
    narrower layers; ``"hf/<folder or hub name>"``, known by its slash, builds what the ``config.json`` there describes,
    at full size. A suffix chooses the attention: ``"hf/bert@eager"``, ``"hf/bert@sdpa"``.

    Args:
        name: What to build. Only a hub name makes a request to the network, for the config.
        rate: Probability of dropping, in [0, 1], wherever the constructor or the config takes one; ``None`` leaves the
            library's own rates.
        seed: Of weights and inputs; the global random state stays as it was.

    Raises:
        ValueError: If the name is unknown (the message has the closest ones), its library is missing, the sizes or
            inputs of this architecture are not known here, or ``rate`` is no probability.

    Example:
        >>> model, inputs = build("tv/alexnet", rate=0.3)
        >>> model.classifier[0], inputs["x"].shape
        (Dropout(p=0.3, inplace=False), torch.Size([2, 3, 64, 64]))
    """
    library, _, rest = name.partition("/")
    if library not in _BUILDERS or not rest:
        raise ValueError(
            f'Expected `name` to be "timm/...", "tv/..." or "hf/...", but got {name!r}; '
            'write e.g. "timm/vit_tiny_patch16_224".'
        )
    rate = None if rate is None else check_probability(rate, "rate")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return _BUILDERS[library](rest, rate)


def _timm(name: str, rate: float | None) -> tuple[nn.Module, dict[str, Any]]:
    timm = import_library("timm", _VISION)
    if not timm.is_model(name):
        raise unknown_model(f"timm/{name}", "timm", [f"timm/{other}" for other in timm.list_models()])
    names = _TIMM_RATES - _TIMM_UNUSABLE.get(timm.model_entrypoint(name).__module__, set())
    model = _with_rates(lambda **rates: timm.create_model(name, pretrained=False, **rates), names, rate)
    data = model.pretrained_cfg
    channels, *sides = data.get("min_input_size") or data["input_size"]
    if not data.get("fixed_input_size"):
        sides = [min(side, _SIDE) for side in sides]
    return model, {"x": torch.randn(_BATCH, channels, *sides)}


def _torchvision(name: str, rate: float | None) -> tuple[nn.Module, dict[str, Any]]:
    models = import_library("torchvision.models", _VISION)
    known = models.list_models(models) + models.list_models(models.quantization)
    if name not in known:
        raise unknown_model(f"tv/{name}", "torchvision", [f"tv/{other}" for other in known])
    # Left out, these two warn that the default will change.
    options = {"init_weights": False} if "inception" in name or "googlenet" in name else {}
    model = _with_rates(lambda **rates: models.get_model(name, **options, **rates), _TORCHVISION_RATES, rate)
    side = max(64, min(weights.meta["min_size"][0] for weights in models.get_model_weights(name)))
    if "inception" in name:
        side = 299  # the branch beside the head, which runs in train mode only, fits no other
    return model, {"x": torch.randn(_BATCH, 3, side, side)}


def _transformers(name: str, rate: float | None) -> tuple[nn.Module, dict[str, Any]]:
    transformers = import_library("transformers", "transformers")
    what, _, attention = name.partition("@")
    if attention not in ("", *_ATTENTIONS):  # other names may fetch code
        raise ValueError(f"Expected @{' or @'.join(_ATTENTIONS)} after a name, but got {f'hf/{name}'!r}; leave it out.")
    options = {"attn_implementation": attention} if attention else {}
    architecture = getattr(transformers, what, None)
    types = transformers.CONFIG_MAPPING
    config_class = types[what] if what in types else getattr(architecture, "config_class", None)
    folder = Path(what).expanduser()
    if what.startswith((".", "~", "/")) and not folder.is_dir():  # or it would be asked for on the hub
        raise ValueError(f"Expected `name` to be hf/<folder with a config.json>, but got {f'hf/{name}'!r}, no folder.")
    if config_class is None and "/" not in what:
        classes = [key for key in dir(transformers) if key.endswith("Model") or "For" in key]
        known = [f"hf/{other}" for other in (*types, *classes)]
        raise unknown_model(f"hf/{what}", "transformers", known)
    try:
        if config_class is None:
            where = folder if folder.is_dir() else what
            config = transformers.AutoConfig.from_pretrained(where, trust_remote_code=False, **options)
            architecture = getattr(transformers, (config.architectures or [""])[0], None)
        else:
            config = _tiny(config_class(), options)
        make = partial(_with_config, architecture or transformers.AutoModel.from_config, config)
        names = {key for part in _parts(config) for key, value in vars(part).items() if _is_rate(key, value)}
        model = _with_rates(make, names, rate).float()
        return model, _inputs(model)
    except Exception as error:  # of the hub, of a strict config, of sizes that do not go together, of unknown inputs
        raise ValueError(
            f"Expected `name` to be a model that the zoo can build, but got {f'hf/{name}'!r} ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:_LONGEST_WORDS]}); build it yourself and call `audit(model, **inputs)`."
        ) from error


def _with_config(architecture: Callable[[Any], nn.Module], config: Any, **rates: float) -> nn.Module:
    config = copy.deepcopy(config)
    for part in _parts(config):
        for key in rates.keys() & vars(part).keys():
            value = vars(part)[key]
            several = isinstance(value, list | tuple)
            setattr(part, key, type(value)(rates[key] for _ in value) if several else rates[key])
    return architecture(config)


def _with_rates(make: Callable[..., Any], names: Iterable[str], rate: float | None) -> Any:
    """Call ``make`` with the rates that it takes: those that it complains about by name are left out."""
    rates = {} if rate is None else dict.fromkeys(sorted(names), rate)
    while True:
        try:
            return make(**rates)
        except Exception as error:
            refused = rates.keys() & re.findall(r"\w+", str(error).partition("Did you mean")[0])
            if isinstance(error, AssertionError) and rates:  # timm's word for a rate of 1
                raise ValueError(
                    f"Expected `rate` to be one that the layers take, but got {rate}; lower it."
                ) from error
            if not refused:
                raise
            rates = {key: value for key, value in rates.items() if key not in refused}


def _is_rate(name: str, value: object) -> bool:
    """Tell whether a config's entry is a rate, or a list of them; unset ones (``classifier_dropout=None``) are."""
    number = isinstance(value, int | float | None) and not isinstance(value, bool)
    several = isinstance(value, list | tuple) and all(isinstance(item, float) for item in value)
    return _CONFIG_RATE.fullmatch(name) is not None and (number or several)


def _parts(config: Any) -> Iterator[Any]:
    """Yield a config and those nested in it, such as the text's and the images'."""
    yield config
    for key in config.sub_configs:
        if getattr(config, key, None) is not None:
            yield from _parts(getattr(config, key))


def _tiny(config: Any, options: dict[str, Any]) -> Any:
    """Return a config of the same class with small sizes; what it derives from them, it derives again."""
    numbers = {key: value for key, value in vars(config).items() if type(value) is int}
    sizes: dict[str, Any] = {
        key: min(size, value)
        for key, value in numbers.items()
        for pattern, size in _SIZES.items()
        if re.fullmatch(pattern, key)
    }
    sizes |= {key: 1 for key, value in numbers.items() if key.endswith("token_id") and value >= _VOCABULARY}
    if hasattr(config, "vocab_size") and getattr(config, "pad_token_id", None) is None:
        sizes["pad_token_id"] = 0  # without one, heads that classify take a single sequence only
    sizes |= _SIZES_OF_TYPE.get(config.model_type, {})
    nested = {key: _tiny(part, {}) for key in config.sub_configs if (part := getattr(config, key, None)) is not None}
    return type(config)(**sizes, **nested, **options)


def _inputs(model: Any) -> dict[str, Any]:
    config, text = model.config, model.config.get_text_config()
    image = getattr(config, "vision_config", config)
    cross: Any = next((module for name, module in model.named_modules() if name.endswith("encoder_attn")), None)

    def tokens() -> Tensor:
        drawn = torch.randint(3, text.vocab_size, (_BATCH, _TOKENS))  # padding, beginning and end are below
        if hasattr(config, "mm_tokens_per_image"):
            drawn[:, : config.mm_tokens_per_image] = config.image_token_id
        return drawn

    def pixels() -> Tensor:
        side = getattr(image, "image_size", None) or 64
        sides = (side, side) if isinstance(side, int) else side
        return torch.randn(_BATCH, getattr(image, "num_channels", 3), *sides)

    makers: dict[str, Callable[[], Tensor]] = {
        "input_ids": tokens,
        "decoder_input_ids": tokens,
        "encoder_hidden_states": lambda: torch.randn(_BATCH, _TOKENS, cross.k_proj.in_features),
        "pixel_values": pixels,
        "input_values": lambda: torch.randn(_BATCH, _SAMPLES),
        "input_features": lambda: torch.randn(
            _BATCH, config.num_mel_bins, 2 * getattr(config, "max_source_positions", _TOKENS)
        ),
        "visual_feats": lambda: torch.randn(_BATCH, 4, config.visual_feat_dim),
        "visual_pos": lambda: torch.rand(_BATCH, 4, config.visual_pos_dim),
    }
    names = [model.main_input_name] if isinstance(model.main_input_name, str) else list(model.main_input_name)
    pairs = hasattr(model, "logit_scale") or hasattr(config, "mm_tokens_per_image")  # of texts and images
    names += ["pixel_values"] if pairs else []
    names += ["visual_feats", "visual_pos"] if hasattr(config, "visual_feat_dim") else []
    names += ["decoder_input_ids"] if config.is_encoder_decoder else ["encoder_hidden_states"] if cross else []
    return {name: makers[name]() for name in names}


_BUILDERS: dict[str, Callable[[str, float | None], tuple[nn.Module, dict[str, Any]]]] = {
    "timm": _timm,
    "tv": _torchvision,
    "hf": _transformers,
}
