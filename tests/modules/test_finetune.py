from __future__ import annotations

import copy
import math

import pytest
import pytorch_lightning as pl
import timm
import torch
import torch.nn.functional as F
import toys
from timm.data.mixup import Mixup
from torch import Tensor
from torch.utils.data import DataLoader

from esvit_pl import load_backbone
from esvit_pl.backbones import build
from esvit_pl.modules import FineTuning, NonFiniteLoss
from esvit_pl.modules.finetune import Classifier, load_classifier, trainable

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*deprecated"),  # Lightning 2.6 on torch 2.14
]
BATCH = 8
PLAIN = {"mixup": 0.0, "cutmix": 0.0, "smoothing": 0.0, "erase": 0.0}
FAMILIES = {
    **{name: {"name": name, **sizes} for name, sizes in toys.FAMILIES.items()},
    "vit": {"name": "vit_tiny_patch16_224", "img_size": 32, "depth": 3, "embed_dim": 24},
    "deit": {"name": "deit_tiny_distilled_patch16_224", "img_size": 32, "depth": 3, "embed_dim": 24},
    "resnet": {"name": "resnet18", "img_size": 32},
    "convnext": {"name": "convnext_atto", "img_size": 32, "depths": [1, 1, 1, 1], "dims": [8, 8, 8, 8]},
}


class Data(pl.LightningDataModule):
    """32 training and 12 validation images of three classes; the same order in every epoch."""

    num_classes, has_labels = 3, True

    def __init__(self, unlabelled: int = 0) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        classes = torch.arange(44) % 3
        self.images = torch.randn(44, 3, 32, 32, generator=draw) + classes[:, None, None, None] - 1
        self.labels = torch.where(torch.arange(44) < unlabelled, -1, classes)

    def loader(self, part: slice) -> DataLoader:
        rows = zip(self.images[part], self.labels[part], strict=True)
        return DataLoader([{"image": x, "label": y} for x, y in rows], batch_size=BATCH)

    def train_dataloader(self) -> DataLoader:
        return self.loader(slice(0, 32))

    def val_dataloader(self) -> DataLoader:
        return self.loader(slice(32, 44))


def finetuning(network: dict | None = None, **options) -> FineTuning:
    """The same initial weights at every call."""
    torch.manual_seed(0)
    backbone = build(**network) if network else toys.backbone(drop_path_rate=0.2)
    return FineTuning(backbone, 3, **{"lr": 0.05, **options})


def fit(module: FineTuning, root, epochs: int = 3, ckpt_path=None, data=None, **options) -> pl.Trainer:
    trainer = toys.trainer(root, max_epochs=epochs, **options)
    trainer.fit(module, data or Data(), ckpt_path=ckpt_path, weights_only=True)
    return trainer


class SaveSecondEpoch(pl.Callback):
    def __init__(self, path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer, module) -> None:
        if trainer.current_epoch == 1:
            trainer.save_checkpoint(self.path)


def rates(module: FineTuning) -> dict[str, float]:
    """{parameter: its learning rate, divided by the classifier's}"""
    names = {id(parameter): name for name, parameter in module.student.named_parameters()}
    groups = module.configure_optimizers().param_groups
    return {names[id(parameter)]: group["lr_scale"] for group in groups for parameter in group["params"]}


# -- learning rates of layers


