"""Docstrings of functions that are those of `tbptt_fast` on another device."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from typing import Any

from .. import ops

_TEXT = """`tbptt_fast.{name}` on arrays in a device's memory.

    Args:
        {args}
        stream: see `tbptt_fast.cuda`.
        All other arguments and their meaning are those of `tbptt_fast.{name}`.

    Returns:
        {returns}
        The work may still be going on; nothing waits for it but the stream.

    Raises:
        TypeError, ValueError: a wrong dtype, an array elsewhere than on {first}'s device; a wrong
            shape, option or value; a strided array of a library that is not known here.{raises}
        RuntimeError: the kernels cannot run here (`why_not`), or CUDA reports an error.
        MemoryError: the device has too little memory.
{source}
    >>> from tbptt_fast import cuda
    >>> if cuda.is_available():
    ...     import torch
{example}
    """


def source_of(function: Callable[..., Any]) -> str:
    """What its docstring says of its source, indented as the texts here; "" where it says nothing.

    Interpreters differ in the indentation that they keep, and with -OO there are no docstrings.
    """
    text = inspect.getdoc(function) or ""
    _, name, rest = text.partition("Source:")
    return textwrap.indent((name + rest.partition(">>>")[0]).strip(), "    ")


def describe(
    function: Callable[..., Any],
    *,
    first: str,
    args: str,
    returns: str,
    example: str,
    raises: str = "",
) -> None:
    """Write the docstring of `function`, whose place is that of the argument `first`."""
    name = function.__name__
    source = source_of(getattr(ops, name))
    source = f"\n{source}\n" if source else ""
    function.__doc__ = _TEXT.format(
        name=name,
        first=first,
        args=args,
        returns=returns,
        raises=f"\n            {raises}" if raises else "",
        source=source,
        example="\n".join(f"    ...     {line}" for line in example.splitlines()),
    )
