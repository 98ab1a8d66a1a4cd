"""Rare-class sampling of labeled images (DAFormer, Hoyer et al., 2022)."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from cpsl._internal.randomness import derive_seed
from cpsl.alignment import class_counts
from cpsl.data.sample import SegmentationDataset, read_label
from cpsl.data.training import SeededIndex

MIN_SHARE = 0.0015
"""Share of an image's labeled pixels from which on it counts as an image of a class.

DAFormer asks for 3000 pixels of the 2 million of an image of GTA5.
"""


def count_classes(
    dataset: SegmentationDataset, progress: Callable[[Iterable[int]], Iterable[int]] = iter, threads: int = 4
) -> Tensor:
    """Counts the pixels of each class in each label, (N, K) int64.

    Images are decoded only if the data set has no method `label`.

    Args:
        dataset: Labeled images.
        progress: Wraps the iteration to show its progress, such as tqdm.
        threads: Number of threads that read files.

    Raises:
        ValueError: An image has no label.

    Example:
        >>> import tempfile
        >>> from cpsl.data import GTA5, write_streets
        >>> root = tempfile.mkdtemp()
        >>> write_streets(root, layout="gta5", style="game", count=2, size=(64, 128))
        >>> count_classes(GTA5(root)).shape
        torch.Size([2, 19])
    """

    def read(index: int) -> Tensor:
        label = read_label(dataset, index)
        if label is None:
            raise ValueError(f"{dataset.names[index]}: a source image needs a label, but this one has none")
        return class_counts(label, len(dataset.label_space))

    with ThreadPoolExecutor(threads) as pool:
        results = pool.map(read, range(len(dataset)))
        return torch.stack([next(results) for _ in progress(range(len(dataset)))])


def rare_class_probabilities(frequencies: Tensor, temperature: float) -> Tensor:
    """Returns how often each class is sampled, P(c) = softmax((1 - f_c) / T) over the classes that occur.

    Args:
        frequencies: (K,) shares f of the classes in all labeled pixels, 0 for classes that do not occur.
        temperature: T > 0; low values prefer rare classes more, high values sample all classes evenly.

    Raises:
        ValueError: The temperature is not positive, or no class occurs.

    Example:
        >>> rare_class_probabilities(torch.tensor([0.98, 0.02, 0.0]), temperature=0.5)
        tensor([0.1279, 0.8721, 0.0000])
    """
    if not temperature > 0:
        raise ValueError(f"the temperature must be positive, got {temperature}")
    if not (frequencies > 0).any():
        raise ValueError("no class occurs in the labels")
    logits = (1 - frequencies) / temperature
    return logits.masked_fill(frequencies <= 0, -torch.inf).softmax(dim=0)


class RareClassSampling:
    """Samples a class, the rarer the more often, then an image that contains it.

    The class follows `rare_class_probabilities`. The image is sampled from those in which the class has at
    least 0.15 % of the labeled pixels; if there are none, from all in which it occurs. `SourceViews` crops
    the image again, up to ten times, until the class fills 0.5 % of the crop.

    Args:
        counts: (N, K) pixels of each class in each image, see `count_classes`.
        temperature: T of the paper, whose value is 0.01.
        weights: Weight of each image, such as that of its source; all the same if omitted.

    Attributes:
        probabilities: (K,) probability of each class.
        image_probabilities: (N,) probability of each image.

    Raises:
        ValueError: The counts have another shape or are all zero, the temperature is not positive, or the
            weights are negative or of another number.

    Example:
        >>> sampling = RareClassSampling(torch.tensor([[95, 0], [90, 5]]), temperature=0.01)
        >>> sampling.probabilities.round(decimals=3)
        tensor([0., 1.])
        >>> item = sampling(seed=0, position=7)
        >>> item.index, item.rare_class
        (1, 1)
    """

    def __init__(
        self, counts: Tensor, temperature: float = 0.01, weights: Sequence[float] | Tensor | None = None
    ) -> None:
        if counts.ndim != 2:
            raise ValueError(f"counts must be (N, K), got {tuple(counts.shape)}")
        of_images = torch.ones(len(counts)) if weights is None else torch.as_tensor(weights)
        of_images = of_images.double()
        if of_images.shape != counts.shape[:1] or not (of_images >= 0).all():
            raise ValueError(f"weights must be {len(counts)} numbers that are not negative")
        pixels = (of_images[:, None] * counts).sum(dim=0)
        frequencies = pixels / pixels.sum().clamp_min(1e-12)
        self.probabilities = rare_class_probabilities(frequencies, temperature).float()
        shares = counts / counts.sum(dim=1, keepdim=True).clamp_min(1)
        self._cumulative_classes = _cumulative(self.probabilities)
        self._images, self._cumulative_images = list[Tensor](), list[Tensor]()
        for share in shares.T:
            possible = of_images > 0
            enough = possible & (share >= MIN_SHARE)
            images = (enough if enough.any() else possible & (share > 0)).nonzero()[:, 0]
            self._images.append(images)
            self._cumulative_images.append(_cumulative(of_images[images]))
        self.image_probabilities = torch.zeros(len(counts))
        for chosen in self.probabilities.nonzero()[:, 0].tolist():
            images = self._images[chosen]
            within = of_images[images] / of_images[images].sum()
            self.image_probabilities[images] += self.probabilities[chosen] * within.float()

    def __call__(self, seed: int, position: int) -> SeededIndex:
        """Returns the image at a position of the sequence of a seed."""
        random = np.random.default_rng(derive_seed(seed, "rare class", position))
        chosen = _search(self._cumulative_classes, random.random())
        image = self._images[chosen][_search(self._cumulative_images[chosen], random.random())]
        return SeededIndex(int(image), derive_seed(seed, "draw", position), chosen)


def _cumulative(weights: Tensor) -> Tensor:
    sums = weights.double().cumsum(dim=0)
    return sums / sums[-1:]


def _search(cumulative: Tensor, uniform: float) -> int:
    """Returns the index at which a uniform number of 0...1 falls; never one of weight 0."""
    return int(torch.searchsorted(cumulative, torch.tensor(uniform, dtype=torch.float64), right=True))
