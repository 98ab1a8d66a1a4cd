"""Pseudo labels of the target, and the initial prototypes and class distribution of self-labeling."""

import torch
from torch import Tensor

from cpsl import ClassMeanPrototypes, Segmenter, class_counts
from cpsl._internal.distributed import all_reduce_sum
from cpsl.app.config import Config
from cpsl.app.datasets import label_space, share_of_rank, target_dataset
from cpsl.app.networks import build_model
from cpsl.data import HardLabelStore, SoftLabelStore, whole_image
from cpsl.methods.step import to_float
from cpsl.models import SegmentationNetwork, segment
from cpsl.training import Process, autocast, load, logger, save


@torch.inference_mode()
def describe_target(config: Config, process: Process) -> None:
    """Stores the soft labels of the warm-up network, its class prototypes and its class distribution.

    Soft labels are the softmax at the network's resolution. A prototype is the mean over images of the mean
    feature of the pixels predicted as the class. The class distribution δ is the frequency of the predicted
    classes.
    """
    folder, dataset = config.output / "pseudo_labels", target_dataset(config)
    store = SoftLabelStore(folder / "soft")
    if (folder / "start.pt").exists() and not store.missing(dataset.names):
        logger.info("pseudo_labels: already finished")
        return
    model = build_model(config, config.output / "warmup" / "model.pt").to(process.device).eval()
    means = ClassMeanPrototypes(model.num_classes, model.feature_dim, device=process.device)
    counts = torch.zeros(model.num_classes, dtype=torch.int64, device=process.device)
    for index in share_of_rank(range(len(dataset)), process, "pseudo labels"):
        image = whole_image(dataset.image(index), config.views.full_size)[None].to(process.device)
        with autocast(process.device, config.precision):
            output = segment(model, to_float(image))
        store.write(dataset.names[index], output.logits[0].float().softmax(dim=0).cpu())
        means.update(output.features.float(), output.logits)
        counts += class_counts(output.logits.argmax(dim=1), model.num_classes)
    prototypes = means.compute().prototypes
    all_reduce_sum(counts)
    if process.is_main:
        start = {"prototypes": prototypes.cpu(), "class_distribution": (counts / counts.sum()).float().cpu()}
        save(folder / "start.pt", start)
    process.barrier()


def read_start(config: Config, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Reads the initial prototypes, of shape (K, D), and the class distribution, (K,), of self-labeling.

    The prototype of a class that is not predicted is zero.
    """
    path = config.output / "pseudo_labels" / "start.pt"
    state = load(path)
    for name, wanted in (("prototypes", shape), ("class_distribution", shape[:1])):
        value = state.get(name)
        if not isinstance(value, Tensor) or value.shape != wanted or not value.isfinite().all():
            raise ValueError(
                f"{path}: {name} is not a tensor {tuple(wanted)} of finite numbers; "
                "delete the file to compute it again"
            )
    return state["prototypes"], state["class_distribution"]


@torch.inference_mode()
def label_target(
    model: SegmentationNetwork, store: HardLabelStore, threshold: float, config: Config, process: Process
) -> None:
    """Stores a model's labels of the target, from the mean over each image and its mirror image.

    Pixels of a confidence up to the threshold are ignored.
    """
    dataset, size = target_dataset(config), config.views.full_size
    # Only missing labels are divided among the ranks, so that they finish together after an interruption. All
    # use the list of rank 0: the first new labels may exist before another rank lists them.
    missing = process.gather(store.missing(dataset.names))[0]
    if not missing:
        logger.info(f"{store.folder}: already finished")
    segmenter = Segmenter(model.eval(), label_space(config), size)
    index = {name: number for number, name in enumerate(dataset.names)}
    for name in share_of_rank(missing, process, f"labels for {store.folder.parent.name}"):
        with autocast(process.device, config.precision):
            image = dataset.image(index[name])
            # Pixels that are not finite exceed no threshold.
            scored = segmenter.predict(image, size=size, flip=True, allow_non_finite=True)
        confidence, label = scored.probabilities.max(dim=0)
        label = label.masked_fill(~(confidence > threshold), 255)
        store.write(name, label.to(torch.uint8))
    process.barrier()