@pytest.mark.parametrize(
    ("family", "depths"),
    [
        (
            "swin",  # blocks: one in the first stage, two in the second
            {
                "backbone.patch_embed.proj.weight": 4,
                "backbone.layers.0.blocks.0.mlp.fc1.weight": 3,
                "backbone.layers.1.downsample.reduction.weight": 2,
                "backbone.layers.1.blocks.0.attn.relative_position_bias_table": 2,
                "backbone.layers.1.blocks.1.norm2.bias": 1,
                "backbone.norm.weight": 1,
            },
        ),
        (
            "cvt",
            {
                "backbone.stages.0.embed.proj.weight": 3,
                "backbone.stages.0.blocks.0.attn.bn.weight": 2,
                "backbone.stages.1.embed.norm.bias": 1,
                "backbone.stages.1.blocks.0.mlp.fc2.weight": 1,
                "backbone.norm.weight": 1,
            },
        ),
        (
            "vil",
            {
                "backbone.layer1.0.cls_token": 3,
                "backbone.layer1.1.attn.query.weight": 2,
                "backbone.layer1.2.mlp.fc1.weight": 2,
                "backbone.layer2.0.proj.weight": 1,
                "backbone.layer2.2.norm.weight": 1,
                "backbone.norm.weight": 1,
            },
        ),
        (
            "vit",
            {
                "backbone.model.pos_embed": 4,
                "backbone.model.cls_token": 4,
                "backbone.model.blocks.0.attn.qkv.weight": 3,
                "backbone.model.blocks.2.mlp.fc2.bias": 1,
                "backbone.model.norm.weight": 1,
            },
        ),
        ("deit", {"backbone.model.dist_token": 4, "backbone.model.blocks.1.norm1.weight": 2}),
        ("resnet", {"backbone.model.conv1.weight": 9, "backbone.model.layer4.1.conv2.weight": 1}),
        ("convnext", {"backbone.model.stem.0.weight": 5, "backbone.model.stages.3.downsample.1.weight": 1}),
    ],
)
def test_a_layers_rate_is_the_decay_to_the_power_of_its_distance_from_the_classifier(family, depths):
    found = rates(finetuning(FAMILIES[family], layer_decay=0.5))
    assert {name: found[name] for name in depths} == {name: 0.5**depth for name, depth in depths.items()}
    assert found["heads.classifier.weight"] == found["heads.classifier.bias"] == 1.0


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_that_learns_has_a_rate_and_none_is_skipped_on_the_way(family):
    module = finetuning(FAMILIES[family], layer_decay=0.5)
    found = rates(module)
    assert set(found) == {name for name, parameter in module.student.named_parameters() if parameter.requires_grad}
    powers = sorted(set(found.values()), reverse=True)
    assert powers == [0.5**power for power in range(len(powers))]


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"])
def test_rates_are_those_that_timm_gives_its_own_model(name):
    theirs = timm.create_model(name, num_classes=3)
    groups = timm.optim.param_groups_layer_decay(theirs, layer_decay=0.8)
    names = {id(parameter): key for key, parameter in theirs.named_parameters()}
    wanted = {names[id(parameter)]: group["lr_scale"] for group in groups for parameter in group["params"]}
    ours = {"name": "swin"} if name.startswith("swin") else {"name": name}
    found = rates(finetuning(ours, layer_decay=0.8))
    found = {key.removeprefix("backbone.").removeprefix("model."): value for key, value in found.items()}
    heads = {key for key in {*wanted} ^ {*found} if key.startswith("head")}
    assert {*wanted} ^ {*found} == heads
    assert {key: found[key] for key in found if key not in heads} == {
        key: wanted[key] for key in wanted if key not in heads
    }


def test_without_a_decay_all_learn_alike_and_a_family_that_knows_no_layers_can():
    assert set(rates(finetuning(layer_decay=1.0)).values()) == {1.0}
    poolformer = {"name": "poolformerv2_s12", "img_size": 64}
    assert set(rates(finetuning(poolformer, layer_decay=1.0)).values()) == {1.0}
    with pytest.raises(NotImplementedError, match=r"does not say how deep its parameters lie .*layer_decay=1"):
        rates(finetuning(poolformer))


def test_positions_tokens_and_vectors_do_not_decay():
    module = finetuning(FAMILIES["vil"], weight_decay=0.1)
    names = {id(parameter): name for name, parameter in module.student.named_parameters()}
    groups = module.configure_optimizers().param_groups
    decays = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    for name, parameter in module.student.named_parameters():
        free = parameter.ndim == 1 or "position" in name or "token" in name
        assert decays[name] == (0.0 if free else 0.1), name


# -- training


