"""Models of timm, torchvision and transformers as networks of this room: images in, logits out, rates by our names.

Imports none of the three libraries before a model of it is asked for, and knows nothing of where a model drops. Configs
reach these functions: whatever fetches from an address of the caller's choice is refused, here or in the allowlist.
"""

import difflib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from lightning_dropout.conversion import convert_stochastic_depth
from lightning_dropout.models.arguments import check_count, check_image_shape
from lightning_dropout.nn.functional import Mode, check_mode
from lightning_dropout.probability import check_probability

__all__ = ["Logits", "import_library", "timm_model", "torchvision_model", "transformers_model", "unknown_model"]

_VISION = '"lightning-dropout[vision]"'
_REFUSED = re.compile(r"(unexpected|multiple values for) keyword argument(?:\(s\):)? \[?'(\w+)'")
_LONGEST_WORDS = 300  # characters of another library's message that are repeated


def timm_model(
    name: str,
    input_shape: Sequence[int] = (3, 32, 32),
    num_classes: int = 10,
    pretrained: bool = False,
    p: float | None = None,
    attention_p: float | None = None,
    projection_p: float | None = None,
    drop_path: float | None = None,
    stochastic_depth_mode: Mode | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build a model of timm for images of ``input_shape``.

    A rate of None leaves timm's own, which is 0 nearly everywhere; with a ``drop_path`` of 0 there is no stochastic
    depth to schedule. One forward pass of zeros, in eval mode, proves that the model takes such images.

    Args:
        name: As in ``timm.list_models()``; a tag, as in ``"resnet18.a1_in1k"``, chooses the pretrained weights.
        input_shape: (channels, height, width) of one image; given to the model where its size is fixed.
        num_classes: Number of logits.
        pretrained: Whether timm downloads its weights; it fits first and last layer to the data.
        p: timm's ``drop_rate``, in [0, 1]: before the classifier.
        attention_p: timm's ``attn_drop_rate``, in [0, 1]: attention weights.
        projection_p: timm's ``proj_drop_rate``, in [0, 1]: the output of attention and of feed-forward parts.
        drop_path: timm's ``drop_path_rate``, in [0, 1]: stochastic depth, the rate of the last block.
        stochastic_depth_mode: ``"subset"`` or ``"batch"`` save what stochastic depth drops, see
            ``lightning_dropout.convert_stochastic_depth``; None leaves the library's masks.
        kwargs: Whatever else the model takes, by timm's names, such as ``patch_size=2``.

    Raises:
        ValueError: If timm is missing, the name is unknown, the model does not take an argument or such images, or
            returns anything but logits.

    Example:
        >>> timm_model("vgg_11")
        Traceback (most recent call last):
        ...
        ValueError: Expected `name` to be a model of timm, but got 'vgg_11'; closest: vgg11, ...
    """
    timm = import_library("timm", _VISION)
    known = [*timm.list_models(), *timm.list_models(include_tags=True)]
    if name not in known:
        raise unknown_model(name, "timm", known)
    order = _Order(
        model=f"{name} of timm",
        image_shape=check_image_shape(input_shape),
        num_classes=check_count(num_classes, "num_classes"),
        rates=_given(p=p, attention_p=attention_p, projection_p=projection_p, drop_path=drop_path),
        spelled={
            "p": "drop_rate",
            "attention_p": "attn_drop_rate",
            "projection_p": "proj_drop_rate",
            "drop_path": "drop_path_rate",
        },
        others=kwargs,
        takes=_parameters(timm.model_entrypoint(name)),
        mode=stochastic_depth_mode,
    )
    channels, *sides = order.image_shape
    registered = timm.get_pretrained_cfg(name)
    size = {"img_size": tuple(sides)} if registered and registered.fixed_input_size else {}
    return order.build(
        lambda **arguments: timm.create_model(name, pretrained=pretrained, **arguments),
        {"in_chans": channels, "num_classes": num_classes, **size},
    )


def torchvision_model(
    name: str,
    input_shape: Sequence[int] = (3, 32, 32),
    num_classes: int = 10,
    p: float | None = None,
    attention_p: float | None = None,
    drop_path: float | None = None,
    stochastic_depth_mode: Mode | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build a classifier of torchvision for colour images of ``input_shape``, with random weights.

    A rate of None leaves torchvision's own, often not 0. Auxiliary heads are left out. One forward pass of zeros, in
    eval mode, proves that the model takes such images.

    Args:
        name: As in ``torchvision.models.list_models(module=torchvision.models)``.
        input_shape: (3, height, width) of one image; given to the model where its size is fixed.
        num_classes: Number of logits.
        p: torchvision's ``dropout`` (``drop_rate`` of a DenseNet), in [0, 1]; a ResNet takes none.
        attention_p: torchvision's ``attention_dropout``, in [0, 1]: attention weights.
        drop_path: torchvision's ``stochastic_depth_prob``, in [0, 1]: stochastic depth, the rate of the last block.
        stochastic_depth_mode: ``"subset"`` or ``"batch"`` save what stochastic depth drops, see
            ``lightning_dropout.convert_stochastic_depth``; None leaves the library's masks.
        kwargs: Whatever else the model takes, by torchvision's names.

    Raises:
        ValueError: If torchvision is missing, the name is unknown, the images have no three channels, or the model does
            not take an argument or such images.

    Example:
        >>> torchvision_model("resnet18", input_shape=(1, 8, 8))
        Traceback (most recent call last):
        ...
        ValueError: Expected `input_shape` to have 3 channels, since the models of torchvision see colours, ...
    """
    models = import_library("torchvision.models", _VISION)
    known = models.list_models(module=models)
    if name not in known:
        raise unknown_model(name, "torchvision", known)
    takes = _parameters(models.get_model_builder(name))
    order = _Order(
        model=f"{name} of torchvision",
        image_shape=check_image_shape(input_shape),
        num_classes=check_count(num_classes, "num_classes"),
        rates=_given(p=p, attention_p=attention_p, drop_path=drop_path),
        spelled={
            "p": "drop_rate" if "drop_rate" in takes else "dropout",
            "attention_p": "attention_dropout",
            "drop_path": "stochastic_depth_prob",
        },
        others=kwargs,
        takes=takes,
        mode=stochastic_depth_mode,
    )
    channels, *sides = order.image_shape
    if channels != 3:
        raise ValueError(
            "Expected `input_shape` to have 3 channels, since the models of torchvision see colours, but got "
            f"{order.image_shape}; repeat the channel (data.channels=3 for digits), or take timm's, for any number."
        )
    fitting = {
        "image_size": sides[0],  # of a ViT, which takes squares only
        "input_size": tuple(sides),  # of a MaxViT
        "aux_logits": False,  # in training they come with the logits
        "init_weights": True,  # GoogLeNet and Inception warn unless they are told
    }
    return order.build(
        lambda **arguments: models.get_model(name, num_classes=num_classes, **arguments),
        {argument: value for argument, value in fitting.items() if argument in takes},
    )


class Logits(nn.Module):
    """An image classifier of transformers, returning its logits and not the dataclass around them.

    Training and evaluation: as the model itself.

    Args:
        model: What takes ``pixel_values`` and returns an object with ``logits``.

    Shape:
        ``(batch, channels, height, width)`` to logits ``(batch, num_classes)``.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of ``images``."""
        logits: Tensor = self.model(pixel_values=images).logits
        return logits


def transformers_model(
    name: str,
    input_shape: Sequence[int] = (3, 32, 32),
    num_classes: int = 10,
    p: float | None = None,
    attention_p: float | None = None,
    drop_path: float | None = None,
    stochastic_depth_mode: Mode | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build an image classifier of transformers for images of ``input_shape``, with random weights.

    A rate of None leaves the library's own. One forward pass of zeros, in eval mode, proves that the model takes such
    images.

    Args:
        name: The type of the model: ``"vit"``, ``"swin"``, ``"dinov2"``, ...
        input_shape: (channels, height, width) of one image; given to the model where its config holds the size.
        num_classes: Number of logits.
        p: ``hidden_dropout_prob`` of the config, in [0, 1].
        attention_p: ``attention_probs_dropout_prob`` of the config, in [0, 1]: attention weights.
        drop_path: ``drop_path_rate`` of the config, in [0, 1]: stochastic depth, the rate of the last block.
        stochastic_depth_mode: ``"subset"`` or ``"batch"`` save what stochastic depth drops, see
            ``lightning_dropout.convert_stochastic_depth``; None leaves the library's masks.
        kwargs: Other fields of the config of this type, such as ``num_hidden_layers=2``.

    Raises:
        ValueError: If transformers is missing, the name is unknown, the config has no such field, or the model does not
            take such images.

    Example:
        >>> transformers_model("vit", p=1.5)
        Traceback (most recent call last):
        ...
        ValueError: Expected `p` to be a probability of dropping, a number in [0, 1], but got 1.5.
    """
    rates = _given(p=p, attention_p=attention_p, drop_path=drop_path)
    transformers = import_library("transformers", "transformers")
    classifiers = import_module("transformers.models.auto.modeling_auto").MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    known = classifiers.keys() - {"timm_wrapper"}  # which hands its arguments on to timm
    if name not in known:
        raise unknown_model(name, "transformers that classifies images", known)
    order = _Order(
        model=f"{name} of transformers",
        image_shape=check_image_shape(input_shape),
        num_classes=check_count(num_classes, "num_classes"),
        rates=rates,
        spelled={
            "p": "hidden_dropout_prob",
            "attention_p": "attention_probs_dropout_prob",
            "drop_path": "drop_path_rate",
        },
        others=kwargs,
        # The fields of this type alone: those of all types can name code on a hub (auto_map, attn_implementation, ...).
        takes=transformers.CONFIG_MAPPING[name]().to_dict().keys() - transformers.PretrainedConfig().to_dict().keys(),
        mode=stochastic_depth_mode,
    )
    for argument in order.arguments.keys() - order.takes:  # a config itself takes any without a word
        raise order.untaken(argument)
    channels, height, width = order.image_shape
    fitting = {"num_channels": channels, "image_size": height if height == width else (height, width)}
    fitting = {argument: value for argument, value in fitting.items() if argument in order.takes}

    def make(**arguments: Any) -> nn.Module:
        config = transformers.AutoConfig.for_model(name, num_labels=num_classes, **arguments)
        return Logits(transformers.AutoModelForImageClassification.from_config(config))

    return order.build(make, fitting)


def import_library(module: str, install: str) -> Any:
    """Import a module of another library, or say how to install it.

    Raises:
        ValueError: If it cannot be imported for whatever reason.
    """
    try:
        return import_module(module)
    except Exception as error:  # a torchvision built for another torch fails with RuntimeError, not ImportError
        library = module.partition(".")[0]
        raise ValueError(
            f"Expected `name` to be a model of {library}, but {library} cannot be imported "
            f"({type(error).__name__}: {error}); pip install {install}."
        ) from error


def unknown_model(name: object, library: str, known: Collection[str]) -> ValueError:
    """Return the error for a name that a library does not know, with the closest ones that it does."""
    near = [k for k in known if k.startswith(str(name))][:3] or difflib.get_close_matches(str(name), known, n=3)
    cure = f"closest: {', '.join(near)}." if near else f"it has {len(known)}, such as {min(known, default='none')}."
    return ValueError(f"Expected `name` to be a model of {library}, but got {name!r}; {cure}")


def _given(**rates: float | None) -> dict[str, float]:
    return {ours: check_probability(rate, ours) for ours, rate in rates.items() if rate is not None}


def _parameters(builder: Callable[..., object]) -> Collection[str]:
    """Return the arguments of the class that a builder says it returns; none if it does not say."""
    cls = signature(builder).return_annotation
    return signature(cls).parameters.keys() if isinstance(cls, type) and issubclass(cls, nn.Module) else ()


@dataclass(frozen=True)
class _Order:
    """What was asked of a library, in the words of the caller, to whom a refusal must speak.

    Args:
        model: What to call the model.
        image_shape: (channels, height, width).
        num_classes: Number of logits that it must return.
        rates: Those that were given, by our names.
        spelled: Our names of rates, and the library's.
        others: Other arguments that were given, by the library's names; they win.
        takes: Names of arguments that the model takes, as far as known.
        mode: How its stochastic depth is run; None as the library does.
    """

    model: str
    image_shape: tuple[int, int, int]
    num_classes: int
    rates: Mapping[str, float]
    spelled: Mapping[str, str]
    others: Mapping[str, Any]
    takes: Collection[str]
    mode: Mode | None

    def __post_init__(self) -> None:
        if self.mode is not None:
            check_mode(self.mode, "stochastic_depth_mode")

    @property
    def arguments(self) -> dict[str, Any]:
        """What was given, by the library's names."""
        return {**{self.spelled[ours]: rate for ours, rate in self.rates.items()}, **self.others}

    def build(self, make: Callable[..., nn.Module], fitting: Mapping[str, Any]) -> nn.Module:
        """Build the model and show it one image: libraries often find out there what they cannot take.

        Args:
            make: Called with all arguments.
            fitting: Arguments that follow from the data.
        """
        try:
            network = make(**{**fitting, **self.arguments}).eval()
            with torch.no_grad():
                logits = network(torch.zeros(1, *self.image_shape))
        except OSError:  # of a download, whose own words are best
            raise
        except Exception as error:  # whatever a library raises: its words stand in ours
            refused = _REFUSED.search(str(error)) if isinstance(error, TypeError) else None
            if refused and refused[2] in self.arguments:
                raise self.untaken(refused[2], fixed=refused[1] != "unexpected") from error
            words = " ".join(str(error).split())[:_LONGEST_WORDS].rstrip(".")
            raise ValueError(
                f"Expected `name` to be a classifier of images of shape {self.image_shape}, but {self.model} fails "
                f"({type(error).__name__}: {words}); resize the images (data.image_size=...), give it arguments that "
                "suit them, or choose another model."
            ) from error
        if not isinstance(logits, Tensor) or logits.shape != (1, self.num_classes):
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"Expected `name` to be a classifier that returns {(1, self.num_classes)} logits for one image, but "
                f"{self.model} returns {shape}; choose another model."
            )
        if self.mode is not None:
            try:
                convert_stochastic_depth(network, self.mode)
            except ValueError as error:
                raise ValueError(
                    f"Expected `stochastic_depth_mode` to be None for {self.model}, but got {self.mode!r}: {error}"
                ) from error
        return network.train()

    def untaken(self, argument: str, *, fixed: bool = False) -> ValueError:
        """Return the error for an argument that the model does not take, by the name that the caller wrote."""
        for ours in self.rates:
            if self.spelled[ours] == argument and argument not in self.others:
                schedule = "stochastic_depth" if ours == "drop_path" else "dropout"
                return ValueError(
                    f"Expected `{ours}` to be None, since {self.model} {'fixes its' if fixed else 'takes no'} "
                    f"`{argument}`; leave it out (null in a config, with callbacks/{schedule}=none where nothing else "
                    "of the kind drops)."
                )
        near = [] if fixed else difflib.get_close_matches(argument, self.takes, n=1)
        return ValueError(
            f"Expected `{argument}` to be an argument of {self.model}, but it "
            + ("fixes this one; " if fixed else "takes none of this name; ")
            + (f"did you mean `{near[0]}`?" if near else "leave it out.")
        )
