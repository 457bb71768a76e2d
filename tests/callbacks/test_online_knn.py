from __future__ import annotations

from typing import Any

import foreign
import golden_files
import pytest
import pytorch_lightning as pl
import torch
import toys
from foreign import BANK, IMAGES, LABELS, QUERY, fit, loader
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from esvit_pl.callbacks import OnlineKNN
from esvit_pl.metrics import knn_accuracy
from esvit_pl.printing import say_once

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*deprecated"),  # Lightning 2.6 on torch 2.14
    pytest.mark.filterwarnings("ignore:Found 1 module.* in eval mode"),
]


def module() -> Any:
    return foreign.make(foreign.Scalar)


def measure(**options) -> OnlineKNN:
    # Shuffling bank and query draws from torch's generator, once for each of them and each epoch.
    loaders = {"bank": loader(BANK, shuffle=True), "query": loader(QUERY, shuffle=True)}
    return OnlineKNN(**{"features": "net.trunk", **loaders, "k": 5, **options})


def test_a_bank_smaller_than_k_votes_as_a_whole(tmp_path, capsys) -> None:
    say_once.cache_clear()
    all_vote, more = measure(k=15), measure(k=16)
    for callback in (all_vote, more):
        fit(module(), tmp_path, callback, max_epochs=2)
    assert more.last == all_vote.last
    assert capsys.readouterr().out.count("k-NN: k=16 is more than the 15 images of the bank, so all 15 vote\n") == 1


