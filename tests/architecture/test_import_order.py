"""A module imports only from rooms before its own; MONAI and Hydra stay at their borders."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "medfocal"
#: Rooms in the order of the design; `cli` and `config` call them all.
ORDER = (
    "__init__", "errors", "files", "progress", "parallel", "volume", "components", "evaluate", "annotations", "data",
    "losses", "networks", "model", "infer", "train", "report", "serve",
)  # fmt: skip
CALL_ALL = ("config", "cli")
#: A constant or a small thing that a room may take from a later one, each with its reason.
EXCEPTIONS = {
    ("report", "config"),  # `info` tells where the configuration lies
    ("config", "train"),  # TrainerSettings is the schema of the trainer's group
}
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def room(module):
    """The room of a file, such as `evaluate` of evaluate/froc.py."""
    return Path(module).parts[0].removesuffix(".py")


def imported(tree):
    """Full names of all that is imported anywhere in a module, in functions and under TYPE_CHECKING too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def names_in(module):
    return list(imported(ast.parse((PACKAGE / module).read_text("utf-8"))))


def own_rooms(name):
    """The room that a name of medfocal belongs to; none for the package itself, such as `medfocal.__version__`."""
    parts = name.split(".")
    if parts[0] != "medfocal" or len(parts) < 2:
        return []
    known = {*ORDER, *CALL_ALL} - {"__init__"}
    return [parts[1]] if parts[1] in known or (PACKAGE / parts[1]).exists() else []


def wrong_order(source, target):
    """Whether a module of room `source` may not import from `target`."""
    if source in {*CALL_ALL, target} or (source, target) in EXCEPTIONS:
        return source == "config" and target == "cli"
    if target in CALL_ALL:
        return True
    return ORDER.index(target) > ORDER.index(source)


def test_every_module_belongs_to_a_room_of_the_order():
    assert {room(module) for module in MODULES} <= {*ORDER, *CALL_ALL}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_it_imports_only_from_rooms_before_its_own(module):
    wrong = [n for n in names_in(module) for target in own_rooms(n) if wrong_order(room(module), target)]
    assert not wrong, f"{module} imports {wrong}; the order is {', '.join(ORDER)}"


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("monai", ("data/augment/monai.py", "networks/", "infer/")),
        ("hydra", ("cli.py", "config.py")),
        ("SimpleITK", ("volume.py", "volume/", "annotations/fusion.py")),
        ("lightning", ()),
        ("torchvision", ()),
    ],
)
def test_a_border_package_is_imported_only_at_its_border(package, allowed):
    users = {str(m) for m in MODULES for name in names_in(m) if name.split(".")[0] == package}
    assert not [user for user in users if not user.startswith(allowed or ("nowhere",))]
    assert bool(users) == bool(allowed)


def test_no_module_is_imported_by_its_name_as_text_but_in_config():
    """`importlib` would go around all of the above."""
    users = {str(m) for m in MODULES for name in names_in(m) if name == "importlib"}
    assert users <= {"config.py"}
