"""A stranger's config: code at every node of what Hydra reads, and the settings that must stay possible."""

from __future__ import annotations

import copy
import logging
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra._internal.callbacks import Callbacks
from hydra.core.plugins import Plugins
from hydra.core.utils import configure_log, env_override
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from esvit_pl.configs import instantiation
from esvit_pl.configs.checked_loader import CheckedLoader, checked_loader
from esvit_pl.configs.compose import compose
from esvit_pl.configs.config_space import hydra_of_our_own, version_base
from esvit_pl.configs.hydra_nodes import ENVIRONMENT, Refused, check_hydra, check_search_path

CHOICES = {
    "pretrain": ["experiment=embedded"],
    "knn": ["ckpt_path=a.ckpt"],
    "bench": [],
    "slurm": ["hydra/launcher=submitit_slurm"],
    "local": ["hydra/launcher=submitit_local", "hydra/job_logging=stdout"],
    "optuna": ["hparams_search=optuna", "hydra/launcher=joblib"],
}


@pytest.fixture(autouse=True)
def _trust_nothing_more(monkeypatch):
    monkeypatch.setattr(instantiation, "_allowed", [])
    for name in ("ESVIT_TRUSTED_TARGETS", "ESVIT_PLUGINS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def mark(tmp_path, monkeypatch):
    """Whether anything has imported the module `stranger`, which is there for whoever asks."""
    monkeypatch.setitem(sys.modules, "stranger", None)
    monkeypatch.delitem(sys.modules, "stranger")
    (tmp_path / "stranger.py").write_text("class Code:\n    def __init__(self, *args, **kwargs):\n        pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return lambda: "stranger" in sys.modules


@pytest.fixture
def quiet_logs():
    """Log handlers as they were."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:], root.level = handlers, level


def composed(choice: str) -> DictConfig:
    command = choice if choice in ("pretrain", "knn", "bench") else "pretrain"
    with hydra_of_our_own():
        config = hydra.compose(command, CHOICES[choice], return_hydra_config=True)
    OmegaConf.set_readonly(config, False)
    OmegaConf.set_struct(config, False)
    for name in list(config):
        if name not in ("hydra", "paths", "seed"):
            del config[name]  # copies are made faster without them
    return config


def as_hydra_does(config: DictConfig, folder: Path) -> None:
    """Everything that Hydra makes of its own nodes between the config and the job."""
    with open_dict(config.hydra):
        config.hydra.runtime.output_dir = str(folder)
        config.hydra.job.num, config.hydra.job.id = 0, "job_0"
        config.hydra.sweep.dir = str(folder)
    for node in (config.hydra.hydra_logging, config.hydra.job_logging):
        configure_log(node)
    Callbacks(config)
    for node in (config.hydra.launcher, config.hydra.sweeper):
        Plugins.instance()._instantiate(node)
    if space := OmegaConf.select(config, "hydra.sweeper.custom_search_space"):
        instantiate({"_target_": space, "_partial_": True})
    with env_override(config.hydra.job.env_set):
        pass


def nodes_of(tree: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Paths of every branch and every value."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(each for name, child in children for each in nodes_of(child, (*path, name)))]


CODE = {"_target_": "stranger.Code"}
SHAPES = {
    "a part": lambda old: {**(old if isinstance(old, dict) else {}), **CODE},
    "a part inside": lambda old: {**(old if isinstance(old, dict) else {}), "more": CODE},
    "a part in a list": lambda old: [CODE],
    "a log factory": lambda old: {**(old if isinstance(old, dict) else {}), "()": "stranger.Code"},
    "a log class": lambda old: {**(old if isinstance(old, dict) else {}), "class": "stranger.Code"},
    "an attribute of a log": lambda old: {**(old if isinstance(old, dict) else {}), ".": {"a": "ext://stranger.Code"}},
    "a name": lambda old: "stranger.Code",
    "a log reference": lambda old: "ext://stranger.Code",
    "an interpolation": lambda old: "${stranger_code}",
    "a part by another name": lambda old: {"_target_": "${stranger_name}"},
    "an interpolation that changes": lambda old: "${oc.select:hydra.runtime.output_dir,${stranger_code}}",
    "a default that is code": lambda old: "${oc.select:none.such,${stranger_code}}",
}


def with_code_at(config: DictConfig, path: tuple[str | int, ...], shape: str) -> DictConfig:
    config = copy.deepcopy(config)
    config.stranger_code, config.stranger_name = CODE, "stranger.Code"
    parent: Any = config
    for name in path[:-1]:
        parent = parent._get_node(name)
    old = parent._get_node(path[-1])
    raw = OmegaConf.to_container(old, resolve=False) if OmegaConf.is_config(old) else None
    parent[path[-1]] = SHAPES[shape](raw)
    return config


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of old plugins, and of logs that Hydra leaves half open
@pytest.mark.parametrize("choice", CHOICES)
def test_code_at_no_node_of_hydra_is_run(choice, mark, tmp_path, quiet_logs):
    """Every node in every shape: it is refused, or Hydra makes nothing of it."""
    config = composed(choice)
    tree = OmegaConf.to_container(config, resolve=False)
    refused: dict[str, int] = {}
    harmless = 0
    assert isinstance(tree, dict)
    for path in nodes_of(tree["hydra"], ("hydra",)):
        for shape in SHAPES:
            try:
                strange = with_code_at(config, path, shape)
            except Exception:  # Hydra's own schema takes no such value here
                continue
            try:
                check_hydra(strange)
            except Refused:
                refused[shape] = refused.get(shape, 0) + 1
            else:
                harmless += 1
                with suppress(Exception):  # a nonsensical setting
                    as_hydra_does(strange, tmp_path)
            assert not mark(), (path, shape)
    assert refused.keys() == SHAPES.keys()
    assert sum(refused.values()) > 100 and harmless > 100


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("callbacks.sweep_table", "a part"),
        ("callbacks.sweep_table", "an interpolation"),
        ("job_logging.handlers.console", "a log factory"),
        ("hydra_logging.handlers.console.stream", "a log reference"),
        ("sweeper.sampler._target_", "a name"),
        ("sweeper.custom_search_space", "a name"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of old plugins; as errors they would end the control early
def test_the_marker_works_without_the_check(key, shape, mark, tmp_path, quiet_logs):
    strange = with_code_at(composed("optuna"), ("hydra", *key.split(".")), shape)
    assert not mark()
    with suppress(Exception):  # the marker is no log handler
        as_hydra_does(strange, tmp_path)
    assert mark()


@pytest.mark.parametrize("choice", CHOICES)
def test_what_is_shipped_and_what_plugins_bring_is_not_refused(choice, tmp_path, quiet_logs):
    check_hydra(composed(choice))


@pytest.mark.parametrize(
    "words",
    [
        "hydra/launcher=joblib hydra.launcher.n_jobs=4 hydra.launcher.pre_dispatch=all",
        "hydra/launcher=submitit_slurm hydra.launcher.partition=gpu hydra.launcher.constraint='a100|h100' "
        "hydra.launcher.timeout_min=60 hydra.launcher.mem_gb=8 hydra.launcher.name=a_name",
        "hparams_search=optuna hydra.sweeper.storage=sqlite:///study.db hydra.sweeper.study_name=a",
        "hparams_search=optuna hydra.sweeper.sampler.seed=${seed} hydra.sweeper.n_jobs=2",
        "hydra.run.dir=logs/x hydra.output_subdir=null hydra.verbose=true",
        "hydra/job_logging=disabled hydra/hydra_logging=disabled",
        "+hydra.job.env_set.CUDA_VISIBLE_DEVICES='0' +hydra.job.env_set.NCCL_DEBUG=INFO",
        "hydra.job_logging.root.level=DEBUG hydra.job_logging.handlers.file.filename=${hydra.runtime.output_dir}/a.log",
        "+hydra.callbacks.log._target_=hydra.experimental.callbacks.LogJobReturnCallback",
    ],
)
def test_what_users_set_stays_possible(words):
    import shlex

    with hydra_of_our_own():
        hydra.compose("pretrain", shlex.split(words), return_hydra_config=True)


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["+hydra.job.env_set.LD_PRELOAD=a.so"], "hydra.job.env_set.LD_PRELOAD"),
        (["+hydra.job.env_set.PYTHONPATH=a"], "hydra.job.env_set.PYTHONPATH"),
        (["+hydra.job.env_set.NCCL_NET_PLUGIN=a.so"], "hydra.job.env_set.NCCL_NET_PLUGIN"),
        (["hydra.job.env_copy=[HOME]"], "hydra.job.env_set.HOME"),
        (["hydra/launcher=submitit_slurm", "hydra.launcher.setup=[touch x]"], "hydra.launcher.setup"),
        (["hydra/launcher=submitit_slurm", "+hydra.launcher.srun_args=[--bcast]"], "hydra.launcher.srun_args"),
        (
            ["hydra/launcher=submitit_slurm", "+hydra.launcher.additional_parameters.wrap=ls"],
            "hydra.launcher.additional",
        ),
        (["hydra/launcher=submitit_slurm", "hydra.launcher.comment='a\ntouch x'"], "hydra.launcher.comment"),
        (["hydra/launcher=submitit_local", "hydra.launcher.submitit_folder=/tmp"], "hydra.launcher.submitit_folder"),
        (["hydra/launcher=joblib", "hydra.launcher.pre_dispatch='exit()'"], "hydra.launcher.pre_dispatch"),
        (["hparams_search=optuna", "hydra.sweeper.custom_search_space=os.getcwd"], "hydra.sweeper.custom_search_space"),
        (["hparams_search=optuna", "hydra.sweeper.storage=mysql://a/b"], "hydra.sweeper.storage"),
        (["hydra.job_logging.handlers.file.filename=/tmp/.bashrc"], "hydra.job_logging.handlers.file.filename"),
        (
            ["hydra.job_logging.handlers.file.filename=${hydra.runtime.output_dir}/../a"],
            "hydra.job_logging.handlers.file",
        ),
        (["hydra.job_logging.handlers.console.stream=cfg://handlers"], "hydra.job_logging.handlers.console.stream"),
        (["hydra.job.name='../../a'"], "hydra.job.name"),
        (["hydra.output_subdir=../../a"], "hydra.output_subdir"),
        (["hydra.output_subdir=/tmp/a"], "hydra.output_subdir"),
        (["+hydra.callbacks.x._target_=hydra.experimental.callbacks.PickleJobInfoCallback"], "hydra.callbacks.x"),
        (["+hydra.callbacks.x._target_=logging.os.getcwd"], "hydra.callbacks.x"),
        (["hydra.searchpath=[pkg://antigravity]"], "hydra.searchpath"),
        (["hydra.searchpath=[s3://bucket]"], "hydra.searchpath"),
    ],
)
def test_what_runs_code_otherwise_is_refused_with_the_key(words, key):
    with hydra_of_our_own(), pytest.raises(Refused) as caught:
        hydra.compose("pretrain", words, return_hydra_config=True)
    assert str(caught.value).startswith(key)
    assert "ESVIT_" in str(caught.value)


def test_python_refuses_it_too():
    with pytest.raises(ValueError, match="hydra.callbacks.x._target_.*ESVIT_TRUSTED_TARGETS"):
        compose("pretrain", "+hydra.callbacks.x._target_=os.getcwd")


def test_the_environment_trusts_code_and_settings(monkeypatch, mark):
    words = ["+hydra.callbacks.x._target_=stranger.Code", "+hydra.job.env_set.LD_PRELOAD=a.so"]
    monkeypatch.setenv("ESVIT_TRUSTED_TARGETS", "stranger.,hydra.job.env_set.LD_PRELOAD")
    with hydra_of_our_own():
        hydra.compose("pretrain", words)
        with pytest.raises(Refused, match="only the shell sets"):
            hydra.compose("pretrain", ["+hydra.job.env_set.ESVIT_PLUGINS=a"])
        monkeypatch.setenv("ESVIT_TRUSTED_TARGETS", "hydra.")
        with pytest.raises(Refused, match="only the shell sets"):
            hydra.compose("pretrain", ["+hydra.job.env_set.ESVIT_TRUSTED_TARGETS=os."])
    check_search_path("pkg://hydra.anything")


def test_a_package_is_a_search_path_when_it_is_trusted(monkeypatch):
    for place in ("/a/folder", "file:///a/folder", "pkg://esvit_pl.conf", "pkg://esvit_pl/conf"):
        check_search_path(place)
    for place in ("pkg://theirs", "pkg://theirs.conf", "pkg://esvit_pl.confx"):
        with pytest.raises(Refused, match="imports? what a config names"):
            check_search_path(place)
    monkeypatch.setenv("ESVIT_PLUGINS", "theirs")
    check_search_path("pkg://theirs.conf")


def test_no_variable_of_the_list_names_code_or_a_file():
    words = ("PATH", "PRELOAD", "PLUGIN", "FILE", "ADDR", "URL", "HOME", "ESVIT", "STARTUP", "WARNINGS")
    assert not [name for name in ENVIRONMENT if any(word in name for word in words)]


def test_the_resolvers_are_those_that_only_read_settings_and_the_environment():
    """A resolver that calls something would be one more way in."""
    from omegaconf.basecontainer import BaseContainer

    known = {"oc.create", "oc.decode", "oc.deprecated", "oc.env", "oc.select", "oc.dict.keys", "oc.dict.values"}
    with hydra_of_our_own():
        assert set(BaseContainer._resolvers) - {"esvit_command"} == known | {"now", "hydra", "python_version"}


def test_every_loader_of_hydra_is_checked_while_the_context_is_open():
    from hydra._internal import hydra as internal

    before = internal.ConfigLoaderImpl
    with checked_loader(), hydra.initialize_config_module("esvit_pl.conf", **version_base()):
        from hydra.core.global_hydra import GlobalHydra

        assert isinstance(GlobalHydra.instance().hydra.config_loader, CheckedLoader)
    assert internal.ConfigLoaderImpl is before
