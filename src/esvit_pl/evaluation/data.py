"""The images that evaluators ask about, where they compute, and the features that they share."""

# b images of a batch | n images of a loader | d channels

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from esvit_pl.distributed import num_ranks, rank
from esvit_pl.evaluation.features import (
    Extracted,
    Unpack,
    at_unit_length,
    blocks_and_poolings,
    extract,
    joined,
    unpack_batch,
)
from esvit_pl.evaluation.interface import Encoder, Evaluator, Kind
from esvit_pl.metrics import region_statistics
from esvit_pl.precision import wide

if TYPE_CHECKING:
    from esvit_pl.evaluation.cache import FeatureCache

Source = Iterable[Any] | Callable[[], Iterable[Any]]
"""A loader, or the function that makes it when it is first needed."""
Module = TypeVar("Module", bound=nn.Module)
HALF: dict[Kind, torch.dtype] = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Place:
    """A device and a precision.

    >>> import torch
    >>> Place(torch.device("cpu")).prepare({"image": torch.zeros(1), "name": "a"})
    {'image': tensor([0.]), 'name': 'a'}

    Attributes:
        device: to which images are moved.
        precision: one of Lightning's precision plugins, for autocast and conversions; None leaves numbers as they are.
    """

    device: torch.device
    precision: Any = None

    def prepare(self, x: Any) -> Any:
        """Tensors, alone or in lists, tuples and dicts: moved here, and converted if the precision is a true one."""
        x = _moved(x, self.device)
        return x if self.precision is None else self.precision.convert_input(x)

    def module(self, module: Module) -> Module:
        """The same module with its weights here."""
        if self.precision is not None:
            module = self.precision.convert_module(module)
        return module.to(self.device)

    def forward_context(self) -> AbstractContextManager[Any]:
        """For a forward pass: autocast, if the precision is a mixed one."""
        return nullcontext() if self.precision is None else self.precision.forward_context()

    def scaler(self) -> torch.amp.GradScaler:
        """For a backward pass: scales in float16, and does nothing elsewhere."""
        return torch.amp.GradScaler(self.device.type, enabled=getattr(self.precision, "scaler", None) is not None)


def place_of(trainer: Any) -> Place:
    """The device and the precision of a Lightning trainer."""
    return Place(trainer.strategy.root_device, trainer.precision_plugin)


class Training(NamedTuple):
    """What a probe learns from."""

    loader: Iterable[Any]
    """Batches of this rank, labelled."""
    images_per_step: int
    """Images of all ranks in one step of the optimizer; a learning rate is scaled by them."""
    accumulate: int = 1
    """Batches in one step."""
    set_epoch: Callable[[int], None] | None = None
    """Called with 0, 1, ... before each pass over the loader."""
    hold_out: Callable[[float, int], tuple[Tensor, Iterable[Any]]] | None = None
    """(share, seed) -> which images a probe is chosen on, (n,) bool by the batches' "index", and these images as
    evaluations see them."""


