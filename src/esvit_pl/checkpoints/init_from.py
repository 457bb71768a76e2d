"""How a training begins from weights that exist already: ``init_from=``, and ``ckpt_path=`` of a released file."""

from __future__ import annotations

import torch
from torch import nn

from esvit_pl.checkpoints.build_backbone import Network
from esvit_pl.checkpoints.checkpoint import Checkpoint, State, part
from esvit_pl.checkpoints.load_weights import fitted, load_, misfits
from esvit_pl.losses import Center
from esvit_pl.network import MultiCropNetwork
from esvit_pl.objectives import Objective


def start_from_(
    student: MultiCropNetwork,
    teacher: MultiCropNetwork | None,
    objective: Objective,
    source: Checkpoint,
    *,
    network: Network | None = None,
    heads: bool = True,
    resize_positions: bool = False,
) -> str:
    """Put a source's weights into both networks, in place.

    Args:
        student: keeps its own initial values where the source has none.
        teacher: the same; None for objectives without.
        objective: whose centres go on, with the heads that they belong to.
        source: of any format.
        network: which of the source's networks both start from; None: each from its own, or both from the only one.
        heads: take heads and centres, too, where the source has them; what it lacks starts afresh, like its centre.
        resize_positions: resize position tables made for another window or image size.

    Returns:
        One line that says what came from where.

    Raises:
        ValueError: weights that do not fit, by name and shape.
    """
    taken: dict[str, list[str]] = {"heads": [], "new": []}
    origins = {}
    for name, target in (("student", student), ("teacher", teacher)):
        if target is None:
            continue
        origin = network or _own(source, name)
        state = source.network(origin)
        origins[name] = origin if len(source.networks) > 1 else next(iter(source.networks))
        what = f"{source.path} ({source.format}, {origins[name]})"
        try:
            load_(target.backbone, fitted(state, target.backbone), f"the backbone of {what}", resize=resize_positions)
            given = _load_heads(target.heads, state, what) if heads else set()
        except ValueError as error:
            raise ValueError(f"{error}{_remedy(source, target, str(error), resize_positions)}") from error
        taken["heads"] = sorted(given)
        taken["new"] = sorted(set(target.heads) - given)
    centers = _load_centers(objective, source, set(taken["heads"]))
    return _line(source, origins, taken, centers)


def check_continues(
    student: MultiCropNetwork,
    teacher: MultiCropNetwork | None,
    objective: Objective,
    optimizer: str,
    source: Checkpoint,
) -> None:
    """Refuse to go on with a training that is not the same: another architecture, loss or optimizer.

    Raises:
        ValueError: what differs, and that ``init_from=`` starts a new training from these weights.
    """
    problems = []
    if source.epoch is None or source.moments is None:
        problems.append("it holds no epoch and no optimizer, so no training to go on with")
    elif source.moments.name != optimizer:
        problems.append(f"its optimizer is {source.moments.name}, and optimizer= is {optimizer}")
    for name, target in (("student", student), ("teacher", teacher)):
        if (target is None) != (name not in source.networks):
            problems.append(f"it holds {', '.join(source.networks)}, and this loss needs {name} {target is not None}")
        elif target is not None:
            state = source.networks[name]
            renamed = {f"backbone.{key}": value for key, value in fitted(state, target.backbone).items()}
            renamed |= {key: value for key, value in state.items() if key.startswith("heads.")}
            problems += [f"{name}: {line}" for line in misfits(renamed, target.state_dict())]
    wanted = {name for name, _ in _centers(objective)}
    if set(source.centers) != wanted:
        problems.append(f"its losses are {sorted(source.centers)}, and loss= has {sorted(wanted)}")
    if problems:
        raise ValueError(
            f"ckpt_path={source.path} ({source.format}) goes on with the training in the file, which is not this one:"
            "\n  " + "\n  ".join(problems) + "\n  init_from= starts a new training from its weights (with start_epoch= "
            "where it is to stand in the schedules)"
        )


def _own(source: Checkpoint, name: str) -> str:
    return name if name in source.networks else next(iter(source.networks))


def _load_heads(heads: nn.ModuleDict, state: State, what: str) -> set[str]:
    given = {name: part(state, f"heads.{name}.") for name in heads}
    for name, weights in given.items():
        if weights:
            load_(heads[name], weights, f"the {name} head of {what}")
    return {name for name, weights in given.items() if weights}


@torch.no_grad()
def _load_centers(objective: Objective, source: Checkpoint, heads: set[str]) -> list[str]:
    given = [(name, center) for name, center in _centers(objective) if name in source.centers and name in heads]
    for name, center in given:
        if center.value.shape != source.centers[name].shape:
            raise ValueError(
                f"{source.path}: the {name} centre has {len(source.centers[name])} prototypes, and the model's "
                f"{len(center.value)}"
            )
        center.value.copy_(source.centers[name])
    return [name for name, _ in given]


def _centers(objective: Objective) -> list[tuple[str, Center]]:
    centers = getattr(objective, "centers", None)
    named = centers.items() if isinstance(centers, nn.ModuleDict) else ()
    return [(name, center) for name, center in named if isinstance(center, Center)]


def _remedy(source: Checkpoint, target: MultiCropNetwork, problem: str, resize: bool) -> str:
    """What to do about weights that do not fit."""
    if " head of " in problem.partition("\n")[0]:
        return "\n  init.heads=false takes the backbone alone, and new heads"
    ours = getattr(target.backbone, "spec", {})
    differences = [
        f"{name}={value} there, {ours[name]} here"
        for name, value in source.backbone.items()
        if name in ours and ours[name] != value and name not in source.guessed
    ]
    lines = [f"\n  its backbone has {'; '.join(differences)}; choose backbone= to match"] if differences else []
    if not resize and ("pos_embed" in problem or "position_bias_table" in problem):
        lines.append("\n  init.resize_positions=true resizes position tables made for another window or image size")
    return "".join(lines)


def _line(source: Checkpoint, origins: dict[str, str], taken: dict[str, list[str]], centers: list[str]) -> str:
    epochs = f", {source.epoch} epochs" if source.epoch is not None else ""
    pairs = ", ".join(f"{name} from its {origin}" for name, origin in origins.items())
    heads = f"; heads: {', '.join(taken['heads'])}" if taken["heads"] else ""
    new = f"; new heads: {', '.join(taken['new'])}" if taken["new"] else ""
    with_centers = f"; centres: {', '.join(centers)}" if centers else ""
    return f"init_from={source.path} ({source.format}{epochs}): {pairs}{heads}{new}{with_centers}"
