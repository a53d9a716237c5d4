"""What the options of `train` ask for, made whole and checked before any work begins."""

from __future__ import annotations

import math
import os
import sys
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from tbptt_fast.cli.parser import PICTURES, SERIES, TEXT, Settings, UsageError
from tbptt_fast.cli.task import SeriesTask, Task, TextTask
from tbptt_fast.cli.training import load
from tbptt_fast.data import python_documentation, read_csv_column, read_text

Tree = Mapping[str, Any]


@dataclass(frozen=True)
class Request:
    """A training that can begin: every value known, every file name checked."""

    source: dict[str, str | None]
    settings: Settings
    epochs: float | None
    seconds: float
    patience: int
    save: str | None
    plot: str | None
    tree: Tree | None

    @classmethod
    def of(cls, options: Namespace) -> Request:
        """Raises UsageError for options that do not go together."""
        tree, stored = load(options.resume) if options.resume else (None, None)
        source = _source(options, tree)
        settings = _settings(options, source, stored)
        epochs = options.epochs
        if tree is not None:
            if epochs is None:
                epochs = tree["epochs"]
            elif settings.schedule == "cosine" and epochs != tree["epochs"]:
                raise UsageError(f"--epochs: the cosine ends at {tree['epochs']:g}, got {epochs:g}")
        if settings.schedule == "cosine" and epochs is None:
            raise UsageError("--schedule cosine: needs --epochs, to know where it ends")
        minutes = options.minutes
        if minutes is None:
            minutes = 1.0 if epochs is None else math.inf
        return cls(
            source=source,
            settings=settings,
            epochs=epochs,
            seconds=60.0 * minutes,
            patience=options.patience,
            save=_output("--save", options.save, options.resume or "tbptt_fast.ckpt"),
            plot=_picture(options.plot),
            tree=tree,
        )

    def task(self) -> Task:
        """Read the data."""
        if self.source["csv"] is not None:
            column = str(self.source["column"])
            values = read_csv_column(self.source["csv"], column)
            return SeriesTask(values, self.settings, f"{self.source['csv']}, {column}")
        if self.source["text"] is not None:
            return TextTask(read_text(self.source["text"]), self.settings, self.source["text"])
        return TextTask(python_documentation(), self.settings, "pydoc_data.topics")


def _source(options: Namespace, tree: Tree | None) -> dict[str, str | None]:
    source = {name: getattr(options, name) for name in ("text", "csv", "column")}
    given = [name for name, value in source.items() if value is not None]
    if tree is not None:
        # Another path is fine, the file may have moved: its content is compared later.
        source = {**tree["source"], **{name: source[name] for name in given}}
        kind = tree["task"]["kind"]
        for name in given:
            if (name == "text") != (kind == "text"):
                raise UsageError(f"--{name}: the checkpoint is of a {kind}")
    if source["csv"] is not None and source["column"] is None:
        raise UsageError("--csv: needs --column")
    if source["column"] is not None and source["csv"] is None:
        raise UsageError("--column: needs --csv")
    if source["csv"] is not None:
        for name in ("embedding", "temperature"):
            if getattr(options, name, None) is not None:
                raise UsageError(f"--{name}: only for text")
    return source


def _settings(
    options: Namespace, source: Mapping[str, str | None], stored: Settings | None
) -> Settings:
    names = [field.name for field in fields(Settings) if hasattr(options, field.name)]
    given = {name: getattr(options, name) for name in names}
    if stored is not None:
        for name, value in given.items():
            if value != getattr(stored, name):
                option = name.replace("_", "-")
                fixed = getattr(stored, name)
                raise UsageError(f"--{option}: the checkpoint was begun with {fixed}, got {value}")
        return stored
    base = TEXT if source["csv"] is None else SERIES
    given.setdefault("k2", given.get("k1", base.k1))
    settings = replace(base, **given)
    if settings.k2 < settings.k1:
        raise UsageError(f"--k2: must be at least k1 = {settings.k1}, got {settings.k2}")
    if settings.dropout and settings.layers == 1:
        raise UsageError("--dropout: acts between layers, needs --layers of at least 2")
    return settings


def _picture(path: str | None) -> str | None:
    if path not in (None, "none") and Path(str(path)).suffix.lower() not in PICTURES:
        raise UsageError(f"--plot: {path}: expected a name ending in {', '.join(PICTURES)}")
    return _output("--plot", path, "tbptt_fast.png")


def _output(option: str, path: str | None, default: str) -> str | None:
    """The file to write, known to be possible; None for no file."""
    if path == "none":
        return None
    target = Path(default if path is None else path)
    folder = target.parent
    if not folder.is_dir():
        problem = "the folder does not exist"
    elif target.is_dir():
        problem = "it is a folder"
    elif not os.access(target if target.exists() else folder, os.W_OK):
        problem = "no permission to write there"
    else:
        return str(target)
    if path is None:  # nobody asked for this very file
        print(f"{target} is not written: {problem} ({option} FILE)", file=sys.stderr)
        return None
    raise UsageError(f"{option}: {path}: {problem}")
