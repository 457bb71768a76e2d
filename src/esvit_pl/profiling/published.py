"""What the EsViT paper publishes about its own models and its rivals' (arXiv 2106.09785): data, measured by others.

Accuracies are on ImageNet-1k in %, throughputs are of one V100 at 224 px. This file is the home of these numbers;
`make tables` writes them into the tables of docs/ and into the headers of conf/experiment.
"""

from __future__ import annotations

from typing import NamedTuple

M = 10**6


class Accuracy(NamedTuple):
    """On ImageNet-1k, top 1."""

    linear_percent: float
    knn_percent: float

    def __str__(self) -> str:
        digits = max(len(f"{number:g}".partition(".")[2]) for number in self)
        return " / ".join(f"{number:.{max(digits, 1)}f}" for number in self)


class Own(NamedTuple):
    """An architecture that EsViT was trained on."""

    architecture: str
    parameters: int
    """As rounded there."""
    v100_images_per_second: float | None = None


class Rival(NamedTuple):
    """A line of the paper's Table 1 that is not EsViT's."""

    method: str
    architecture: str
    parameters: int
    """As rounded there."""
    v100_images_per_second: float | None
    linear_percent: float
    knn_percent: float | None = None
    remark: str | None = None

    def __str__(self) -> str:
        return f"{self.method} " + " / ".join(f"{value:.1f}" for value in self[4:6] if value is not None)


ESTIMATED = "throughput estimated in the paper"
FINE_TUNED = "pretrained on JFT-300M, fine-tuned"

RECIPE = {
    "swin_tiny_w7_view": Accuracy(77.0, 74.2),
    "swin_tiny_w7_view_region": Accuracy(78.1, 75.7),
    "swin_tiny_w14_view": Accuracy(77.9, 75.5),
    "swin_tiny_w14_view_region": Accuracy(78.7, 77.0),
    "swin_small_w7_view": Accuracy(79.2, 76.8),
    "swin_small_w7_view_region": Accuracy(79.5, 77.7),
    "swin_small_w14_view": Accuracy(79.4, 77.3),
    "swin_small_w14_view_region": Accuracy(80.8, 79.1),
    "swin_base_w7_view": Accuracy(79.6, 77.7),
    "swin_base_w7_view_region": Accuracy(80.4, 78.9),
    "swin_base_w14_view": Accuracy(80.5, 78.3),
    "swin_base_w14_view_region": Accuracy(81.3, 79.3),
    "cvt_tiny_w7_view": Accuracy(77.6, 74.8),
    "cvt_tiny_w7_view_region": Accuracy(78.5, 76.7),
    "vil_tiny_view": Accuracy(77.3, 73.9),
    "vil_tiny_view_region": Accuracy(77.5, 74.5),
    "resnet50_view": Accuracy(75.0, 69.1),
    "resnet50_view_region": Accuracy(75.7, 71.3),
}
"""Config of conf/experiment -> result of the whole recipe on ImageNet-1k."""

TWO_CROPS = {
    "swin_tiny_w7_view_two_crops_100": Accuracy(65.31, 60.3),
    "swin_tiny_w7_view_region_two_crops_100": Accuracy(67.84, 61.95),
    "swin_tiny_w7_view_two_crops_300": Accuracy(70.53, 65.54),
    "swin_tiny_w7_view_region_two_crops_300": Accuracy(72.02, 67.56),
}
"""The same without local crops."""

OTHER_IMAGES = {
    "swin_tiny_w7_view_imagenet_1k": Accuracy(77.1, 73.7),
    "swin_tiny_w7_view_webvision_v1": Accuracy(75.4, 69.4),
    "swin_tiny_w7_view_openimages_v4": Accuracy(69.6, 60.3),
    "swin_tiny_w7_view_imagenet_22k": Accuracy(73.5, 66.1),
    "swin_tiny_w7_view_region_imagenet_1k": Accuracy(78.0, 75.7),
    "swin_tiny_w7_view_region_webvision_v1": Accuracy(75.9, 71.2),
    "swin_tiny_w7_view_region_openimages_v4": Accuracy(70.6, 62.0),
    "swin_tiny_w7_view_region_imagenet_22k": Accuracy(75.0, 67.9),
}
"""The same after training on other images, or on ImageNet-1k with other batches."""

