"""Growth of time and memory with the bank, the classes, the sampled pixels and the size of an image.

    python benchmarks/growth.py

Each line changes one number of the paper's setting. "of linear" is the growth of the time divided by the
growth of the number, since the first line of the block.
"""

from collections.abc import Iterator

import torch

from cpsl.training.cost import peak_memory, reset_peak_memory
from measure import measure
from pieces import Work, clustering_step, rectification

CPU = torch.device("cpu")


def blocks() -> Iterator[tuple[str, list[tuple[int, Work]]]]:
    """Yields the number that grows, and the work at each of its values."""
    banks, pixels = [2**power for power in (14, 16, 18, 20)], [256, 1024, 4096]
    classes, grids = [19, 38, 75, 150], [(65, 129), (129, 257), (257, 513)]
    by = "similarity"
    yield "clustering: pixels in the bank", [(n, clustering_step(bank=n)) for n in banks]
    yield "clustering: classes", [(n, clustering_step(classes=n)) for n in classes]
    yield "rectification: classes", [(n, rectification(by, classes=n)) for n in classes]
    yield "clustering: sampled pixels per image", [(n, clustering_step(pixels=n)) for n in pixels]
    works = [(h * w, clustering_step(grid=(h, w))) for h, w in grids]
    yield "clustering: positions of the feature grid", works
    works = [(h * w, rectification(by, grid=(h, w), view=(h - 1, w - 33))) for h, w in grids]
    yield "rectification: positions of the feature grid", works


def main() -> None:
    """Prints all blocks."""
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
