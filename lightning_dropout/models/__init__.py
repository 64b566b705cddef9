"""Plain ``nn.Module`` networks, each with every place to drop that its field knows. Nothing here knows of Lightning.

All of them name their rates alike, and build the dropping layers at rate 0, too, so that they can be scheduled:

=================  ===============================================================================
``p``              values: dropout in the feed-forward part, or before the classifier
``block_p``        values between the convolutions of a residual block
``attention_p``    attention weights
``projection_p``   the output of attention
``drop_path``      whole residual branches; the rate of the last block, shared out by ``depth_rule``
=================  ===============================================================================

The rates live in the ``Dropout`` and ``DropPath`` layers alone; no model keeps a copy.

``timm_model``, ``torchvision_model`` and ``transformers_model`` build those of other libraries: the same names of
rates, but those libraries' habits; at rate 0 some layers are not built at all.
"""

from lightning_dropout.models.block import MLP, Block
from lightning_dropout.models.libraries import timm_model, torchvision_model, transformers_model
from lightning_dropout.models.net import Net
from lightning_dropout.models.resnet import ResBlock, ResNet
from lightning_dropout.models.vit import ViT

__all__ = [
    "MLP",
    "Block",
    "Net",
    "ResBlock",
    "ResNet",
    "ViT",
    "timm_model",
    "torchvision_model",
    "transformers_model",
]
