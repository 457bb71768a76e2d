"""Accuracy of linear classifiers that learn beside a network while it trains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from esvit_pl.callbacks.lookup import Part, find_part
from esvit_pl.callbacks.online import OnlineEvaluation
from esvit_pl.evaluation.accuracy import accuracies_over_ranks
from esvit_pl.evaluation.data import EvaluationData, place_of
from esvit_pl.evaluation.features import Unpack, extract, needed_labels, pooled, unpack_first_view
from esvit_pl.evaluation.linear import LinearHeads, as_lrs, learn_
from esvit_pl.evaluation.loaders import held_out
from esvit_pl.evaluation.names import linear_metrics
from esvit_pl.isolation import undisturbed
from esvit_pl.precision import wide
from esvit_pl.seeding import seed_torch


class OnlineLinear(OnlineEvaluation):
    """Linear classifiers on detached features, one step for each training batch, in any Lightning module.

    At the end of an epoch their accuracy on other images is logged: ``linear/top1`` and ``linear/top5`` of the best
    head as fractions, before ModelCheckpoint and EarlyStopping look; of several heads each one's
    ``linear/<feature>/lr<lr>/top1`` and ``linear/best_lr``. The best is chosen on the images that it is measured on.
    The heads do not learn from labels of -1, nor from query images where ImageDataModule trains on these too. The
    network changes while the heads learn, so their accuracy does not replace that of a `LinearProbe` on the finished
    network.

    This callback holds the heads and their optimizer: training is bit-identical with and without it, the module's
    ``state_dict`` holds nothing of them, and a resumed run continues them exactly. They are the same on all processes,
    which takes one all-reduce for each batch.

    >>> from esvit_pl.callbacks import OnlineLinear
    >>> from pytorch_lightning import Trainer
    >>> trainer = Trainer(callbacks=[OnlineLinear("encoder", query="val", num_classes=10)], logger=False)

    Args:
        features: what to classify: the path of a network in the module, or a function images -> (b d) or ``Features``;
            several as a dict {name: path or function}, the main one first.
        query: images to measure on: a loader, or a name: "query" is ``datamodule.query_dataloader()``.
        lr: of SGD, per 256 images; several train as many heads side by side, from equal initial weights.
        momentum: of SGD.
        num_classes: None to ask the data module.
        normalize: "l2" scales every feature to length sqrt(d), for networks whose features have no norm of their own
            at the end; the same learning rates fit.
        embedding: what ``training_step`` calls the main feature in the dict that it returns. Where it is there, with
            "label" or a label in the batch, the main heads learn from it, and the network does not run again. It must
            be the same feature. None: always run `features` on the batch, in eval mode.
        every_n_epochs: measure after so many epochs, and after the last one.
        unpack: batch of training or of the query -> (images, labels). By default tuples (image, label), dicts with
            "image" and "label", and of a dict with "views" the first view.
        seed: of the initial weights.
        prefix: of the metrics' names; two of these callbacks in one run need two prefixes.

    Raises:
        ValueError: settings that do not fit; in `setup`, a missing attribute, loader or number of classes; at the first
            batch, labels that are missing or out of range.
    """

    def __init__(
        self,
        features: Part | Mapping[str, Part] = "encoder",
        query: str | Iterable[Any] = "query",
        *,
        lr: float | Sequence[float] = (0.003, 0.03, 0.3),
        momentum: float = 0.9,
        num_classes: int | None = None,
        normalize: Literal["l2"] | None = None,
        embedding: str | None = "embedding",
        every_n_epochs: int = 1,
        unpack: Unpack = unpack_first_view,
        seed: int = 0,
        prefix: str = "linear",
    ) -> None:
        super().__init__(features, {"query": query}, every_n_epochs=every_n_epochs, unpack=unpack, prefix=prefix)
        if normalize not in (None, "l2"):
            raise ValueError(f"OnlineLinear needs normalize 'l2' or None, got {normalize!r}")
        if not 0 <= momentum < 1:
            raise ValueError(f"OnlineLinear needs momentum of 0 or more and below 1, got {momentum}")
        self.lrs = as_lrs(lr)
        self.momentum = momentum
        self.num_classes = num_classes
        self.normalize = normalize
        self.embedding = embedding
        self.seed = seed
        self.heads: list[LinearHeads] = []
        """One for each feature; made at the first batch, whose width they have."""
        self._held_out: Tensor | None = None
        self._saved: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "heads": [part.saved_state() for part in self.heads] or self._saved}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._saved = list(state_dict["heads"])
        self.heads = []  # made again at the next batch, and filled

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        self._held_out = held_out(trainer)
        if self.num_classes is None:
            self.num_classes = getattr(getattr(trainer, "datamodule", None), "num_classes", None)
        if self.num_classes is None or self.num_classes < 2:
            raise ValueError(
                f"OnlineLinear needs num_classes of 2 or more, got {self.num_classes}; give it, or a data module that "
                "has num_classes"
            )

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        features, labels = self._training_features(trainer, pl_module, outputs, batch)
        if self._held_out is not None:
            self._held_out = self._held_out.to(labels.device)
            # A table: torch.isin would sort, and wait for the GPU to know how many different ones there are.
            labels = labels.masked_fill(self._held_out[batch["index"].to(labels.device)], -1)
        if not self.heads:
            self._check_labels(labels)
            self._make_heads(pl_module, features)
        learn_(self.heads, features, labels)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self.heads:
            super().on_train_epoch_end(trainer, pl_module)

    def measure(self, trainer: Any, module: Any, data: EvaluationData) -> dict[str, float]:
        right, images = [], 0
        for part, heads in zip(self.features.values(), self.heads, strict=True):
            features, labels = data.features(find_part(self.owner, module, part), "query")
            labels = needed_labels(self.owner, labels, "the batches of the query have none")
            images = len(labels)
            if images:
                self._check_width(part, heads, features)
                right.append(heads.correct(self._scaled(features), labels))
            else:
                right.append(torch.zeros(len(self.lrs), 2, dtype=torch.float64, device=labels.device))
        accuracies = iter(accuracies_over_ranks(torch.stack(right), images))  # one all-reduce for all features
        return linear_metrics(
            self.prefix, [(name, {lr: next(accuracies) for lr in self.lrs}) for name in self.features]
        )

    def _training_features(self, trainer: Any, module: Any, outputs: Any, batch: Any) -> tuple[list[Tensor], Tensor]:
        """For each feature (b d), and labels (b,)."""
        step = outputs if isinstance(outputs, Mapping) else {}
        given = step.get(self.embedding) if self.embedding else None
        label = step.get("label") if given is not None else None
        parts, features = list(self.features.values()), []
        if given is not None:
            parts, features = parts[1:], [wide(pooled(given).detach())]
            label = self.unpack(batch)[1] if label is None else label
        if parts:
            networks = dict(enumerate(find_part(self.owner, module, part) for part in parts))
            place = place_of(trainer)
            with undisturbed(module):
                found = extract(networks, [batch], self.unpack, prepare=place.prepare, context=place.forward_context)
            features += [found[number][0].features for number in networks]
            label = found[0][0].labels if label is None else label
        label = needed_labels(self.owner, label, "neither the step's outputs nor the batch has any")
        labels = torch.as_tensor(label, device=features[0].device).long()
        if labels.shape != features[0].shape[:1]:
            raise ValueError(
                f"OnlineLinear needs one label for each feature, got labels of shape {tuple(labels.shape)} for "
                f"features of shape {tuple(features[0].shape)}; set embedding=None if the step returns several views'"
            )
        return [self._scaled(x) for x in features], labels

    def _make_heads(self, module: Any, features: Sequence[Tensor]) -> None:
        """Initial weights that depend on the seed alone, or those of the run that is resumed."""
        with undisturbed(module):
            self.heads = [self._new_heads(x) for x in features]
        if not self._saved:
            return
        if len(self._saved) != len(self.heads):
            raise ValueError(
                f"OnlineLinear has {len(self.heads)} features, and the checkpoint to resume has heads for "
                f"{len(self._saved)}; give it the same ones"
            )
        for heads, saved in zip(self.heads, self._saved, strict=True):
            heads.restore_(saved)
        self._saved = []

    def _new_heads(self, features: Tensor) -> LinearHeads:
        assert self.num_classes is not None
        seed_torch(self.seed, "online linear")  # for each feature again: its heads end as they would have alone
        width = features.shape[1]
        return LinearHeads(width, self.num_classes, self.lrs, momentum=self.momentum, like=features)

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.normalize is None else F.normalize(x, dim=1) * x.shape[1] ** 0.5

    def _check_width(self, part: Part, heads: LinearHeads, features: Tensor) -> None:
        if features.shape[1] != heads.width:
            raise ValueError(
                f"OnlineLinear learns from features of {heads.width} channels, and features={part!r} gives "
                f"{features.shape[1]} on the query; name the network whose feature the step returns as "
                f"{self.embedding!r}, or set embedding=None"
            )

    def _check_labels(self, labels: Tensor) -> None:
        assert self.num_classes is not None
        if len(labels) and not -1 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            raise ValueError(
                f"OnlineLinear has num_classes={self.num_classes} and needs labels from 0 to {self.num_classes - 1}, "
                f"or -1 for none, got {int(labels.min())} to {int(labels.max())}"
            )
