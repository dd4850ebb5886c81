"""Recipes near valid ones, and text that is none: a Recipe comes of them or a RecipeError of one line, nothing else."""

from __future__ import annotations

from typing import Any

import yaml
from cases import fuzz
from hypothesis import strategies as st

from ebmhybrid.errors import RecipeError
from ebmhybrid.recipe import Recipe, parse_recipe, recipe_names, recipe_text

NAMES = recipe_names()
TREES = {name: yaml.safe_load(recipe_text(name)) for name in NAMES}
PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.dates(),
    st.binary(max_size=4),
    st.sampled_from(["auto", "1e-3", "hdge", "digits", "npz:x", "../x", "~", "<<", "\u202e", "a\nb", "0x10", ".inf"]),
)
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=6,
)
# What is done to a tree: where, by the numbers of the keys on the way, and what.
CHANGES = st.lists(
    st.tuples(
        st.lists(st.integers(0, 30), min_size=1, max_size=4),
        st.sampled_from(["set", "delete", "rename", "copy"]),
        VALUES,
    ),
    min_size=1,
    max_size=4,
)
PIECES = st.sampled_from(
    (
        *"{}[%'|\n\t\0",
        "&a ",
        "*a",
        "!!python/object/apply:os.mkdir [OWNED]",
        "- ",
        ": ",
        "!!int ",
        "!!bool x",
        "!!timestamp ",
        "? ",
        "<<: *a",
        "\0",
        "\u2028",
        "0x" + "f" * 999,
        "9" * 5000,
        "!!set ",
        "---\n",
    )
)


def said(result: Recipe | RecipeError) -> None:
    """What a result has to be good for: a recipe to be written and read again, a message to be printed."""
    if isinstance(result, Recipe):
        assert parse_recipe(result.to_yaml(), "again") == result
    else:
        assert "\n" not in str(result)
        assert len(str(result)) < 20_000


def parsed(text: str, overrides: list[str] | None = None) -> Recipe | RecipeError:
    try:
        return parse_recipe(text, "recipe x", overrides=overrides or ())
    except RecipeError as error:
        return error


def change(tree: Any, path: list[int], what: str, value: Any) -> None:
    for number in path[:-1]:
        items = list(tree.values()) if isinstance(tree, dict) else tree if isinstance(tree, list) else []
        inner = [item for item in items if isinstance(item, (dict, list)) and item]
        tree = inner[number % len(inner)] if inner else tree
    if isinstance(tree, dict) and tree:
        key = list(tree)[path[-1] % len(tree)]
        if what == "set":
            tree[key] = value
        elif what == "delete":
            del tree[key]
        elif what == "rename":
            tree[str(key)[:-1] + str(value)[:3]] = tree.pop(key)
        else:
            tree[f"{key}"] = {key: tree[key]}


@fuzz(60, 500, name=st.sampled_from(NAMES), changes=CHANGES)
def test_trees_near_a_recipe(name, changes) -> None:
    tree = yaml.safe_load(recipe_text(name))
    for path, what, value in changes:
        change(tree, path, what, value)
    said(parsed(yaml.safe_dump(tree, allow_unicode=True)))


@fuzz(
    60,
    500,
    name=st.sampled_from(NAMES),
    places=st.lists(
        st.tuples(st.floats(0, 1), PIECES | st.text(max_size=4), st.integers(0, 3)), min_size=1, max_size=4
    ),
)
def test_texts_near_a_recipe(name, places) -> None:
    text = recipe_text(name)
    for place, piece, dropped in places:
        at = int(place * len(text))
        text = text[:at] + piece + text[at + dropped :]
    said(parsed(text))


KEYS = sorted({f"{a}.{b}" for tree in TREES.values() for a, s in tree.items() if isinstance(s, dict) for b in s})


@fuzz(
    60,
    400,
    given=st.lists(
        st.one_of(
            st.tuples(st.sampled_from(KEYS), PLAIN).map(lambda pair: f"{pair[0]}={pair[1]}"),
            st.tuples(st.sampled_from(KEYS), PIECES).map(lambda pair: f"{pair[0]}={pair[1]}"),
            st.text(max_size=12),
            st.integers(1, 3000).map(lambda n: "optimizer." + "a." * n + "b=1"),
        ),
        max_size=4,
    ),
)
def test_overrides(given) -> None:
    said(parsed(recipe_text("digits_hdge"), given))
