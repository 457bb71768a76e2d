"""Linear classifiers of frozen features: a probe that trains them, and heads that learn beside a training."""

# n images, b of a batch | d channels | c classes | h heads

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esvit_pl.distributed import gather_in_turn, num_ranks, sum_over_ranks
from esvit_pl.evaluation.accuracy import accuracies_over_ranks, count_correct, first_is_right
from esvit_pl.evaluation.data import EvaluationData, Place
from esvit_pl.evaluation.features import BESIDE, Unpack, blocks_and_poolings, needed_labels, pools_regions
from esvit_pl.evaluation.interface import Evaluator, Kind
from esvit_pl.evaluation.logistic import held_out
from esvit_pl.evaluation.names import best_of, probe_metrics
from esvit_pl.isolation import same_random_state, untracked
from esvit_pl.metrics.knn import TopK
from esvit_pl.optim import scaled_lr
from esvit_pl.precision import wide
from esvit_pl.printing import say_once
from esvit_pl.schedules import cosine
from esvit_pl.seeding import numpy_generator

POOLINGS = ("pooled", "mean", "max", "pooled+mean")
"""What a linear probe sees of the last block: its pooled feature, its regions pooled, or both."""
IMAGES_PER_LR = 256
"""A learning rate is given for so many images (the linear scaling rule, Goyal et al., arXiv 1706.02677)."""


def equal_heads(width: int, num_classes: int, count: int) -> nn.ModuleList:
    """`count` linear layers (d -> c) of equal initial weights: normal with std 0.01, drawn once from torch's generator;
    biases are 0."""
    first = nn.Linear(width, num_classes)
    nn.init.normal_(first.weight, std=0.01)
    nn.init.zeros_(first.bias)
    return nn.ModuleList(copy.deepcopy(first) for _ in range(count))


def as_lrs(lr: float | Sequence[float]) -> list[float]:
    """One learning rate or several -> a list.

    Raises:
        ValueError: none, two equal ones, or one that is not above 0.
    """
    lrs = [float(lr)] if isinstance(lr, (int, float)) else [float(value) for value in lr]
    if not lrs or min(lrs) <= 0 or len(set(lrs)) < len(lrs):
        raise ValueError(f"linear heads need one lr or several different ones, above 0, got {lr}")
    return lrs


def as_blocks(last_blocks: int | Sequence[int]) -> list[int]:
    """One number of blocks or several -> a list.

    Raises:
        ValueError: none, two equal ones, or one below 1.
    """
    blocks = [last_blocks] if isinstance(last_blocks, int) else list(last_blocks)
    if not blocks or min(blocks) < 1 or len(set(blocks)) < len(blocks):
        raise ValueError(f"a linear probe needs last_blocks of 1 or more, or several different ones, got {last_blocks}")
    return blocks


def as_poolings(pooling: str | Sequence[str]) -> list[str]:
    """One pooling or several -> a list.

    Raises:
        ValueError: none, two equal ones, or one that there is not.
    """
    poolings = [pooling] if isinstance(pooling, str) else list(pooling)
    if not poolings or len(set(poolings)) < len(poolings) or not set(poolings) <= {*POOLINGS}:
        raise ValueError(f"a linear probe needs pooling of {', '.join(POOLINGS)}, or several of them, got {pooling}")
    return poolings


def sgd(heads: Iterable[nn.Module], lrs: Sequence[float], momentum: float) -> torch.optim.SGD:
    """SGD without weight decay, one group with its own learning rate for each head."""
    groups = [
        {"params": list(head.parameters()), "lr": lr, "lr_per_256": lr} for lr, head in zip(lrs, heads, strict=True)
    ]
    return torch.optim.SGD(groups, lr=lrs[0], momentum=momentum)


class Choice(NamedTuple):
    """A linear classifier that is tried beside others."""

    blocks: int
    """How many last blocks' pooled features it sees."""
    lr: float
    """Per 256 images."""
    pooling: str = "pooled"
    """How the last of these blocks is pooled; the earlier ones are pooled as the backbone does it."""


