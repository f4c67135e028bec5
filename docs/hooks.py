"""What `make docs` adds to the pages: the reference of the settings, the notebooks, and a picture of a table."""

from __future__ import annotations

import inspect
import json
import re
import warnings
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import OmegaConf
from pictures import verdicts
from pydantic import BaseModel, ValidationError

from gaussad_pl.augment import VICINAL
from gaussad_pl.cli.hydra_command import CONF
from gaussad_pl.cli.schema import NESTED, RUN, model_of, schema
from gaussad_pl.data.mvtec import MVTec

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

NOTEBOOKS = Path(__file__).parent / "notebooks"
INTRODUCTION = """# Configuration

This page lists the settings of training: default, values and meaning. It is made from `conf/`, from the schema by which
settings are checked, and from the docstrings of the classes that take them.

Set any of them on the command line, as in `python -m gaussad_pl.train data=folder data.root=/my/parts seed=1`, or in
Python, as in `fit("/my/parts", settings=["seed=1"])`. A default such as `${seed}` follows another setting.

## Choices

Each is a file in `conf/` that sets several settings at once. `+` goes before those that have no default.
"""
NOT_CHOSEN = ("hydra", "category")  # launchers and sweepers have their own page; categories are those of MVTec AD
OTHER_DATA = ("visa", "folder", "demo")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages and the picture to the site; mkdocs calls this."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "configuration.md", content=configuration()))
    files.append(File.generated(config, "verdicts.svg", content=verdicts()))
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=notebook(path)))
    return files


def notebook(path: Path) -> str:
    """Return a notebook as a page: its text, and its code in blocks."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join([*parts, f"*This page is the notebook `docs/notebooks/{path.name}` of the repository.*\n"])


def configuration() -> str:
    """Return the page of the settings."""
    page = [INTRODUCTION, *table(("setting", "choice", "meaning"), choices())]
    config = composed()
    alone = {key: value for key, value in config.items() if not isinstance(value, dict)}
    page += ["\n## The run\n", *table(SETTING, rows(alone, (), RUN))]
    for section, content in config.items():
        if isinstance(content, dict):
            page += [f"\n## {section}\n", *table(SETTING, rows(content, (section,)))]
    for name in OTHER_DATA:
        data = composed(f"data={name}")["data"]
        own = {key: value for key, value in data.items() if value != config["data"].get(key, config)}
        page += [f"\n## data={name}\n", *table(SETTING, rows(own, ("data",)))]
    return "\n".join(page) + "\n"


WORDS = {
    "integer": "whole number", "number": "number", "boolean": "`true`, `false`", "string": "text", "array": "list",
    "null": "`null`", "object": "group", "minimum": "at least", "maximum": "at most", "exclusiveMinimum": "more than",
    "exclusiveMaximum": "less than",
}  # fmt: skip
SETTING = ("setting", "default", "values", "meaning")


def table(head: Iterable[str], lines: Iterable[Iterable[str]]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    for number, line in enumerate([head, *lines]):
        cells = [cell.replace("|", "\\|") for cell in line]
        yield f"| {' | '.join(cells)} |"
        if not number:
            yield "|---" * len(cells) + "|"


def composed(*overrides: str) -> dict[str, Any]:
    """Return the configuration of training with its interpolations as they are."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config: Any = OmegaConf.to_container(compose("train", list(overrides)), resolve=False)
    return config


def choices() -> Iterator[tuple[str, str, str]]:
    """Yield each choice of each group of settings, with the comment on top of its file or the name of its network."""
    default = defaults()
    for folder in sorted(path for path in CONF.iterdir() if path.is_dir() and path.name not in NOT_CHOSEN):
        for file in sorted(folder.glob("*.yaml")):
            if (folder.name, file.stem) == ("data", "base"):
                continue
            lines = file.read_text(encoding="utf-8").splitlines()
            top = [line[2:] for line in lines[:4] if line.startswith("# ") and not line.startswith(("# @", "# python"))]
            name = re.search(r"^name: (\S+)", "\n".join(lines), re.MULTILINE)
            meaning = top[0] if top else f"`{name[1]}`" if folder.name == "backbone" and name else ""
            mark = " (default)" if default.get(folder.name) == file.stem else ""
            plus = "" if folder.name in default else "+"
            yield f"`{plus}{folder.name}={file.stem}`", mark.strip(" ()"), meaning


@cache
def defaults() -> dict[str, str]:
    """Return the default choice of each group of settings, in the order of conf/train.yaml."""
    listed = [each for each in OmegaConf.load(CONF / "train.yaml").defaults if each != "_self_"]
    return {group: name for each in listed for group, name in each.items() if "/" not in group}


