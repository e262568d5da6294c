"""The command line: parses arguments and calls what does the work.

Command modules import PyTorch and TVM inside their ``run``, so that help answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys

from tbn_tvm import __version__
from tbn_tvm.cli import (
    bench,
    convert,
    doctor,
    export,
    finetune,
    inspect,
    micro,
    run,
    sweep,
    train,
    tune,
)
from tbn_tvm.cli import compile as compile_command
from tbn_tvm.errors import TbnError

_COMMANDS = (
    train,
    finetune,
    convert,
    compile_command,
    run,
    export,
    tune,
    inspect,
    sweep,
    micro,
    bench,
    doctor,
)


class _Version(argparse.Action):
    """Prints versions only when asked, since TVM's takes a look-up."""

    def __call__(self, parser, *_args) -> None:
        from importlib import metadata

        try:
            tvm = metadata.version("apache-tvm")
        except metadata.PackageNotFoundError:
            tvm = "not installed"
        print(f"tbn-tvm {__version__} (Apache TVM {tvm})")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="tbn-tvm",
        description="Compile Tiled Bit Networks for CPUs and bare-metal Cortex-M.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print versions and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add_parser(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a command line; its exit status: 0, 1 for failure, 2 for usage."""
    args = build_parser().parse_args(argv)
    try:
        if getattr(args, "needs_tvm", True):
            from tbn_tvm._tvm import check_pair

            check_pair()
        status = args.run(args) or 0
        # Here a reader that has left can still be told from a failure; at exit it cannot.
        sys.stdout.flush()
        return status
    except TbnError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:
        # The reader (head, say) has what it wanted; keep Python from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", 1)
    except Exception as error:
        if os.environ.get("TBN_TVM_TRACEBACK"):
            raise
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        return _fail(
            f"internal error: {type(error).__name__}: {text} "
            "(set TBN_TVM_TRACEBACK=1 to see where)",
            1,
        )


def _fail(message: str, status: int) -> int:
    print(f"tbn-tvm: error: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