class Candidates(nn.Module):
    """A linear classifier for each choice, and where there are several, a second one that rehearses for it: it learns
    without the images that are held out, and its accuracy on these says which choice is best.

    All classifiers that see the same features begin with equal weights, drawn with what torch's generator is at: each
    one as it would begin alone.

    Args:
        choices: h of them.
        width_of: how many channels so many blocks have.
        num_classes: c.
        beside: which poolings of the regions follow the blocks in the features that they are given.
        region_width: channels of each of these.
        rehearse: False leaves the second ones out.
    """

    def __init__(
        self,
        choices: Sequence[Choice],
        width_of: Callable[[int], int],
        num_classes: int,
        *,
        beside: Sequence[str] = (),
        region_width: int = 0,
        rehearse: bool = True,
    ) -> None:
        super().__init__()
        self.choices, self.rehearses = list(choices), rehearse and len(choices) > 1
        end, last = width_of(max(choice.blocks for choice in choices)), width_of(1)
        places = {name: end + number * region_width for number, name in enumerate(beside)}
        self.columns: dict[tuple[int, str], list[slice]] = {}
        state, first = torch.get_rng_state(), {}
        for blocks, pooling in dict.fromkeys((choice.blocks, choice.pooling) for choice in choices):
            names = pooling.split("+")
            columns = [slice(end - width_of(blocks), end if "pooled" in names else end - last)]
            columns += [slice(start, start + region_width) for name, start in places.items() if name in names]
            self.columns[blocks, pooling] = columns
            torch.set_rng_state(state)
            first[blocks, pooling] = equal_heads(sum(each.stop - each.start for each in columns), num_classes, 1)[0]
        self.heads = nn.ModuleList(copy.deepcopy(first[choice.blocks, choice.pooling]) for choice in choices)
        self.rehearsing = nn.ModuleList(copy.deepcopy(head) for head in self.heads) if self.rehearses else None

    def forward(self, features: Tensor, *, rehearsing: bool = False) -> list[Tensor]:
        """(b d) of the most blocks, earliest first, and what lies beside -> h logits (b c), in the classifiers' own
        precision."""
        heads = self.rehearsing if rehearsing else self.heads
        assert heads is not None
        features = features.to(next(heads.parameters()).dtype)
        parts = {key: torch.cat([features[:, each] for each in columns], 1) for key, columns in self.columns.items()}
        return [head(parts[choice.blocks, choice.pooling]) for choice, head in zip(self.choices, heads, strict=True)]

    def losses(self, features: Tensor, labels: Tensor, away: Tensor | None = None) -> Tensor:
        """Cross entropies, (h,), or (2 h,) where they rehearse. No classifier's gradient reaches another.

        Args:
            features: (b d).
            labels: (b,).
            away: (b,) bool, which images are held out; None: none.
        """
        losses = [F.cross_entropy(wide(logits), labels) for logits in self(features)]
        if self.rehearsing is not None:
            kept = labels if away is None else labels.masked_fill(away, -1)
            number = (kept >= 0).sum().clamp(min=1)  # a batch may be held out as a whole
            losses += [
                F.cross_entropy(wide(logits), kept, ignore_index=-1, reduction="sum") / number
                for logits in self(features, rehearsing=True)
            ]
        return torch.stack(losses)

    def optimizer(self, momentum: float) -> torch.optim.SGD:
        """SGD without weight decay; each classifier is a group with a learning rate of its own."""
        heads = [*self.heads, *(self.rehearsing or ())]
        choices = self.choices * (1 + self.rehearses)
        return sgd(heads, [choice.lr for choice in choices], momentum)

    def correct(self, features: Tensor, labels: Tensor, *, rehearsing: bool = False) -> Tensor:
        """Numbers of right answers, (h 2) float64: `count_correct`."""
        return torch.stack([count_correct(logits, labels) for logits in self(features, rehearsing=rehearsing)])


