"""A noisy sine with a hole in the training data: where a regression model ought to be unsure, and can be seen to be.

Synthetic, and the only synthetic set of the package; no file is read.
"""

import torch
from torch import Tensor

from lightning_dropout.data.arguments import check_count, check_fraction, check_positive
from lightning_dropout.data.loaders import Rows, RowsDataModule
from lightning_dropout.data.splits import stratified_split

__all__ = ["SinusoidDataModule"]


class SinusoidDataModule(RowsDataModule):
    """``y = sin(frequency * x) + noise`` on two intervals with a gap between them.

    Training and validation rows have x uniform on [-support, -gap] and [gap, support]. Test rows are an even grid
    over [-extent, extent], so they cover the data, the gap and the outside on both sides; their y has fresh noise. The
    noise is normal with a known standard deviation: the uncertainty that is left when the function is known.

    Attributes for plotting: ``function(x)`` without noise, ``gap``, ``support``, ``extent``, ``noise_std``, and after
    ``setup`` ``train_set``, ``val_set`` and ``test_set``, whose x is in ascending order for the test.

    Args:
        num_samples: Training and validation rows together, at least 2.
        num_test: Test rows, at least 2.
        noise_std: Standard deviation of the noise, above 0; the sine itself has amplitude 1.
        gap: Half width of the gap around 0, above 0.
        support: Where the data end on both sides, above ``gap``.
        extent: Where the test grid ends on both sides, above ``support``.
        frequency: Radians per unit of x, above 0.
        val_fraction: Share of ``num_samples`` for validation, in (0, 1).
        batch_size: Rows per batch and process, at least 1.
        num_workers: Worker processes per loader, at least 0.
        pin_memory: Whether batches are put into page-locked memory.
        seed: Seed of x, noise and split, at least 0; independent of the seed of the training.
        gap_loader: Whether ``val_dataloader`` yields a second loader over training rows, for ``val/gap`` (which is the
            *generalisation* gap and has nothing to do with the gap in x).

    Shape:
        ``x``: ``(batch, 1)`` float32; ``y``: ``(batch, 1)`` float32.

    Raises:
        ValueError: If an argument is out of range; in ``setup``, if a set is empty.

    Example:
        >>> data = SinusoidDataModule(num_samples=100)
        >>> data.setup()
        >>> len(data.train_set), len(data.val_set), data.input_shape
        (80, 20, (1,))
        >>> x = data.train_set.inputs[data.train_set.rows]
        >>> bool((x.abs() >= data.gap).all() and (x.abs() <= data.support).all())
        True
    """

    def __init__(
        self,
        num_samples: int = 250,
        num_test: int = 401,
        noise_std: float = 0.1,
        gap: float = 1.5,
        support: float = 4.0,
        extent: float = 6.0,
        frequency: float = 1.5,
        val_fraction: float = 0.2,
        batch_size: int = 64,
        num_workers: int = 0,
        pin_memory: bool = False,
        seed: int = 0,
        gap_loader: bool = True,
    ) -> None:
        super().__init__(batch_size, num_workers, pin_memory, seed, gap_loader)
        self.num_samples = check_count(num_samples, "num_samples", minimum=2, maximum=10**8)
        self.num_test = check_count(num_test, "num_test", minimum=2, maximum=10**8)
        self.noise_std = check_positive(noise_std, "noise_std")
        self.gap = check_positive(gap, "gap")
        self.support = check_positive(support, "support")
        self.extent = check_positive(extent, "extent")
        if not self.gap < self.support < self.extent:
            raise ValueError(f"Expected `gap` < `support` < `extent`, but got {gap}, {support} and {extent}.")
        self.frequency = check_positive(frequency, "frequency")
        self.val_fraction = check_fraction(val_fraction, "val_fraction")
        self.input_shape = (1,)
        self.num_features = 1
        self.num_targets = 1
        # Already of order 1, so nothing is standardised; given for code that reports in original units.
        self.target_mean, self.target_std = 0.0, 1.0

    @property
    def num_outputs(self) -> int:
        """Numbers that a model predicts per row; a head for the noise comes on top."""
        return self.num_targets

    def function(self, x: Tensor) -> Tensor:
        """Return the noiseless target.

        Shape:
            Any shape to the same shape.
        """
        return torch.sin(self.frequency * x)

    def make_sets(self) -> tuple[Rows, Rows, Rows]:
        """Draw the rows; the same ones for the same arguments and seed."""
        generator = torch.Generator().manual_seed(self.seed)
        distance = self.gap + (self.support - self.gap) * torch.rand(self.num_samples, 1, generator=generator)
        side = torch.randint(2, (self.num_samples, 1), generator=generator) * 2 - 1
        x = side * distance
        grid = torch.linspace(-self.extent, self.extent, self.num_test).unsqueeze(1)
        y, grid_y = (self.function(t) + self.noise_std * torch.randn(t.shape, generator=generator) for t in (x, grid))
        val, train = stratified_split(torch.zeros(len(x)), (self.val_fraction,), self.seed)
        return Rows(x, y, train), Rows(x, y, val), Rows(grid, grid_y, torch.arange(self.num_test))

    def cure_of_empty(self, name: str) -> str:
        """Name the arguments that give the set more rows."""
        return f"raise `num_samples`, or {'lower' if name == 'training' else 'raise'} `val_fraction`"
