"""The clients that are compared, and a figure of each beside the bare loop's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import kernels
from environments import Missing
from processes import Loop, Plan, Told, measured, middle

BARE, OURS, RESENT = "bare", "ipy_agent", "openai SDK, full resend"
JOURNAL, AWAITED = f"{OURS}, journal", f"{BARE}, awaited"
SCRIPTS = {
    BARE: Loop("bare.py"),
    OURS: Loop("ours.py"),
    JOURNAL: Loop("ours.py", ("--journal",)),
}
PEERS = {
    "openai SDK": Loop("sdk.py", environment="openai"),
    RESENT: Loop("resend.py", environment="openai", http=True),
    "openai-agents": Loop("agents_sdk.py", environment="openai-agents"),
}
OVER_HTTP = {
    "chatlas": Loop("chat.py", environment="chatlas", http=True),
    "pydantic-ai": Loop("pydantic_agent.py", environment="pydantic-ai", http=True),
}
KERNELS = {
    AWAITED: partial(kernels.bare, kernels.AWAITED),
    f"{BARE}, on a thread": partial(kernels.bare, kernels.THREADED),
    OURS: kernels.agent,
}

Clients = Mapping[str, Loop | Callable[[Plan], Told]]
Figures = dict[str, list[float]]


def rounds_of(clients: Clients, plan: Plan, rounds: int, peers: int = 2) -> dict[str, list[Told]]:
    """Return what was measured in so many rounds, in each of which all clients take turns.

    The peers take part in the first ones only: they take longer, and are further away. One that
    cannot be installed is told, and left out.
    """
    told: dict[str, list[Told]] = {name: [] for name in clients}
    missing = set()
    for number in range(rounds):
        for name, client in clients.items():
            if name in missing or (number >= peers and name in PEERS | OVER_HTTP):
                continue
            try:
                one = measured(client, plan) if isinstance(client, Loop) else client(plan)
                told[name].append(one)
            except Missing as error:
                missing.add(name)
                print(error)
    return {name: many for name, many in told.items() if many}


def taken(told: Mapping[str, list[Told]], figure: Callable[[Told], float]) -> Figures:
    """Return a figure of each round of each client."""
    return {name: [figure(one) for one in many] for name, many in told.items()}


def compare(what: str, values: Figures, target: str = "", digits: int = 2) -> None:
    """Print a figure of all clients: medians, spread, and ratios to the quickest bare loop.

    A ratio is the median of each round's, since what slows a machine down slows a whole round.
    """
    base = min((name for name in values if name.startswith(BARE)), key=lambda n: middle(values[n]))
    print(f"\n{what:29}     median  (      rounds      )   × bare  {target and 'target'}")
    for name, found in values.items():
        ratios = [one / least for one, least in zip(found, values[base], strict=False)]
        spread = f"{min(found):.{digits}f} to {max(found):.{digits}f}"
        told = f"{middle(found):10.{digits}f}  ({spread:>18}) {middle(ratios):8.2f}"
        print(f"{name:29} {told}  {aim(name, target)}", flush=True)


def aim(name: str, target: str) -> str:
    """Return the target where it is ours to meet."""
    return target if name.startswith(OURS) else ""
