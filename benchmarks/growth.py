"""How time and memory grow with the bank, the classes, the pixels of an image and the size of an image.

    python benchmarks/growth.py

Each line changes one number of the paper's; "of linear" is the growth of the time over that of the number
since the first line of its block: 1 is linear, less is better.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from cpsl import (
    ClassBalancedPrototypeClustering,
    PseudoLabelRectifier,
    View,
    carry,
    prototype_similarity,
)
from cpsl.engine import peak_memory, reset_peak_memory
from machine import measure

IMAGES, D = 4, 256
CPU = torch.device("cpu")


def clustering(
    bank: int = 65_536, classes: int = 19, pixels: int = 256, grid: tuple[int, int] = (129, 257)
) -> Callable[[], object]:
    """Returns the clustering step of four images, with a full bank."""
    module = ClassBalancedPrototypeClustering(classes, D, bank_size=bank, samples_per_image=pixels)
    module.bank.push(F.normalize(torch.randn(bank, D), dim=1))
    features, labels = torch.randn(IMAGES, D, *grid), torch.randint(classes, (IMAGES, *grid))

    def work() -> None:
        output = module(features, labels)
        output.loss.backward()
        module.update(output)

    return work


def rectification(
    classes: int = 19, grid: tuple[int, int] = (129, 257), view: tuple[int, int] = (128, 224)
) -> Callable[[], object]:
    """Returns the rectification of four crops by features of whole images."""
    full, crop = (8 * grid[0] - 8, 8 * grid[1] - 8), (4 * view[0], 4 * view[1])
    whole, rectifier = View.whole(full, IMAGES), PseudoLabelRectifier()
    weak = whole.cropped(8, 8, crop)
    features, prototypes = torch.randn(IMAGES, D, *grid), torch.randn(classes, D)
    features = features.to(memory_format=torch.channels_last)  # as the networks give them
    soft = torch.rand(IMAGES, classes, *view).softmax(dim=1)

    def work() -> object:
        cosines, _ = carry(
            prototype_similarity(features, prototypes), whole, weak, view, layout="corners"
        )
        return rectifier.rectify(soft, cosines)

    return work


def blocks() -> Iterator[tuple[str, list[tuple[int, Callable[[], object]]]]]:
    """Yields what grows, and the work at each of its sizes."""
    banks = [2**power for power in (14, 16, 18, 20)]
    yield "clustering: pixels in the bank", [(n, clustering(bank=n)) for n in banks]
    classes = [19, 38, 75, 150]
    yield "clustering: classes", [(n, clustering(classes=n)) for n in classes]
    yield "rectification: classes", [(n, rectification(classes=n)) for n in classes]
    pixels = [256, 1024, 4096]
    yield "clustering: pixels drawn from an image", [(n, clustering(pixels=n)) for n in pixels]
    sizes = [(65, 129), (129, 257), (257, 513)]
    yield (
        "clustering: places of the features' grid",
        [(h * w, clustering(grid=(h, w))) for h, w in sizes],
    )
    yield (
        "rectification: places of the features' grid",
        [(h * w, rectification(grid=(h, w), view=(h - 1, w - 33))) for h, w in sizes],
    )


def main() -> None:
    """Measures and prints all blocks."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for title, works in blocks():
        print(f"\n{title:44}{'ms':>9}{'of linear':>11}{'MB more':>9}")
        first: tuple[int, float] | None = None
        for number, work in works:
            work()
            reset_peak_memory(CPU)
            before = peak_memory(CPU)
            seconds = measure(work, repeats=5, warm_up=1).median
            grown = (peak_memory(CPU) - before) / 1e6
            first = first or (number, seconds)
            linear = seconds / first[1] / (number / first[0])
            print(f"{number:44,}{1e3 * seconds:9.1f}{linear:11.2f}{grown:9.0f}", flush=True)


if __name__ == "__main__":
    main()
