"""What every loop offers: instructions and tools of 20 kB, of which `look` is called."""

from __future__ import annotations

INSTRUCTIONS = "You look at rows, and say what stands in them. " * 40
COUNT = 24
FILLER = "It tells all that stands in a row, in the order of its columns, one a line. " * 8

NAMES = ["look", *(f"other_{number}" for number in range(1, COUNT))]


def look(at: str) -> str:
    return f"what stands in {at}: " + "value " * 30


def schema(name: str) -> dict:
    return {
        "type": "function",
        "name": name,
        "description": f"Look at a row. {FILLER}",
        "parameters": {
            "type": "object",
            "properties": {"at": {"type": "string"}},
            "required": ["at"],
            "additionalProperties": False,
        },
        "strict": False,
    }


TOOLS = [schema(name) for name in NAMES]
