"""What self-labeling and distillation start from: pseudo labels of the target, prototypes, class sizes.

python examples/pseudo_labels.py --config examples/configs/gta5_to_cityscapes.toml
"""

from collections.abc import Iterator

import torch

from config import Config, parse
from cpsl import ClassMeanPrototypes, Segmenter, class_counts
from cpsl.data import HardLabelStore, SegmentationDataset, SoftLabelStore, whole_image
from cpsl.distributed import all_reduce_sum
from cpsl.engine import Process, autocast, logger, progress, save
from cpsl.models import DeepLabV2
from domains import label_space, target_dataset
from networks import build_model, to_unit
from stage import begin_run


@torch.inference_mode()
def describe_target(config: Config, process: Process) -> None:
    """Stores the warm-up model's soft labels, the prototypes of its classes and their distribution.

    Soft labels are the softmax at the network's own resolution; a prototype is the mean over images of
    the mean feature of the pixels predicted as the class; δ the frequency of the predicted classes.
    """
    folder = config.output / "pseudo_labels"
    if (folder / "start.pt").exists():
        logger.info("pseudo_labels: finished before")
        return
    model = build_model(config, config.output / "warmup" / "model.pt").to(process.device).eval()
    store = SoftLabelStore(folder / "soft")
    means = ClassMeanPrototypes(model.num_classes, model.feature_dim)
    counts = torch.zeros(model.num_classes, dtype=torch.int64, device=process.device)
    dataset = target_dataset(config)
    for index in _my_images(dataset, process, "pseudo labels"):
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
    missing = set(store.missing(dataset.names))
    if not missing:
        logger.info(f"{store.folder}: finished before")
    segmenter = Segmenter(model.eval(), label_space(config), size)
    for index in _my_images(dataset, process, f"labels for {store.folder.parent.name}"):
        name = dataset.names[index]
        if name in missing:
            image = dataset.image(index)
            with autocast(process.device, config.precision):
                probabilities = segmenter.predict(image, size=size, flip=True).probabilities
            confidence, label = probabilities.max(dim=0)
            label = label.masked_fill(~(confidence > threshold), 255)
            store.write(name, label.to(torch.uint8))
    process.barrier()


def _my_images(dataset: SegmentationDataset, process: Process, title: str) -> Iterator[int]:
    """Yields the indices of this rank's share of the images."""
    mine = range(process.rank, len(dataset), process.world_size)
    yield from progress(mine, title, process, total=len(mine))


if __name__ == "__main__":
    config = parse(Config)
    with begin_run(config) as process:
        describe_target(config, process)