EXPERIMENTS = RECIPE | TWO_CROPS | OTHER_IMAGES


class OfTransfer(NamedTuple):
    """A linear classifier on the frozen features of 18 data sets; which ones they are stands in an appendix."""

    mean: float
    """The mean of their 18 metrics, in %."""
    wins: int
    """Data sets on which it is better than the supervised one."""


TRANSFER_SUPERVISED = 77.29
"""The mean of a Swin-T that was trained with ImageNet's labels."""

TRANSFER = {
    "ImageNet-1K": OfTransfer(80.66, 16),
    "WebVision-v1": OfTransfer(80.00, 14),
    "OpenImages-v4": OfTransfer(77.97, 10),
    "ImageNet-22K": OfTransfer(81.03, 17),
}
"""Training images of a Swin-T with both losses -> transfer. The paper's "17 of 18" is a Swin-S, whose numbers are bars
of a figure."""

ESVIT = {
    "swin_tiny_w7": Own("Swin-T", 28 * M, 808),
    "swin_tiny_w14": Own("Swin-T/W14", 28 * M),
    "swin_small_w7": Own("Swin-S", 49 * M, 467),
    "swin_small_w14": Own("Swin-S/W14", 49 * M, 383),
    "swin_base_w7": Own("Swin-B", 87 * M, 297),
    "swin_base_w14": Own("Swin-B/W14", 87 * M, 254),
    "vil_tiny": Own("ViL", 28 * M, 386),
    "cvt_tiny_w7": Own("CvT", 29 * M, 848),
    "resnet50": Own("ResNet-50", 24 * M, 1237),
}
"""Config -> the paper's numbers: Swin of Table 1 (windows of 7 unless named), the others of Table 4."""

RIVALS = (
    Rival("DINO", "DeiT-S/16", 21 * M, 1007, 77.0, 74.5),
    Rival("DINO", "ViT-B/16", 85 * M, 312, 78.2, 76.1),
    Rival("DINO", "DeiT-S/8", 21 * M, 180, 79.7, 78.3),
    Rival("DINO", "ViT-B/8", 85 * M, 63, 80.1, 77.4),
    Rival("MoCo-v3", "ViT-B/16", 85 * M, 312, 76.7),
    Rival("MoCo-v3", "ViT-H-BN/16", 632 * M, 32, 79.1, remark=ESTIMATED),
    Rival("MoCo-v3", "ViT-B-BN/7", 85 * M, 63, 79.5, remark=ESTIMATED),
    Rival("MoCo-v3", "ViT-L-BN/7", 304 * M, 17, 81.0, remark=ESTIMATED),
    Rival("MoBY", "Swin-T", 28 * M, 808, 75.1),
    Rival("masked patch prediction", "ViT-B/16", 85 * M, 312, 79.9, remark=FINE_TUNED),
    Rival("iGPT", "iGPT-XL", 6801 * M, None, 72.0),
    Rival("SwAV", "RN50w5", 586 * M, 76, 78.5, 67.1),
    Rival("BYOL", "RN200w2", 250 * M, 123, 79.6, 73.9),
    Rival("SimCLR-v2", "RN152w3+SK", 794 * M, 46, 79.8, 73.1),
)


class OfMethod(NamedTuple):
    """What the authors of a rival, or others, publish of one of its trainings."""

    method: str
    architecture: str
    linear_percent: float | None
    knn_percent: float | None = None
    fine_tuned_percent: float | None = None
    source: str = ""

    def __str__(self) -> str:
        parts = {"linear": self.linear_percent, "k-NN": self.knn_percent, "fine-tuned": self.fine_tuned_percent}
        return ", ".join(f"{name} {value:.1f} %" for name, value in parts.items() if value is not None)


