"""Contrastive losses: a row must find its partner among many others."""

# s, t student and teacher views | b rows of this process | a rows of all processes | k keys in a queue | p their width

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esvit_pl.precision import wide


class BatchContrast(nn.Module):
    """For every teacher view t, student view s != t and image i:
           loss += 2 * temp * cross_entropy(q[s][i] . k[t][:] / temp, i)     then twice the mean.

    The loss of MoCo v3 (arXiv 2104.02057): other images of the batch are what an image is told from. With two views it
    is the sum of both directions, as released. Vectors are divided by their lengths. Without the factor ``2 * temp``
    the learning rate would mean something else.

    Two images whose vectors are at right angles:

    >>> q = [torch.eye(2), torch.eye(2)]
    >>> round(float(BatchContrast(temp=1.0)(q, q, own=torch.arange(2))), 4)  # 4 * ln(1 + 1/e)
    1.253
    """

    def __init__(self, temp: float = 0.2) -> None:
        super().__init__()
        self.temp = temp

    def forward(self, queries: Sequence[Tensor], keys: Sequence[Tensor], own: Tensor) -> Tensor:
        """
        Args:
            queries: (b p) of each student view, the teacher's views first.
            keys: (a p) of each teacher view, rows of all processes; no gradient should flow to them.
            own: (b,) which key belongs to the query's image.
        """
        q, k = units(queries), units(keys)
        with torch.autocast(own.device.type, enabled=False):
            losses = [F.cross_entropy(q[s] @ k[t].T / self.temp, own) for t, s in pairs(len(k), len(q))]
            return 2 * 2 * self.temp * torch.stack(losses).mean()


class PairContrast(nn.Module):
    """For each view and each image i, with ``z[view][i]`` told from all other rows of both views:
           loss += cross_entropy(z[view][i] . {z[other][:], z[view][not i]} / temp, z[other][i])
       then the mean over i, not over views.

    NT-Xent, the loss of SimCLR (arXiv 2002.05709), as released. Other libraries take the mean over both views: half.

    >>> z = [torch.eye(2), torch.eye(2)]
    >>> round(float(PairContrast(temp=1.0)(z, z, own=torch.arange(2))), 4)  # 2 * ln(1 + 2/e)
    1.1029
    """

    def __init__(self, temp: float = 0.1) -> None:
        super().__init__()
        self.temp = temp

    def forward(self, z: Sequence[Tensor], everyone: Sequence[Tensor], own: Tensor) -> Tensor:
        """
        Args:
            z: (b p) of both views.
            everyone: (a p) of both views, rows of all processes, with gradient.
            own: (b,) where this process' rows lie among them.
        """
        rows, others = units(z), units(everyone)
        with torch.autocast(own.device.type, enabled=False):
            losses = [self._of_view(rows[view], others[1 - view], others[view], own) for view in (0, 1)]
        return losses[0] + losses[1]

    def _of_view(self, rows: Tensor, partners: Tensor, same: Tensor, own: Tensor) -> Tensor:
        among_same = (rows @ same.T).scatter(1, own[:, None], -torch.inf)  # not itself
        return F.cross_entropy(torch.cat([rows @ partners.T, among_same], dim=1) / self.temp, own)


class QueueContrast(nn.Module):
    """For each row i:
           loss += cross_entropy({q[i] . k[i], q[i] . queue[:]} / temp, 0)     then the mean.

    The loss of MoCo (arXiv 1911.05722), with keys of earlier images in a queue.

    >>> far = torch.zeros(4096, 2)
    >>> round(float(QueueContrast(temp=0.2)(torch.eye(2), torch.eye(2), far)), 4)  # ln(1 + 4096 / e^5)
    3.3534
    """

    def __init__(self, temp: float = 0.2) -> None:
        super().__init__()
        self.temp = temp

    def forward(self, queries: Tensor, keys: Tensor, queue: Tensor) -> Tensor:
        """
        Args:
            queries: (... p), of any length.
            keys: (... p), each the partner of the query at its place; of any length.
            queue: (k p), of length 1.
        """
        q, k = units([queries, keys])
        with torch.autocast(q.device.type, enabled=False):
            logits = torch.cat([(q * k).sum(-1, keepdim=True), q @ queue.to(q.dtype).T], dim=-1).flatten(0, -2)
            return F.cross_entropy(logits / self.temp, torch.zeros(len(logits), dtype=torch.long, device=q.device))


def pairs(teacher: int, student: int) -> list[tuple[int, int]]:
    """(t, s) of every teacher view and every student view but itself.

    Raises:
        ValueError: there is no pair.

    >>> pairs(teacher=2, student=3)
    [(0, 1), (0, 2), (1, 0), (1, 2)]
    """
    found = [(t, s) for t in range(teacher) for s in range(student) if s != t]
    if not found:
        raise ValueError(
            f"the loss compares two views of an image, got {teacher} teacher and {student} student views; raise "
            "augment.num_global or augment.num_local"
        )
    return found


def units(vectors: Sequence[Tensor]) -> list[Tensor]:
    """Each vector divided by its length, in float32 or wider."""
    return [F.normalize(wide(x), dim=-1) for x in vectors]
