"""What of the notebook is a picture: a figure, the axes of one, an image.

Rule 1: drawing is done by the library that the object's class is of; a user's own class is not
drawn, and `--image` is there for it.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from IPython.core.pylabtools import print_figure

from ipy_agent.notebook.literals import library

__all__ = ["drawable", "have_shown"]

_PICTURES = (
    ("matplotlib.figure", "Figure"),
    ("matplotlib.figure", "SubFigure"),
    ("matplotlib.axes", "Axes"),
    ("PIL.Image", "Image"),
)


def drawable(value: Any) -> Any | None:
    """Return the figure or image that a value is or belongs to; nothing, if it is no picture."""
    kind = type(value)
    home = library(kind)
    for module, name in _PICTURES:
        known = getattr(sys.modules.get(module), name, None)
        if known is not None and issubclass(kind, known) and module.startswith(f"{home}."):
            return value if name == "Image" else value.figure.figure
    return None


def have_shown(shell: Any, figure: type) -> None:
    """Have a shell show figures of a type as pictures, if nothing has told it how before."""
    png = shell.display_formatter.formatters["image/png"]
    try:
        png.lookup_by_type(figure)
    except KeyError:  # which is what pyplot does when it is loaded
        png.for_type(figure, partial(print_figure, base64=True))
