"""A map packed for the processes that carry it out: plain values, and the answer's type.

Rule 1: no key is in it. An endpoint has the name of its key's variable; the value is read where
rows are asked.
Rule 2: a type that would not arrive as it left is refused here, by its name.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]  # (Dask brings it)
import msgspec

from ipy_agent.agent.plan import Plan
from ipy_agent.agent.schemas import Shape, shape_of
from ipy_agent.errors import UsageError
from ipy_agent.fleet.maps import Job
from ipy_agent.protocol.items import EMPTY, Item

__all__ = ["packed", "unpacked"]

JOBS = 16
"""How many jobs a process knows: who asks again for one forks from what is warm."""

_CACHE = "__msgspec_cache__"


class _Content(msgspec.Struct, frozen=True, kw_only=True):
    """What is in a parcel: a job, but for what a process has of its own."""

    plan: Plan
    schema: Any
    said: list[Item]
    kept: Callable[[], Path] | None
    concurrency: int | None
    fresh: bool


def packed(job: Job, schema: Any, kept: Callable[[], Path] | None) -> bytes:
    """Return a job as bytes.

    Args:
        job: what is to be done.
        schema: the type or shape that its answers have to be.
        kept: tells where a process keeps what came of rows.

    Raises:
        UsageError: the type cannot travel.
    """
    content = _Content(
        plan=msgspec.structs.replace(job.plan, shape=None),
        schema=schema,
        said=job.shared.since(0),
        kept=kept,
        concurrency=job.concurrency,
        fresh=job.fresh,
    )
    file = io.BytesIO()
    try:
        _Pickler(file).dump(content)
    except UsageError:
        raise
    except Exception as error:  # noqa: BLE001 (a user's type may raise anything)
        raise _untold(job.plan.shape, str(error)) from None
    return file.getvalue()


@functools.lru_cache(JOBS)
def unpacked(parcel: bytes) -> Job:
    """Return the job that a parcel holds: the same object for the same bytes.

    Raises:
        UsageError: this process has not what the type of the answers needs.
    """
    try:
        content: _Content = pickle.loads(parcel)  # noqa: S301 (our own client packed it)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"a worker has not all that the schema needs: {error}") from None
    schema = content.schema
    shape = schema if schema is None or isinstance(schema, Shape) else shape_of(schema)
    return Job(
        plan=msgspec.structs.replace(content.plan, shape=shape),
        shared=EMPTY.extend(content.said),
        kept=content.kept() if content.kept else None,
        concurrency=content.concurrency,
        fresh=content.fresh,
    )


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # (it has no types)
    """Takes the types of a notebook by value, and what msgspec adds off them.

    cloudpickle would make a msgspec Struct without fields of one, and give each field of a
    dataclass a default.
    """

    def reducer_override(self, obj: Any) -> Any:
        if obj is dataclasses.MISSING:
            return "MISSING"  # what knows it knows it by its identity
        if isinstance(obj, type) and not _is_importable(obj):
            if issubclass(obj, msgspec.Struct):
                raise _untold(obj, "cloudpickle loses the fields of a msgspec Struct")
            if _CACHE in vars(obj):
                delattr(obj, _CACHE)  # msgspec makes it anew where it needs it
        return super().reducer_override(obj)


def _is_importable(kind: type) -> bool:
    found: Any = None if kind.__module__ == "__main__" else sys.modules.get(kind.__module__)
    for name in kind.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is kind


def _untold(kind: Any, why: str) -> UsageError:
    name = getattr(kind, "__name__", None) or getattr(kind, "name", "the schema")
    return UsageError(
        f"{name} cannot be sent to workers ({why}): put it into a module that they can import, "
        "or use a dataclass"
    )
