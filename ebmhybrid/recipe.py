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

LONGEST = 2**17  # characters of a recipe
MOST_VALUES = 10_000
DEEPEST = 32  # levels
MOST_BITS = 1024

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
        with path.open(encoding="utf-8") as file:
            return file.read(LONGEST + 1)  # what is longer is refused as it is parsed
    except (OSError, ValueError) as error:
        raise RecipeError(f"recipe {path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-4 as a number, as YAML 1.2 does, and refuses a key that stands twice.

    It also refuses what would grow or nest without end: aliases of aliases, and numbers that no key can hold.
    """

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is None:  # an empty text
            return None
        values, depth = _size(node, {})
        if values > MOST_VALUES or depth > DEEPEST:
            problem = f"{MOST_VALUES} values in {DEEPEST} levels are the most, aliases counted as what they stand for"
            raise yaml.composer.ComposerError(None, None, problem, node.start_mark)
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        number = super().construct_yaml_int(node)
        if number.bit_length() > MOST_BITS:  # Python refuses to print a number of 15,000 bits in a message
            problem = f"a number of more than {MOST_BITS} bits"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return number

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


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def _size(node: yaml.Node, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Values and levels of a tree with every alias written out; one that holds itself has endlessly many."""
    if id(node) not in known:
        known[id(node)] = MOST_VALUES + 1, DEEPEST + 1  # until it is known: who comes back here goes round in circles
        parts = node.value if isinstance(node, yaml.CollectionNode) else ()
        children = [child for part in parts for child in (part if isinstance(part, tuple) else (part,))]
        sizes = [_size(child, known) for child in children]
        known[id(node)] = 1 + sum(values for values, _ in sizes), 1 + max((depth for _, depth in sizes), default=0)
    return known[id(node)]


def _parse(text: str, where: str) -> Any:
    if len(text) > LONGEST:
        raise RecipeError(f"{where}: is longer than {LONGEST} characters, which no recipe is")
    try:
        return yaml.load(text, _Loader)  # a SafeLoader: nothing in the file is executed
    except Exception as error:  # a constructor of PyYAML raises whatever it happens to stumble on
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split()) or type(error).__name__
        raise RecipeError(f"{where}: not valid YAML{line} ({problem})") from error


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not all(key.split(".")) or key.count(".") >= DEEPEST:
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
