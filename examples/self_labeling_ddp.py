"""Stage 1 of the paper on several GPUs: self-labeling in plain PyTorch.

    torchrun --nproc_per_node=4 examples/self_labeling_ddp.py --warmup-run runs/gta5_to_cityscapes \
        --gta5 data/gta5 --cityscapes data/cityscapes

Starts from the warm-up network, soft labels and prototypes that a run of `cpsl adapt` or of
examples/gta5_to_cityscapes.py has written. Without GPUs the processes use the CPU.
"""

import argparse
import os
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD
from torch.optim.lr_scheduler import PolynomialLR

from cpsl import ClassBalancedPrototypeClustering, Segmenter, data
from cpsl.methods import SelfLabeling
from cpsl.models import ExponentialMovingAverage, parameter_groups

parser = argparse.ArgumentParser(description="Stage 1 of the paper on several GPUs")
parser.add_argument("--warmup-run", type=Path, required=True, help="has warmup/ and pseudo_labels/")
parser.add_argument("--gta5", type=Path, required=True)
parser.add_argument("--cityscapes", type=Path, required=True)
parser.add_argument("--output", type=Path, default=Path("self_labeled.pt"))
parser.add_argument("--iterations", type=int, default=90_000)
parser.add_argument("--batch-size", type=int, default=4, help="images over all processes")
parser.add_argument("--workers", type=int, default=4, help="per process")


def parallel(module: nn.Module, device: torch.device) -> DistributedDataParallel:
    """Averages gradients over the processes; each process keeps its own part of the memory bank."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        devices = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(module, devices, broadcast_buffers=False)


def train(args: argparse.Namespace, device: torch.device) -> nn.Module:
    """Trains with this process's share of the images and returns the student."""
    start = torch.load(args.warmup_run / "pseudo_labels" / "start.pt", device, weights_only=True)
    soft_labels = data.SoftLabelStore(args.warmup_run / "pseudo_labels" / "soft")
    warm_up = Segmenter.load(args.warmup_run / "warmup" / "model.pt", device=device)
    assert warm_up.full_size is not None

    # The warm-up network becomes student and teacher; its class means become the prototypes.
    student = warm_up.network.train()
    teacher = ExponentialMovingAverage(student)
    if device.type == "cuda":
        student = nn.SyncBatchNorm.convert_sync_batchnorm(student)
    clustering = ClassBalancedPrototypeClustering(student.num_classes, student.feature_dim)
    clustering.to(device).initialize(start["prototypes"], start["class_distribution"])
    method = SelfLabeling(parallel(student, device), teacher, parallel(clustering, device))
    torch.manual_seed(dist.get_rank())  # processes start alike, and sample different pixels

    optimizer = SGD(parameter_groups(student, 1e-4, head_multiplier=5), momentum=0.9, weight_decay=2e-4)
    optimizer.add_param_group({"params": clustering.prototypes, "lr": 5e-4})
    schedule = PolynomialLR(optimizer, args.iterations, power=0.9)

    # Each process loads its share of every batch; target images come with the soft labels of the warm-up.
    loaders = data.domain_loaders(
        data.GTA5(args.gta5),
        data.Cityscapes(args.cityscapes, "train"),
        data.WeakView.of_size(warm_up.full_size),
        batch_size=args.batch_size // dist.get_world_size(),
        pseudo_labels=soft_labels.read,
        num_workers=args.workers,
    )
    for step, source, target in zip(range(args.iterations), *loaders, strict=False):
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            for loss in method.losses(source.to(device), target.to(device)):
                with torch.autocast(device.type, enabled=False):  # for the forward passes only
                    loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        method.update()
        if step % 100 == 0 and dist.get_rank() == 0:
            values = (f"{name} {value.item():.3f}" for name, value in method.metrics.items())
            print(f"step {step}: {', '.join(values)}", flush=True)
    if dist.get_rank() == 0:
        Segmenter(student.eval(), warm_up.classes, warm_up.full_size).save(args.output)
    return student


def main() -> None:
    """Joins the processes that torchrun has started."""
    args = parser.parse_args()
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        train(args, device)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
