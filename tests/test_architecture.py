"""The shape of the house: imports point down, siblings stay apart, and importing is cheap."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vaeimpute"

# A room, a folder or a module at the root, may import from rooms of its own level and below; never upward, never in a
# circle. The wings, which build on all that is below them, do not know one another.
LEVELS = {
    "amputation": 0,
    "batching": 0,
    "metrics": 0,
    "persistence": 0,
    "outcomes": 0,
    "pooling": 0,
    "frames": 0,
    "likelihoods": 0,
    "gaussian": 0,
    "vae": 1,
    "training": 2,
    "anomaly": 2,
    "tables": 3,
    "images": 3,
    "estimators": 4,
    "__init__": 5,
    "sensitivity_analysis": 5,
    "cli": 5,
}
WINGS = {"tables", "images"}
WITHOUT_TORCH = {"frames", "amputation", "metrics", "outcomes", "pooling"}
WITH_FRAMES = {"frames", "cli", "estimators", "pooling", "sensitivity_analysis"}
FRAMES = {"narwhals", "pandas", "polars", "pyarrow"}
MODALITIES = re.compile(r"\b(image|images|time series)\b", re.IGNORECASE)
ONLY_INSIDE_FUNCTIONS = {"matplotlib", "pyarrow", "rich", "polars"}
MAX_LINES, MAX_CLASS_LINES = 450, 280  # of a file; of a class without its docstrings

FILES = sorted(PACKAGE.rglob("*.py"))


def module_name(path):
    """The name below ``vaeimpute``: ``estimators._base``; ``estimators`` for its __init__."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def room(name):
    """``estimators._base`` -> ``estimators``."""
    return name.partition(".")[0]


def resolve(name):
    """``estimators._imputer.VAEImputer`` -> ``estimators._imputer``; the package itself -> ``__init__``."""
    modules = {module_name(path) for path in PACKAGE.rglob("*.py")}
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name or "__init__"


def imports(path):
    """All that a file imports, wherever in it: full dotted names, one for each imported name."""
    package = ["vaeimpute", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def imports_at_top(path):
    """Top-level packages that are imported as soon as the file is."""
    tree = ast.parse(path.read_text())
    inside = {
        id(node)
        for scope in ast.walk(tree)
        if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef) or _is_type_checking(scope)
        for node in ast.walk(scope)
    }
    for node in ast.walk(tree):
        if id(node) in inside:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0]


def _is_type_checking(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def outside_packages(path):
    return {name.partition(".")[0] for name in imports(path)}


def inside_modules(path):
    own = (name.partition(".")[2] for name in imports(path) if name.partition(".")[0] == "vaeimpute")
    return {resolve(name) for name in own}


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.fixture(params=FILES, ids=module_name)
def path(request):
    return request.param


def test_every_room_has_a_level():
    assert {room(module_name(path)) for path in FILES} == set(LEVELS)


def test_imports_point_down(path):
    name = module_name(path)
    if name == "__init__":  # asking the package for a public name would import everything
        return
    upward = {other for other in inside_modules(path) if LEVELS[room(other)] > LEVELS[room(name)]}
    assert not upward, f"{name} (level {LEVELS[room(name)]}) imports {sorted(upward)}"


def test_no_wing_knows_another(path):
    mine = room(module_name(path))
    others = {room(other) for other in inside_modules(path)} & WINGS - {mine}
    assert mine not in WINGS or not others


@pytest.mark.parametrize("name_of", [room, str], ids=["rooms", "modules"])
def test_no_circles(name_of):
    arrows = {}
    for path in FILES:
        mine = name_of(module_name(path))
        arrows.setdefault(mine, set()).update({name_of(other) for other in inside_modules(path)} - {mine})
    tuple(TopologicalSorter(arrows).static_order())  # raises CycleError


def test_torch_and_frames_stay_in_their_rooms(path):
    mine = room(module_name(path))
    if mine in WITHOUT_TORCH:
        assert "torch" not in outside_packages(path)
    if mine not in WITH_FRAMES:
        assert not FRAMES & outside_packages(path)


def test_below_the_wings_no_modality_is_named(path):
    if LEVELS[room(module_name(path))] < LEVELS["tables"]:
        assert not MODALITIES.findall(path.read_text())


def test_optional_packages_are_imported_where_they_are_used(path):
    assert not ONLY_INSIDE_FUNCTIONS & set(imports_at_top(path))


def test_file_says_what_it_is_and_is_short(path):
    assert path.stem not in {"utils", "util", "helpers", "common", "misc"}
    assert ast.get_docstring(ast.parse(path.read_text())), "the first line says the one concept of the file"
    n_lines = len(path.read_text().splitlines())
    assert n_lines <= MAX_LINES


def test_classes_are_short(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            documented = [node, *(part for part in ast.walk(node) if isinstance(part, ast.FunctionDef | ast.ClassDef))]
            docstrings = (len((ast.get_docstring(part, clean=False) or "").splitlines()) for part in documented)
            assert node.end_lineno - node.lineno + 1 - sum(docstrings) <= MAX_CLASS_LINES, node.name


def test_the_checks_see_every_form_of_import(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    for name in ("vae/base", "cli/main", "frames/schema", "estimators/_base", "estimators/_imputer"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.py").touch()
    path = tmp_path / "estimators" / "_imputer.py"
    path.write_text(
        "import torch.nn as nn\nfrom ._base import Base\nfrom ..cli import main\nfrom ..vae.base import VAE\n"
        "def f():\n    import rich\n    from vaeimpute import VAEImputer\n    import vaeimpute.frames.schema\n"
    )
    assert inside_modules(path) == {"estimators._base", "cli.main", "vae.base", "__init__", "frames.schema"}
    assert outside_packages(path) == {"torch", "vaeimpute", "rich"}
    assert set(imports_at_top(path)) == {"torch"}


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import vaeimpute", ["matplotlib", "pyarrow", "torch", "pandas"]),
        ("import vaeimpute.frames.schema, vaeimpute.amputation, vaeimpute.metrics", ["torch", "matplotlib"]),
        ("from vaeimpute import Outcome, compare, fit_pooled, pool", ["torch", "sklearn", "matplotlib"]),
        (
            "from vaeimpute.cli.main import main; main(['--help'], standalone_mode=False)",
            ["torch", "pandas", "sklearn"],
        ),
        ("from vaeimpute.cli.main import main; main(['impute', '--help'], standalone_mode=False)", ["torch", "pandas"]),
        ("from vaeimpute.cli.main import main; main(['pool', '--help'], standalone_mode=False)", ["torch", "pandas"]),
    ],
)
def test_importing_stays_cheap(statement, unwanted):
    done = run_python(f"{statement}\nimport sys\nprint([n for n in {unwanted} if n in sys.modules])")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_public_names():
    done = run_python("import vaeimpute\nprint([name for name in vaeimpute.__all__ if not hasattr(vaeimpute, name)])")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
