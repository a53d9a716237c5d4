"""Trees of tensors: a tensor or None, or tuples, lists and dicts of them, nested at will."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

Tree: TypeAlias = Any


def map_tree(caller: str, function: Callable[..., Any], *trees: Tree) -> Tree:
    """`function` of the tensors at the same place of every tree, in the structure of the first.

    Raises ValueError for trees of several structures, TypeError for what is no tree.
    """
    first = trees[0]
    if any(_kind(tree) != _kind(first) for tree in trees[1:]):
        kinds = ", ".join(str(_kind(tree)) for tree in trees)
        raise ValueError(f"{caller}: expected one structure, got {kinds}")
    if first is None:
        return None
    if isinstance(first, Tensor):
        return function(*trees)
    if isinstance(first, Mapping):
        found: Any = copy.copy(first)  # a subclass stays what it is
        for key in first:
            found[key] = map_tree(caller, function, *(tree[key] for tree in trees))
        return found
    if isinstance(first, tuple | list):
        items = [map_tree(caller, function, *values) for values in zip(*trees, strict=True)]
        return type(first)(*items) if hasattr(first, "_fields") else type(first)(items)
    raise TypeError(
        f"{caller}: expected a tensor, or tuples, lists and dicts of them, "
        f"got {type(first).__name__}"
    )


def _kind(tree: Tree) -> Any:
    """What must agree for two trees to have one structure, at their top."""
    if isinstance(tree, Mapping):
        return type(tree).__name__, *sorted(map(str, tree))
    if isinstance(tree, tuple | list):
        return type(tree).__name__, len(tree)
    return "Tensor" if isinstance(tree, Tensor) else type(tree).__name__


def leaves(caller: str, tree: Tree) -> list[Tensor]:
    """The tensors of a tree, in order."""
    found: list[Tensor] = []
    map_tree(caller, found.append, tree)
    return found


def count_steps(tree: Tree) -> int:
    """The length of the first tensor; 0 where there is none."""
    return next((len(tensor) for tensor in leaves("steps", tree)), 0)


def part_tree(tree: Tree, begin: int, end: int | None) -> Tree:
    """The steps begin … end-1 of every tensor: views."""
    return map_tree("part", lambda tensor: tensor[begin:end], tree)


def join_tree(caller: str, trees: list[Tree]) -> Tree:
    """Trees of one structure one behind the other in time."""
    if len(trees) == 1:
        return trees[0]
    return map_tree(caller, lambda *tensors: torch.cat(tensors), *trees)