_MOCO, _IBOT = "arXiv 2104.02057", "arXiv 2111.07832"
METHODS = {
    "moby_swin_tiny_300": OfMethod("MoBY", "Swin-T", 75.3, source="its repository; EsViT's table says 75.1"),
    "mocov3_vit_small_300": OfMethod("MoCo v3", "ViT-S/16", 73.2, source=_MOCO),
    "mocov3_vit_base_300": OfMethod("MoCo v3", "ViT-B/16", 76.7, source=_MOCO),
    "mocov3_resnet50_300": OfMethod("MoCo v3", "ResNet-50", 72.8, source=_MOCO),
    "byol_resnet50_1000": OfMethod("BYOL", "ResNet-50", 74.4, source="its repository"),
    "swav_resnet50_800": OfMethod("SwAV", "ResNet-50", 75.3, source="its repository"),
    "swav_resnet50_small_batch_400": OfMethod("SwAV", "ResNet-50", 74.3, source="its repository"),
    "simclr_resnet50_800": OfMethod("SimCLR v2", "ResNet-50", 71.7, source="its repository"),
    "densecl_resnet50_200": OfMethod("DenseCL", "ResNet-50", 63.6, 48.6, source="EsViT's authors, arXiv 2106.09785"),
    "ibot_swin_tiny_w7_300": OfMethod("iBOT", "Swin-T/7", 78.6, 75.3, source=_IBOT),
    "ibot_swin_tiny_w14_300": OfMethod("iBOT", "Swin-T/14", 79.3, 76.2, source=_IBOT),
    "ibot_vit_small_800": OfMethod("iBOT", "ViT-S/16", 77.9, 75.2, source=_IBOT),
    "ibot_vit_base_400": OfMethod("iBOT", "ViT-B/16", 79.5, 77.1, source=_IBOT),
    "simmim_swin_base_100": OfMethod("SimMIM", "Swin-B", None, None, 82.8, source="arXiv 2111.09886, at 192 px"),
    "mpp_vit_base_14": OfMethod(
        "masked patch prediction", "ViT-B/16", None, None, 79.9, source="arXiv 2010.11929, on JFT-300M"
    ),
}
"""Config of conf/experiment -> result of another method's published recipe on ImageNet-1k."""

DINO = {
    "deit_small_p16": ("DINO", "DeiT-S/16"),
    "deit_small_p8": ("DINO", "DeiT-S/8"),
    "vit_base_p16": ("DINO", "ViT-B/16"),
    "vit_base_p8": ("DINO", "ViT-B/8"),
}
"""Config -> method and architecture, where L_V alone is DINO's own training and not EsViT's."""

COSTS = {
    "vit_huge_p16_bn": ("MoCo-v3", "ViT-H-BN/16"),
    "vit_base_p7_bn": ("MoCo-v3", "ViT-B-BN/7"),
    "vit_large_p7_bn": ("MoCo-v3", "ViT-L-BN/7"),
    "resnet50w5": ("SwAV", "RN50w5"),
    "resnet200w2": ("BYOL", "RN200w2"),
    "resnet152w3_sk": ("SimCLR-v2", "RN152w3+SK"),
    "igpt_xlarge": ("iGPT", "iGPT-XL"),
}
"""The same of rivals that are here for what they cost; no config of conf/experiment trains them."""


def accuracy(backbone: str, loss: str) -> Accuracy | None:
    """The accuracy of a config of conf/backbone with a config of conf/loss; None where nothing is published."""
    if backbone in DINO:
        line = rival(backbone)
        if loss != "view" or line is None or line.knn_percent is None:
            return None
        return Accuracy(line.linear_percent, line.knn_percent)
    return EXPERIMENTS.get(f"{backbone}_{loss}")


def v100_images_per_second(backbone: str) -> float | None:
    """The rate of a config of conf/backbone on a V100; None where nothing is published."""
    line = ESVIT.get(backbone) or rival(backbone)
    return line.v100_images_per_second if line else None


def rival(backbone: str) -> Rival | None:
    """The line of Table 1 that a config of conf/backbone belongs to; None where that is EsViT's, or there is none."""
    names = (DINO | COSTS).get(backbone)
    return next((line for line in RIVALS if line[:2] == names), None)
