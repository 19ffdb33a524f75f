"""Write docs/api.md from the signatures and docstrings of the public names: python docs/write_api.py."""

import ast
import inspect
import re
import textwrap
from importlib import import_module
from pathlib import Path

HEAD = """\
# API

Every public name of the three packages. [Python](python.md) is the guide to them. Written by
`docs/write_api.py` from signatures and docstrings; a test compares it with the code.
"""
PACKAGES = {
    "nsfse_runtime": "Search and serving, without torch.",
    "nsfse": "Training and evaluation.",
    "nsfse_export": "From a run to a bundle.",
}
SECTIONS = {
    "Args": "Arguments",
    "Attributes": "Attributes",
    "Returns": "Returns",
    "Yields": "Yields",
    "Raises": "Raises",
}
Definition = ast.ClassDef | ast.FunctionDef


def page() -> str:
    """Return the whole page."""
    lines = [HEAD]
    for package, summary in PACKAGES.items():
        lines += [f"## {package}", summary]
        for name in sorted(set(import_module(package).__all__) - {"__version__"}):
            lines += describe(definition(package, name))
    return "\n\n".join(line.strip("\n") for line in lines if line.strip()) + "\n"


def definition(package: str, name: str) -> Definition:
    """Return the syntax tree of a public class or function."""
    source = inspect.getsourcefile(getattr(import_module(package), name))
    tree = ast.parse(Path(source or "").read_text("utf-8"))
    return next(node for node in tree.body if isinstance(node, Definition) and node.name == name)


def describe(node: Definition) -> list[str]:
    """Return the entry of a class with its public methods, or of a function, as blocks."""
    if isinstance(node, ast.FunctionDef):
        return [f"### {node.name}", fenced(signature(node)), *docstring(node)]
    blocks = [f"### {node.name}", *docstring(node)]
    if fields := [ast.unparse(item) for item in node.body if isinstance(item, ast.AnnAssign) and is_public(item)]:
        blocks.append(fenced("\n".join(wrapped_field(field) for field in fields)))
    for method in (item for item in node.body if isinstance(item, ast.FunctionDef)):
        if method.name == "__init__" and ast.get_docstring(method):
            blocks += [fenced(signature(method, name=node.name)), *docstring(method)]
        elif not method.name.startswith("_"):
            blocks += [f"#### {node.name}.{method.name}", fenced(signature(method)), *docstring(method)]
    return blocks


def is_public(field: ast.AnnAssign) -> bool:
    """Return whether a field of a class is public."""
    return isinstance(field.target, ast.Name) and not field.target.id.startswith("_")


def wrapped_field(text: str) -> str:
    """Return a field, on several lines where it is long."""
    return "\n".join(textwrap.wrap(text, 96, subsequent_indent="    ", break_long_words=False))


def signature(node: ast.FunctionDef, name: str = "") -> str:
    """Return a function's signature as it is written, a parameter per line where it is long."""
    decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
    returns = f" -> {unquoted(node.returns)}" if node.returns and not name else ""
    if any(decorator.endswith("property") for decorator in decorators):
        return f"{node.name}{returns.replace(' -> ', ': ')}"
    parts = parameters(node.args, skip_first=bool(name) or is_method(node))
    prefix = "classmethod " if "classmethod" in decorators else ""
    line = f"{prefix}{name or node.name}({', '.join(parts)}){returns}"
    if len(line) <= 96:
        return line
    return f"{prefix}{name or node.name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){returns}"


def is_method(node: ast.FunctionDef) -> bool:
    """Return whether the first parameter is self or cls."""
    return bool(node.args.args) and node.args.args[0].arg in ("self", "cls")


def parameters(arguments: ast.arguments, *, skip_first: bool) -> list[str]:
    """Return each parameter with its annotation and default."""
    plain = arguments.posonlyargs + arguments.args
    defaults = [None] * (len(plain) - len(arguments.defaults)) + list(arguments.defaults)
    parts = [parameter(argument, default) for argument, default in zip(plain, defaults, strict=True)][skip_first:]
    if arguments.vararg:
        parts.append("*" + parameter(arguments.vararg, None))
    elif arguments.kwonlyargs:
        parts.append("*")
    parts += [parameter(*pair) for pair in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    return parts + (["**" + parameter(arguments.kwarg, None)] if arguments.kwarg else [])


def parameter(argument: ast.arg, default: ast.expr | None) -> str:
    """Return one parameter."""
    text = argument.arg + (f": {unquoted(argument.annotation)}" if argument.annotation else "")
    return text if default is None else f"{text} = {ast.unparse(default)}"


def unquoted(annotation: ast.expr) -> str:
    """Return an annotation without the quotes of forward references."""
    return re.sub(r"'([^']*)'", r"\1", ast.unparse(annotation))


def docstring(node: Definition) -> list[str]:
    """Return a docstring as Markdown blocks: paragraphs, and Google-style sections as lists."""
    blocks = []
    for block in re.split(r"\n\s*\n", ast.get_docstring(node) or ""):
        head, _, body = block.partition("\n")
        if head.removesuffix(":") in SECTIONS and head.endswith(":"):
            blocks.append(f"**{SECTIONS[head[:-1]]}**")
            blocks.append(section(head[:-1], textwrap.dedent(body)))
        else:
            blocks.append(wrapped(block))
    return blocks


def section(head: str, body: str) -> str:
    """Return the entries of a section as a list; of Returns and Yields, as a paragraph."""
    if head in ("Returns", "Yields"):
        return wrapped(body)
    entries = re.split(r"\n(?=\S)", body)
    pairs = [re.match(r"(\*{0,2}[\w.]+)(?: \([^)]*\))?: (.*)", entry, re.DOTALL) for entry in entries]
    return "\n".join(
        wrapped(f"`{pair[1]}`: {pair[2]}" if pair else entry, "- ", "  ")
        for pair, entry in zip(pairs, entries, strict=True)
    )


def wrapped(text: str, first: str = "", rest: str = "") -> str:
    """Return text in lines of at most 98 characters."""
    return "\n".join(
        textwrap.wrap(
            " ".join(text.split()),
            98,
            initial_indent=first,
            subsequent_indent=rest,
            break_long_words=False,
            break_on_hyphens=False,
        )
    )


def fenced(text: str) -> str:
    """Return text as a block of code."""
    return f"```text\n{text}\n```"


if __name__ == "__main__":
    Path(__file__).with_name("api.md").write_text(page(), encoding="utf-8")
