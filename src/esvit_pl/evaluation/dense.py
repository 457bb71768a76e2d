"""Dense tasks on frozen region features: segmentation by neighbours and by a linear head, keypoints of pairs."""

# b images | s side in pixels | h, w rows and columns of a region map | n = h * w regions | m regions of the bank
# c classes | d channels | p keypoints

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esvit_pl.backbones.interface import Backbone, Features, Regions
from esvit_pl.distributed import num_ranks
from esvit_pl.evaluation.data import EvaluationData, Place, Source, Training
from esvit_pl.evaluation.interface import Evaluator
from esvit_pl.isolation import same_random_state, untracked
from esvit_pl.metrics.dense import (
    VOID,
    confusion,
    correct_keypoints,
    iou,
    majority,
    match_places,
    neighbour_votes,
    region_labels,
    upsampled,
)
from esvit_pl.metrics.knn import as_ks, check_temperature
from esvit_pl.precision import wide
from esvit_pl.schedules import cosine


class DenseData(EvaluationData):
    """Batches with masks or keypoints, for the evaluators of this file; in one process.

    Batches of a segmentation are dicts with ``image`` (b 3 s s) and ``mask`` (b s s), classes from 0 on or 255 for
    void; those of keypoints are dicts as of `data.dense.KeypointViews`, and come as the query.

    >>> images, masks = torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4)
    >>> data = DenseData(query=[{"image": images, "mask": masks}], classes=["sky", "sea"])
    >>> data.num_classes
    2

    Args:
        bank: a loader, or a function that makes it.
        query: likewise.
        train: for a head that learns: the bank's images in another order in every epoch.
        classes: names of the classes, or of the categories of the pairs.
        place: device and precision; None is the CPU.
    """

    def __init__(
        self,
        bank: Source | None = None,
        query: Source | None = None,
        *,
        train: Any = None,
        classes: Sequence[str],
        place: Place | None = None,
    ) -> None:
        if num_ranks() > 1:
            raise ValueError(f"dense tasks are measured in one process, got {num_ranks()}; set trainer.devices=1")
        super().__init__(bank, query, train=train, num_classes=len(classes), place=place)
        self.classes = list(classes)

    def regions(self, encoder: Any, images: Tensor, stage: int) -> Regions:
        """Region map (b n d) of a stage, in float32 at least, without gradients."""
        with untracked(), self.place.forward_context():
            regions, grid = encoder.stage_regions(self.place.prepare(images), stage)
        return Regions(wide(regions), grid)


def dense(evaluator: Evaluator, data: EvaluationData) -> DenseData:
    """The data, if they have masks or keypoints."""
    if not isinstance(data, DenseData):
        raise ValueError(
            f"{type(evaluator).__name__} needs images with masks or keypoints, and these have none; esvit-dense asks "
            "it (dataset=voc2012, ade20k or spair71k), and in Python DenseData"
        )
    return data


class _Segmentation(Evaluator):
    """What is the same for all segmentations: predictions at the size of the mask, and what they are worth."""

    needs_labels = False
    name: str
    stage: int

    def check(self, encoder: Any, num_classes: int | None) -> None:
        check_has_stage(encoder, self.stage)

    def measure(self, data: DenseData, encoder: Any, scores: Any) -> dict[str, float]:
        """Metrics of ``scores(regions (b n d)) -> (b n c)`` on the query."""
        size = len(data.classes)
        counts = torch.zeros(size, size, dtype=torch.long)
        for batch in data.loader("query"):
            regions, grid = data.regions(encoder, batch["image"], self.stage)
            with torch.no_grad():
                pixels = upsampled(as_map(scores(regions), grid), batch["mask"].shape[-2:]).argmax(1)
            counts += confusion(pixels, batch["mask"].to(pixels.device), size).cpu()
        found = iou(counts)
        metrics = {f"{self.name}/miou": found.mean, f"{self.name}/pixel_accuracy": found.pixels}
        known = zip(data.classes, found.classes.tolist(), strict=True)
        return metrics | {f"{self.name}/iou/{name}": value for name, value in known if value == value}


