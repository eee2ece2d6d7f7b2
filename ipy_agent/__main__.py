"""`python -m ipy_agent`: the same as `ipy-agent`."""

from __future__ import annotations

import sys

from ipy_agent.cli import main

if __name__ == "__main__":
    sys.exit(main())
