"""What a session tells of itself: its tables, and how it stands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ipy_agent import tables
from ipy_agent.agent.branches import Branches
from ipy_agent.agent.budget import Used
from ipy_agent.agent.outline import drawn
from ipy_agent.agent.tools import Tool
from ipy_agent.connections import Connections
from ipy_agent.endpoints import Endpoint
from ipy_agent.execution import Execution
from ipy_agent.planning import Planner
from ipy_agent.records import Recorder
from ipy_agent.settings import Settings

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Told"]


class Told:
    """What there is to read of a session. Nothing here asks, sends or waits."""

    id: str
    records: Recorder
    _planner: Planner
    _connections: Connections
    _branches: Branches
    _execution: Execution

    # what happened

    @property
    def turns(self) -> DataFrame:
        """One row a turn, fresh at each access."""
        return tables.turns(self.records)

    @property
    def cells(self) -> DataFrame:
        """One row a cell run, fresh at each access."""
        return tables.cells(self.records)

    @property
    def tools(self) -> DataFrame:
        """One row a tool call, fresh at each access."""
        return tables.tools(self.records)

    @property
    def messages(self) -> DataFrame:
        """One row an item of the conversation, fresh at each access."""
        return tables.messages(self.records)

    def export(self, path: str | Path, table: str = "turns", *, defuse: bool = False) -> Path:
        """Write the session to a file and return its path.

        Args:
            path: its suffix decides: `.parquet`, `.csv` and `.jsonl` hold one table,
                `.json`, `.html` and `.md` all four.
            table: `turns`, `cells`, `tools` or `messages`, for the formats that hold one.
            defuse: put a `'` before each text in a `.csv` that a spreadsheet would calculate.

        Raises:
            UsageError: an unknown suffix or table, or no such folder; nothing to defuse.
            MissingExtra: parquet without pyarrow.
        """
        return tables.export(self.records, path, table, defuse=defuse)

    # how it stands

    @property
    def settings(self) -> Settings:
        """What is set; `configure`, or an attribute of its name, sets one."""
        return self._planner.settings

    @property
    def endpoint(self) -> Endpoint:
        """Where the next run goes."""
        return self._planner.endpoint

    @property
    def branch(self) -> str:
        """The branch that the next run is on. Set it to switch; `fork` begins one."""
        return self._branches.current

    @branch.setter
    def branch(self, name: str) -> None:
        self._branches.switch(name)

    @property
    def branches(self) -> tuple[str, ...]:
        """The names of the branches, `main` first."""
        return self._branches.names

    @property
    def tree(self) -> str:
        """The runs of all branches as a picture in text: which one followed which."""
        return drawn(self._branches.tree, self.branch)

    @property
    def toolbox(self) -> dict[str, Tool]:
        """The tools on offer."""
        return self._planner.toolbox

    @property
    def allowed(self) -> dict[str, str]:
        """The tools that run without a question in mode `ask`: `once`, or for the `session`."""
        return dict(self._execution.allowances)

    def used(self, cell: int | None = None) -> Used:
        """Return what was used of the budgets: by the run `cell`, or by the whole session."""
        return self._execution.spending.used(cell)

    def describe(self) -> str:
        """Return where the session stands, in a few lines."""
        turns = [row for row in self.records.turns if row.status != "running"]
        read = sum(row.input_tokens or 0 for row in turns)
        cached = sum(row.cached_tokens or 0 for row in turns)
        share = f", {cached / read:.0%} of the input from the cache" if read else ""
        said = self._branches.tree.said(self.branch)
        way = self._connections.to(self.endpoint, self.settings.transport)
        model = self.settings.model or self.endpoint.model or "the endpoint's own"
        return "\n".join(
            (
                f"endpoint    {self.endpoint.name} ({self.endpoint.url or 'embedded server'})",
                f"model       {model}",
                f"connection  {way.describe()}",
                f"mode        {self.settings.mode}",
                f"branch      {self.branch} of {len(self.branches)}",
                f"said        {said.length} items, {said.size:,} bytes",
                f"turns       {len(turns)} in {len(self.records.cells)} cells{share}",
            )
        )

    def __repr__(self) -> str:
        return f"<Session {self.id}: {self.endpoint.name}, {len(self.records.turns)} turns>"