class SegmentationKNN(_Segmentation):
    """Mean IoU of weighted k-NN between regions.

    Each region of the bank has the class of most of its pixels whose class is known. The k most similar of them vote on
    each region of the query, weighted by softmax(cosine / temperature); the votes are interpolated to the pixels of the
    mask, and the class with the most wins.

    - ``segmentation_knn/miou``: mean over classes of intersection over union, counted over all query images together;
    - ``segmentation_knn/pixel_accuracy``: share of the pixels that are right;
    - ``segmentation_knn/iou/<class>`` of every class that occurs.

    >>> masks = torch.tensor([[[0, 1], [1, 2]]])
    >>> batch = {"image": torch.eye(3)[masks].permute(0, 3, 1, 2), "mask": masks}
    >>> data = DenseData([batch], [batch], classes=["red", "green", "blue"])
    >>> SegmentationKNN(k=1).run(RawRegions(grid=2, side=1), data)["segmentation_knn/miou"]
    1.0

    Args:
        k: neighbours that vote; of a smaller bank all regions do.
        temperature: of the votes.
        stage: whose region map; -1 is the last. Of a plain ViT a block.
        bank_regions: so many regions of the bank are kept at most, drawn at random from all that are not void all over.
        seed: of the draw.
    """

    name = "segmentation_knn"

    def __init__(
        self, *, k: int = 20, temperature: float = 0.07, stage: int = -1, bank_regions: int = 200_000, seed: int = 0
    ) -> None:
        check_temperature(temperature)
        if bank_regions < 1:
            raise ValueError(f"{self.name} needs bank_regions of 1 or more, got {bank_regions}")
        (self.k,) = as_ks(k)
        self.temperature, self.stage, self.bank_regions, self.seed = temperature, stage, bank_regions, seed

    def labels(self, shares: Tensor) -> Tensor:
        """(m c) shares of the classes in a region -> what it votes for."""
        return majority(shares)

    def run(self, encoder: Any, data: EvaluationData) -> dict[str, float]:
        data = dense(self, data)
        bank = self.bank(encoder, data)
        k = min(self.k, len(bank.regions))

        def scores(regions: Tensor) -> Tensor:
            query = regions.flatten(0, 1)
            votes = neighbour_votes(bank.regions, bank.labels, query, k=k, temperature=self.temperature)
            return torch.unflatten(votes, 0, regions.shape[:2])

        return self.measure(data, encoder, scores)

    def bank(self, encoder: Any, data: DenseData) -> Bank:
        """The regions that vote.

        Raises:
            ValueError: all of them are void.
        """
        generator, kept = torch.Generator().manual_seed(self.seed), Bank.of()
        for batch in data.loader("bank"):
            regions, grid = data.regions(encoder, batch["image"], self.stage)
            shares = region_labels(batch["mask"], grid, len(data.classes)).flatten(0, 1)
            key = torch.rand(len(shares), generator=generator, dtype=torch.float64)  # of void ones too
            some = (shares.sum(-1) > 0).nonzero()[:, 0]
            part = Bank(regions.flatten(0, 1)[some.to(regions.device)], self.labels(shares[some]), key[some])
            kept = kept.with_(part.first(self.bank_regions)).first(self.bank_regions)
        if not len(kept.key):
            raise ValueError(f"{self.name} needs masks with a class in a pixel or more, and the bank's are all void")
        return kept._replace(labels=kept.labels.to(kept.regions.device))


class Bank(NamedTuple):
    """Regions that vote."""

    regions: Tensor
    """(m d)"""
    labels: Tensor
    """(m c)"""
    key: Tensor
    """(m,) numbers drawn at random: the smallest stay."""

    @classmethod
    def of(cls) -> Bank:
        return cls(torch.empty(0), torch.empty(0), torch.empty(0, dtype=torch.float64))

    def with_(self, other: Bank) -> Bank:
        """Both, one after the other."""
        return Bank(*map(torch.cat, zip(self, other, strict=True))) if len(self.key) else other

    def first(self, size: int) -> Bank:
        """The `size` regions with the smallest keys, in their order."""
        if len(self.key) <= size:
            return self
        rows = self.key.argsort(stable=True)[:size].sort().values
        return Bank(self.regions[rows.to(self.regions.device)], self.labels[rows], self.key[rows])


class SegmentationInContext(SegmentationKNN):
    """Mean IoU of in-context segmentation (Balazevic et al., arXiv 2306.01667).

    As `SegmentationKNN`, but a region of the bank votes for all classes in it, by their shares of its pixels: what the
    neighbours say is cross-attention over the nearest k. The paper has k = 30, temperature 0.02 and a bank of up to 10
    million regions, of which rare classes get more; here they are drawn evenly.

    Metrics are ``segmentation_in_context/...``.

    >>> masks = torch.tensor([[[0, 1], [1, 2]]])
    >>> batch = {"image": torch.eye(3)[masks].permute(0, 3, 1, 2), "mask": masks}
    >>> data = DenseData([batch], [batch], classes=["red", "green", "blue"])
    >>> SegmentationInContext().run(RawRegions(grid=2, side=1), data)["segmentation_in_context/miou"]
    1.0

    Args:
        k, temperature, stage, bank_regions, seed: as in `SegmentationKNN`.
    """

    name = "segmentation_in_context"

    def __init__(
        self, *, k: int = 30, temperature: float = 0.02, stage: int = -1, bank_regions: int = 200_000, seed: int = 0
    ) -> None:
        super().__init__(k=k, temperature=temperature, stage=stage, bank_regions=bank_regions, seed=seed)

    def labels(self, shares: Tensor) -> Tensor:
        return shares


