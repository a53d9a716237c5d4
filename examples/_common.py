"""What the examples share: options, tables, progress bars and pictures.

Packages beyond NumPy are imported where they are used; `parse` has looked for them before.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tbptt_fast.cli.parser import PICTURES, whole
from tbptt_fast.cli.progress import installed
from tbptt_fast.data import DataError


def parser(file: str, text: str | None, *, epochs: int) -> ArgumentParser:
    """The options that every example has; `file` and `text` are its own name and docstring."""
    found = ArgumentParser(prog=Path(file).name, description=(text or "").partition("\n")[0])
    found.add_argument("--epochs", type=whole(1), default=epochs, help="passes (%(default)s)")
    found.add_argument("--seed", type=whole(0), default=0, help="of weights, order (%(default)s)")
    picture = Path(file).with_suffix(".png").name
    found.add_argument("--out", type=_picture, default=picture, help="picture (%(default)s)")
    return found


def _picture(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in PICTURES:
        raise ArgumentTypeError(f"{path}: expected a name ending in {', '.join(PICTURES)}")
    if not path.parent.is_dir():
        raise ArgumentTypeError(f"{path}: the folder does not exist")
    return path


def parse(found: ArgumentParser, argv: Sequence[str] | None, *packages: str) -> Namespace:
    """The options given; ends with a message where one of the packages is not installed."""
    options = found.parse_args(argv)
    missing = [name for name in (*packages, "matplotlib", "tqdm") if not installed(name)]
    if missing:
        found.error(f"not installed: {', '.join(missing)} (pip install '.[examples]')")
    return options


def run(main: Callable[[], object]) -> None:
    """Call main; data that cannot be used ends it with one line."""
    try:
        main()
    except (DataError, OSError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: error: {error}")


def progress(total: int, text: str) -> Any:
    """A bar on stderr: `update()` advances it, `set_postfix_str` shows figures."""
    from tqdm import tqdm

    return tqdm(total=total, desc=text, dynamic_ncols=True)


def table(columns: Mapping[str, str], rows: Iterable[Sequence[Any]]) -> None:
    """Print rows of values below the names of their columns, each in its column's format."""
    cells = [[f"{v:{form}}" for v, form in zip(r, columns.values(), strict=True)] for r in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for row in (columns, [f"{'-' * (width - 1)}:" for width in widths], *cells):
        print("|", *(f"{cell:>{width}} |" for cell, width in zip(row, widths, strict=True)))


def panels(count: int) -> tuple[Any, Any]:
    """A figure with panels side by side, drawn without a screen, and their axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * count, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, count, squeeze=False)[0]
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(alpha=0.25)
        one.xaxis.get_major_locator().set_params(integer=True)
    return figure, axes


def save(figure: Any, path: Path) -> None:
    """Write the picture, with a legend in every panel that has labels."""
    for axes in figure.axes:
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    print(f"picture: {path}")


def curves(path: Path, lines: Mapping[str, Sequence[float]], **texts: str) -> None:
    """Draw a line for each label, with the texts of `axes.set`, and write the picture."""
    figure, (axes,) = panels(1)
    for label, values in lines.items():
        axes.plot(values, lw=0.8, label=label)
    axes.set(**texts)
    save(figure, path)
