"""What self-labeling and distillation start from: pseudo labels of the target, prototypes, class sizes.

python examples/pseudo_labels.py --config examples/configs/gta5_to_cityscapes.toml
"""

from collections.abc import Iterator
from pathlib import Path

import torch

from config import Config, parse
from cpsl import ClassMeanPrototypes, class_counts
from cpsl.data import HardLabelStore, SoftLabelStore, whole_image
from cpsl.distributed import all_reduce_sum
from cpsl.engine import Process, autocast, logger, progress, save
from cpsl.models import DeepLabV2, SegmentationOutput
from domains import target_dataset
from networks import build_model, resize, to_unit
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
    for name, output in _outputs(model, config, process, "pseudo labels"):
        store.write(name, output.logits[0].float().softmax(dim=0).cpu())
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
    model: DeepLabV2, folder: Path, threshold: float, config: Config, process: Process
) -> None:
    """Stores a model's labels of the target, averaged over the image and its mirror image.

    Args:
        model: On the device of the process.
        folder: Folder of the label maps, of the settings' full size; 255 below the threshold.
        threshold: Confidence, 0...1, below which a pixel is ignored.
        config: Settings.
        process: This process.
    """
    store = HardLabelStore(folder)
    if not store.missing(target_dataset(config).names):
        logger.info(f"{folder}: finished before")
        process.barrier()
        return
    model.eval()
    for name, output in _outputs(
        model, config, process, f"labels for {folder.parent.name}", mirror=True
    ):
        probabilities = resize(output.logits, config.views.full_size).softmax(dim=1)
        confidence, label = ((probabilities[:1] + probabilities[1:].flip(-1)) / 2).max(dim=1)
        store.write(name, torch.where(confidence > threshold, label, 255)[0].to(torch.uint8).cpu())
    process.barrier()


def _outputs(
    model: DeepLabV2, config: Config, process: Process, title: str, mirror: bool = False
) -> Iterator[tuple[str, SegmentationOutput]]:
    """Yields each target image's name and output, shared out among the processes."""
    dataset = target_dataset(config)
    mine = range(process.rank, len(dataset), process.world_size)
    for index in progress(mine, title, process, total=len(mine)):
        image = whole_image(dataset.image(index), config.views.full_size)[None].to(process.device)
        if mirror:
            image = torch.cat([image, image.flip(-1)])
        with autocast(process.device, config.precision):
            yield dataset.names[index], model(to_unit(image))


if __name__ == "__main__":
    config = parse(Config)
    with begin_run(config) as process:
        describe_target(config, process)
