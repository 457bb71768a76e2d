from __future__ import annotations

import pytest

import esvit_pl
from esvit_pl.configs import processes as module
from esvit_pl.configs.processes import processes


@pytest.mark.parametrize(
    ("words", "number"),
    [
        (["trainer=cpu"], 1),
        (["trainer=ddp_cpu"], 2),
        (["trainer=ddp", "trainer.devices=8", "trainer.num_nodes=2"], 16),
        (["trainer.devices='0,1,3'"], 3),
        (["trainer.devices=[0,1]"], 2),
        (["trainer=cpu", "trainer.devices=auto"], 1),
    ],
    ids=str,
)
def test_processes(words, number):
    assert processes(esvit_pl.compose("pretrain", *words)) == number


def test_a_number_that_means_nothing_is_refused():
    with pytest.raises(ValueError, match="trainer.devices=-2 is not a number of devices; give 1 or more, or auto"):
        processes(esvit_pl.compose("pretrain", "trainer.devices=-2"))
    with pytest.raises(ValueError, match="trainer.devices=0 is not a number"):
        processes(esvit_pl.compose("pretrain", "trainer=cpu", "trainer.devices=0"))


def test_auto_is_what_the_machine_has(monkeypatch):
    monkeypatch.setattr(module, "_visible_gpus", lambda: 4)
    assert processes(esvit_pl.compose("pretrain", "trainer=ddp", "trainer.num_nodes=2")) == 8
    assert processes(esvit_pl.compose("pretrain", "trainer=ddp", "trainer.devices=-1")) == 4