def rows(
    node: dict[str, Any], place: tuple[str, ...], model: type[BaseModel] | None = None
) -> Iterator[tuple[str, ...]]:
    """Yield key, default, values and meaning of each setting below a node of the configuration."""
    target = get_object(node["_target_"]) if "_target_" in node else NESTED.get(place[-1]) if place else None
    model = model or (schema(target) if target in NESTED.values() else model_of(target) if target else None)
    for key, value in node.items():
        here = (*place, key)
        if isinstance(value, dict) and (value or here[0] != "augmentation"):
            yield from rows(value, here)
        elif key == "_target_":
            yield f"`{'.'.join(here)}`", f"`{value}`", "a class or a function", ""
        elif not key.startswith("_"):
            values = (expected(model, key) if model else "") or ("" if place else expected(schema(MVTec), key))
            shown = "required" if value == "???" else f"`{json.dumps(value, ensure_ascii=False)}`"
            yield f"`{'.'.join(here)}`", shown, values, meaning(here, target)


def meaning(key: tuple[str, ...], target: Any) -> str:
    """Return what conf/, or else a docstring, says about a setting."""
    if key[:-1] in (("augmentation",), ("data", "damages")):
        return first_sentence(VICINAL[key[-1]])
    return comments().get(key) or argument(target or MVTec, key[-1])


@cache
def comments() -> dict[tuple[str, ...], str]:
    """Return the comments of the default files of conf/, by setting: those behind it, or on the lines above it."""
    found: dict[tuple[str, ...], str] = {}
    chosen = [f"{group}/{name}" for group, name in defaults().items() if group != "objective"]
    others = [
        "data/base",
        "data/folder",
        "data/demo",
        "logger/csv",
        "logger/wandb",
        f"objective/{defaults()['objective']}",
    ]
    for name in ["train", *chosen, *others]:
        text = (CONF / f"{name}.yaml").read_text(encoding="utf-8")
        package = re.search(r"# @package (\S+)", text)
        group = package[1] if package else name.rpartition("/")[0]
        start = [] if group in ("", "_global_") else [group]
        path, above = list(start), None  # a comment on top of a file is about the file
        for line in text.splitlines():
            if match := re.match(r"( *)(\w+):[^#]*(?:# (.*))?", line):
                path[len(start) + len(match[1]) // 2 :] = [match[2]]
                if comment := match[3] or " ".join(above or []):
                    found.setdefault(tuple(path), comment)
                above = []
            elif above is not None:
                above = [*above, line.strip(" #")] if line.lstrip().startswith("# ") else []
    return found


def expected(model: type[BaseModel], name: str) -> str:
    """Return the values that a setting takes, from the schema; of texts, from the error for another one."""
    with warnings.catch_warnings(action="ignore"):  # of defaults that are functions
        node = model.model_json_schema()["properties"].get(name)
    if node is None:
        return ""
    told = []
    try:
        model.model_validate({name: "?"})
    except ValidationError as error:
        told = [each["ctx"]["text"] for each in error.errors() if each["loc"] == (name,) and each["type"] == "mistake"]
    return told[0] if told else " or ".join(dict.fromkeys(filter(None, map(in_words, node.get("anyOf", [node])))))


def in_words(node: dict[str, Any]) -> str:
    """Describe a node of a JSON schema.

    >>> in_words({"type": "integer", "minimum": 1})
    'whole number, at least 1'
    """
    if "enum" in node or "const" in node:
        return ", ".join(f"`{value}`" for value in node.get("enum", [node.get("const")]))
    bounds = [f"{WORDS[key]} {node[key]}" for key in sorted(node, reverse=True) if key.lower().endswith("imum")]
    return ", ".join([WORDS.get(node.get("type", ""), ""), *bounds])


def argument(target: Any, name: str) -> str:
    """Return the description of an argument in the docstring of a class or of its base classes."""
    for each in getattr(target, "__mro__", [target]):
        text = inspect.getdoc(each) or ""
        if match := re.search(rf"^ {{4}}(?:\w+, )*{name}(?:, \w+)*: (.*(?:\n {{8}}.*)*)", text, re.MULTILINE):
            words = " ".join(match[1].split())
            elsewhere = re.fullmatch(r"see `([\w.]+)`\.", words)
            ours = each.__module__.startswith("gaussad_pl")
            return argument(get_object(elsewhere[1]), name) if elsewhere else words if ours else words.split(". ")[0]
    return ""


def first_sentence(target: Any) -> str:
    """Return the first paragraph of a docstring on one line."""
    return " ".join((inspect.getdoc(target) or "").split("\n\n")[0].split())
