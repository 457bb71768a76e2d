"""Cross entropies over prototypes, without pairwise logits.

With W the student's prototypes, z a projection, t a temperature and q a teacher's distribution,

    CE(q, softmax(W z / t)) = logsumexp(W z / t) - u . z / t        with u = W^T q,

so a student row needs its log partition once and a teacher row its expected prototype once, whatever the number of
pairs that match them; a pair costs one product of two p-vectors.
"""

# b rows | p projection width | k prototypes

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Target(NamedTuple):
    """What a teacher row asks of the student."""

    u: Tensor
    """(... p): the student's prototypes averaged under the teacher's distribution; carries gradient to them alone."""
    entropy: Tensor
    """(...): entropy of the teacher's distribution in nats, no gradient."""


def log_partition(z: Tensor, prototypes: Tensor, temp: float) -> Tensor:
    """logsumexp over prototypes of W z / temp.

    Args:
        z: (... p) student projections.
        prototypes: (k p), W.
        temp: student temperature.

    Returns:
        (...), with gradient to `z` and `prototypes`.
    """
    return torch.logsumexp(z @ prototypes.mT / temp, dim=-1)


def expected_prototype(
    teacher_z: Tensor, teacher_prototypes: Tensor, center: Tensor, prototypes: Tensor, temp: float
) -> Target:
    """u = W^T q with q = softmax((W_teacher teacher_z - center) / temp): attention of a teacher row over prototypes.

    Args:
        teacher_z: (... p) teacher projections.
        teacher_prototypes: (k p), W_teacher.
        center: (k,), subtracted from the teacher's logits (`losses.center`).
        prototypes: (k p), the student's W; gradient flows to it through u, q is detached.
        temp: teacher temperature.
    """
    with torch.no_grad():
        log_q = torch.log_softmax((teacher_z @ teacher_prototypes.mT - center) / temp, dim=-1)
        q = log_q.exp()
        # 0 * -inf would be nan where a prototype has no probability at all.
        entropy = -(q * log_q.clamp_min(torch.finfo(q.dtype).min)).sum(-1)
    return Target(q @ prototypes, entropy)
