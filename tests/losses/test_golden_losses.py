"""The losses on projections against the released losses on logits: with W the identity, a projection is a logit."""

from __future__ import annotations

import golden_files
import pytest
import torch

from esvit_pl.objectives import EsViTObjective, Progress, Views

pytestmark = pytest.mark.golden


def views(golden, call: int, who: str, dtype: torch.dtype) -> Views:
    """Logits and features of one call, as projections onto the identity."""
    s = golden.settings
    count = 2 if who == "teacher" else 2 + s["local_crops"]
    z = golden.tensors[f"{call}.{who}_view_logits"].to(dtype)
    seen = Views(pooled=list(z.chunk(count)), regions=[], grids=[], z={"view": []})
    leaves = {"view": z.requires_grad_()}
    seen.z["view"] = list(leaves["view"].chunk(count))
    seen.prototypes["view"] = torch.eye(s["out_dim"], dtype=dtype)
    if "tokens_global" in s:
        tokens = [s["tokens_global"]] * 2 + [s["tokens_local"]] * (count - 2)
        rows = [s["batch"] * n for n in tokens]

        def split(x):
            return [part.unflatten(0, (s["batch"], n)) for part, n in zip(x.split(rows), tokens, strict=True)]

        leaves["region"] = golden.tensors[f"{call}.{who}_region_logits"].to(dtype).requires_grad_()
        seen.z["region"] = split(leaves["region"])
        seen.regions = split(golden.tensors[f"{call}.{who}_features"].to(dtype))
        seen.prototypes["region"] = torch.eye(s["out_dim"], dtype=dtype)
    seen.leaves = leaves
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("path", golden_files.paths("loss_view"), ids=lambda path: path.stem)
def test_losses_gradients_and_centers_are_the_released_ones(path, dtype):
    golden = golden_files.read(path)
    s = golden.settings
    region = "tokens_global" in s
    temps = s["teacher_temp"]
    for call, temp in enumerate(temps):
        objective = EsViTObjective(
            view_weight=0.5 if region else 1,
            region_weight=0.5 if region else 0,
            num_prototypes=s["out_dim"],
            out_dim=s["out_dim"],
            student_temp=s["student_temp"],
            teacher_temp=temp,
            teacher_temp_start=temp,
            center_momentum=s["center_momentum"],
        ).to(dtype)
        if call:
            for name, center in objective.centers.items():
                center.value.copy_(golden.tensors[f"{call - 1}.center_{name}_after"][0])
        student, teacher = (views(golden, call, who, dtype) for who in ("student", "teacher"))
        losses = objective(student, teacher, {}, Progress(0, 1))
        losses.total.backward()
        objective.commit(objective.collect())

        assert losses.total.item() == pytest.approx(golden.tensors[f"{call}.loss"].item(), rel=1e-5)
        for name, leaf in student.leaves.items():
            assert golden_files.relative_error(leaf.grad, golden.tensors[f"{call}.grad_{name}"].to(dtype)) < 1e-5
            assert teacher.leaves[name].grad is None
            after = golden.tensors[f"{call}.center_{name}_after"][0].to(dtype)
            assert golden_files.relative_error(objective.centers[name].value, after) < 1e-5
