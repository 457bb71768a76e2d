"""Classification by a whole backbone that learns: fine-tuning of pretrained weights, or training from scratch."""

# b images of a batch | c classes | n networks: what learns, and its average

from __future__ import annotations

import random
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from pytorch_lightning import LightningModule
from timm.data.mixup import Mixup, mixup_target
from timm.data.random_erasing import RandomErasing
from timm.loss import SoftTargetCrossEntropy
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from esvit_pl.backbones import Backbone, build
from esvit_pl.checkpoints import backbone_of, read_checkpoint
from esvit_pl.checkpoints.checkpoint import Network, part
from esvit_pl.checkpoints.load_weights import MASK
from esvit_pl.checkpoints.pretraining_file import describe
from esvit_pl.data import batch_size_of
from esvit_pl.distributed import max_over_ranks, rank
from esvit_pl.evaluation.accuracy import accuracies_over_ranks, count_correct
from esvit_pl.evaluation.features import Unpack, needed_labels, unpack_batch
from esvit_pl.evaluation.loaders import need_labels
from esvit_pl.evaluation.names import FINETUNE_EMA_TOP1, FINETUNE_LOSS, FINETUNE_TOP1
from esvit_pl.isolation import untracked
from esvit_pl.modules.nonfinite import FiniteCheck
from esvit_pl.optim import OptimizerRecipe
from esvit_pl.precision import wide
from esvit_pl.schedules import Progress
from esvit_pl.seeding import derive_seed, seed_torch

KEPT = ("*position_bias*", "*pos_embed", "*_token")
"""What weight decay leaves alone beside one-dimensional parameters: positions and tokens, as in Swin and MAE."""


class Classifier(nn.Module):
    """A backbone and a linear classifier of its pooled feature.

    >>> classifier = Classifier(build("swin", embed_dim=8, depths=[1], num_heads=[1], img_size=32), num_classes=5)
    >>> classifier(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 5])
    """

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        head = nn.Linear(backbone.width, num_classes)
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        self.heads = nn.ModuleDict({"classifier": head})

    def forward(self, x: Tensor) -> Tensor:
        """(b 3 h w) -> logits (b c)."""
        logits: Tensor = self.heads["classifier"](self.backbone(x).pooled)
        return logits

    def group_matcher(self, coarse: bool = False) -> Any:
        """For timm's ``param_groups_layer_decay``: a function from a parameter's name to its layer."""
        depths = {f"backbone.{name}": float(depth) for name, depth in self.backbone.depths().items()}
        return lambda name: depths.get(name, float("inf"))


def load_classifier(path: str | Path, *, network: Network = "encoder") -> Classifier:
    """The classifier that ``esvit-finetune`` has trained, in eval mode and without gradients.

        classifier = load_classifier("RUN")
        logits = classifier(classifier.backbone.transform(PIL.Image.open("photo.jpg"))[None])

    Args:
        path: the run's folder, or a checkpoint of it.
        network: "encoder" is the average of the weights where the run had one; "student" the weights that learnt.

    Raises:
        ValueError: the file cannot be read, or holds no classifier.
    """
    checkpoint = read_checkpoint(path)
    head = part(checkpoint.network(network), "heads.classifier.")
    if not head:
        raise ValueError(f"{checkpoint.path} holds no classifier, which checkpoints of esvit-finetune do")
    classifier = Classifier(backbone_of(checkpoint, network=network), len(head["bias"]))
    classifier.heads["classifier"].load_state_dict(head)
    return classifier.eval().requires_grad_(False)


def trainable(backbone: Backbone, drop_path_rate: float | None = None) -> Backbone:
    """A copy that learns, in training mode; without what stands for masked patches, which no classifier sees.

    Args:
        backbone: frozen or not.
        drop_path_rate: None for the backbone's own.

    Raises:
        ValueError: the backbone has no stochastic depth to set.
    """
    change = {} if drop_path_rate is None else {"drop_path_rate": drop_path_rate}
    if change and "drop_path_rate" not in backbone.spec:
        raise ValueError(f"drop_path_rate={drop_path_rate}, and {type(backbone).__name__} has none; leave it null")
    copy = build(**{**backbone.spec, **change})
    copy.load_state_dict({name: value for name, value in backbone.state_dict().items() if name != MASK})
    copy.transform = backbone.transform
    return copy