def test_trains_as_the_recipe_written_out_by_hand(tmp_path) -> None:
    """AdamW, half a cosine after a warm-up, a rate for each layer, smoothed labels."""
    options = {"lr": 0.16, "lr_end": 0.001, "warmup_epochs": 1, "weight_decay": 0.1, "layer_decay": 0.5}
    module = finetuning(drop_path_rate=0.0, **{**PLAIN, "smoothing": 0.2}, **options)
    student, data = copy.deepcopy(module.student), Data()
    scales, step = rates(module), 0
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in student.named_parameters()}
    for _ in range(3):
        for rows in torch.arange(32).split(BATCH):
            peak = 0.16 * BATCH / 256
            lr = peak * step / 3 if step < 4 else 0.001 + (peak - 0.001) * (1 + math.cos(math.pi * (step - 4) / 8)) / 2
            step += 1
            loss = F.cross_entropy(student(data.images[rows]), data.labels[rows], label_smoothing=0.2)
            names = [name for name, _ in student.named_parameters()]
            for name, grad in zip(names, torch.autograd.grad(loss, [*student.parameters()]), strict=True):
                parameter, (mean, square) = student.get_parameter(name), moments[name]
                decays = parameter.ndim > 1 and "position" not in name
                parameter.data.mul_(1 - lr * scales[name] * 0.1 * decays)
                mean.lerp_(grad, 0.1)
                square.mul_(0.999).addcmul_(grad, grad, value=0.001)
                root = (square / (1 - 0.999**step)).sqrt() + 1e-8
                parameter.data.sub_(lr * scales[name] * mean / (1 - 0.9**step) / root)
    trainer = fit(module, tmp_path)
    right = (student.eval()(data.images[32:]).argmax(1) == data.labels[32:]).float().mean().item()
    assert right > 0.6
    assert trainer.callback_metrics["finetune/top1"].item() == pytest.approx(right)
    assert trainer.callback_metrics["finetune/top5"].item() == 1.0
    for (name, mine), theirs in zip(module.student.named_parameters(), student.parameters(), strict=True):
        if "qkv.bias" not in name:  # whose true gradient is 0 for keys, which Adam magnifies
            torch.testing.assert_close(mine, theirs, atol=2e-4, rtol=1e-3)


def test_mixing_is_timms(monkeypatch) -> None:
    """The pairs, the shares and the boxes; and of an odd number the last image stays as it is."""
    import numpy as np

    module = finetuning(erase=0.0)
    images, labels = torch.randn(7, 3, 32, 32), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    for seed in range(4):
        np.random.seed(seed)  # noqa: NPY002, timm's mixup draws from it
        mixed, targets = module.mixed(images, labels)
        np.random.seed(seed)  # noqa: NPY002
        wanted = Mixup(0.8, 1.0, label_smoothing=0.1, num_classes=3)(images[:6].clone(), labels[:6])
        torch.testing.assert_close(mixed[:6], wanted[0])
        torch.testing.assert_close(targets[:6], wanted[1])
        torch.testing.assert_close(mixed[6], images[6])
        torch.testing.assert_close(targets[6], torch.tensor([0.9, 0.0, 0.0]) + 0.1 / 3)


def test_erasing_replaces_rectangles_by_noise() -> None:
    module = finetuning(**{**PLAIN, "erase": 1.0})
    images = torch.full((16, 3, 32, 32), 7.0)
    erased = (module.mixed(images, torch.zeros(16, dtype=torch.long))[0] != 7).all(1)
    assert ((erased.sum((1, 2)) >= 15) & (erased.sum((1, 2)) <= 350)).all()  # 2 to 33 % of the image
    assert (erased.any(2).sum(1) * erased.any(1).sum(1) == erased.sum((1, 2))).all()  # rectangles
    assert (images == 7).all()


def test_images_without_a_label_are_left_out(tmp_path) -> None:
    data = Data(unlabelled=12)  # the first batch, and half of the second one
    images, labels = data.images[8:16], data.labels[8:16]
    module = finetuning(drop_path_rate=0.0, **PLAIN)
    wanted = F.cross_entropy(module(images[4:]), labels[4:]).item()
    trainer = fit(module, tmp_path / "one", epochs=1, data=data, limit_train_batches=1)
    assert trainer.callback_metrics["finetune/train_loss"] == 0
    fresh = finetuning(drop_path_rate=0.0, **PLAIN)
    data.images[:8], data.labels[:8] = images, labels
    trainer = fit(fresh, tmp_path / "two", epochs=1, data=data, limit_train_batches=1)
    assert trainer.callback_metrics["finetune/train_loss"].item() == pytest.approx(wanted)
    _, targets = finetuning(erase=0.0).mixed(images, labels)
    assert not targets.any()  # each labelled image is mixed with one without a label