class EvaluationData:
    """Bank, query and training images, and where to compute.

    Features are computed when they are first asked for, and kept until another encoder is asked about: all evaluators
    of one encoder share them. `read` of several encoders keeps those of all. They are not computed again when an
    encoder learns; make a new object then.

    >>> import torch
    >>> from esvit_pl.evaluation import KNN, EvaluationData
    >>> images, labels = torch.eye(6).reshape(6, 1, 2, 3), torch.arange(6) % 2
    >>> data = EvaluationData(bank=[(images, labels)], query=[(images, labels)])
    >>> KNN(k=1).run(lambda images: images.flatten(1), data)
    {'knn/top1': 1.0, 'knn/top5': 1.0}

    Args:
        bank: labelled images that evaluators compare with or learn from as they are: a loader, or a function that makes
            it. Of a loader that does not know the ranks each rank takes every n-th batch.
        query: images that are classified, likewise.
        train: for probes that learn from augmented images.
        pairs: (same_box, color, seed) -> batches of two views of query images, as those of
            ``ImageDataModule.pairs_dataloader``.
        num_classes: needed by probes that learn.
        class_names: for what is printed.
        unpack: batch -> (images, labels).
        place: device and precision; None is the CPU.
        cache: gives features of bank and query that were computed before, and keeps those that are not.
        metric: how the data set counts right answers, one of those of `metrics.measure`.
        tuned_from: the bank's images from this number on are those on which settings are chosen; None: any part of it.
    """

    def __init__(
        self,
        bank: Source | None = None,
        query: Source | None = None,
        *,
        train: Callable[[], Training] | None = None,
        pairs: Callable[..., Iterable[Any]] | None = None,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        unpack: Unpack = unpack_batch,
        place: Place | None = None,
        cache: FeatureCache | None = None,
        metric: str = "top1",
        tuned_from: int | None = None,
    ) -> None:
        self.cache, self.metric, self.tuned_from = cache, metric, tuned_from
        self._sources = {"bank": bank, "query": query}
        self._train, self._pairs = train, pairs
        self.num_classes = num_classes
        self.class_names = class_names
        self.unpack = unpack
        self.place = place or Place(torch.device("cpu"))
        self._encoders: list[Any] = []
        self._kept: dict[tuple[int, str, Kind], list[Extracted]] = {}
        self._training: Training | None = None
        self.answers: dict[str, Tensor] = {}
        """{accuracy: (n,) bool, whether each of this rank's query images is answered right}: an evaluator that knows it
        notes it here, so that encoders can be compared image by image."""

    @property
    def training(self) -> Training:
        """Made when a probe first learns, and kept, so that a loader's workers may persist."""
        if self._train is None:
            raise ValueError("a probe that learns needs training images; give EvaluationData train=")
        self._training = self._training or self._train()
        return self._training

    def pairs(self, *, same_box: bool, color: bool, seed: int) -> Iterable[Any]:
        """Batches of two views of the query images: views (two of (b c h w)), boxes (b 2 4), flipped (b 2)."""
        if self._pairs is None:
            raise ValueError("this evaluator needs pairs of views; give EvaluationData pairs=")
        return self._pairs(same_box=same_box, color=color, seed=seed)

    def features(self, encoder: Encoder, which: Literal["bank", "query"], kind: Kind = "pooled") -> Extracted:
        """This rank's features and labels; (0 0) where this rank has no image."""
        return joined(self.batches(encoder, which, kind), like=wide(self.place.prepare(torch.zeros(0, 0))))

    def batches(self, encoder: Encoder, which: Literal["bank", "query"], kind: Kind = "pooled") -> list[Extracted]:
        """The same, batch by batch."""
        self.read([encoder], which, [kind])
        return self._kept[id(encoder), which, kind]

    def pieces(
        self, encoder: Encoder, which: Literal["bank", "query"], kind: Kind = "pooled", images: int = 2**15
    ) -> list[Extracted]:
        """The same, in pieces of so many images or a little more. They take the batches' place, so that nothing is held
        twice."""
        parts = self.batches(encoder, which, kind)
        found: list[Extracted] = []
        while parts:
            seen = accumulate(len(part.features) for part in parts)
            number = next((n for n, so_far in enumerate(seen, 1) if so_far >= images), len(parts))
            found.append(joined(parts[:number], like=parts[0].features) if number > 1 else parts[0])
            del parts[:number]
        parts.extend(found)
        return found

    def number(self, which: Literal["bank", "query"]) -> int | None:
        """Images on all ranks, before any is read; None if their loader has no `dataset` with a length."""
        dataset: Any = getattr(self.loader(which), "dataset", None)
        return len(dataset) if hasattr(dataset, "__len__") else None

    def read(self, encoders: Sequence[Encoder], which: Literal["bank", "query"], kinds: Sequence[Kind]) -> None:
        """Compute several kinds of features of several encoders in one pass over the images, but for those that are
        there already."""
        missing = self.missing(encoders, which, kinds)
        if not missing:
            return
        self._add(missing, which, dealt(self.loader(which)))
        self.keep(missing, which)

    def read_for(self, encoders: Sequence[Encoder], evaluators: Iterable[Evaluator]) -> None:
        """Compute what several evaluators read, in one pass over the images of each part. What all read of the bank
        alike, the first one that asks computes."""
        asked = list(evaluators)
        self.read(encoders, "query", tuple(dict.fromkeys(kind for each in asked for kind in each.reads)))
        of_bank = tuple(dict.fromkeys(kind for each in asked for kind in getattr(each, "reads_bank", ())))
        if len(of_bank) > 1 or len(encoders) > 1:
            self.read(encoders, "bank", of_bank)

    def loader(self, which: str) -> Iterable[Any]:
        """The loader of bank or query, made when it is first needed."""
        source = self._sources[which]
        if source is None:
            raise ValueError(f"this evaluator needs {which} images; give EvaluationData {which}=")
        if callable(source):
            source = self._sources[which] = source()
        return source

    def missing(self, encoders: Sequence[Encoder], which: str, kinds: Sequence[Kind]) -> list[tuple[Encoder, Kind]]:
        """The pairs whose features are neither here nor in the cache."""
        self._keep(encoders)
        pairs = [(encoder, kind) for encoder in encoders for kind in kinds]
        return [(encoder, kind) for encoder, kind in pairs if not self._has(encoder, which, kind)]

    def _has(self, encoder: Encoder, which: str, kind: Kind) -> bool:
        """Whether features are here, after they were looked for in the cache; in half precision they are made of the
        pooled ones."""
        key = id(encoder), which, kind
        if key not in self._kept and kind in HALF and self._has(encoder, which, "pooled"):
            parts = self._kept[id(encoder), which, "pooled"]
            self._kept[key] = [Extracted(at_unit_length(part.features, HALF[kind]), part.labels) for part in parts]
        elif key not in self._kept and kind not in HALF and self.cache is not None:
            found = self.cache.get(encoder, which, kind)
            if found is not None:
                self._kept[key] = [Extracted(*(self.place.prepare(part) for part in found))]
        return key in self._kept

    def keep(self, pairs: Sequence[tuple[Encoder, Kind]], which: Literal["bank", "query"]) -> None:
        """Put features into the cache, if there is one, but for those in half precision."""
        for encoder, kind in pairs:
            if self.cache is not None and kind not in HALF:
                self.cache.put(encoder, which, kind, self.features(encoder, which, kind))

    def add(self, encoder: Encoder, which: str, kinds: Sequence[Kind], batches: Iterable[Any]) -> None:
        """Append features of batches that are this rank's, for a loop that reads the images itself."""
        self._keep([encoder])
        self._add([(encoder, kind) for kind in kinds], which, batches)

    def _add(self, pairs: Sequence[tuple[Encoder, Kind]], which: str, batches: Iterable[Any]) -> None:
        functions = {(id(encoder), which, kind): _feature_function(encoder, kind) for encoder, kind in pairs}
        parts = extract(
            functions,
            batches,
            self.unpack,
            prepare=self.place.prepare,
            context=self.place.forward_context,
            keep={key: HALF[key[2]] for key in functions if key[2] in HALF},
        )
        for key, part in parts.items():
            self._kept.setdefault(key, []).extend(part)

    def _keep(self, encoders: Sequence[Encoder]) -> None:
        """Forget the features of other encoders, unless all of these are known already."""
        known = {id(encoder) for encoder in self._encoders}
        asked = {id(encoder) for encoder in encoders}
        if not asked <= known:
            self._encoders = list(encoders)  # held, so that no other object gets their ids
            self._kept = {key: parts for key, parts in self._kept.items() if key[0] in asked}


