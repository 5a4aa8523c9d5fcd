"""Print the oldest release of each dependency that pyproject.toml allows, as constraints for pip: `numpy==2.0`."""

import re
import sys
import tomllib
from itertools import chain
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]


def floors() -> dict[str, str]:
    """Release by name; an error where a dependency has no floor, or another one elsewhere in the file."""
    found: dict[str, str] = {}
    for requirement in chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()):
        if requirement.startswith(f"{PROJECT['name']}["):  # the package with another of its extras
            continue
        match = re.fullmatch(r"([\w.-]+)>=([\d.]+)", requirement)
        if not match:
            sys.exit(f"{requirement!r} in pyproject.toml: want 'name>=version'.")
        if found.setdefault(match[1], match[2]) != match[2]:
            sys.exit(f"{match[1]!r} has two floors in pyproject.toml: {found[match[1]]} and {match[2]}.")
    return found


if __name__ == "__main__":
    sys.stdout.writelines(f"{name}=={version}\n" for name, version in floors().items())
