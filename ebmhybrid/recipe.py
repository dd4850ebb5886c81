"""Typed, locked recipes: YAML in, one frozen object out, and every mistake named at once.

Precedence: the schema's defaults < the recipe file < KEY=VALUE overrides. A recipe is locked: a key that does not exist
or a value of another type is an error that names the key, the value and the nearest valid one, never ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from ebmhybrid.errors import RecipeError, nearest
from ebmhybrid.schema import Recipe

__all__ = ["Recipe", "load_recipe", "parse_recipe", "recipe_names", "recipe_text"]


def recipe_names() -> list[str]:
    """The names of the recipes that come with the package."""
    return sorted(f.name.removesuffix(".yaml") for f in _folder().iterdir() if f.name.endswith(".yaml"))


def recipe_text(name: str) -> str:
    """A packaged recipe's YAML, its heading comment included.

    Raises:
        RecipeError: a name that there is none of; the message says the nearest.
    """
    if name not in recipe_names():
        raise RecipeError(f"no recipe {name!r}: {nearest(name, recipe_names())}")
    return (_folder() / f"{name}.yaml").read_text(encoding="utf-8")


def load_recipe(source: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """A recipe by name or from a YAML file, with dotted `KEY=VALUE` overrides.

    Arguments:
        source: a packaged recipe's name, or a path that ends in .yaml or .yml.
        overrides: such as `optimizer.lr=0.05` or `data.augment.flip=true`; values are YAML.

    Raises:
        RecipeError: one line with every mistake, each by its dotted key, value and what would be right.

    >>> load_recipe("digits_hdge", ["seed=3"]).seed
    3
    """
    is_file = str(source).lower().endswith((".yaml", ".yml"))
    text = _read(Path(source)) if is_file else recipe_text(str(source))
    name = str(source)
    if is_file:
        name = re.sub(r"[^A-Za-z0-9._-]", "_", Path(source).stem).lstrip("._-") or "unnamed"
    return parse_recipe(text, f"recipe {source}", name, overrides)


def parse_recipe(text: str, where: str, name: str = "unnamed", overrides: Iterable[str] = ()) -> Recipe:
    """A recipe from YAML text; `where` opens the error messages, `name` is used if the text has none."""
    content = _parse(text, where)
    if not isinstance(content, dict):
        raise RecipeError(f"{where}: must be a mapping of keys to values, got {type(content).__name__}")
    content.setdefault("name", name)
    for override in overrides:
        _override(content, override)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(f"{where}: {_explain(error)}") from None


def _folder() -> Any:
    return resources.files("ebmhybrid.recipes")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-4 as a number, as YAML 1.2 does, and refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value if isinstance(key.value, str) else id(key))
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # a SafeLoader: nothing in the file is executed
    except (yaml.YAMLError, ValueError, AttributeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise RecipeError(f"{where}: not valid YAML{line} ({getattr(error, 'problem', None) or error})") from error


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not all(key.split(".")):
        raise RecipeError(f"override {override!r}: must be KEY=VALUE, such as optimizer.lr=0.05")
    *parents, last = key.split(".")
    at = content
    for parent in parents:
        if not isinstance(at.get(parent), dict):
            at[parent] = {}
        at = at[parent]
    at[last] = _parse(value, f"override {override!r}")


def _explain(error: ValidationError) -> str:
    return "; ".join(_explain_one(one) for one in error.errors())


def _explain_one(one: Mapping[str, Any]) -> str:
    location = [part for part in one["loc"] if isinstance(part, str)]
    message = one["msg"].removeprefix("Value error, ")
    if one["type"] == "extra_forbidden":
        section, _ = _resolve(location[:-1])
        prefix = "".join(f"{part}." for part in section)
        valid = [prefix + name for name in _resolve(section)[1]]
        return f"unknown key {'.'.join(location)!r}, {nearest('.'.join(location), valid)}"
    key = ".".join(_resolve(location)[0])
    if one["type"] == "value_error":
        return f"{key}: {message}" if key else message
    given = repr(one["input"])
    given = given if len(given) <= 80 else f"{given[:77]}..."
    return f"{key or 'recipe'} = {given}: {message[0].lower()}{message[1:]}"


def _resolve(location: list[str]) -> tuple[list[str], list[str]]:
    """The part of a location that names keys (pydantic adds the members of unions), and the keys below it."""
    section: Any = Recipe
    for depth, part in enumerate(location):
        if section is None or part not in section.model_fields:
            return location[:depth], []
        annotation = section.model_fields[part].annotation
        options = getattr(annotation, "__args__", (annotation,))
        section = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
    return location, list(section.model_fields) if section else []
