"""README and the pages of docs/: their links lead somewhere, and the modules and settings in their commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BESIDE = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / ".github" / "CONTRIBUTING.md"]
PAGES = [*BESIDE, *sorted((ROOT / "docs").rglob("*.md"))]
# docs/hooks.py makes these; `make docs` finds dead links to them
GENERATED = {
    "configuration.md",
    "verdicts.svg",
    *(f"notebooks/{path.stem}.md" for path in (ROOT / "docs" / "notebooks").glob("*.ipynb")),
}
page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)


def missing_links(path: Path) -> list[str]:
    """Relative links and images of a page that lead to no file."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    inside = [each for each in targets if each and "://" not in each]
    made = GENERATED if path.parent.name == "pages" else set()
    return [each for each in inside if each not in made and not (path.parent / each).is_file()]


def missing_modules(path: Path) -> list[str]:
    """Modules in the commands of a page that do not exist."""
    names = set(re.findall(r"python -m ((?:gaussad_pl|benchmarks)[\w.]*)", path.read_text(encoding="utf-8")))
    files = {name: ROOT / name.replace(".", "/") for name in sorted(names)}
    return [name for name, file in files.items() if not (file.with_suffix(".py").is_file() or file.is_dir())]


def missing_choices(path: Path) -> list[str]:
    """Choices of settings in a page, such as ``objective=ranking``, without a file in conf/."""
    text = path.read_text(encoding="utf-8")
    groups = "|".join(folder.name for folder in (ROOT / "conf").iterdir() if folder.is_dir() and folder.name != "hydra")
    chosen = re.findall(rf"(?<![\w.])\+?({groups}|hydra/\w+)=(\w+)\b(?!\()", text)
    written = set(re.findall(r"^# conf/(\w+)/(\w+)\.yaml$", text, re.MULTILINE))  # in an example of the page
    known = [each for each in chosen if each in written or (ROOT / "conf" / each[0] / f"{each[1]}.yaml").is_file()]
    return [f"{group}={name}" for group, name in chosen if (group, name) not in known]


@page
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    assert missing_links(page) == []


@page
def test_every_command_names_a_module_that_exists(page: Path) -> None:
    assert missing_modules(page) == []


@page
def test_every_choice_of_settings_exists(page: Path) -> None:
    assert missing_choices(page) == []


def test_a_dead_link_and_unknown_names_are_found(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("[a](gone.md#top) [b](https://x.org)\n`python -m gaussad_pl.gone objective=gone trainer=cpu`\n")
    assert missing_links(path) == ["gone.md"]
    assert missing_modules(path) == ["gaussad_pl.gone"]
    assert missing_choices(path) == ["objective=gone"]


def test_readme_stays_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 130 and all(len(line) <= 120 for line in lines)
