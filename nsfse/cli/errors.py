"""What a failure prints: one line on stderr and an exit code."""

import os
import sys

import typer

from nsfse_runtime.errors import NsfseError
from nsfse_runtime.escaping import printable

EXTRAS = {
    **dict.fromkeys(("torch", "safetensors"), "train"),
    **dict.fromkeys(("onnx", "onnxscript", "onnxslim"), "export"),
    "onnxruntime": "cpu",
}
"""Which extra brings a module that may be absent."""


def report(error: BaseException) -> int:
    """Print `error` as one line on stderr and return its exit code; NSFSE_DEBUG=1 adds the traceback."""
    if isinstance(error, BrokenPipeError):  # the reader of a pipe left: no error, and nobody to read a message
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    if os.environ.get("NSFSE_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    message, code = explain(error)
    sys.stderr.write(f"nsfse: {printable(message)}\n")
    return code


def explain(error: BaseException) -> tuple[str, int]:
    """Return the line and the exit code of `error` (docs/errors.md)."""
    if isinstance(error, NsfseError):
        return str(error), error.exit_code
    if isinstance(error, typer.TyperException):
        return f"{error.format_message()}{_advice(error.format_message())} (see nsfse --help)", 2
    if isinstance(error, ModuleNotFoundError) and (extra := EXTRAS.get((error.name or "").partition(".")[0])):
        return f'{error.name} is not installed; run: pip install "nsfse[{extra}]"', 2
    if isinstance(error, OSError):
        return f"{error.strerror or error}: {error.filename or 'no file named'}", 3
    return f"{type(error).__name__}: {error} - this is a bug in nsfse; run again with NSFSE_DEBUG=1 and report it", 1


def _advice(message: str) -> str:
    """Return what to do about a mistyped command line; nothing where its message names it."""
    if message.startswith("Got unexpected extra argument"):
        return '; put a text of several words into quotes: "make it red"'
    if message.startswith("No such option: -") and not message.startswith("No such option: --"):
        return "; write ./ before a file name that begins with a dash"
    return ""
