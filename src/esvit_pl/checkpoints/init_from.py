"""How a training begins from weights that exist already: ``init_from=``, and ``ckpt_path=`` of a released file."""

from __future__ import annotations

from torch import nn

from esvit_pl.checkpoints.checkpoint import Checkpoint, Network, State, part, under
from esvit_pl.checkpoints.load_weights import fitted, load_, misfits
from esvit_pl.checkpoints.locate import listed
from esvit_pl.network import MultiCropNetwork
from esvit_pl.objectives.interface import Objective


def start_from_(
    student: MultiCropNetwork,
    teacher: MultiCropNetwork | None,
    objective: Objective,
    checkpoint: Checkpoint,
    *,
    network: Network | None = None,
    heads: bool = True,
    resize_positions: bool = False,
) -> str:
    """Put a checkpoint's weights into both networks, in place.

    Args:
        student: keeps its own initial values where the checkpoint has none.
        teacher: the same; None for objectives without a teacher.
        objective: takes over what the checkpoint's objective remembered, entry by entry of its ``state_dict()``.
        checkpoint: of any format.
        network: which of the checkpoint's networks both start from; None: each from its own, or both from the only one.
        heads: take heads and the objective's state, too. What the checkpoint lacks starts afresh.
        resize_positions: resize position tables that were made for another window or image size.

    Returns:
        One line that says what came from where.

    Raises:
        ValueError: weights that do not fit, by name and shape.
    """
    origins: dict[str, str] = {}
    given: set[str] = set()
    for name, target in _networks(student, teacher).items():
        own = name if name in checkpoint.networks else next(iter(checkpoint.networks))
        origins[name] = checkpoint.resolve(network or own)
        state = checkpoint.networks[origins[name]]
        what = f"{checkpoint.path} ({checkpoint.format}, {origins[name]})"
        try:
            load_(target.backbone, fitted(state, target.backbone), f"the backbone of {what}", resize=resize_positions)
            given |= _load_heads(target.heads, state, what) if heads else set()
        except ValueError as error:
            raise ValueError(f"{error}{_remedy(checkpoint, target, str(error), resize_positions)}") from error
    remembered = _load_objective(objective, checkpoint) if given or not student.heads else []
    epochs = f", {checkpoint.epoch} epoch{'s' * (checkpoint.epoch != 1)}" if checkpoint.epoch is not None else ""
    parts = [", ".join(f"{name} from its {origin}" for name, origin in origins.items())]
    new = set(student.heads) - given
    for title, names in (("heads", given), ("new heads", new), ("state of the loss", remembered)):
        if names:
            parts.append(f"{title}: {', '.join(sorted(names))}")
    if checkpoint.left_out:
        parts.append(f"left out: {listed(checkpoint.left_out)}")
    return f"init_from={checkpoint.path} ({checkpoint.format}{epochs}): {'; '.join(parts)}"


def check_continues(
    student: MultiCropNetwork,
    teacher: MultiCropNetwork | None,
    objective: Objective,
    optimizer: str,
    checkpoint: Checkpoint,
) -> None:
    """Refuse to go on with a training that is not the same: another architecture, loss or optimizer.

    Raises:
        ValueError: what differs, and that ``init_from=`` starts a new training from these weights.
    """
    problems = []
    if checkpoint.epoch is None or checkpoint.moments is None:
        problems.append("it holds no epoch or no optimizer, so there is no training to go on with")
    elif checkpoint.moments.name != optimizer:
        problems.append(f"its optimizer is {checkpoint.moments.name}, and optimizer= is {optimizer}")
    networks = _networks(student, teacher)
    if set(networks) != set(checkpoint.networks):
        problems.append(f"it holds {', '.join(checkpoint.networks)}, and this training has {', '.join(networks)}")
    for name in set(networks) & set(checkpoint.networks):
        target, state = networks[name], checkpoint.networks[name]
        renamed = under("backbone.", fitted(state, target.backbone))
        renamed |= {key: value for key, value in state.items() if key.startswith("heads.")}
        problems += [f"{name}: {line}" for line in misfits(renamed, target.state_dict())]
    problems += [f"state of the loss: {line}" for line in misfits(checkpoint.objective, objective.state_dict())]
    if problems:
        raise ValueError(
            f"ckpt_path={checkpoint.path} ({checkpoint.format}) goes on with the training in the file, which is not "
            "this one:\n  " + "\n  ".join(problems) + "\n  init_from= starts a new training from its weights (with "
            "start_epoch= where it is to stand in the schedules)"
        )


def _networks(student: MultiCropNetwork, teacher: MultiCropNetwork | None) -> dict[str, MultiCropNetwork]:
    return {"student": student} if teacher is None else {"student": student, "teacher": teacher}


def _load_heads(heads: nn.ModuleDict, state: State, what: str) -> set[str]:
    """Load the heads that the checkpoint has; their names."""
    given = {name: weights for name in heads if (weights := part(state, f"heads.{name}."))}
    for name, weights in given.items():
        load_(heads[name], weights, f"the {name} head of {what}")
    return set(given)


def _load_objective(objective: Objective, checkpoint: Checkpoint) -> list[str]:
    """Load what the checkpoint has of the objective's state; its names."""
    own = objective.state_dict()
    given = {name: value for name, value in checkpoint.objective.items() if name in own}
    try:
        load_(objective, {**own, **given}, f"the state of the loss in {checkpoint.path}")
    except ValueError as error:
        raise ValueError(f"{error}\n  init.heads=false takes the backbone alone") from error
    return list(given)


def _remedy(checkpoint: Checkpoint, target: MultiCropNetwork, problem: str, resize: bool) -> str:
    """What to do about weights that do not fit."""
    if " head of " in problem.partition("\n")[0]:
        return "\n  init.heads=false takes the backbone alone, and new heads"
    ours = getattr(target.backbone, "spec", {})
    differences = [
        f"{name}={value} there, {ours[name]} here"
        for name, value in checkpoint.backbone.items()
        if name in ours and ours[name] != value and name not in checkpoint.guessed
    ]
    lines = [f"\n  its backbone has {'; '.join(differences)}; choose backbone= to match"] if differences else []
    if not resize and ("pos_embed" in problem or "position_bias_table" in problem):
        lines.append("\n  init.resize_positions=true resizes position tables made for another window or image size")
    return "".join(lines)