def test_validation_counts_images_with_labels_alone(tmp_path) -> None:
    data, module = Data(), finetuning(**PLAIN)
    data.labels[40:] = -1
    fit(module, tmp_path, epochs=1, data=data)
    right = (module.student.eval()(data.images[32:40]).argmax(1) == data.labels[32:40]).float().mean()
    assert module.trainer.callback_metrics["finetune/top1"] == pytest.approx(right.item())


def test_stochastic_depth_is_the_backbones_or_the_one_asked_for() -> None:
    assert finetuning().student.backbone.spec["drop_path_rate"] == 0.2
    module = finetuning(drop_path_rate=0.4)
    assert module.student.backbone.spec["drop_path_rate"] == 0.4
    assert module.student.backbone.layers[1].blocks[0].drop_path1.drop_prob == pytest.approx(0.4)
    with pytest.raises(ValueError, match="resnet18 has no stochastic depth|drop_path"):
        finetuning({"name": "vgg11_bn", "img_size": 64}, drop_path_rate=0.1)


# -- the average of the weights


@pytest.mark.parametrize("family", ["swin", "cvt"])
def test_the_average_follows_parameters_and_statistics_and_keeps_whole_numbers(family, tmp_path) -> None:
    """An average over buffers would turn Swin's index of relative positions into zeros, without an error."""
    module = finetuning(FAMILIES[family], ema_decay=0.75, **PLAIN)
    states: list[dict[str, Tensor]] = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            states.append(toys.state(pl_module.student))

    trainer = fit(module, tmp_path, epochs=1, callbacks=[Watch()])
    average = states[0]
    for step, state in enumerate(states[1:], start=2):
        decay = min(1 - step ** -(2 / 3), 0.75)  # the average of few steps is a short one
        average = {
            name: torch.lerp(value, state[name], 1 - decay) if value.is_floating_point() else state[name]
            for name, value in average.items()
        }
    for name, value in module.teacher.state_dict().items():
        torch.testing.assert_close(value, average[name], msg=name)
    if family == "swin":
        assert module.teacher.get_buffer("backbone.layers.0.blocks.0.attn.relative_position_index").any()
    right = (module.teacher.eval()(Data().images[32:]).argmax(1) == Data().labels[32:]).float().mean()
    assert trainer.callback_metrics["finetune/ema_top1"] == pytest.approx(right.item())
    assert not any(parameter.requires_grad for parameter in module.teacher.parameters())


# -- checkpoints


def test_resumes_to_the_last_bit(tmp_path) -> None:
    options = {"ema_decay": 0.9, "drop_path_rate": 0.3}
    whole = finetuning(**options)
    fit(whole, tmp_path / "whole")
    path = tmp_path / "second_epoch.ckpt"
    fit(finetuning(**options), tmp_path / "part", callbacks=[SaveSecondEpoch(path)])
    resumed = finetuning(**options)
    fit(resumed, tmp_path / "resumed", ckpt_path=path)
    assert toys.largest_difference(toys.state(resumed), toys.state(whole)) == 0
    with pytest.raises(ValueError, match="other settings; lr: checkpoint 0.05, now 0.1"):
        fit(finetuning(**options, lr=0.1), tmp_path / "other", ckpt_path=path)
    with pytest.raises(ValueError, match="drop_path_rate: checkpoint 0.3, now 0.2"):
        fit(finetuning(ema_decay=0.9), tmp_path / "other", ckpt_path=path)


