"""A key file's YAML to a tree: lines are right, and hostile or damaged text is one clear error."""

import pytest

from aiaas.keys.tree import KeyFileError, read_tree
from aiaas.yamltree import Items, Place, Scalar, Table


def test_a_tree_knows_its_lines() -> None:
    """Every node carries the 1-based line that it begins on."""
    root = read_tree("a: 1\nb:\n- x\n- 'null'\n", "f")
    assert isinstance(root, Table)
    assert root.keys == {"a": Place("f", 1, 1), "b": Place("f", 2, 1)}
    items = root.values["b"]
    assert isinstance(items, Items)
    assert items.items == (
        Scalar("x", plain=True, literal=False, place=Place("f", 3, 3)),
        Scalar("null", plain=False, literal=False, place=Place("f", 4, 3)),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deep"),
        ("a: {" * 50_000, "f:1:32: nested too deep"),
        ("a: &x 1\nb: *x\n", "f:1:4: YAML anchors, aliases and tags are not allowed"),
        ("a: !!python/object:os.system 1", "f:1:4: YAML anchors, aliases and tags are not allowed"),
        ("a: 1\nb: 2\na: 3\n", "f:3:1: 'a' appears twice; the first is in line 1"),
        ("a: 1\n---\nb: 2\n", "f:2:1: a key file must be one YAML document"),
        ("? [a]\n: 1\n", "f:1:3: a field's name must be a string"),
        ("a: [1, 2\n", "f:2:1: not YAML"),
        ("a: 1\n<<<<<<< HEAD\nb: 2\n", "not YAML"),
        ("a: \x00", "f: not YAML"),
        ("a: \ud800", "f: not YAML"),
        ("\ta: 1", "f:1:1: not YAML"),
        ("", "f:1:1: a key file must be one YAML document"),
    ],
    ids=[
        "a bomb of lists", "a bomb of maps", "anchor", "tag", "double", "two documents", "key is a list", "cut",
        "merge conflict", "nul", "surrogate", "tab", "empty",
    ],
)  # fmt: skip
def test_damaged_text_is_one_clear_error(text: str, message: str) -> None:
    """The file, the line and the fault, whatever text comes in; the process survives."""
    with pytest.raises(KeyFileError) as caught:
        read_tree(text, "f")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
