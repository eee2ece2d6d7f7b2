"""What a recorder holds, as tables: DataFrames, a picture of the turns, files.

Loading this loads neither pandas nor a parser: each comes with the first call that needs it.
"""

from __future__ import annotations

from ipy_agent.tables.files import export
from ipy_agent.tables.frames import COLUMNS, cells, messages, tools, turns

__all__ = ["COLUMNS", "cells", "export", "messages", "tools", "turns"]
