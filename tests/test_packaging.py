"""The wheel holds everything: its commands run from any folder, without the checkout."""

from __future__ import annotations

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
import zipfile
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")
COMMANDS = re.findall(r"^(\S+) =", SETUP["options.entry_points"]["console_scripts"], re.MULTILINE)
# Distribution -> the name it is imported by, where the two differ.
IMPORTED_AS = {"hydra-core": "hydra", "pillow": "PIL", "scikit-image": "skimage", "scikit-learn": "sklearn"}
HEAVY = {"torch", "torchvision", "timm", "pytorch_lightning", "numpy", "PIL", "matplotlib"}


def distributions(lines: str) -> set[str]:
    names = (re.split(r"[<>=!\[ ;]", line.strip())[0] for line in lines.strip().splitlines())
    return {name for name in names if name and not name.startswith("#")}


def import_names(lines: str) -> set[str]:
    return {IMPORTED_AS.get(name, name.replace("-", "_")) for name in distributions(lines)}


CORE = import_names(SETUP["options"]["install_requires"])
# pytorch-lightning needs the first two, torch the last, timm the others.
PARTS_OF_CORE = {"lightning_fabric", "tqdm", "safetensors", "huggingface_hub", "yaml", "jinja2"}
WITH_TORCH = {"kernels.py": {"triton"}}  # comes with torch where there are GPUs; imported only where a kernel runs
EXTRAS = set().union(*(import_names(lines) for name, lines in SETUP["options.extras_require"].items() if name != "dev"))


# -- what setup.cfg says


def test_the_list_of_packages_is_complete():
    rooms = {path.parent for path in (ROOT / "src" / "esvit_pl").rglob("*.py")}
    there = {path.relative_to(ROOT / "src").as_posix().replace("/", ".") for path in rooms} | {"esvit_pl.conf"}
    assert set(SETUP["options"]["packages"].split()) == there
    assert not [str(path) for path in rooms if not (path / "__init__.py").is_file()]


def test_only_pythons_that_were_run_are_claimed():
    claimed = re.findall(r"Python :: (3\.\d+)$", SETUP["metadata"]["classifiers"], re.MULTILINE)
    readme = (ROOT / "README.md").read_text()
    assert claimed
    assert f"The tests were run with Python {', '.join(claimed)} on Linux" in readme


def test_ten_direct_dependencies_at_most():
    assert len(CORE) <= 10


