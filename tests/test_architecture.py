"""The house keeps its floors: a file imports from its own floor or the floors below, never from above.

Read from the source with ``ast``, so that an import inside a function counts too. A file whose room is not listed
fails.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

SRC = Path(__file__).parents[1] / "src" / "esvit_pl"
FLOORS = [
    # ground: tensors
    [
        "distributed",
        "fingerprint",
        "isolation",
        "schedules",
        "compiling",
        "ema",
        "optim",
        "heads",
        "seeding",
        "precision",
        "printing",
        "safe_text",
        "secret_values",
        "specs",
        "whole",
        "late",
        "signals",
        "backbones",
        "losses",
        "augment",
        "datasets",
        "metrics",
        "metrics_file",
    ],
    # first: parts put together
    ["network", "objectives", "pretraining", "evaluation", "visualize", "profiling", "checkpoints"],
    # second: Lightning
    ["data", "loggers", "saving", "ranks", "callbacks", "modules"],
    # roof: Hydra and the command line
    ["runs", "configs", "commands", "api"],
]
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
ROOF = set(FLOORS[-1])
GROUND_AND_FIRST = {*FLOORS[0], *FLOORS[1]}
LIGHTNING = {"lightning", "lightning_fabric", "lightning_utilities", "pytorch_lightning"}
# Libraries for one purpose -> the only files or folders that may import them.
ONLY_IN = {
    "matplotlib": {"visualize/figures/"},
    "wandb": {"loggers.py"},
    "tensorboard": {"loggers.py"},
    "skimage": {"datasets/photographs.py"},
    "sklearn": {"datasets/photographs.py"},
}
NO_FIRST_LINE = {"utils", "util", "helpers", "helper", "common", "misc", "tools", "shared", "base"}

FILES = sorted(path for path in SRC.rglob("*.py") if path != SRC / "__init__.py")


def name_of(path: Path) -> str:
    return path.relative_to(SRC).as_posix()


def room_of(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all imports; ``from esvit_pl import x`` counts as ``esvit_pl.x``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module == "esvit_pl":
                yield from (f"esvit_pl.{alias.name}" for alias in node.names)
            else:
                yield str(node.module)


def libraries(tree: ast.AST) -> set[str]:
    return {name.partition(".")[0] for name in imports(tree)}


def rooms(tree: ast.AST) -> set[str]:
    return {name.split(".")[1] for name in imports(tree) if name.startswith("esvit_pl.")}


def full_imports(tree: ast.AST) -> Iterator[str]:
    """The imported things themselves: ``import a.b`` gives ``a.b``, ``from a.b import c`` gives ``a.b.c``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """(last part of the called name, call)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute):
                yield node.func.attr, node
            elif isinstance(node.func, ast.Name):
                yield node.func.id, node


def users_of(function: str) -> set[str]:
    return {name_of(path) for path in FILES if function in {called for called, _ in calls(tree_of(path))}}


def test_every_file_has_a_room_and_imports_from_its_floor_or_below():
    homeless = [name_of(path) for path in FILES if room_of(path) not in FLOOR]
    assert not homeless, "stand on no floor: give the room one in this test, and a line in the house's map"
    above = [
        f"{name_of(path)} imports {other}"
        for path in FILES
        for other in rooms(tree_of(path))
        if FLOOR.get(other, -1) > FLOOR[room_of(path)]
    ]
    assert not above


def test_the_front_door_is_for_guests():
    by_the_door = [
        f"{name_of(path)} imports {name}"
        for path in FILES
        for name in imports(tree_of(path))
        if name.partition(".")[0] == "esvit_pl" and name.split(".")[1:2] != ["__version__"]
        if name == "esvit_pl" or name.split(".")[1] not in FLOOR
    ]
    assert not by_the_door


def test_lightning_and_hydra_stay_upstairs():
    below = [
        f"{name_of(path)} imports {library}"
        for path in FILES
        for library in libraries(tree_of(path))
        if (library in LIGHTNING and room_of(path) in GROUND_AND_FIRST)
        or (library == "omegaconf" and room_of(path) not in ROOF)
        or (library == "hydra" and room_of(path) != "configs")
    ]
    assert not below


def test_libraries_for_one_purpose_are_known_in_one_place():
    elsewhere = [
        f"{name_of(path)} imports {library}"
        for path in FILES
        for library in libraries(tree_of(path)) & set(ONLY_IN)
        if not name_of(path).startswith(tuple(ONLY_IN[library]))
    ]
    assert not elsewhere


def test_only_one_file_talks_to_other_processes():
    """So that what is sent can be counted (tests/test_many_processes.py) and stays what it is."""
    importers = {name_of(path) for path in FILES if any("torch.distributed" in name for name in imports(tree_of(path)))}
    assert importers == {"distributed.py"}
    for collective in ("all_reduce", "all_gather", "broadcast", "barrier"):
        assert users_of(collective) <= {"distributed.py"}


def test_no_two_rooms_import_each_other():
    """Nor do three in a circle. An import for type checkers alone counts too."""
    below: dict[str, set[str]] = {}
    for path in FILES:
        below.setdefault(room_of(path), set()).update(rooms(tree_of(path)) - {room_of(path)})
    try:
        TopologicalSorter(below).prepare()
    except CycleError as error:
        raise AssertionError(f"rooms import each other: {' <- '.join(error.args[1])}") from None


def test_callbacks_and_modules_do_not_know_each_other():
    pair = {"callbacks", "modules"}
    files = [path for path in FILES if room_of(path) in pair]
    assert not [name_of(path) for path in files if (pair - {room_of(path)}) & rooms(tree_of(path))]


def test_only_one_file_instantiates_and_only_one_asks_it_to():
    assert users_of("instantiate") <= {"configs/instantiation.py"}
    ask = {"esvit_pl.configs.instantiation", "esvit_pl.configs.instantiation.build"}
    assert {name_of(path) for path in FILES if ask & set(full_imports(tree_of(path)))} <= {"configs/assemble.py"}


def test_files_are_named_after_nouns():
    assert not [name_of(path) for path in FILES if path.stem in NO_FIRST_LINE]


def test_loading_never_runs_code():
    """``torch.load`` and Lightning's own loading say ``weights_only=True``; nothing is unpickled."""
    pickles = {"pickle", "dill", "cloudpickle", "joblib"}
    asks = "configs/main_guard.py"  # whether the data can be pickled; it loads nothing
    users = [path for path in FILES if libraries(tree_of(path)) & pickles]
    assert [name_of(path) for path in users] == [asks]
    assert not {"load", "loads", "Unpickler"} & {called for called, _ in calls(tree_of(users[0]))}
    careless = [
        f"{name_of(path)}:{call.lineno}"
        for path in FILES
        for called, call in calls(tree_of(path))
        if ast.unparse(call.func) == "torch.load" or called == "load_from_checkpoint"
        if "weights_only=True" not in [ast.unparse(keyword) for keyword in call.keywords]
    ]
    assert not careless


