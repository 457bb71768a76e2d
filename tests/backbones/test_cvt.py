from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import toys
from golden_files import largest_error
from torch import Tensor, nn

from esvit_pl.backbones import build
from esvit_pl.backbones.cvt import Block, WindowAttention, from_released
from esvit_pl.ema import ema_update_, make_teacher
from esvit_pl.modules.pretrain import Pretrainer
from esvit_pl.optim import OptimizerRecipe

TINY = {"dims": [8, 16], "depths": [2, 2], "num_heads": [1, 2], "windows": [4, 4], "drop_path_rate": 0.0}
BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


# What golden values do not show: attention on any map, batch norm in training, stochastic depth


@torch.no_grad()
def attention_by_hand(attn: WindowAttention, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """One loop over images, windows and heads -> the output, and the weights in that order."""
    height, width = x.shape[2:]
    side = min(attn.window, height, width)
    rows, columns = -(-height // side), -(-width // side)
    x = F.pad(x, (0, columns * side - width, 0, rows * side - height))
    query, key, value = attn.qkv(attn.bn(attn.depthwise(x))).split(x.shape[1], dim=1)
    mixed, weights = torch.zeros_like(x), []
    d = x.shape[1] // attn.heads
    for b in range(len(x)):
        for i, j in ((i, j) for i in range(rows) for j in range(columns)):
            for head in range(attn.heads):
                part = (
                    b,
                    slice(head * d, (head + 1) * d),
                    slice(i * side, (i + 1) * side),
                    slice(j * side, (j + 1) * side),
                )
                q, k, v = (tensor[part].reshape(d, -1) for tensor in (query, key, value))  # (d w2)
                weights.append((q.T @ k / x.shape[1] ** 0.5).softmax(-1))
                mixed[part] = (v @ weights[-1].T).view(d, side, side)
    return attn.proj(mixed[:, :, :height, :width]), weights


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("height", "width"), [(4, 4), (3, 5), (7, 2), (1, 6), (8, 9)])
def test_attention_by_hand_on_maps_of_any_shape(height, width, training):
    attn = WindowAttention(6, 2, 4).double().train(training)
    for parameter in attn.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 6, height, width, dtype=torch.float64)
    expected, weights = attention_by_hand(attn, x)
    assert largest_error(attn(x), expected) < 1e-12
    shown = attn.weights(x)
    assert shown.grid == (height, width)
    assert largest_error(shown.weights.flatten(0, 2), torch.stack(weights)) < 1e-12


def test_batch_norm_counts_the_padded_positions_and_keeps_the_unbiased_variance():
    attn = WindowAttention(4, 1, 4).train()
    nn.init.normal_(attn.depthwise.weight)
    x = torch.randn(2, 4, 5, 6)
    attn(x)
    seen = attn.depthwise(F.pad(x, (0, 2, 0, 3))).transpose(0, 1).flatten(1)  # (c positions of 8 x 8 maps)
    assert seen.shape == (4, 2 * 8 * 8)
    assert torch.allclose(attn.bn.running_mean, 0.1 * seen.mean(1), atol=1e-6)
    assert torch.allclose(attn.bn.running_var, 0.9 + 0.1 * seen.var(1, unbiased=True), atol=1e-5)
    assert attn.bn.num_batches_tracked == 1
    attn.eval()(x)
    assert attn.bn.num_batches_tracked == 1


