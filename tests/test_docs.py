"""What the README and the examples show is what happens: every block and script runs."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from sklearn.datasets import load_wine

from vaeimpute import VAEImputer
from vaeimpute.cli.main import main

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def blocks(language):
    """The fenced code blocks of the README, each with the line where it starts."""
    text = (ROOT / "README.md").read_text()
    for match in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield text.count("\n", 0, match.start(1)), match[1]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def short_fits(monkeypatch):
    """What is shown must run; how well it then fits is for other tests."""
    monkeypatch.setitem(VAEImputer.__init__.__kwdefaults__, "max_iter", 10)


def test_readme_python_blocks_run_in_order(folder):
    names = {}
    for line, code in blocks("python"):
        # The blank lines make a traceback point into the README.
        exec(compile("\n" * line + code, str(ROOT / "README.md"), "exec"), names)
    assert (folder / "wine.safetensors").exists()


def test_readme_commands_run(folder):
    table = load_wine(as_frame=True).frame.iloc[:60, :4]
    table.mask(table.rank(pct=True) < 0.1).to_csv("table.csv", index=False)
    commands = [line for _, code in blocks("bash") for line in code.splitlines() if line.startswith("vaeimpute ")]
    assert {command.split()[1] for command in commands} == {"impute", "score"}
    for command in commands:
        result = CliRunner().invoke(main, shlex.split(command)[1:])
        assert result.exit_code == 0, f"{command}: {result.output}{result.exception!r}"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "benchmarks/README.md"])
def test_pages_name_only_files_that_exist(page):
    text = (ROOT / page).read_text()
    named = set(re.findall(r"`((?:vaeimpute|tests|examples|benchmarks)/[\w/]+\.py)`", text))
    assert named or page.startswith("benchmarks")
    assert not [name for name in named if not (ROOT / name).exists()]


def test_the_map_shows_every_room():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    drawn = text[text.index("level  room") :].split("```")[0]
    for path in (ROOT / "vaeimpute").rglob("*.py"):
        if path.stem != "__init__":
            assert re.search(rf"(?<![a-z_]){path.stem}(?![a-z_])", drawn), path


@pytest.mark.slow
@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_example_draws_its_picture(script, folder, monkeypatch, capsys):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("Agg")
    monkeypatch.setattr(sys, "argv", [str(script), "picture.png"])
    runpy.run_path(str(script), run_name="__main__")
    pyplot.close("all")
    assert (folder / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert "picture: picture.png" in capsys.readouterr().out