class SegmentationLinear(_Segmentation):
    """Mean IoU of a linear head: batch norm and one linear layer on the frozen regions, interpolated to the pixels.

    It learns by AdamW with the cross entropy of all pixels whose class is known; the learning rate goes to 0 by a
    cosine. Images are neither cropped nor mirrored. The head is that of DINOv2's linear segmentation (arXiv
    2304.07193), its training is shorter.

    Metrics are ``segmentation_linear/...``, as in `SegmentationKNN`.

    >>> masks = torch.tensor([[[0, 1], [1, 2]]])
    >>> batch = {"image": torch.eye(3)[masks].permute(0, 3, 1, 2), "mask": masks}
    >>> train = lambda: Training([batch], images_per_step=1)
    >>> data = DenseData(query=[batch], train=train, classes=["red", "green", "blue"])
    >>> SegmentationLinear(epochs=50, lr=0.1).run(RawRegions(grid=2, side=1), data)["segmentation_linear/miou"]
    1.0

    Args:
        epochs: passes over the training images.
        lr: at the start.
        weight_decay: of AdamW.
        stage: whose region map; -1 is the last. Of a plain ViT a block.
        seed: of the initial weights.
    """

    name = "segmentation_linear"
    trains = True

    def __init__(
        self, *, epochs: int = 10, lr: float = 0.001, weight_decay: float = 0.0001, stage: int = -1, seed: int = 0
    ) -> None:
        if epochs < 1 or not lr > 0 or weight_decay < 0:
            raise ValueError(
                "segmentation_linear needs epochs of 1 or more, lr above 0 and weight_decay of 0 or more, got "
                f"epochs={epochs}, lr={lr}, weight_decay={weight_decay}"
            )
        self.epochs, self.lr, self.weight_decay, self.stage, self.seed = epochs, lr, weight_decay, stage, seed

    def run(self, encoder: Any, data: EvaluationData) -> dict[str, float]:
        data = dense(self, data)
        head = self.train(encoder, data)
        return self.measure(data, encoder, lambda regions: head(regions.flatten(0, 1)).unflatten(0, regions.shape[:2]))

    def train(self, encoder: Any, data: DenseData) -> nn.Module:
        """The head, trained: (n d) -> (n c)."""
        training: Training = data.training
        head: nn.Module | None = None
        step, steps = 0, self.epochs * len(training.loader)  # type: ignore[arg-type]
        with torch.inference_mode(False), torch.enable_grad():
            for epoch in range(self.epochs):
                if training.set_epoch is not None:
                    training.set_epoch(epoch)
                for batch in training.loader:
                    regions, grid = data.regions(encoder, batch["image"], self.stage)
                    if head is None:
                        head = self.head(regions, len(data.classes))
                        optimizer = torch.optim.AdamW(head.parameters(), weight_decay=self.weight_decay)
                    for group in optimizer.param_groups:
                        group["lr"] = cosine(step, steps, start=self.lr, end=0.0)
                    logits = as_map(head(regions.flatten(0, 1)).unflatten(0, regions.shape[:2]), grid)
                    mask = batch["mask"].long().to(logits.device)
                    pixels = upsampled(logits, mask.shape[-2:])
                    losses = F.cross_entropy(pixels, mask, ignore_index=VOID, reduction="sum")
                    optimizer.zero_grad()
                    (losses / (mask != VOID).sum().clamp(min=1)).backward()
                    optimizer.step()
                    step += 1
        if head is None:
            raise ValueError("segmentation_linear needs a training image or more, got none")
        return head.eval()

    def head(self, regions: Tensor, num_classes: int) -> nn.Module:
        """A new one, with the weights that the seed draws."""
        width = regions.shape[-1]
        with same_random_state():
            torch.manual_seed(self.seed)
            linear = nn.Linear(width, num_classes)
            nn.init.normal_(linear.weight, std=0.01)
            nn.init.zeros_(linear.bias)
        return nn.Sequential(nn.BatchNorm1d(width), linear).to(regions)


