"""However much code prints and shows, its head and tail are kept and memory is bounded."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipy_agent.notebook import rings
from ipy_agent.notebook.rings import CHARACTERS, DISPLAYS, Displays, Ring


def noted(text, name=None, *, update=False):
    transient = {"display_id": name} if name else None
    return {
        "data": {"text/plain": text},
        "metadata": {},
        "transient": transient,
        "update": update,
    }


def texts(displays):
    return [one["data"]["text/plain"] for one in displays]


@given(st.lists(st.text(max_size=30), max_size=40), st.integers(min_value=1, max_value=60))
def test_a_ring_keeps_head_and_tail_of_whatever_is_written(pieces, size):
    """All of it if it fits into both; else what is missing is counted between them."""
    whole = "".join(pieces)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rings, "CHARACTERS", size)
        ring = Ring()
        for piece in pieces:
            assert ring.write(piece) == len(piece)
        said = ring.getvalue()

    if len(whole) <= 2 * size:
        assert said == whole
    else:
        between = f"\n… {len(whole) - 2 * size:,} characters left out …\n"
        assert said == whole[:size] + between + whole[-size:]
    assert ring.written == len(whole)


@pytest.mark.parametrize(
    "pieces",
    [["x" * 10**8], ["line\n"] * 10**6, ["y" * 10**6] * 100],
    ids=["100 MB at once", "a million lines", "100 times 1 MB"],
)
def test_memory_does_not_grow_with_what_is_written(pieces):
    """Beside what the writer has itself, a ring holds head, tail and what keeps them apart."""
    ring = Ring()
    tracemalloc.start()
    try:
        for piece in pieces:
            ring.write(piece)
        said = ring.getvalue()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert said.startswith(pieces[0][:100])
    assert said.endswith(pieces[-1][-5:])
    assert "characters left out" in said
    assert len(said) < 2 * CHARACTERS + 100
    assert held < 40 * CHARACTERS


def test_a_ring_is_a_text_stream():
    """Code may print to it, ask about it and write lines; bytes are refused as elsewhere."""
    ring = Ring()
    print("a", "b", file=ring, flush=True)
    ring.writelines(["c\n", "d"])

    assert ring.getvalue() == "a b\nc\nd"
    assert (ring.writable(), ring.readable(), ring.isatty()) == (True, False, False)
    with pytest.raises(TypeError, match="takes a text"):
        ring.write(b"e")
    ring.clear()
    assert (ring.getvalue(), ring.written) == ("", 0)


def test_of_ten_thousand_displays_the_first_and_the_last_are_kept():
    """And a line between them that counts the rest."""
    displays = Displays()
    for number in range(10_000):
        displays.append(noted(f"{number}"))

    said = texts(displays)
    assert displays.noted == 10_000
    assert said[:DISPLAYS] == [str(number) for number in range(DISPLAYS)]
    assert said[DISPLAYS] == "… 9,900 outputs left out …"
    assert said[DISPLAYS + 1 :] == [str(number) for number in range(9_950, 10_000)]


def test_large_displays_are_fewer(monkeypatch):
    """The last one is kept however large it is."""
    monkeypatch.setattr(rings, "SIZE", 100)
    displays = Displays()
    for size in (60, 60, 60, 60, 500):
        displays.append(noted("x" * size))

    assert [len(text) for text in texts(displays) if "left out" not in text] == [60, 500]
    assert "… 3 outputs left out …" in texts(displays)


def test_an_update_takes_the_place_of_what_it_updates():
    """A bar that moves ten thousand times is one display, wherever it stands."""
    displays = Displays()
    displays.append(noted("first", "first"))
    for number in range(DISPLAYS + 5):
        displays.append(noted(f"{number}"))
    displays.append(noted("last", "last"))
    for number in range(10_000):
        displays.append(noted(f"first {number}", "first", update=True))
        displays.append(noted(f"last {number}", "last", update=True))

    said = texts(displays)
    assert (said[0], said[-1]) == ("first 9999", "last 9999")
    assert len(said) == DISPLAYS + 7


def test_an_update_of_what_is_not_there_is_a_display():
    """It updates something of an earlier cell."""
    displays = Displays()
    displays.append(noted("now", "elsewhere", update=True))

    assert texts(displays) == ["now"]