class Linear(Evaluator):
    """Accuracy of linear classifiers trained on a backbone's frozen features (docs/recipes.md, "Evaluation").

    They see the pooled features of the last blocks of augmented training images. SGD without weight decay, learning
    rate by the linear scaling rule, a cosine to 0 by epoch. Several learning rates, numbers of blocks and poolings of
    the last block are tried side by side, from equal initial weights, on features that are computed once: each ends as
    it would have alone. Where the pooled feature is the mean of the regions, "mean" and "pooled+mean" show nothing else
    than "pooled" does, which is tried once, with a line.

    Of several, two numbers are told. ``linear/top1`` is the query's accuracy of the one that was chosen on a part of
    the training images: beside each classifier a second one learns without this part, is measured on it, and nothing of
    the query is looked at. ``linear/best_on_query/top1`` is the best on the query itself, which the tables of papers
    show; it is too high, the more so the more are tried and the fewer the images are. ``linear/held_out/top1`` is the
    chosen one's accuracy on the held-out part, ``linear/best_lr``, ``linear/best_blocks`` and ``linear/best_pooling``
    (its place among those that were tried, from 0) say which it is, and ``linear/lr<lr>/top1``,
    ``linear/blocks<n>/lr<lr>/top1`` or ``linear/blocks<n>/<pooling>/lr<lr>/top1`` are each one's. Where training
    batches do not say which images they hold, the best on the query is all that there is.

    `modules.LinearProbe` is the same under a Trainer: with its loggers, its checkpoints and resuming. Both end with
    the same weights.

    >>> import torch
    >>> from esvit_pl.evaluation import EvaluationData, Linear, RawPixels, Training
    >>> images, labels = torch.eye(12).reshape(12, 3, 2, 2), torch.arange(12) % 3
    >>> data = EvaluationData(
    ...     query=[(images, labels)], train=lambda: Training([(images, labels)], images_per_step=12), num_classes=3
    ... )
    >>> Linear(epochs=20, lr=300.0).run(RawPixels(side=2), data)["linear/top1"]
    1.0

    Args:
        last_blocks: how many blocks' pooled features the classifiers see, one number or several.
        pooling: of the last block, one or several of `POOLINGS`: its pooled feature, the "mean" or "max" of its regions
            in its place, or "pooled+mean", both, which DINOv2's probe tries beside the class token alone.
        lr: per 256 images of a step on all ranks, one or several.
        momentum: of SGD.
        epochs: length of the training.
        augmented: False trains on the features of the bank, which are computed once: minutes in place of hours, and
            some points less.
        batch_size: images in a step of ``augmented=False``; else it is that of the training loader.
        held_out: share of each class of the training images on which one of several is chosen.
        seed: of the initial weights, of the held-out part, and of the order of ``augmented=False``.
    """

    trains = True

    def __init__(
        self,
        *,
        last_blocks: int | Sequence[int] = 4,
        pooling: str | Sequence[str] = "pooled",
        lr: float | Sequence[float] = 0.001,
        momentum: float = 0.9,
        epochs: int = 100,
        augmented: bool = True,
        batch_size: int = 1024,
        held_out: float = 0.1,
        seed: int = 0,
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"a linear probe needs momentum of 0 or more and below 1, got {momentum}")
        if epochs < 1:
            raise ValueError(f"a linear probe needs epochs of 1 or more, got {epochs}")
        if batch_size < 1:
            raise ValueError(f"a linear probe needs batch_size of 1 or more, got {batch_size}")
        if not 0 < held_out < 1:
            raise ValueError(f"a linear probe needs held_out above 0 and below 1, got {held_out}")
        self.blocks = as_blocks(last_blocks)
        self.poolings = as_poolings(pooling)
        self.lrs = as_lrs(lr)
        self.beside = [name for name in BESIDE if any(name in each.split("+") for each in self.poolings)]
        self.momentum = momentum
        self.epochs = epochs
        self.augmented = augmented
        self.batch_size = batch_size
        self.held_out = held_out
        self.seed = seed

    @property
    def most_blocks(self) -> int:
        return max(self.blocks)

    @property
    def reads(self) -> tuple[Kind, ...]:
        return (self.kind,)

    @property
    def kind(self) -> Kind:
        return "+".join([str(self.most_blocks), *self.beside]) if self.beside else self.most_blocks

    @property
    def reads_bank(self) -> tuple[Kind, ...]:
        return () if self.augmented else (self.most_blocks,)

    def check(self, encoder: Any, num_classes: int | None) -> None:
        if num_classes is None or num_classes < 2:
            raise ValueError(
                f"a linear probe needs num_classes of 2 or more, got {num_classes}; it learns from labels: "
                "put the images into one folder for each class"
            )
        encoder.last_blocks_width(self.most_blocks)  # raises where there are not so many blocks

    def choices_for(self, encoder: Any) -> list[Choice]:
        """Every classifier that sees something else than the others do."""
        same = pools_regions(encoder) if self.beside else []
        poolings: dict[str, None] = {}
        for pooling in self.poolings:
            names = ["pooled" if name in same else name for name in pooling.split("+")]
            shown = "+".join(dict.fromkeys(names))
            if shown != pooling:
                kind = type(encoder).__name__
                say_once(f"linear probe: pooling={pooling} of {kind} is nothing else than {shown}, which is tried once")
            poolings[shown] = None
        return [Choice(blocks, lr, pooling) for blocks in self.blocks for pooling in poolings for lr in self.lrs]

    def candidates(self, encoder: Any, num_classes: int) -> Candidates:
        """The classifiers, with initial weights from torch's generator."""
        region_width = encoder.region_width if self.beside else 0
        return Candidates(
            self.choices_for(encoder),
            encoder.last_blocks_width,
            num_classes,
            beside=self.beside,
            region_width=region_width,
        )

    def run(self, encoder: Any, data: EvaluationData) -> dict[str, float]:
        candidates, part = self.train(encoder, data)
        images, right = 0, torch.zeros(len(candidates.choices), 2, dtype=torch.float64, device=data.place.device)
        firsts = []
        for features, labels in data.batches(encoder, "query", self.kind):
            labels = needed_labels("a linear probe", labels, "the batches of the query have none")
            with torch.no_grad(), data.place.forward_context():
                logits = candidates(features)
            right += torch.stack([count_correct(each, labels) for each in logits])
            firsts.append(torch.stack([first_is_right(each, labels) for each in logits]))
            images += len(labels)
        on_query = accuracies_over_ranks(right, images)
        rehearsed = None if part is None else rehearsal(candidates, part(), data.place)
        chosen = best_of(rehearsed or on_query)
        answers = torch.cat(firsts, 1) if firsts else right.new_zeros(len(right), 0, dtype=torch.bool)
        data.answers["linear/top1"] = answers[chosen]
        if rehearsed is not None:
            data.answers["linear/best_on_query/top1"] = answers[best_of(on_query)]
        return probe_metrics(candidates.choices, on_query, rehearsed)

    def train(self, encoder: Any, data: EvaluationData) -> tuple[Candidates, HeldOut | None]:
        """The classifiers, trained, and what is held out where there are several of them."""
        self.check(encoder, data.num_classes)
        assert data.num_classes is not None
        place = data.place
        with torch.inference_mode(False), torch.enable_grad():  # Lightning evaluates in inference mode
            with same_random_state():
                torch.manual_seed(self.seed)
                candidates = place.module(self.candidates(encoder, data.num_classes))
            lessons = (self._augmented if self.augmented else self._cached)(encoder, data, candidates.rehearses)
            optimizer, scaler = candidates.optimizer(self.momentum), place.scaler()
            for epoch in range(self.epochs):
                optimizer.zero_grad()  # of batches that were too few for a step
                self.set_lrs(optimizer, epoch, self.epochs, lessons.images_per_step)
                for number, (features, labels, away) in enumerate(lessons.batches(epoch), start=1):
                    with place.forward_context():
                        losses = candidates.losses(features, labels, away)
                    scaler.scale(losses.sum() / lessons.accumulate).backward()
                    if number % lessons.accumulate == 0:
                        if self.augmented:  # without, all ranks learn from all images
                            _average_gradients_over_ranks(candidates)
                        scaler.step(optimizer)
                        scaler.update()
                        optimizer.zero_grad()
        return candidates, lessons.held_out

    def features(self, encoder: Any, images: Any) -> Tensor:
        """(b c h w) -> (b d) of the most blocks and what lies beside them, without gradients."""
        with untracked():
            return blocks_and_poolings(encoder, images, self.most_blocks, self.beside)

    def lr_at(self, lr: float, epoch: int, epochs: int, images_per_step: int) -> float:
        """Learning rate in an epoch, from the one per 256 images: a cosine that reaches 0 after the last epoch."""
        return cosine(epoch, epochs, start=scaled_lr(lr, images_per_step), end=0.0)

    def set_lrs(self, optimizer: torch.optim.Optimizer, epoch: int, epochs: int, images_per_step: int) -> None:
        """Set each classifier's learning rate for an epoch."""
        for group in optimizer.param_groups:
            group["lr"] = self.lr_at(group["lr_per_256"], epoch, epochs, images_per_step)

    def _augmented(self, encoder: Any, data: EvaluationData, holds_out: bool) -> Lessons:
        """Features of augmented training images, computed in every epoch anew."""
        training, away, part = data.training, None, None
        if holds_out and training.hold_out is not None:
            away, loader = training.hold_out(self.held_out, self.seed)
            away, part = away.to(data.place.device), lambda: self._read(encoder, data, loader)

        def batches(epoch: int) -> Iterator[Lesson]:
            if training.set_epoch is not None:
                training.set_epoch(epoch)
            for features, labels, index in self._read(encoder, data, training.loader):
                yield features, labels, None if away is None else away[index]

        return Lessons(batches, training.images_per_step, training.accumulate, part)

    def _read(self, encoder: Any, data: EvaluationData, loader: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor, Any]]:
        """Features, labels and numbers of the images of a loader."""
        for batch in loader:
            batch = data.place.prepare(batch)
            images, labels = labelled(data.unpack, batch)
            with data.place.forward_context():
                yield self.features(encoder, images), labels, batch.get("index") if isinstance(batch, Mapping) else None

    def _cached(self, encoder: Any, data: EvaluationData, holds_out: bool) -> Lessons:
        """The features of the bank, in another order in every epoch; all of them on every rank."""
        bank = data.features(encoder, "bank", self.kind)
        labels = gather_in_turn(needed_labels("a linear probe", bank.labels, "the batches of the bank have none"))
        features, size = gather_in_turn(bank.features), min(self.batch_size, len(labels))
        away = held_out(labels, self.held_out, self.seed) if holds_out else None

        def batches(epoch: int) -> Iterator[Lesson]:
            order = numpy_generator(self.seed, "linear probe", epoch).permutation(len(labels))
            for rows in torch.from_numpy(order).to(labels.device)[: len(order) // size * size].split(size):
                yield features[rows], labels[rows], None if away is None else away[rows]

        return Lessons(batches, size, 1, None if away is None else lambda: iter([(features[away], labels[away], None)]))


Lesson = tuple[Tensor, Tensor, Tensor | None]
"""Features (b d) of the most blocks, labels (b,), and which of them are held out (b,); None: none."""
HeldOut = Callable[[], Iterator[tuple[Tensor, Tensor, Any]]]
"""Gives features and labels of this rank's part of the images that are held out, batch by batch."""


class Lessons(NamedTuple):
    """What linear classifiers learn from: batches of features."""

    batches: Callable[[int], Iterator[Lesson]]
    """Takes the number of an epoch and gives its batches."""
    images_per_step: int
    accumulate: int
    held_out: HeldOut | None


def rehearsal(candidates: Candidates, part: Iterable[tuple[Tensor, Tensor, Any]], place: Place) -> list[TopK]:
    """Accuracy of each rehearsing classifier on what is held out."""
    images = 0
    with untracked():
        right = torch.zeros(len(candidates.choices), 2, dtype=torch.float64, device=place.device)
        for features, labels, _ in part:
            with place.forward_context():
                right += candidates.correct(features, labels, rehearsing=True)
            images += len(labels)
    return accuracies_over_ranks(right, images)


def labelled(unpack: Unpack, batch: Any) -> tuple[Any, Tensor]:
    """(images, labels) of a batch that must have labels."""
    images, labels = unpack(batch)
    return images, needed_labels("a linear probe", labels, "the batch has none")


class LinearHeads(nn.Module):
    """One linear classifier for each learning rate, on the same features, from equal initial weights.

    `learn_` is their step: SGD with momentum, without weight decay.

    >>> import torch
    >>> heads = LinearHeads(width=3, num_classes=3, lrs=[1.0, 100.0])
    >>> for _ in range(20):
    ...     learn_([heads], [torch.eye(3)], torch.arange(3))
    >>> heads.correct(torch.eye(3), torch.arange(3))[1].tolist()  # first; among the first five
    [3.0, 3.0]

    Args:
        width: d.
        num_classes: c, 2 or more.
        lrs: per 256 images.
        momentum: of SGD.
        like: a tensor of the type and on the device that the heads should have; weights are drawn on the CPU and in
            float32, so that they are the same everywhere.
    """

    def __init__(
        self, width: int, num_classes: int, lrs: Sequence[float], *, momentum: float = 0.9, like: Tensor | None = None
    ) -> None:
        super().__init__()
        self.width, self.num_classes, self.lrs = width, num_classes, list(lrs)
        self.heads = equal_heads(width, num_classes, len(self.lrs))
        if like is not None:
            self.heads.to(like)
        self.optimizer = sgd(self.heads, self.lrs, momentum)

    def forward(self, features: Tensor) -> list[Tensor]:
        """(n d) -> h logits (n c)."""
        return [head(features) for head in self.heads]

    @torch.no_grad()
    def correct(self, features: Tensor, labels: Tensor) -> Tensor:
        """Numbers of right answers of each head, (h 2) float64: `count_correct`."""
        return torch.stack([count_correct(logits, labels) for logits in self(features)])

    def saved_state(self) -> dict[str, Any]:
        """Weights and the optimizer's state; `restore_` goes on from them bit for bit."""
        return {"heads": self.state_dict(), "optimizer": self.optimizer.state_dict()}

    def restore_(self, state: Mapping[str, Any]) -> None:
        self.load_state_dict(state["heads"])
        self.optimizer.load_state_dict(state["optimizer"])


def learn_(heads: Sequence[LinearHeads], features: Sequence[Tensor], labels: Tensor) -> None:
    """One step of every head, on the images of all ranks, with one all-reduce for all of them.

    A head's gradient is the sum over all images of the gradient of the cross entropy, divided by 256: its learning
    rate is per 256 images, and ranks may have any numbers of images. No gradient reaches the features.

    Args:
        heads: one entry for each kind of features.
        features: for each entry (n d), this rank's.
        labels: (n,) long, this rank's; nothing is learnt from an image with label -1.
    """
    parameters = [parameter for part in heads for parameter in part.parameters()]
    with torch.enable_grad():
        losses = [
            F.cross_entropy(logits, labels, reduction="sum", ignore_index=-1)
            for part, x in zip(heads, features, strict=True)
            for logits in part(x.detach())
        ]
        grads = torch.autograd.grad(losses, parameters)  # of their sum; no head's gradient reaches another
    for parameter, grad in zip(parameters, _summed_over_ranks(grads), strict=True):
        parameter.grad = grad / IMAGES_PER_LR
    for part in heads:
        part.optimizer.step()
        part.optimizer.zero_grad(set_to_none=True)


def _average_gradients_over_ranks(module: nn.Module) -> None:
    grads = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    if num_ranks() > 1:
        for grad, mean in zip(grads, _summed_over_ranks([grad / num_ranks() for grad in grads]), strict=True):
            grad.copy_(mean)


def _summed_over_ranks(tensors: Sequence[Tensor]) -> list[Tensor]:
    """By one all-reduce."""
    total = sum_over_ranks(torch.cat([x.flatten() for x in tensors]))
    parts = total.split([x.numel() for x in tensors])
    return [part.view_as(x) for part, x in zip(parts, tensors, strict=True)]
