"""Segmentation networks of torchvision as `SegmentationNetwork`s."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cpsl._internal.files import without_number
from cpsl.models.adapters.adapted import AdaptedNetwork
from cpsl.models.adapters.module import adapt, evaluation, trial_images
from cpsl.models.adapters.weights import load_weights
from cpsl.models.network import NetworkSpec, SegmentationOutput


class FCNBody(nn.Module):
    """Calls DeepLabV3 or FCN, whose classifier is the last layer of its head."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        module.aux_classifier = None
        self.module = module
        self.training = module.training

    def forward(self, images: Tensor) -> SegmentationOutput:
        """Returns logits (B, K, h, w) and features (B, D, h, w) of images."""
        features = self.module.backbone(images)["out"]
        *layers, classifier = self.module.classifier
        for layer in layers:
            features = layer(features)
        return SegmentationOutput(classifier(features), features)


class LRASPPBody(nn.Module):
    """Calls LR-ASPP, whose logits are the sum of two linear classifiers.

    The features are their inputs, resized to one grid and concatenated: the logits are a linear map of them.
    """

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module
        self.training = module.training

    def forward(self, images: Tensor) -> SegmentationOutput:
        """Returns logits (B, K, h, w) and features (B, D, h, w) of images."""
        maps, head = self.module.backbone(images), self.module.classifier
        low = maps["low"]
        high = head.cbr(maps["high"]) * head.scale(maps["high"])
        high = F.interpolate(high, size=low.shape[2:], mode="bilinear", align_corners=False)
        logits = head.low_classifier(low) + head.high_classifier(high)
        return SegmentationOutput(logits, torch.cat([low, high], dim=1))


def from_torchvision(
    model: str | nn.Module, num_classes: int | None = None, *, weights: str | Path = "pretrained"
) -> AdaptedNetwork:
    """Builds or adapts a segmentation network of torchvision: DeepLabV3, FCN or LR-ASPP.

    The auxiliary classifier is removed, also from a network that is passed. The features of LR-ASPP are
    the inputs of both of its classifiers.

    Args:
        model: "deeplabv3_resnet50", "deeplabv3_resnet101", "deeplabv3_mobilenet_v3_large", "fcn_resnet50",
            "fcn_resnet101" or "lraspp_mobilenet_v3_large"; or such a network, whose spec is None.
        num_classes: Number of classes K, only with a name.
        weights: "pretrained" downloads an encoder trained on ImageNet; "random"; or a file with the state
            dict of the encoder or of the whole network. Ignored for a given network.

    Raises:
        ValueError: There is no such network, num_classes is missing, or the file does not fit.
        ConnectionError: The weights cannot be downloaded.
        TypeError: The network is not one of these.

    Example:
        >>> network = from_torchvision("lraspp_mobilenet_v3_large", 19, weights="random")
        >>> network.feature_dim, network.spec.name
        (168, 'torchvision:lraspp_mobilenet_v3_large')
    """
    from torchvision.models.segmentation import FCN, LRASPP, DeepLabV3

    spec = None
    if isinstance(model, str):
        if num_classes is None:
            raise ValueError(f"num_classes is required to build {model}")
        spec = NetworkSpec(f"torchvision:{model}")
        model = _build(model, num_classes, weights)
    if isinstance(model, LRASPP):
        return adapt(
            LRASPPBody(model), align_corners=False, input_size=16, encoder="module.backbone", spec=spec
        )
    if not isinstance(model, (DeepLabV3, FCN)):
        raise TypeError(
            f"{type(model).__name__} is not a DeepLabV3, FCN or LRASPP of torchvision; use from_module"
        )
    body = FCNBody(model)
    images = trial_images(body, 32)
    with evaluation(body), torch.no_grad():
        stride = images.shape[2] // body(images).logits.shape[2]
    return adapt(body, align_corners=False, input_size=stride, encoder="module.backbone", spec=spec)


def _build(name: str, num_classes: int, weights: str | Path) -> nn.Module:
    """Builds a network, and loads weights into it."""
    from torchvision import models

    names = models.list_models(models.segmentation)
    if name not in names:
        raise ValueError(f"there is no segmentation network {name} in torchvision, only {', '.join(names)}")
    encoder_weights = "IMAGENET1K_V1" if weights == "pretrained" else None
    try:
        # torchvision ignores further arguments, whatever their names: none are accepted.
        module: nn.Module = models.get_model(
            name, weights=None, weights_backbone=encoder_weights, num_classes=num_classes, aux_loss=False
        )
    except OSError as error:  # URLError
        url = models.get_model_weights(name.partition("_")[2])["IMAGENET1K_V1"].url
        raise ConnectionError(
            f"cannot download {url} ({without_number(error)}); pass weights=, a file downloaded elsewhere, "
            'or weights="random"'
        ) from error
    if weights not in ("pretrained", "random"):
        load_weights(module, weights, "backbone")
    return module