def test_what_is_imported_is_declared():
    """At the top of a file only the core; inside a function an extra too (the function says which one it wants)."""
    undeclared = []
    for path in (ROOT / "src").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names = {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {str(node.module).partition(".")[0]}
            else:
                continue
            known = CORE | PARTS_OF_CORE | {"esvit_pl"} | (EXTRAS if node not in tree.body else set())
            known |= WITH_TORCH.get(path.name, set())
            undeclared += [f"{path.name}: {name}" for name in names - known - sys.stdlib_module_names]
    assert not undeclared


def test_nothing_is_declared_for_nothing():
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    unused = {name for name in CORE if not re.search(rf"^\s*(import|from) {name}\b", sources, re.MULTILINE)}
    assert not unused


def test_one_version_everywhere():
    version = re.search(r'^__version__ = "(.+)"', (ROOT / "src/esvit_pl/__init__.py").read_text(), re.MULTILINE)
    citation = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert version is not None
    assert citation is not None
    assert version[1] == citation[1]


# -- the floors of setup.cfg, and `make test-floors`, which runs these tests at them


FLOORS = [
    Requirement(line)
    for lines in (SETUP["options"]["install_requires"], *SETUP["options.extras_require"].values())
    for line in lines.strip().splitlines()
    if not line.startswith(("#", "esvit_pl["))
]


def floor(requirement: Requirement) -> str:
    (version,) = [part.version for part in requirement.specifier if part.operator == ">="]
    return version


def test_make_pins_every_dependency_at_its_floor(tmp_path):
    """With `:` in place of the make that would install and test, only the list of pins is left to do."""
    for name in ("Makefile", "setup.cfg"):
        shutil.copy(ROOT / name, tmp_path)
    environment = {**os.environ, "MAKEFLAGS": ""}
    subprocess.run(["make", "test-floors", "MAKE=:"], cwd=tmp_path, env=environment, check=True, timeout=60)
    pins = (tmp_path / ".venv-floors" / "floors.txt").read_text().splitlines()
    assert {"torch==2.10", "torchvision==0.25", "hydra-core==1.3.7"} < set(pins)
    assert pins == [f"{requirement.name}=={floor(requirement)}" for requirement in FLOORS]


@pytest.mark.skipif(not Path(sys.prefix, "floors.txt").is_file(), reason="not in the environment of make test-floors")
def test_what_runs_here_are_the_floors():
    """All but wandb: it needs an account, so no test runs it and `[dev]` does not bring it."""
    newer = []
    for requirement in FLOORS:
        if requirement.name != "wandb":
            version = metadata.version(requirement.name)
            if version not in SpecifierSet(f"=={floor(requirement)}"):
                newer.append(f"{requirement.name} {version}, not {floor(requirement)}")
    assert not newer


# -- requirements-locked.txt, which `make lock` writes and LOCKED=1 installs


LOCK = (ROOT / "requirements-locked.txt").read_text(encoding="utf-8")
LOCKED = {Requirement(line.partition(" \\")[0]): line for line in re.split(r"\n(?=\w)", LOCK)[1:]}
PYTHONS = ("3.11", "3.12", "3.13")


def locked_version(name: str, python: str) -> str | None:
    """The version that pip takes from the lock; None if it has none."""
    linux = {"sys_platform": "linux", "platform_machine": "x86_64", "platform_python_implementation": "CPython"}
    machine = {
        **linux,
        "implementation_name": "cpython",
        "python_version": python,
        "python_full_version": f"{python}.1",
    }
    taken = [
        each.specifier
        for each in LOCKED
        if canonicalize_name(each.name) == canonicalize_name(name)
        and (each.marker is None or each.marker.evaluate(machine))
    ]
    assert len(taken) < 2, f"{name} is locked twice for Python {python}"
    return str(taken[0]).removeprefix("==") if taken else None


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_has_one_version_of_every_dependency(python):
    wanted = [requirement for requirement in FLOORS if requirement.name != "wandb"]  # of no extra in [dev]
    versions = {requirement: locked_version(requirement.name, python) for requirement in wanted}
    wrong = [f"{each}: {version}" for each, version in versions.items() if version not in each.specifier]
    assert not wrong, "run `make lock`"


def test_the_lock_has_what_its_packages_need():
    """As far as they are installed here: pip refuses a lock that lacks a package."""
    python = "{}.{}".format(*sys.version_info)
    lacking = []
    for package in LOCKED:
        with suppress(metadata.PackageNotFoundError):
            if metadata.version(package.name) == locked_version(package.name, python):
                for needed in map(Requirement, metadata.requires(package.name) or ()):
                    wanted = needed.marker is None or needed.marker.evaluate({"extra": ""})
                    if wanted and locked_version(needed.name, python) is None:
                        lacking.append(f"{package.name} needs {needed}")
    assert not lacking


def test_every_locked_package_has_hashes_and_no_place():
    for package, lines in LOCKED.items():
        assert re.fullmatch(r"==[^=,*]+", str(package.specifier)), package
        assert package.url is None
        assert re.fullmatch(r"[^\n]+(\\\n    --hash=sha256:[0-9a-f]{64} ?)+\n?", lines), package
    assert len(LOCKED) > 150


def test_locked_installs_take_the_lock_alone():
    words = ["make", "-n", "install", "LOCKED=1", "VENV=none"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    installs = [line for line in done.splitlines() if " pip install " in line]
    assert ["--require-hashes --requirement requirements-locked.txt" in line for line in installs] == [True, False]
    assert "--no-deps --no-build-isolation --editable ." in installs[1]


# -- the wheel


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The wheel built from the sdist built from a copy of the checkout: no build/ is left there, and none is used."""
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    no_caches = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "conf", "benchmarks"):
        shutil.copytree(ROOT / name, source / name, ignore=no_caches)
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, source],
        check=True,
        capture_output=True,
        timeout=300,
    )
    (path,) = dist.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory):
    """Folder with the wheel's content; on PYTHONPATH it stands before the editable install."""
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel]
    subprocess.run(pip, check=True, capture_output=True, timeout=300)
    return target


@pytest.fixture
def shell(installed, tmp_path):
    """Run a bash line in an empty folder with the installed wheel's commands on PATH."""

    def run(line: str) -> subprocess.CompletedProcess[str]:
        path = f"{installed / 'bin'}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "PYTHONPATH": str(installed)}
        environment.pop("HYDRA_FULL_ERROR", None)
        return subprocess.run(
            ["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )

    return run


def test_the_wheel_holds_every_config_and_the_type_marker(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    configs = {
        f"esvit_pl/conf/{path.relative_to(ROOT / 'conf').as_posix()}" for path in (ROOT / "conf").rglob("*.yaml")
    }
    modules = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src" / "esvit_pl").rglob("*.py")}
    assert configs
    templates = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src" / "esvit_pl").rglob("*.jinja")}
    assert templates
    assert (
        configs | modules | templates | {"esvit_pl/py.typed", "esvit_pl/__init__.pyi", "esvit_pl/conf/__init__.py"}
        <= held
    )
    assert [name for name in held if name.endswith("licenses/LICENSE")]


def test_the_wheel_holds_nothing_beside_the_package(wheel):
    tops = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"esvit_pl"}


def test_the_commands_are_those_of_the_wheel(installed, shell):
    where = shell(f"{sys.executable} -c 'import esvit_pl.conf; print(esvit_pl.conf.__file__)'")
    assert Path(where.stdout.strip()).is_relative_to(installed)
    assert COMMANDS
    assert sorted(path.name for path in (installed / "bin").iterdir()) == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_loads_nothing_heavy_and_shows_examples(shell, command):
    code = (
        "import atexit, runpy, shutil, sys\n"
        "atexit.register(lambda: print('LOADED', *sys.modules))\n"
        f"sys.argv = [shutil.which('{command}'), '--help']\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    done = shell(f'{sys.executable} -c "{code}"')
    words, _, loaded = done.stdout.partition("LOADED ")
    assert done.returncode == 0, done.stderr
    assert words.startswith(f"{command}: ")
    assert f"For example:\n  {command} " in words
    without = ("table", "convert", "bench", "data", "visualize", "report", "embed", "evaluate", "neighbours")
    assert ("trainer: cpu, ddp" in words) == (command.removeprefix("esvit-") not in without)
    assert HEAVY & set(loaded.split()) == set()  # about a second; with torch and Lightning seven


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_composes_its_config_from_any_folder(shell, command):
    done = shell(f"{command} --cfg job")
    assert done.returncode == 0, done.stderr
    assert "log_dir: ${oc.env:ESVIT_LOG_DIR,logs}" in done.stdout


@pytest.mark.parametrize(
    ("choice", "plugin"),
    [
        ("hparams_search=optuna", "hydra_optuna_sweeper"),
        ("hydra/launcher=joblib", "hydra_joblib_launcher"),
        ("hydra/launcher=submitit_slurm", "hydra_submitit_launcher"),
    ],
)
def test_our_settings_of_a_sweep_are_known_to_the_plugin(shell, choice, plugin):
    """Also at its floor: the sweeps themselves are slow tests. Version 1.2 of Optuna's has no max_failure_rate."""
    pytest.importorskip(f"hydra_plugins.{plugin}")
    done = shell(f"esvit-pretrain {choice} --cfg hydra")
    assert done.returncode == 0, done.stderr
    assert f"_target_: hydra_plugins.{plugin}" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_what_it_needs(shell, tmp_path, command):
    done = shell(command)
    assert done.returncode == 1
    assert "For example:" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_names_the_near_match(shell, command):
    option, flag = shell(f"{command} trainer=gpuu"), shell(f"{command} --multirunn")
    assert (option.returncode, flag.returncode) == (1, 1)
    assert "did you mean trainer=gpu?" in option.stderr
    assert "did you mean --multirun?" in flag.stderr


def test_tab_completes_in_bash(shell):
    done = shell(
        'eval "$(esvit-pretrain -sc install=bash)"\n'
        'COMP_LINE="esvit-pretrain backbone=swin_t" COMP_POINT=30 COMP_CWORD=1\n'
        "hydra_bash_completion\n"
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    assert "backbone=swin_tiny_w7" in done.stdout.split(), done.stderr
