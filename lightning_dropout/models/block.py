"""The feed-forward block of transformers, and a plain residual network made of it for images and tables."""

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

from lightning_dropout.models.arguments import block_rates, check_count, check_shape, check_weights
from lightning_dropout.nn import Dropout, DropPath
from lightning_dropout.nn.depth_rules import DepthRule
from lightning_dropout.probability import check_probability

__all__ = ["MLP", "Block"]


class Block(nn.Module):
    """Linear, GELU, dropout, Linear, dropout.

    Training: hidden units and outputs are dropped. Evaluation: deterministic.

    Args:
        dim: Size of the last dimension of the input.
        hidden: Size between the linear layers; None for ``4 * dim``.
        p: Rate of both dropouts, in [0, 1].
        out_dim: Size of the last dimension of the output; None for ``dim``.

    Shape:
        ``(..., dim)`` to ``(..., out_dim)``.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        Position-wise feed-forward network of Vaswani et al. (2017), arXiv:1706.03762, section 3.3, with the
        GELU and the two dropouts of Dosovitskiy et al. (2021), arXiv:2010.11929.

    Example:
        >>> import torch
        >>> Block(8)(torch.rand(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(self, dim: int, hidden: int | None = None, p: float = 0.1, out_dim: int | None = None) -> None:
        super().__init__()
        check_count(dim, "dim")
        hidden = 4 * dim if hidden is None else check_count(hidden, "hidden")
        out_dim = dim if out_dim is None else check_count(out_dim, "out_dim")
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.dropout1 = Dropout(p)
        self.fc2 = nn.Linear(hidden, out_dim)
        self.dropout2 = Dropout(p)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, without a residual."""
        h = self.dropout1(self.act(self.fc1(x)))
        output: Tensor = self.dropout2(self.fc2(h))
        return output


class ResidualBlock(nn.Module):
    """Pre-norm residual Block: ``x + drop_path(block(norm(x)))``.

    Training: the Block drops, and its branch does for some samples. Evaluation: deterministic.

    Args:
        dim: Size of the last dimension of input and output.
        hidden: Size between the linear layers; None for ``4 * dim``.
        p: Rate of the Block's dropouts, in [0, 1].
        drop_path: Probability of dropping a sample's branch, in [0, 1].

    Shape:
        ``(batch, ..., dim)`` to the same.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch
        >>> x = torch.rand(2, 8)
        >>> bool((ResidualBlock(8, drop_path=1.0)(x) == x).all())
        True
    """

    def __init__(self, dim: int, hidden: int | None = None, p: float = 0.1, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.block = Block(dim, hidden, p)
        self.drop_path = DropPath(check_probability(drop_path, "drop_path"))

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum."""
        return self.drop_path.residual(x, lambda h: self.block(self.norm(h)))


class MLP(nn.Module):
    """Residual pre-norm Blocks on a flat input: a classifier of images, or a classifier or regressor of tables.

    ``stem``, then ``depth`` times ``x + drop_path(block(norm(x)))``, then ``norm`` and ``head``. Training: the Blocks
    drop, and the residual branches do. Evaluation: deterministic.

    Args:
        input_shape: Shape of one sample: ``(features,)`` of a table, or (channels, height, width).
        num_outputs: Size of the output: classes, or regression targets (twice as many for a mean and a log-variance).
        dim: Width of the residual stream.
        depth: Number of Blocks.
        hidden: Width inside the Blocks; None for ``4 * dim``.
        p: Rate of the dropouts in the Blocks, in [0, 1].
        drop_path: Stochastic-depth rate of the last Block, in [0, 1].
        depth_rule: Rates of the other Blocks, see ``lightning_dropout.nn.depth_rates``.

    Shape:
        ``(batch, *input_shape)`` to ``(batch, num_outputs)``.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        The residual perceptron of Gorishniy et al., "Revisiting Deep Learning Models for Tabular Data" (2021),
        arXiv:2106.11959, section 3.2, with transformer Blocks.

    Example:
        >>> import torch
        >>> MLP(input_shape=(13,), num_outputs=1, dim=16)(torch.rand(2, 13)).shape
        torch.Size([2, 1])
    """

    def __init__(
        self,
        input_shape: Sequence[int] = (3, 32, 32),
        num_outputs: int = 10,
        dim: int = 128,
        depth: int = 3,
        hidden: int | None = None,
        p: float = 0.1,
        drop_path: float = 0.0,
        depth_rule: DepthRule = "linear",
    ) -> None:
        super().__init__()
        sample_shape = check_shape(input_shape)
        check_count(num_outputs, "num_outputs")
        check_count(dim, "dim")
        check_count(depth, "depth")
        inner = 4 * dim if hidden is None else check_count(hidden, "hidden")
        weights = dim * (prod(sample_shape) + depth * 2 * inner + num_outputs)
        check_weights(
            weights, dim=dim, depth=depth, hidden=hidden or 1, num_outputs=num_outputs, input_shape=prod(sample_shape)
        )
        rates = block_rates(drop_path, depth, depth_rule)
        self.stem = nn.Linear(prod(sample_shape), dim)
        self.blocks = nn.ModuleList(ResidualBlock(dim, hidden, p, rate) for rate in rates)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits or regression outputs."""
        h: Tensor = self.stem(x.flatten(1))
        for block in self.blocks:
            h = block(h)
        output: Tensor = self.head(self.norm(h))
        return output
