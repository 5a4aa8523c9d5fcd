"""The shape of the house: imports point down, siblings stay apart, and importing is cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vaeimpute"

# A module may import modules of a lower level only. A new module gets its row here.
LEVELS = {
    "schema": 0,
    "amputation": 0,
    "metrics": 0,
    "distributions": 0,
    "likelihoods": 0.5,  # on top of the distributions
    "linear": 0,
    "neighbours": 0.5,  # on top of the linear model
    "mixture": 0.5,  # of linear models
    "robust": 1,  # on top of the mixtures
    "belief": 0,
    "corruption": 0,
    "support": 0,
    "networks": 0,
    "objective": 0,
    "persistence": 0,
    "reading": 1.2,  # what models of tables and of images have in common
    "images": 1,
    "images.encoding": 1,
    "images.pixels": 1,
    "images.smoothing": 0,
    "images.networks": 1,
    "images.model": 1.5,
    "images.fitting": 3,
    "images.detection": 3.5,
    "codecs": 0.5,  # on top of the schema
    "encoding": 1,
    "columns": 1,
    "model": 1.5,  # on top of the columns' product
    "training": 2,
    "inference": 2,
    "scoring": 3,
    "fitting": 3,
    "detection": 3.5,  # a fit as well, on fitting's tables and what ordinary rows score
    "estimators._containers": 4.0,  # inside the estimators: parts, their base, the two, and the names they go by
    "estimators._plots": 4.0,
    "estimators._running": 4.0,
    "estimators._state": 4.0,
    "estimators._base": 4.1,
    "estimators._generation": 4.15,
    "estimators._imputer": 4.2,
    "estimators._detector": 4.2,
    "estimators": 4.3,
    "__init__": 4.4,
    "cli": 5,
}
WITHOUT_TORCH = {"schema", "amputation", "metrics"}
WITH_FRAMES = {"schema", "codecs", "encoding", "cli"} | {name for name in LEVELS if name.startswith("estimators")}
FRAMES = {"narwhals", "pandas", "polars", "pyarrow"}
ONLY_INSIDE_FUNCTIONS = {"matplotlib", "pyarrow", "rich", "polars"}
MAX_LINES = 475  # 450, with a little room

FILES = sorted(PACKAGE.rglob("*.py"))


def module_name(path):
    """The name below ``vaeimpute``: ``cli``, ``estimators._base``, ``estimators`` for its __init__."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def resolve(name):
    """``estimators._imputer.VAEImputer`` -> ``estimators._imputer``; the package itself -> ``__init__``."""
    while name and name not in LEVELS:
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


def test_every_module_has_a_level(path):
    assert module_name(path) in LEVELS


def test_imports_point_down(path):
    name = module_name(path)
    upward = {other for other in inside_modules(path) if LEVELS[other] >= LEVELS[name]}
    if name != "__init__":  # asking the package for a public name would import everything
        assert not upward, f"{name} (level {LEVELS[name]}) imports {sorted(upward)}"


def test_torch_and_frames_stay_in_their_rooms(path):
    name = module_name(path)
    if name in WITHOUT_TORCH:
        assert "torch" not in outside_packages(path)
    if name not in WITH_FRAMES:
        assert not FRAMES & outside_packages(path)


def test_optional_packages_are_imported_where_they_are_used(path):
    assert not ONLY_INSIDE_FUNCTIONS & set(imports_at_top(path))


def test_file_says_what_it_is_and_is_short(path):
    assert path.stem not in {"utils", "util", "helpers", "common", "misc"}
    assert ast.get_docstring(ast.parse(path.read_text())), "the first line says the one concept of the file"
    n_lines = len(path.read_text().splitlines())
    assert n_lines <= MAX_LINES


def test_the_checks_see_every_form_of_import(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    (tmp_path / "estimators").mkdir()
    path = tmp_path / "estimators" / "_imputer.py"
    path.write_text(
        "import torch.nn as nn\nfrom ._base import Base\nfrom .. import cli\nfrom ..model import MaskedVAE\n"
        "def f():\n    import rich\n    from vaeimpute import VAEImputer\n    import vaeimpute.schema\n"
    )
    assert inside_modules(path) == {"estimators._base", "cli", "model", "__init__", "schema"}
    assert outside_packages(path) == {"torch", "vaeimpute", "rich"}
    assert set(imports_at_top(path)) == {"torch"}


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import vaeimpute", ["matplotlib", "pyarrow", "torch", "pandas"]),
        ("import vaeimpute.schema, vaeimpute.amputation, vaeimpute.metrics", ["torch", "matplotlib"]),
        ("from vaeimpute.cli import main; main(['--help'], standalone_mode=False)", ["torch", "pandas", "sklearn"]),
        ("from vaeimpute.cli import main; main(['impute', '--help'], standalone_mode=False)", ["torch", "pandas"]),
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
