"""What self-labeling and distillation start from: pseudo labels of the target, prototypes, class sizes.

python examples/pseudo_labels.py --config examples/configs/gta5_to_cityscapes.toml
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from config import Config, parse
from cpsl import ClassMeanPrototypes, Segmenter, class_counts
from cpsl.data import HardLabelStore, SoftLabelStore, whole_image
from cpsl.distributed import all_reduce_sum
from cpsl.engine import Process, autocast, load, logger, progress, save
from cpsl.models import DeepLabV2
from domains import label_space, target_dataset
from networks import build_model, to_unit
from stage import begin_run

T = TypeVar("T")


@torch.inference_mode()
def describe_target(config: Config, process: Process) -> None:
    """Stores the warm-up model's soft labels, the prototypes of its classes and their distribution.

    Soft labels are the softmax at the network's own resolution; a prototype is the mean over images of
    the mean feature of the pixels predicted as the class; δ the frequency of the predicted classes.
    """
    folder, dataset = config.output / "pseudo_labels", target_dataset(config)
    store = SoftLabelStore(folder / "soft")
    if (folder / "start.pt").exists() and not store.missing(dataset.names):
        logger.info("pseudo_labels: finished before")
        return
    model = build_model(config, config.output / "warmup" / "model.pt").to(process.device).eval()
    means = ClassMeanPrototypes(model.num_classes, model.feature_dim)
    counts = torch.zeros(model.num_classes, dtype=torch.int64, device=process.device)
    for index in _my_share(range(len(dataset)), process, "pseudo labels"):
        image = whole_image(dataset.image(index), config.views.full_size)[None].to(process.device)
        with autocast(process.device, config.precision):
            output = model(to_unit(image))
        store.write(dataset.names[index], output.logits[0].float().softmax(dim=0).cpu())
        means.update(output.features.float(), output.logits)
        counts += class_counts(output.logits.argmax(dim=1), model.num_classes)
    means.reduce()
    all_reduce_sum(counts)
    if process.is_main:
        start = {
            "prototypes": means.compute().prototypes.cpu(),
            "class_distribution": (counts / counts.sum()).float().cpu(),
        }
        save(folder / "start.pt", start)
    process.barrier()


class Start(NamedTuple):
    """What self-labeling starts from, beside the soft labels.

    Attributes:
        prototypes: (K, D), zeros for a class that no image has.
        class_distribution: (K,) frequencies.
    """

    prototypes: Tensor
    class_distribution: Tensor


def read_start(config: Config, shape: torch.Size) -> Start:
    """Reads prototypes and class distribution, on the CPU.

    Args:
        config: Settings.
        shape: (K, D) of the prototypes.

    Raises:
        FileNotFoundError: `describe_target` has to run first.
        ValueError: The file is damaged or of another model.
    """
    path = config.output / "pseudo_labels" / "start.pt"
    state = load(path)
    for name, wanted in (("prototypes", shape), ("class_distribution", shape[:1])):
        value = state.get(name)
        if not isinstance(value, Tensor) or value.shape != wanted or not value.isfinite().all():
            raise ValueError(
                f"{path}: its entry {name} is no tensor {tuple(wanted)} of finite numbers; "
                "delete the file to have it made again"
            )
    return Start(state["prototypes"], state["class_distribution"])


@torch.inference_mode()
def label_target(
    model: DeepLabV2, store: HardLabelStore, threshold: float, config: Config, process: Process
) -> None:
    """Stores a model's labels of the target, averaged over the image and its mirror image.

    Args:
        model: On the device of the process.
        store: Receives label maps of the settings' full size; ignored below the threshold.
        threshold: Confidence, 0...1, below which a pixel is ignored.
        config: Settings.
        process: This process.
    """
    dataset, size = target_dataset(config), config.views.full_size
    # What is missing is shared out, so that ranks finish together after an interruption, too. As rank 0 saw
    # it: others may look when the first new labels are there already.
    missing = process.gather(store.missing(dataset.names))[0]
    if not missing:
        logger.info(f"{store.folder}: finished before")
    segmenter = Segmenter(model.eval(), label_space(config), size)
    index = {name: number for number, name in enumerate(dataset.names)}
    for name in _my_share(missing, process, f"labels for {store.folder.parent.name}"):
        with autocast(process.device, config.precision):
            scored = segmenter.predict(dataset.image(index[name]), size=size, flip=True)
        confidence, label = scored.probabilities.max(dim=0)
        label = label.masked_fill(~(confidence > threshold), 255)
        store.write(name, label.to(torch.uint8))
    process.barrier()


def _my_share(items: Sequence[T], process: Process, title: str) -> Iterator[T]:
    """Yields every so many-th item, each of them on one rank."""
    mine = items[process.rank :: process.world_size]
    yield from progress(mine, title, process, total=len(mine))


if __name__ == "__main__":
    config = parse(Config)
    with begin_run(config) as process:
        describe_target(config, process)
