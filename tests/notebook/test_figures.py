"""What of the notebook is a picture."""

from __future__ import annotations

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ipy_agent.notebook.figures import drawable


def test_axes_are_drawn_as_the_figure_that_they_are_on():
    """A part of a figure stands for all of it."""
    figure = Figure()
    upper, lower = figure.subfigures(2, 1)

    assert drawable(figure) is figure
    assert drawable(figure.add_subplot(projection="polar")) is figure
    assert drawable(upper) is figure
    assert drawable(lower.add_subplot()) is figure


def test_an_image_is_drawn_as_it_is(tmp_path):
    """One that was made, and one that was opened from a file."""
    made = Image.new("L", (2, 3))
    made.save(tmp_path / "image.png")

    with Image.open(tmp_path / "image.png") as opened:
        assert drawable(opened) is opened
    assert drawable(made) is made


class Mine(Figure):
    """A figure of the user's own."""


class MyAxes(Axes):
    """Axes of the user's own."""


@pytest.mark.parametrize(
    "value", [Mine(), MyAxes(Figure(), (0, 0, 1, 1)), Figure, 3, None, b"\x89PNG\r\n\x1a\n"]
)
def test_what_the_user_made_is_not_drawn_by_itself(value):
    """Drawing would run code of the user's, and other things are no pictures."""
    assert drawable(value) is None
