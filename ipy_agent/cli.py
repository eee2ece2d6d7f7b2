"""The command line: `ipy-agent demo | serve | bench | model | install | doctor`.

Exit codes: 0 done, 1 the job failed (one line why on stderr), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ipy_agent import __version__
from ipy_agent.errors import AgentError, UsageError

if TYPE_CHECKING:
    from ipy_agent.server.engine import Engine

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except KeyboardInterrupt:
        print("ipy-agent: interrupted", file=sys.stderr)
        return 1
    except AgentError as error:
        print(f"ipy-agent: {error.line}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ipy-agent", description="An agent for Jupyter kernels, and its local server."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo", help="ask a local model seven questions about penguins, and measure"
    )
    demo.add_argument("--out", type=Path, default=Path("ipy-agent-demo"), help="folder to write to")
    demo.add_argument("--model", help="a model's name or a PATH.gguf")
    demo.set_defaults(run=_demo)

    serve = commands.add_parser("serve", help="serve a model of this machine")
    serve.add_argument("--port", type=int, default=0, help="0 for any free one")
    serve.add_argument("--engine", choices=("llama", "scripted"), default="llama")
    serve.add_argument("--script", type=Path, metavar="FILE", help="what `scripted` answers")
    serve.add_argument("--model", metavar="NAME|PATH.gguf", help="what `llama` answers with")
    serve.add_argument(
        "--slots", type=_above_zero(int), default=4, help="conversations kept in KV (4)"
    )
    serve.add_argument("--cache", choices=("off", "latest", "all"), default="all")
    serve.add_argument(
        "--connection-limit",
        type=_above_zero(float),
        default=3600.0,
        metavar="SECONDS",
        help="how old a connection may become (3600)",
    )
    serve.add_argument(
        "--idle-exit", type=_above_zero(float), metavar="SECONDS", help="end when unused so long"
    )
    serve.add_argument("--runtime-file", type=Path, help=argparse.SUPPRESS)
    serve.set_defaults(run=_serve)

    bench = commands.add_parser("bench", help="measure WebSocket against HTTP in a tool loop")
    bench.add_argument("--endpoint", metavar="NAME|URL", help="the environment's, unless named")
    bench.add_argument("-m", "--model", help="the endpoint's own, unless named")
    bench.add_argument("--key-env", metavar="NAME", help="the variable that holds the key")
    bench.add_argument("--turns", type=_above_zero(int), help="turns of a loop (20)")
    bench.add_argument("--rounds", type=_above_zero(int), help="loops of each mode (3; local 1)")
    bench.add_argument(
        "--chars", type=_above_zero(int), help="characters of a tool's output (4000; local 120)"
    )
    bench.add_argument("--modes", nargs="+", metavar="MODE", help="some of the modes only")
    bench.add_argument("--out", type=Path, metavar="FOLDER", help="write turns and picture there")
    bench.set_defaults(run=_bench)

    model = commands.add_parser("model", help="get a model's weights")
    actions = model.add_subparsers(dest="action", required=True, metavar="ACTION")
    pull = actions.add_parser("pull", help="fetch a model, unless it is here")
    pull.add_argument("name", nargs="?")
    pull.set_defaults(run=_pull)
    actions.add_parser("list", help="the known models").set_defaults(run=_list)
    path = actions.add_parser("path", help="where a model's file is")
    path.add_argument("name", nargs="?")
    path.set_defaults(run=_path)

    install = commands.add_parser("install", help="have %%%%agent in every kernel and terminal")
    place = install.add_mutually_exclusive_group(required=True)
    place.add_argument(
        "--sys-prefix",
        dest="place",
        action="store_const",
        const="environment_file",
        help="for all who use this Python's environment",
    )
    place.add_argument(
        "--user",
        dest="place",
        action="store_const",
        const="user_file",
        help="for you, in every environment with this package (IPython's default profile)",
    )
    install.add_argument("--undo", action="store_true", help="take it away again")
    install.set_defaults(run=_install)

    commands.add_parser(
        "doctor", help="say what works here, and what to do about what does not"
    ).set_defaults(run=_doctor)
    return parser


def _above_zero(kind: Callable[[str], float]) -> Callable[[str], float]:
    def read(text: str) -> float:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    read.__name__ = kind.__name__  # argparse names it where the text is no number
    return read


def _demo(options: argparse.Namespace) -> None:
    from ipy_agent.demo import run  # noqa: PLC0415 (each command loads its own part)

    run(options.out, model=options.model)


def _serve(options: argparse.Namespace) -> None:
    from ipy_agent.server.process import TOKEN_VARIABLE, serve, server_token  # noqa: PLC0415
    from ipy_agent.transport.runtime import runtime_folder  # noqa: PLC0415

    engine = _engine(options)
    if options.runtime_file is None and not os.environ.get(TOKEN_VARIABLE):
        print(f"the token is in {runtime_folder() / 'token'}", file=sys.stderr)
    serve(
        engine,
        port=options.port,
        token=server_token(),
        cache=options.cache,
        connection_limit=options.connection_limit,
        idle_exit=options.idle_exit,
        runtime_file=options.runtime_file,
    )


def _engine(options: argparse.Namespace) -> Engine:
    if options.engine == "scripted":
        from ipy_agent.server import scripted  # noqa: PLC0415

        return scripted.ScriptedEngine(scripted.load(options.script) if options.script else ())
    if options.script:
        raise UsageError("--script is for --engine scripted: name both, or neither")
    from ipy_agent.server import weights  # noqa: PLC0415
    from ipy_agent.server.llama import LlamaEngine  # noqa: PLC0415

    wanted = options.model or os.environ.get("IPY_AGENT_MODEL")
    file = weights.pull(wanted, weights.progress_bar(sys.stderr))
    name = next((known.name for known in weights.MODELS if known.file == file.name), file.stem)
    return LlamaEngine(file, name=name, slots=options.slots, cache=options.cache != "off")


def _bench(options: argparse.Namespace) -> None:
    from ipy_agent import bench  # noqa: PLC0415
    from ipy_agent.planning import endpoint_of  # noqa: PLC0415

    endpoint = endpoint_of(options.endpoint, model=options.model, key_env=options.key_env)
    if options.out is not None:
        try:
            options.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{options.out} cannot be made: {error.strerror}") from None
    # It has servers of its own: they are to end with it, whoever ends it.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        outcome = bench.run(
            endpoint,
            turns=options.turns,
            rounds=options.rounds,
            chars=options.chars,
            modes=options.modes,
            tell=lambda line: print(line, file=sys.stderr, flush=True),
        )
    finally:
        signal.signal(signal.SIGTERM, before)
    print(outcome.text())
    if options.out is not None:
        outcome.write(options.out)


def _pull(options: argparse.Namespace) -> None:
    from ipy_agent.server import weights  # noqa: PLC0415

    print(weights.pull(options.name, weights.progress_bar(sys.stderr)))


def _list(_: argparse.Namespace) -> None:
    from ipy_agent.server import weights  # noqa: PLC0415

    for model, here in weights.known():
        state = "here" if here else "not here"
        print(f"{model.name:32} {model.size / 1e6:7,.0f} MB  {model.licence:12} {state}")


def _path(options: argparse.Namespace) -> None:
    from ipy_agent.server import weights  # noqa: PLC0415

    print(weights.path(options.name))


def _install(options: argparse.Namespace) -> None:
    from ipy_agent import install  # noqa: PLC0415

    file: Path = getattr(install, options.place)()
    if options.undo:
        done = install.remove(file)
        print(f"undone: the line is out of {file}" if done else f"nothing to undo in {file}")
    elif install.add(file):
        whose = "of your default profile" if options.place == "user_file" else "of this environment"
        print(f"%%agent is there in every new kernel and terminal {whose}, by one line in {file}")
    else:
        print(f"the line is there already, in {file}")


def _doctor(_: argparse.Namespace) -> None:
    from ipy_agent import doctor  # noqa: PLC0415

    missing = []
    for finding in doctor.examined():
        print(finding, flush=True)
        if finding.mark == "missing":
            missing.append(finding)
    if missing:
        raise AgentError(f"no agent can work here yet: {missing[0].reason}", code="doctor")
