"""The vision transformer, with every place that is usually dropped in it."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lightning_dropout.models.arguments import block_rates, check_count, check_image_shape, check_weights
from lightning_dropout.models.attention import Attention
from lightning_dropout.models.block import Block
from lightning_dropout.nn import Dropout, DropPath
from lightning_dropout.nn.depth_rules import DepthRule
from lightning_dropout.nn.functional import Mode, check_mode
from lightning_dropout.probability import check_probability

__all__ = ["PRESETS", "EncoderBlock", "ViT"]

Preset = Literal["tiny", "small", "base", "digits"]
Pool = Literal["mean", "class"]

# The sizes of the papers; patches of 4 pixels suit images of 32.
PRESETS: Mapping[Preset, Mapping[str, Any]] = {
    "tiny": {"patch_size": 4, "dim": 192, "depth": 12, "num_heads": 3, "pool": "class"},
    "small": {"patch_size": 4, "dim": 384, "depth": 12, "num_heads": 6, "pool": "class"},
    "base": {"patch_size": 4, "dim": 768, "depth": 12, "num_heads": 12, "pool": "class"},
    "digits": {"patch_size": 2, "dim": 64, "depth": 4, "num_heads": 4, "pool": "mean"},
}


class EncoderBlock(nn.Module):
    """Pre-norm transformer block: attention, then a feed-forward Block, each added as ``x + drop_path(branch(x))``.

    Training: attention weights, projection, feed-forward values and whole branches drop. Evaluation: deterministic.

    Args:
        dim: Size of the tokens.
        num_heads: Number of heads.
        hidden: Width inside the feed-forward Block.
        p: Rate of the feed-forward dropouts, in [0, 1].
        attention_p: Rate of the attention weights, in [0, 1].
        projection_p: Rate of the attention's output, in [0, 1].
        drop_path: Probability of dropping a sample's branch, in [0, 1]; both branches toss their own coins.
        stochastic_depth_mode: ``"subset"`` runs branches for the kept samples only, ``"row"`` for all, ``"batch"`` for
            all or none; see ``lightning_dropout.nn.functional.drop_residual``.

    Shape:
        ``(batch, tokens, dim)`` to the same.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        Dosovitskiy et al. (2021), arXiv:2010.11929, equations 2 and 3.

    Example:
        >>> EncoderBlock(dim=8, num_heads=2, hidden=16)(torch.rand(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        hidden: int,
        p: float = 0.0,
        attention_p: float = 0.0,
        projection_p: float = 0.0,
        drop_path: float = 0.0,
        stochastic_depth_mode: Mode = "subset",
    ) -> None:
        super().__init__()
        check_mode(stochastic_depth_mode, "stochastic_depth_mode")
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads, attention_p, projection_p)
        self.drop_path1 = DropPath(check_probability(drop_path, "drop_path"), stochastic_depth_mode)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Block(dim, hidden, p)
        self.drop_path2 = DropPath(drop_path, stochastic_depth_mode)

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens after both residual additions."""
        x = self.drop_path1.residual(x, lambda tokens: self.attn(self.norm1(tokens)))
        return self.drop_path2.residual(x, lambda tokens: self.mlp(self.norm2(tokens)))


class ViT(nn.Module):
    """Vision transformer classifier: patches, learned positions, pre-norm blocks, a linear head.

    Training: drops wherever a rate is above 0. Evaluation: deterministic.

    A ``preset`` fills in whichever of ``patch_size``, ``dim``, ``depth``, ``num_heads`` and ``pool`` is None;
    what is given wins, so ``ViT(preset="tiny", patch_size=16)`` is the usual ViT-Ti/16.

    Args:
        input_shape: (channels, height, width) of one image; sides are multiples of ``patch_size``.
        num_classes: Number of logits.
        preset: ``"tiny"``, ``"small"``, ``"base"`` (``dim`` 192, 384, 768 in 12 blocks, ``patch_size`` 4, class
            token), or ``"digits"`` (4 blocks of ``dim`` 64, ``patch_size`` 2, mean pooling) for 8x8 images.
        patch_size: Side of a patch in pixels. Cost grows with the square of the number of patches.
        dim: Size of the tokens.
        depth: Number of blocks.
        num_heads: Number of heads; ``dim`` is a multiple of it.
        mlp_ratio: Width inside the feed-forward Blocks, in multiples of ``dim``.
        pool: What the head sees: ``"class"``, an extra token, or ``"mean"``, the mean of the patches.
        p: Rate of the dropouts after the embedding and in the feed-forward Blocks, in [0, 1].
        attention_p: Rate of the attention weights, in [0, 1].
        projection_p: Rate of the attention's output, in [0, 1].
        drop_path: Stochastic-depth rate of the last block, in [0, 1].
        depth_rule: Rates of the other blocks, see ``lightning_dropout.nn.depth_rates``.
        stochastic_depth_mode: ``"subset"`` runs branches for the kept samples only, which saves time and memory;
            ``"row"`` for all, ``"batch"`` for all or none.

    Shape:
        ``(batch, *input_shape)`` to logits ``(batch, num_classes)``.

    Raises:
        ValueError: If an argument is out of range, the image is no whole number of patches, or, in the forward pass,
            an image is not of ``input_shape``, for which the positions were learned.

    Source:
        Dosovitskiy et al. (2021), arXiv:2010.11929; sizes tiny and small, and stochastic depth: Touvron et al. (2021),
        arXiv:2012.12877.

    Example:
        >>> net = ViT(input_shape=(1, 8, 8), preset="digits", attention_p=0.1, drop_path=0.3)
        >>> [round(block.drop_path1.drop_prob, 3) for block in net.blocks]
        [0.0, 0.1, 0.2, 0.3]
        >>> net(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        input_shape: Sequence[int] = (3, 32, 32),
        num_classes: int = 10,
        preset: Preset = "tiny",
        patch_size: int | None = None,
        dim: int | None = None,
        depth: int | None = None,
        num_heads: int | None = None,
        mlp_ratio: float = 4.0,
        pool: Pool | None = None,
        p: float = 0.0,
        attention_p: float = 0.0,
        projection_p: float = 0.0,
        drop_path: float = 0.0,
        depth_rule: DepthRule = "linear",
        stochastic_depth_mode: Mode = "subset",
    ) -> None:
        super().__init__()
        if preset not in PRESETS:
            raise ValueError(f"Expected `preset` to be one of {tuple(PRESETS)}, but got {preset!r}.")
        sizes = PRESETS[preset]
        patch_size = check_count(sizes["patch_size"] if patch_size is None else patch_size, "patch_size")
        dim = check_count(sizes["dim"] if dim is None else dim, "dim")
        depth = check_count(sizes["depth"] if depth is None else depth, "depth")
        num_heads = check_count(sizes["num_heads"] if num_heads is None else num_heads, "num_heads")
        pool = sizes["pool"] if pool is None else pool
        if pool not in get_args(Pool):
            raise ValueError(f"Expected `pool` to be one of {get_args(Pool)}, but got {pool!r}.")
        self.input_shape = check_image_shape(input_shape)
        channels, height, width = self.input_shape
        if height % patch_size or width % patch_size:
            raise ValueError(
                f"Expected the sides of `input_shape` to be multiples of `patch_size`, but got {self.input_shape} "
                f"and {patch_size}; resize the images or choose a divisor."
            )
        if not isinstance(mlp_ratio, int | float) or not 1 <= mlp_ratio * dim < float("inf"):
            raise ValueError(f"Expected `mlp_ratio` to be a number of at least 1 / {dim}, but got {mlp_ratio!r}.")
        check_count(num_classes, "num_classes")
        num_patches = (height // patch_size) * (width // patch_size)
        weights = dim * (
            channels * patch_size**2 + num_patches + depth * (4 * dim + 2 * int(dim * mlp_ratio)) + num_classes
        )
        check_weights(
            weights,
            dim=dim,
            depth=depth,
            mlp_ratio=int(mlp_ratio),
            num_classes=num_classes,
            input_shape=max(self.input_shape),
        )

        self.patch_embedding = nn.Conv2d(channels, dim, kernel_size=patch_size, stride=patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim)) if pool == "class" else None
        self.positions = nn.Parameter(torch.zeros(1, num_patches + (pool == "class"), dim))
        self.dropout = Dropout(p)
        self.blocks = nn.ModuleList(
            EncoderBlock(
                dim, num_heads, int(dim * mlp_ratio), p, attention_p, projection_p, rate, stochastic_depth_mode
            )
            for rate in block_rates(drop_path, depth, depth_rule)
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        self._initialise()

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of ``images``."""
        if images.shape[1:] != self.input_shape:  # a single patch would broadcast over all positions
            raise ValueError(
                f"Expected `images` to have shape (batch, *{self.input_shape}), but got {tuple(images.shape)}; "
                "resize them or build the model with their `input_shape`."
            )
        tokens = self.patch_embedding(images).flatten(2).transpose(1, 2)
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], dim=1)
        tokens = self.dropout(tokens + self.positions)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)
        logits: Tensor = self.head(tokens.mean(dim=1) if self.class_token is None else tokens[:, 0])
        return logits

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.positions, std=0.02)
        if self.class_token is not None:
            nn.init.trunc_normal_(self.class_token, std=0.02)