def test_a_checkpoint_gives_backbone_and_classifier_of_average_and_student(tmp_path) -> None:
    module = finetuning(ema_decay=0.9)
    trainer = fit(module, tmp_path, epochs=1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    images = torch.randn(2, 3, 32, 32)
    for network, part in (("encoder", module.teacher), ("student", module.student)):
        part.eval()
        torch.testing.assert_close(
            load_backbone(tmp_path / "last.ckpt", network=network)(images).pooled, part.backbone(images).pooled
        )
        classifier = load_classifier(tmp_path / "last.ckpt", network=network)
        torch.testing.assert_close(classifier(images), part(images))
        assert not classifier.training
    assert module.encoder is module.teacher.backbone
    torch.save(toys.backbone().state_dict(), tmp_path / "bare.pth")
    with pytest.raises(ValueError, match="holds no classifier, which checkpoints of esvit-finetune do"):
        load_classifier(tmp_path / "bare.pth")


def test_the_backbone_that_is_given_stays_as_it_is(tmp_path) -> None:
    backbone = toys.backbone().eval().requires_grad_(False)
    backbone.learn_mask()
    before = toys.state(backbone)
    module = FineTuning(backbone, 3, lr=0.05)
    assert "mask_vector" not in module.student.backbone.state_dict()
    fit(module, tmp_path, epochs=1)
    assert toys.largest_difference(toys.state(backbone), before) == 0
    assert module.student.backbone.training
    assert all(parameter.requires_grad for parameter in module.student.parameters())


def test_what_no_feature_of_a_timm_model_depends_on_stays_frozen() -> None:
    copied = trainable(build("efficientnet_b0", img_size=64).requires_grad_(False))
    frozen = {name for name, parameter in copied.named_parameters() if not parameter.requires_grad}
    assert frozen == {f"model.{name}" for name in copied.traits.unused}
    assert frozen


# -- several processes, and precision


@pytest.mark.slow
def test_two_processes_train_like_one_with_the_double_batch(tmp_path) -> None:
    module = finetuning(ema_decay=0.9, drop_path_rate=0.0, **PLAIN)
    trainer = fit(module, tmp_path, epochs=1, strategy="ddp_spawn", devices=2, precision="64-true", data=RankData())
    alone = finetuning(ema_decay=0.9, drop_path_rate=0.0, **PLAIN)
    fit(alone, tmp_path, epochs=1, precision="64-true", accumulate_grad_batches=2, data=RankData())
    assert trainer.callback_metrics["finetune/top1"] >= 0
    assert toys.largest_difference(toys.state(module), toys.state(alone)) < 1e-6


class RankData(Data):
    """Batch 2 i + r of the list is the i-th one of rank r."""

    def train_dataloader(self) -> DataLoader:
        rows = [{"image": x.double(), "label": y} for x, y in zip(self.images[:32], self.labels[:32], strict=True)]
        return DataLoader(rows, batch_sampler=toys.RankSlices(32, BATCH))

    def val_dataloader(self) -> DataLoader:
        rows = [{"image": x.double(), "label": y} for x, y in zip(self.images[32:], self.labels[32:], strict=True)]
        return DataLoader(rows, batch_sampler=toys.RankSlices(12, 2))


def test_mixed_precision(tmp_path) -> None:
    trainer = fit(finetuning(ema_decay=0.9), tmp_path, epochs=2, precision="bf16-mixed")
    assert math.isfinite(trainer.callback_metrics["finetune/train_loss"])


def test_a_loss_that_is_not_finite_ends_the_training_before_anything_is_saved(tmp_path) -> None:
    data, module = Data(), finetuning(**PLAIN)
    data.images[10] = math.nan
    path = tmp_path / "second_epoch.ckpt"
    with pytest.raises(
        NonFiniteLoss, match=r"not finite at optimizer step 1 .*\(resume_from=...\) with a lower module.lr"
    ):
        fit(module, tmp_path, data=data, callbacks=[SaveSecondEpoch(path)])
    assert not path.exists()


def test_bad_input(tmp_path) -> None:
    with pytest.raises(ValueError, match="num_classes of 2 or more, got None; it learns from labels"):
        FineTuning(toys.backbone(), None)
    with pytest.raises(ValueError, match=r"needs layer_decay in \[0, 1\], got 1.5"):
        finetuning(layer_decay=1.5)
    with pytest.raises(ValueError, match="needs mixup of 0 or more, got -1"):
        finetuning(mixup=-1)
    with pytest.raises(ValueError, match="needs trainer.max_epochs, got -1"):
        fit(finetuning(), tmp_path, epochs=-1, max_steps=3)
    with pytest.raises(ValueError, match="module.warmup_epochs=5 is longer than training"):
        fit(finetuning(warmup_epochs=5), tmp_path)
    with pytest.raises(ValueError, match="has num_classes=4, and the data have 3 classes"):
        fit(FineTuning(toys.backbone(), 4), tmp_path)
    with pytest.raises(ValueError, match="fine-tuning needs labels, and the batch has none"):
        finetuning().labelled(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="does not come from esvit-finetune"):
        finetuning().on_load_checkpoint({"state_dict": {}})
    assert isinstance(finetuning().student, Classifier)
