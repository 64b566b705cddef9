"""Residual networks for small images, every addition with stochastic depth."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_dropout.models.arguments import block_rates, check_count, check_image_shape, check_weights
from lightning_dropout.nn import Dropout, DropPath
from lightning_dropout.nn.depth_rules import DepthRule
from lightning_dropout.nn.functional import Mode, check_mode
from lightning_dropout.probability import check_probability

__all__ = ["ResBlock", "ResNet"]

# Blocks per stage. 20 and 56 are the thin networks of 6n + 2 layers that the paper trained on CIFAR.
_STAGES = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    20: (3, 3, 3),
    56: (9, 9, 9),
}
_BOTTLENECK = 4


class ResBlock(nn.Module):
    """A residual block: ``x + drop_path(block(x))``.

    ``block`` is convolution, norm, ReLU, dropout, convolution, norm. Where it changes the shape, the sum is
    ``shortcut(x) + drop_path(block(x))`` with a 1x1 projection, which is never dropped. The ReLU that
    follows the addition belongs to the network. Training: drops samples' branches, and values between the
    convolutions. Evaluation: deterministic.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Factor by which height and width shrink.
        drop_path: Probability of dropping a sample's branch, in [0, 1].
        p: Rate of the dropout before the last convolution, in [0, 1].
        bottleneck: Three convolutions, 1x1, 3x3, 1x1, the first two of a quarter of the output's channels, instead of
            two of 3x3.
        stochastic_depth_mode: ``"subset"`` runs ``block`` for the kept samples only, at least two of them (its norms
            see no others), ``"row"`` for all, ``"batch"`` for all or none; see
            ``lightning_dropout.nn.functional.drop_residual``.

    Shape:
        ``(batch, in_channels, height, width)`` to ``(batch, out_channels, *)``, height and width divided by
        ``stride`` and rounded up.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        He et al. (2016), arXiv:1512.03385; stride in the 3x3 convolution of bottlenecks as in later practice. Dropout
        between the convolutions: Zagoruyko & Komodakis (2016), arXiv:1605.07146.

    Example:
        >>> import torch
        >>> ResBlock(8, 16, stride=2, drop_path=0.1)(torch.rand(2, 8, 4, 4)).shape
        torch.Size([2, 16, 2, 2])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        drop_path: float = 0.0,
        p: float = 0.0,
        bottleneck: bool = False,
        stochastic_depth_mode: Mode = "subset",
    ) -> None:
        super().__init__()
        check_mode(stochastic_depth_mode, "stochastic_depth_mode")
        if bottleneck and out_channels % _BOTTLENECK:
            raise ValueError(
                f"Expected `out_channels` of a bottleneck to be a multiple of {_BOTTLENECK}, but got {out_channels}."
            )
        if bottleneck:
            inner = out_channels // _BOTTLENECK
            layers = [*_conv_norm(in_channels, inner, 1), nn.ReLU(), *_conv_norm(inner, inner, 3, stride)]
            last = _conv_norm(inner, out_channels, 1)
        else:
            layers = _conv_norm(in_channels, out_channels, 3, stride)
            last = _conv_norm(out_channels, out_channels, 3)
        self.block = nn.Sequential(*layers, nn.ReLU(), Dropout(p), *last)
        same_shape = in_channels == out_channels and stride == 1
        self.shortcut = (
            nn.Identity() if same_shape else nn.Sequential(*_conv_norm(in_channels, out_channels, 1, stride))
        )
        # One value cannot be normalised over a batch of one.
        self.drop_path = DropPath(check_probability(drop_path, "drop_path"), stochastic_depth_mode, min_samples=2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum, before its activation."""
        return self.drop_path.residual(x, self.block, self.shortcut)


class ResNet(nn.Module):
    """Residual classifier with a stem for small images (3x3, no pooling) and stochastic depth.

    Training: branches drop by the depth rule; values drop in the blocks (``block_p``) and before the classifier
    (``p``). Evaluation: deterministic.

    Args:
        input_shape: (channels, height, width) of one image. Any height and width are accepted later, too.
        num_classes: Number of logits.
        depth: 18, 34, 50 (four stages, 64 to 512 channels; bottlenecks in 50), or 20, 56 (three stages, 16 to 64).
        width: Channels of the first stage; None for 64, or 16 at depth 20 and 56. Doubled in every stage.
        p: Rate of the dropout before the classifier, in [0, 1].
        block_p: Rate of the dropouts inside the blocks, in [0, 1].
        drop_path: Stochastic-depth rate of the last block, in [0, 1].
        depth_rule: Rates of the other blocks, see ``lightning_dropout.nn.depth_rates``.
        stochastic_depth_mode: ``"subset"`` runs branches for the kept samples only, which saves time and memory;
            ``"row"`` for all, ``"batch"`` for all or none.

    Shape:
        ``(batch, channels, height, width)`` to logits ``(batch, num_classes)``.

    Raises:
        ValueError: If an argument is out of range.

    Source:
        He et al. (2016), arXiv:1512.03385, section 4.2 for depth 20 and 56 (with projection shortcuts);
        stochastic depth by Huang et al. (2016), arXiv:1603.09382.

    Example:
        >>> import torch
        >>> net = ResNet(input_shape=(1, 8, 8), depth=20, drop_path=0.2)
        >>> [round(block.drop_path.drop_prob, 3) for block in net.blocks]
        [0.0, 0.025, 0.05, 0.075, 0.1, 0.125, 0.15, 0.175, 0.2]
        >>> net(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        input_shape: Sequence[int] = (3, 32, 32),
        num_classes: int = 10,
        depth: int = 18,
        width: int | None = None,
        p: float = 0.0,
        block_p: float = 0.0,
        drop_path: float = 0.0,
        depth_rule: DepthRule = "linear",
        stochastic_depth_mode: Mode = "subset",
    ) -> None:
        super().__init__()
        image_shape = check_image_shape(input_shape)
        check_count(num_classes, "num_classes")
        check_probability(block_p, "block_p")
        if not isinstance(depth, int) or depth not in _STAGES:
            raise ValueError(f"Expected `depth` to be one of {sorted(_STAGES)}, but got {depth!r}.")
        stages = _STAGES[depth]
        if width is None:
            width = 64 if len(stages) == 4 else 16
        channels = check_count(width, "width")
        widest = channels * 2 ** (len(stages) - 1) * (_BOTTLENECK if depth == 50 else 1)
        weights = widest * (9 * widest * sum(stages) + num_classes) + 9 * image_shape[0] * channels
        check_weights(weights, width=width, num_classes=num_classes, input_shape=image_shape[0])
        rates = iter(block_rates(drop_path, sum(stages), depth_rule))

        self.stem = nn.Sequential(*_conv_norm(image_shape[0], channels, 3), nn.ReLU())
        self.blocks = nn.ModuleList()
        before = channels
        for stage, num_blocks in enumerate(stages):
            after = channels * 2**stage * (_BOTTLENECK if depth == 50 else 1)
            for index in range(num_blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                self.blocks.append(
                    ResBlock(before, after, stride, next(rates), block_p, depth == 50, stochastic_depth_mode)
                )
                before = after
        self.dropout = Dropout(p)
        self.fc = nn.Linear(before, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of ``images``."""
        h: Tensor = self.stem(images)
        for block in self.blocks:
            h = F.relu(block(h))
        logits: Tensor = self.fc(self.dropout(h.mean(dim=(2, 3))))
        return logits


def _conv_norm(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> list[nn.Module]:
    # No bias: the norm that follows has one.
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)
    return [convolution, nn.BatchNorm2d(out_channels)]