class KeypointCorrespondence(Evaluator):
    """Share of keypoints that are found in another image of the same kind of thing (`metrics.dense.match_places`).

    A keypoint is right no further than alpha * max(width, height) of the target's box from where it is, in pixels of
    the target as it was before it was resized.

    - ``keypoints/pck``: of all keypoints of all pairs together (PCK per point);
    - ``keypoints/pck_image``: mean over pairs of each pair's share (PCK per image);
    - ``keypoints/pck_category``: mean over categories of the share of all their keypoints;
    - ``keypoints/pck/<category>``: of all keypoints of a category;
    - ``keypoints/points``: how many were asked for.

    >>> image = torch.eye(4).view(1, 4, 2, 2)  # four colours
    >>> batch = {"source": image, "target": image.flip(3), "source_places": torch.tensor([[[0.25, 0.25]]])}
    >>> batch |= {"target_points": torch.tensor([[[1.0, 0.0]]]), "target_size": torch.tensor([[2, 2]])}
    >>> batch |= {"target_box": torch.tensor([[0.0, 0.0, 2.0, 2.0]]), "category": torch.tensor([0])}
    >>> data = DenseData(query=[batch], classes=["thing"])
    >>> KeypointCorrespondence().run(RawRegions(grid=2, side=1), data)["keypoints/pck"]
    1.0

    Args:
        alpha: a share of the box's longer side; SPair-71k's results are mostly given for 0.1.
        stage: whose region map; -1 is the last. Of a plain ViT a block.
        steps: places that are tried along one region's side; 0 stays in the middle of a region.
    """

    needs_labels = False

    def __init__(self, *, alpha: float = 0.1, stage: int = -1, steps: int = 8) -> None:
        if not alpha > 0 or steps < 0:
            raise ValueError(f"keypoints need alpha above 0 and steps of 0 or more, got alpha={alpha}, steps={steps}")
        self.alpha, self.stage, self.steps = alpha, stage, steps

    def check(self, encoder: Any, num_classes: int | None) -> None:
        check_has_stage(encoder, self.stage)

    def run(self, encoder: Any, data: EvaluationData) -> dict[str, float]:
        data = dense(self, data)
        right: list[Tensor] = []
        categories: list[int] = []
        for batch in data.loader("query"):
            source, grid = data.regions(encoder, batch["source"], self.stage)
            target, other = data.regions(encoder, batch["target"], self.stage)
            for pair, category in enumerate(batch["category"].tolist()):
                truth = batch["target_points"][pair]
                there = ~truth.isnan().any(-1)
                places = batch["source_places"][pair][there].to(source)
                found = match_places(source[pair], grid, target[pair], other, places, steps=self.steps).cpu()
                pixels = found * batch["target_size"][pair] - 0.5
                right.append(correct_keypoints(pixels, truth[there], batch["target_box"][pair], self.alpha))
                categories.append(category)
        if not right:
            raise ValueError("keypoints need a pair of images or more, got none")
        each = {
            data.classes[number]: torch.cat([part for part, of in zip(right, categories, strict=True) if of == number])
            for number in sorted(set(categories))
        }
        shares = {name: float(part.double().mean()) for name, part in each.items()}
        every = torch.cat(right)
        return {
            "keypoints/pck": float(every.double().mean()),
            "keypoints/pck_image": sum(float(part.double().mean()) for part in right) / len(right),
            "keypoints/pck_category": sum(shares.values()) / len(shares),
            **{f"keypoints/pck/{name}": share for name, share in shares.items()},
            "keypoints/points": float(len(every)),
        }


class RawRegions(Backbone):
    """What dense tasks are compared with: regions of raw pixels, averaged down to side x side in each region.

    >>> features = RawRegions(grid=14)(torch.zeros(2, 3, 448, 448))
    >>> features.regions.shape, features.grid
    (torch.Size([2, 196, 48]), (14, 14))

    Args:
        grid: regions along one side of the image.
        side: pixels along one side of a region.
        channels: of the images.
    """

    patch_size = 1

    def __init__(self, grid: int, *, side: int = 4, channels: int = 3) -> None:
        super().__init__()
        self.grid, self.side = grid, side
        self.width = self.region_width = channels * side * side
        self.spec = {"name": "raw_regions", "grid": grid, "side": side, "channels": channels}

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        pixels = F.adaptive_avg_pool2d(x, self.grid * self.side)
        regions = F.pixel_unshuffle(pixels, self.side).flatten(2).mT
        return Features(regions.mean(1), regions, (self.grid, self.grid))

    def stage_regions(self, x: Tensor, stage: int = -1) -> Regions:
        """The same for every stage, so that it stands beside every stage of a backbone."""
        _, regions, grid = self(x)
        return Regions(regions, grid)


def as_map(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """(b n c) -> (b c h w)"""
    return torch.unflatten(x.mT, 2, grid)


def check_has_stage(encoder: Any, stage: int) -> None:
    """Refuse a stage that a backbone does not have."""
    available = encoder.num_stages
    if not -available <= stage < available:
        raise ValueError(
            f"stage={stage} must lie between {-available} and {available - 1}: there are {available} stages"
        )