class Golden(foreign.Scalar):
    """Its feature is the image itself."""

    def identity(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.golden
@pytest.mark.parametrize("path", golden_files.paths("knn"), ids=lambda path: path.stem)
def test_golden_accuracies(tmp_path, path) -> None:
    golden = golden_files.read(path)
    wanted = {int(k): pair for k, pair in golden.settings["top1_top5"].items()}
    tensors, k = golden.tensors, list(wanted)
    bank, query = (
        DataLoader(TensorDataset(tensors[f"{part}_features"], tensors[f"{part}_labels"]), batch_size=50, shuffle=True)
        for part in ("train", "test")
    )
    callback = OnlineKNN("identity", bank, query, k=k, temperature=golden.settings["temperature"])
    fit(foreign.make(Golden), tmp_path, callback, max_epochs=1)
    names = {f"knn/k{n}" if n != k[0] else "knn": pair for n, pair in wanted.items()}
    assert callback.last == {
        f"{name}/top{top}": pytest.approx(value / 100, rel=0, abs=1e-11)
        for name, pair in names.items()
        for top, value in zip((1, 5), pair, strict=True)
    }


def test_logs_what_the_pure_function_says_of_the_eval_features(tmp_path) -> None:
    network = module()
    trainer = fit(network, tmp_path, measure(k=[5, 2]))
    with torch.no_grad():
        features = network.net["trunk"].eval()(IMAGES)
    expected = knn_accuracy(features[BANK], LABELS[BANK], features[QUERY], LABELS[QUERY], k=[5, 2])
    assert expected[5].top1 < 1
    got = {name: value.item() for name, value in trainer.callback_metrics.items()}
    assert got["knn/top1"] == pytest.approx(expected[5].top1)
    assert got["knn/k2/top1"] == pytest.approx(expected[2].top1)
    assert got["knn/top5"] == 1


def test_names_loaders_dicts_functions_and_several_features(tmp_path) -> None:
    network = module()
    callback = OnlineKNN(
        {"raw": lambda x: x, "trunk": "net.trunk"}, bank="train", query="odd", k=3, prefix="mine", unpack=foreign.unpack
    )
    fit(network, tmp_path, callback)
    raw = knn_accuracy(IMAGES[BANK], LABELS[BANK], IMAGES[QUERY], LABELS[QUERY], k=3)[3]
    assert callback.last["mine/top1"] == raw.top1
    assert list(callback.last) == ["mine/top1", "mine/top5", "mine/trunk/k3/top1", "mine/trunk/k3/top5"]


def test_every_other_epoch_and_the_last(tmp_path) -> None:
    measured: list[int] = []

    class Watch(pl.Callback):
        def on_train_epoch_end(self, trainer, module) -> None:
            if callback.last:
                measured.append(trainer.current_epoch)
                callback.last = {}

    callback = measure(every_n_epochs=2)
    fit(module(), tmp_path, callback, Watch(), max_epochs=5)
    assert measured == [1, 3, 4]


def test_can_be_monitored_and_keeps_its_state_to_itself(tmp_path) -> None:
    saver = ModelCheckpoint(tmp_path, filename="best", monitor="knn/top1", mode="max")
    network = module()
    callbacks = (measure(), measure(prefix="second"), saver)
    fit(network, tmp_path, *callbacks, enable_checkpointing=True)
    checkpoint = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert checkpoint["callbacks"]["OnlineKNN[knn]"]["last"]["knn/top1"] == pytest.approx(saver.best_model_score.item())
    assert set(checkpoint["state_dict"]) == set(module().state_dict())
    again = measure()
    again.load_state_dict(checkpoint["callbacks"]["OnlineKNN[knn]"])
    assert again.last == checkpoint["callbacks"]["OnlineKNN[knn]"]["last"]


def test_in_float64_and_in_bfloat16(tmp_path) -> None:
    for precision in ("64-true", "bf16-mixed"):
        callback = measure()
        fit(module(), tmp_path, callback, max_epochs=1, precision=precision)
        assert 0 < callback.last["knn/top1"] <= 1


def test_the_pretrainer_needs_no_argument_but_loaders(tmp_path) -> None:
    images = torch.randn(30, 3, 16, 16)
    rows = [{"image": x, "label": i % 3, "index": i} for i, x in enumerate(images)]
    callback = OnlineKNN(bank=DataLoader(rows, batch_size=8), query=DataLoader(rows, batch_size=8), k=1)
    pretrainer = toys.pretrainer()
    trainer = toys.trainer(tmp_path, callbacks=[callback], max_epochs=1)
    trainer.fit(pretrainer, toys.loader(16, 8))
    assert callback.last["knn/top1"] == 1.0  # every image finds itself


@pytest.mark.parametrize("views", [1, 2])
def test_loaders_and_pairs_of_views_that_fit_was_given(views, tmp_path) -> None:
    images = torch.randn(12, 3, 16, 16)
    rows = [(x if views == 1 else (x, -x), i % 3) for i, x in enumerate(images)]
    callback = OnlineKNN(torch.nn.Flatten(), "train", "val", k=1)

    class Theirs(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3 * 16 * 16, 1)

        def training_step(self, batch, batch_idx):
            seen = batch[0] if views == 1 else batch[0][0]
            return self.layer(seen.flatten(1)).mean()

        validation_step = training_step

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = toys.trainer(tmp_path, callbacks=[callback], max_epochs=1)
    trainer.fit(Theirs(), DataLoader(rows, batch_size=4), DataLoader(rows, batch_size=4))
    assert callback.last["knn/top1"] == 1.0  # every image finds itself


def test_errors_before_training_say_what_was_found(tmp_path) -> None:
    with pytest.raises(ValueError, match="features='net.body', and Scalar.net has no attribute 'body'; it has trunk"):
        fit(module(), tmp_path, measure(features="net.body"))
    with pytest.raises(ValueError, match=r"looks for bank_dataloader\(\) in Scalar, and found odd_dataloader, "):
        fit(module(), tmp_path, measure(bank="bank"))
    with pytest.raises(ValueError, match="found list, which cannot be called"):
        fit(module(), tmp_path, measure(features="modes"))
    with pytest.raises(ValueError, match="batches of the query have none; give unpack="):
        fit(module(), tmp_path, measure(query=DataLoader(IMAGES[QUERY], batch_size=4)))
    with pytest.raises(ValueError, match="every_n_epochs of 1 or more, got 0"):
        OnlineKNN(every_n_epochs=0)
    with pytest.raises(ValueError, match="one feature or more, got an empty dict"):
        OnlineKNN({})


def test_data_without_labels_are_refused_in_setup(tmp_path) -> None:
    class Unlabelled(pl.LightningDataModule):
        has_labels = False

        def bank_dataloader(self) -> DataLoader:
            raise AssertionError("nothing is loaded")

        train_dataloader = query_dataloader = bank_dataloader

    trainer = toys.trainer(tmp_path, callbacks=[OnlineKNN("net.trunk")])
    with pytest.raises(ValueError, match="OnlineKNN needs labels, and the data of Unlabelled have none"):
        trainer.fit(module(), Unlabelled())