class Constant(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return torch.full_like(x, self.value)


def test_stochastic_depth_drops_each_branch_of_each_image_on_its_own():
    block = Block(4, 1, 2, 8, drop_path=0.5).train()
    block.attn, block.mlp = Constant(1.0), Constant(10.0)
    kept = block(torch.zeros(64, 4, 2, 2)).flatten(1)
    assert torch.equal(kept.amax(1), kept.amin(1))  # an image is kept or dropped as a whole
    assert set(kept[:, 0].tolist()) == {0.0, 2.0, 20.0, 22.0}  # divided by the share that is kept
    assert torch.equal(block.eval()(torch.zeros(2, 4, 2, 2)), torch.full((2, 4, 2, 2), 11.0))


def test_stochastic_depth_grows_linearly_to_its_rate_and_the_teacher_has_none():
    backbone = build("cvt", **{**TINY, "drop_path_rate": 0.3})
    rates = [block.drop_path.drop_prob for stage in backbone.stages for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    teacher = make_teacher(backbone)
    assert all(block.drop_path.drop_prob == 0.0 for stage in teacher.stages for block in stage.blocks)


# Sizes


@pytest.mark.parametrize(
    ("height", "width", "grid"),
    [(224, 224, (7, 7)), (96, 96, (3, 3)), (97, 97, (3, 3)), (96, 160, (3, 5)), (224, 100, (7, 4)), (4, 9, (1, 1))],
)
def test_any_input_gives_its_regions(height, width, grid):
    backbone = build("cvt", dims=[4] * 4, depths=[1] * 4, num_heads=[1] * 4)
    features = backbone(torch.randn(2, 3, height, width))
    assert features.grid == grid
    assert features.regions.shape == (2, grid[0] * grid[1], 4)
    assert torch.allclose(features.pooled, features.regions.mean(1), atol=1e-6)


def test_windows_follow_from_the_map_that_comes_in():
    backbone = build("cvt", dims=[4] * 4, depths=[1] * 4, num_heads=[2] * 4, windows=[14, 14, 14, 7])
    sides = {56: [14, 14, 14, 7], 24: [14, 12, 6, 3]}
    for stem, expected in sides.items():
        x = torch.randn(1, 3, 4 * stem, 4 * stem)
        shown = [backbone.attention(x, block) for block in range(4)]
        assert [attention.weights.shape[-1] for attention in shown] == [side**2 for side in expected]
        windows = [-(-(stem // 2**stage) // side) for stage, side in enumerate(expected)]
        assert [attention.grid for attention in shown] == [(stem // 2**stage,) * 2 for stage in range(4)]
        assert all(
            attention.weights.shape[1:3] == (number**2, 2) for attention, number in zip(shown, windows, strict=True)
        )


@torch.no_grad()
def test_attention_is_that_of_the_block_asked_for():
    backbone = build("cvt", **TINY).eval()
    x = torch.randn(2, 3, 40, 24)
    maps: dict[nn.Module, Tensor] = {}
    attns = [block.attn for stage in backbone.stages for block in stage.blocks]
    for attn in attns:
        attn.register_forward_pre_hook(lambda module, inputs: maps.__setitem__(module, inputs[0]))
    backbone(x)
    for block, attn in enumerate(attns):
        for index in (block, block - 4):
            assert torch.equal(backbone.attention(x, index).weights, attn.weights(maps[attn]).weights)
    assert torch.allclose(backbone.attention(x).weights.sum(-1), torch.ones(()), atol=1e-5)
    with pytest.raises(ValueError, match="a block between -4 and 3, got 4"):
        backbone.attention(x, 4)


# Training


def test_batch_norm_of_the_teacher_is_its_own():
    """Averaged statistics would be the student's, and an averaged counter no integer."""
    student = build("cvt", **TINY).train()
    teacher = make_teacher(student)
    for step in range(3):
        teacher(torch.randn(2, 3, 32, 32) + step)
        for side in (32, 16):
            student(torch.randn(2, 3, side, side) - step)
        before = {name: buffer.clone() for name, buffer in teacher.named_buffers()}
        for parameter in student.parameters():
            parameter.data += 1
        weight = teacher.stages[0].embed.proj.weight.clone()
        ema_update_(teacher, student, 0.5)
        assert not torch.equal(teacher.stages[0].embed.proj.weight, weight)
        assert all(torch.equal(buffer, before[name]) for name, buffer in teacher.named_buffers())
    for mine, other in zip(batch_norms(teacher), batch_norms(student), strict=True):
        assert mine.num_batches_tracked.dtype == torch.int64
        assert (mine.num_batches_tracked.item(), other.num_batches_tracked.item()) == (3, 6)
        assert not torch.equal(mine.running_mean, other.running_mean)


def batch_norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in module.modules() if isinstance(module, BATCH_NORMS)]


def pretrainer(**loss: float) -> Pretrainer:
    backbone = build("cvt", **{**TINY, "depths": [1, 1], "drop_path_rate": 0.1})
    return Pretrainer(backbone, toys.objective(**loss), OptimizerRecipe(lr=0.05, warmup_epochs=0))


@pytest.mark.parametrize("loss", [{"view_weight": 1.0, "region_weight": 0.0}, {}], ids=["view", "view_region"])
def test_one_step_of_each_loss(tmp_path, loss):
    module = pretrainer(**loss)
    before = toys.state(module)
    trainer = toys.trainer(tmp_path, max_epochs=1)
    trainer.fit(module, toys.loader(4, 4))  # names any parameter that gets no gradient
    assert torch.isfinite(trainer.callback_metrics["train/view_loss"])
    assert ("train/region_loss" in trainer.callback_metrics) == (not loss)
    after = toys.state(module)
    for network in ("student", "teacher"):
        weights = [name for name in after if name.startswith(f"{network}.backbone.") and name.endswith("weight")]
        assert [name for name in weights if torch.equal(after[name], before[name])] == []
    # two sizes of views, two passes of the student; the teacher sees the global ones
    assert {norm.num_batches_tracked.item() for norm in batch_norms(module.student)} == {2}
    assert {norm.num_batches_tracked.item() for norm in batch_norms(module.teacher)} == {1}


def test_synchronised_batch_norm_is_in_student_and_teacher_and_changes_no_name():
    """What trainer.sync_batchnorm=true makes of the module; its checkpoints load on one process."""
    module = pretrainer()
    names = list(module.state_dict())
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    assert list(converted.state_dict()) == names
    for network in (converted.student, converted.teacher):
        assert [type(norm) for norm in batch_norms(network)] == [nn.SyncBatchNorm] * 2


# Making one


def test_convolutions_start_from_a_normal_of_002_and_biases_from_0():
    backbone = build("cvt", dims=[64, 128], depths=[2, 2], num_heads=[1, 2], windows=[7, 7])
    convolutions = {name: module for name, module in backbone.named_modules() if isinstance(module, nn.Conv2d)}
    assert len(convolutions) == 2 + 4 * 5
    for name, module in convolutions.items():
        assert module.weight.std().item() == pytest.approx(0.02, rel=0.15), name
        assert module.bias is None or module.bias.eq(0).all(), name
    assert [name for name, module in convolutions.items() if module.bias is None] == [
        name for name in convolutions if name.endswith("depthwise")
    ]


def test_names_that_no_published_model_has_are_told():
    table = "stage0.1.layers.0.0.fn.relative_position_bias_table"
    state = from_released({table: torch.zeros(1), "stage1.0.proj.bias": torch.zeros(1)})
    assert list(state) == [table, "stages.1.embed.proj.bias"]
    with pytest.raises(RuntimeError, match=f'Unexpected key.*"{table}"'):
        build("cvt", **TINY).load_state_dict(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dims": [], "depths": [], "num_heads": [], "windows": []}, "one per stage"),
        ({"windows": [7, 0]}, r"windows of 1 or more, got windows=\[7, 0\]"),
    ],
)
def test_impossible_sizes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        build("cvt", **{**TINY, **change})