def dealt(loader: Iterable[Any]) -> Iterable[Any]:
    """The batches of a loader that are this rank's: all of them if it knows the ranks, else every n-th one."""
    return loader if gives_each_rank_its_part(loader) else islice(loader, rank(), None, num_ranks())


def gives_each_rank_its_part(loader: Any) -> bool:
    """Whether a loader's sampler knows the ranks, as torch's DistributedSampler and those of ImageDataModule do."""
    samplers = [getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)]
    samplers.append(getattr(samplers[1], "sampler", None))
    return any(hasattr(sampler, name) for sampler in samplers for name in ("num_replicas", "ranks"))


def _feature_function(encoder: Any, kind: Kind) -> Encoder:
    if kind == "pooled" or kind in HALF:
        return cast(Encoder, encoder)
    if kind == "regions":
        return lambda images: region_statistics(_regions(encoder(images)))
    blocks, *beside = str(kind).split("+")
    return lambda images: blocks_and_poolings(encoder, images, int(blocks), beside)


def _regions(output: Any) -> Tensor:
    regions = getattr(output, "regions", None)
    if not isinstance(regions, Tensor):
        raise ValueError(
            f"region diversity needs an encoder that gives Features with .regions, got {type(output).__name__}"
        )
    return regions


def _moved(x: Any, device: torch.device) -> Any:
    if isinstance(x, Tensor):
        return x.to(device, non_blocking=device.type == "cuda")
    if isinstance(x, Mapping):
        return {key: _moved(value, device) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return type(x)(_moved(value, device) for value in x)
    return x.to(device) if hasattr(x, "to") else x