class FineTuning(LightningModule):
    """Trains a backbone and a linear classifier of its pooled feature on labelled images.

    AdamW with a learning rate that falls from layer to layer towards the images, mixup or cutmix, random erasing, label
    smoothing, stochastic depth and an average of the weights, by timm's parts. The defaults are MAE's (arXiv
    2111.06377, FINETUNE.md of its release): ViT-B's learning rate, the larger models' decay from layer to layer, and
    what all of them share. ``trainer.max_epochs`` is the length (100 there). Logs ``finetune/top1`` and
    ``finetune/top5`` as fractions, with an average also ``finetune/ema_top1``; ``finetune/train_loss``; and
    ``finetune/lr``, the classifier's.

    Random numbers of a step are a function of seed, batch and rank, so that a resumed training is exactly the
    uninterrupted one. Images with label -1 are left out, in training and in validation.

    >>> import esvit_pl
    >>> backbone = esvit_pl.build("swin", embed_dim=8, depths=[1, 1], num_heads=[1, 2], img_size=32)
    >>> module = FineTuning(backbone, num_classes=10, ema_decay=0.999)  # trainer.fit(module, data)
    >>> rates = [group["lr_scale"] for group in module.configure_optimizers().param_groups]
    >>> sorted(set(rates))  # embedding, two blocks, classifier
    [0.421875, 0.5625, 0.75, 1.0]

    Args:
        backbone: where it starts; it is copied and stays as it is.
        num_classes: c, 2 or more.
        lr: of the classifier, per 256 images of the global batch; after a linear warm-up it follows half a cosine.
        lr_end: towards which it goes, absolute.
        warmup_epochs: None for 10, and for a tenth of a training of less than 100 epochs.
        weight_decay: of all parameters but one-dimensional ones, tokens and positions.
        layer_decay: the learning rate of a layer, divided by that of the layer above it; 1 for equal ones.
        drop_path_rate: stochastic depth of the last block; None for the backbone's own.
        mixup: alpha of mixup (arXiv 1710.09412); 0 for none. With both, each batch takes one of the two.
        cutmix: alpha of cutmix (arXiv 1905.04899); 0 for none.
        smoothing: share of the label that all classes get.
        erase: the probability that a rectangle of an image is replaced by noise (arXiv 1708.04896).
        ema_decay: of the average of the weights, which has fewer steps behind it at first (timm's warm-up); None for no
            average.
        seed: of everything that a step draws.
        config: plain dict that is kept in the checkpoints.
        unpack: batch -> (images, labels).

    Attributes:
        student: the `Classifier` that learns.
        teacher: its average, or None.

    Raises:
        ValueError: settings or data that do not fit, before training.
        NonFiniteLoss: on every rank, at the latest one step after a loss that was not finite. Nothing is saved then.
    """

    teacher: Classifier | None
    ema: ModelEmaV3

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int | None,
        *,
        lr: float = 0.0005,
        lr_end: float = 1e-6,
        warmup_epochs: float | None = None,
        weight_decay: float = 0.05,
        layer_decay: float = 0.75,
        drop_path_rate: float | None = None,
        mixup: float = 0.8,
        cutmix: float = 1.0,
        smoothing: float = 0.1,
        erase: float = 0.25,
        ema_decay: float | None = None,
        seed: int = 0,
        config: dict[str, Any] | None = None,
        unpack: Unpack = unpack_batch,
    ) -> None:
        super().__init__()
        if num_classes is None or num_classes < 2:
            raise ValueError(f"FineTuning needs num_classes of 2 or more, got {num_classes}; it learns from labels")
        rates: dict[str, Any] = {
            "lr": lr,
            "lr_end": lr_end,
            "warmup_epochs": warmup_epochs,
            "weight_decay": weight_decay,
        }
        shares = {"layer_decay": layer_decay, "smoothing": smoothing, "erase": erase, "ema_decay": ema_decay}
        alphas = {"mixup": mixup, "cutmix": cutmix}
        for name, value in {**shares, **alphas}.items():
            if value is not None and (value < 0 or (name in shares and value > 1)):
                raise ValueError(
                    f"FineTuning needs {name} {'in [0, 1]' * (name in shares) or 'of 0 or more'}, got {value}"
                )
        self.recipe = OptimizerRecipe("adamw", weight_decay_end=weight_decay, **rates)
        self.spec = {"name": "finetune", "num_classes": num_classes, "seed": seed, **rates, **shares, **alphas}
        self.num_classes, self.layer_decay, self.smoothing, self.erase = num_classes, layer_decay, smoothing, erase
        self.seed, self.config, self.unpack = seed, config, unpack
        self.student = Classifier(trainable(backbone, drop_path_rate), num_classes)
        self.teacher = None if ema_decay is None else deepcopy(self.student).requires_grad_(False)
        self.ema_decay = ema_decay
        self.mixup = None
        if mixup or cutmix:
            self.mixup = Mixup(mixup, cutmix, label_smoothing=smoothing, num_classes=num_classes)
        self.loss = SoftTargetCrossEntropy()
        self.steps_per_epoch = self.total_steps = self.global_batch = 0
        self._check = FiniteCheck("(resume_from=...) with a lower module.lr, or with trainer.precision=32")

    @property
    def networks(self) -> dict[str, Classifier]:
        """{metric: what it measures}."""
        both = {FINETUNE_TOP1: self.student, FINETUNE_EMA_TOP1: self.teacher}
        return {name: network for name, network in both.items() if network is not None}

    @property
    def encoder(self) -> Backbone:
        """What is evaluated and exported: the backbone of the average, without one the backbone that learnt."""
        return (self.teacher or self.student).backbone

    @property
    def progress(self) -> Progress:
        """Where training stands; Lightning counts."""
        done = self.trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]
        return Progress(self.trainer.global_step, self.total_steps, self.steps_per_epoch, done)

    def forward(self, x: Tensor) -> Tensor:
        """(b 3 h w) -> logits (b c)."""
        return cast(Tensor, self.student(x))

    # The step

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self._check.ask()
        parts = (self.seed, "finetune", self.progress.micro_batch, rank())
        seed_torch(*parts)  # stochastic depth, and the noise of random erasing
        np.random.seed(derive_seed(*parts) % 2**32)  # noqa: NPY002, timm's mixup draws from it
        random.seed(derive_seed(*parts))  # where timm's random erasing erases
        images, targets = self.mixed(*self.labelled(batch))
        with_label = targets.any(1).sum().clamp(min=1)
        loss: Tensor = self.loss(wide(self.student(images)), targets) * len(targets) / with_label
        finite = max_over_ranks((~loss.detach().isfinite()).float()) == 0
        self._check.note(finite, step=self.trainer.global_step, epoch=self.current_epoch)
        self.log(FINETUNE_LOSS, loss.detach(), on_step=False, on_epoch=True, sync_dist=True, batch_size=len(targets))
        return loss

    def labelled(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Images (b 3 h w) and labels (b,) of a batch."""
        images, labels = self.unpack(batch)
        return images, needed_labels("fine-tuning", labels, "the batch has none")

    def mixed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images (b 3 h w) and labels (b,) -> images, partly erased and mixed, and what to answer (b c).

        Images are mixed in pairs; of an odd number the last one stays as it is. Without a label there is nothing to
        answer, in a row of zeros, for both images of a pair.
        """
        images = images.clone()  # which timm changes in place
        known, labels = labels >= 0, labels.clamp(min=0)
        targets = mixup_target(labels, self.num_classes, smoothing=self.smoothing)
        if self.erase:
            RandomErasing(self.erase, mode="pixel", device=images.device)(images)
        pairs = len(labels) // 2 * 2
        if self.mixup is not None and pairs:
            targets[:pairs] = self.mixup(images[:pairs], labels[:pairs])[1]
            known = torch.cat([known[:pairs] & known[:pairs].flip(0), known[pairs:]])
        return images, targets * known[:, None]

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        progress = self.progress
        lr = self.recipe.lr_at(progress, global_batch=self.global_batch)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        self.log("finetune/lr", lr, batch_size=self.global_batch)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.teacher is not None:
            self.ema.update(self.student, step=progress.step + 1)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.trainer.is_last_batch or self.trainer.global_step == self.trainer.max_steps:
            self._check.ask()  # before anything measures or saves at the end of the epoch

    # Validation

    def on_validation_epoch_start(self) -> None:
        self._right = torch.zeros(len(self.networks), 2, dtype=torch.float64, device=self.device)
        self._images = 0

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, labels = self.labelled(batch)
        known = labels >= 0
        with untracked():
            right = [count_correct(network(images)[known], labels[known]) for network in self.networks.values()]
        self._right += torch.stack(right)
        self._images += int(known.sum())

    def on_validation_epoch_end(self) -> None:
        accuracies = accuracies_over_ranks(self._right, self._images)
        found = {name: accuracy.top1 for name, accuracy in zip(self.networks, accuracies, strict=True)}
        self.log_dict({**found, "finetune/top5": accuracies[0].top5}, batch_size=1)

    on_test_epoch_start, test_step, on_test_epoch_end = (
        on_validation_epoch_start,
        validation_step,
        on_validation_epoch_end,
    )

    # Before the first step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        decay: dict[str, Any] = {"weight_decay": self.recipe.weight_decay, "no_weight_decay_list": KEPT}
        if self.layer_decay == 1:
            groups = [{"lr_scale": 1.0, **group} for group in param_groups_weight_decay(self.student, **decay)]
        else:
            groups = param_groups_layer_decay(self.student, layer_decay=self.layer_decay, **decay)
        scaled = getattr(getattr(self._trainer, "precision_plugin", None), "scaler", None) is not None
        return self.recipe.build(groups, scaled=scaled)

    def setup(self, stage: str) -> None:
        need_labels("FineTuning", self.trainer)
        classes = getattr(getattr(self.trainer, "datamodule", None), "num_classes", None)
        if classes is not None and classes != self.num_classes:
            raise ValueError(f"FineTuning has num_classes={self.num_classes}, and the data have {classes} classes")
        if stage == "fit" and (self.trainer.max_epochs is None or self.trainer.max_epochs < 1):
            raise ValueError(
                f"FineTuning needs trainer.max_epochs, got {self.trainer.max_epochs}; the learning rate ends with it"
            )

    def on_train_start(self) -> None:
        trainer, accumulate = self.trainer, self.trainer.accumulate_grad_batches
        self.steps_per_epoch = int(trainer.num_training_batches) // accumulate
        self.total_steps = self.steps_per_epoch * int(trainer.max_epochs or 0)
        self.global_batch = batch_size_of(trainer.train_dataloader) * trainer.world_size * accumulate
        if self.teacher is not None:
            ema = ModelEmaV3(self.student, decay=cast(float, self.ema_decay), use_warmup=True)
            ema.module = self.teacher  # which has been restored, and is where it belongs
            object.__setattr__(self, "ema", ema)  # past nn.Module: the average is a part once, as `teacher`
        for name, duration in self.recipe.durations.items():
            duration.check(f"module.{name}", self.total_steps / self.steps_per_epoch)

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._check.ask()
        optimizer = next(iter(self.trainer.optimizers), None)
        parts = (cast(Any, self.student), cast(Any, self))  # which describe themselves as a network and an objective do
        checkpoint["esvit_pl"] = describe(*parts, self.config, self.encoder.transform, optimizer)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint.get("esvit_pl", {})
        if saved.get("loss", {}).get("name") != "finetune":
            raise ValueError("the checkpoint to resume from does not come from esvit-finetune")
        now = {"backbone": self.student.backbone.spec, "loss": self.spec}
        differences = [
            f"{key}: checkpoint {saved[of].get(key)!r}, now {value!r}"
            for of, settings in now.items()
            for key, value in settings.items()
            if saved[of].get(key) != value
        ]
        if differences:
            raise ValueError("the fine-tuning to resume has other settings; " + "; ".join(differences))