NETWORK = {"aiohttp", "ftplib", "http", "httpx", "requests", "smtplib", "socket", "urllib", "webbrowser", "xmlrpc"}
HUB = {"checkpoints/recognise.py": "snapshot_download", "commands/convert.py": "HfApi"}
"""Where a user's words (``hf-hub:USER/REPO``, ``push=``) reach the Hugging Face Hub."""


def test_no_text_becomes_code_and_nothing_asks_the_network_by_itself():
    running = {"eval", "exec", "compile", "__import__", "execfile"}
    texts = [
        f"{name_of(path)}:{call.lineno}"
        for path in FILES
        for _, call in calls(tree_of(path))
        if (isinstance(call.func, ast.Name) and call.func.id in running)
        or ast.unparse(call.func) in ("os.system", "os.popen", "torch.hub.load", "torch.hub.load_state_dict_from_url")
        or {"shell", "trust_remote_code"} & {str(keyword.arg) for keyword in call.keywords}
    ]
    assert not texts
    sources = {name_of(path): path.read_text(encoding="utf-8") for path in FILES}
    assert not [name for name, text in sources.items() if "trust_remote_code" in text]
    asking = {name_of(path) for path in FILES if libraries(tree_of(path)) & NETWORK}
    # For the machine's name; and a server, which asks nobody.
    assert asking == {"runs/lock.py", "commands/serving.py"}
    asking = {name_of(path) for path in FILES if "huggingface_hub" in libraries(tree_of(path))}
    assert asking == set(HUB)
    assert all(word in sources[name] for name, word in HUB.items())


def test_importing_a_file_changes_nothing():
    """At the top of a file nothing is set up for others: no log handlers, environment variables, seeds or resolvers."""
    doing = {"basicConfig", "addHandler", "setLevel", "putenv", "register_new_resolver", "register_resolver"}
    doing |= {"manual_seed", "seed_everything", "simplefilter", "filterwarnings", "set_num_threads"}
    busy = [
        f"{name_of(path)}:{node.lineno}"
        for path in FILES
        for node in tree_of(path).body
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        if {called for called, _ in calls(node)} & doing or ast.unparse(node).startswith("os.environ")
    ]
    assert not busy


def test_every_room_shows_its_public_names():
    for door in sorted(SRC.glob("*/__init__.py")):
        if door.parent.name not in ("commands", "configs", "runs"):
            assert "__all__" in door.read_text(encoding="utf-8"), f"{name_of(door)} has no __all__"


def test_the_map_has_a_line_for_every_room():
    lines = (SRC.parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8").splitlines()
    assert [room for room in FLOOR if not any(line.startswith(f"| `{room}` |") for line in lines)] == []


def test_the_rules_can_fail():
    """The readers of the source find what they look for, inside functions too."""
    tree = ast.parse(
        "def late():\n    from esvit_pl.configs import sweep\n    import hydra.utils\n    hydra.utils.instantiate(x)\n"
        "import pytorch_lightning as pl\nfrom esvit_pl import Pretrainer\n"
    )
    assert rooms(tree) == {"configs", "Pretrainer"}
    assert libraries(tree) == {"esvit_pl", "hydra", "pytorch_lightning"}
    assert "instantiate" in {called for called, _ in calls(tree)}
