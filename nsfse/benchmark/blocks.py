"""The fair table's blocks: what all methods of one know alike, and for how long each trains (docs/benchmarks.md)."""

from collections.abc import Sequence
from dataclasses import dataclass

from nsfse_runtime.errors import UsageError

FACTS, MINUTES = "facts", "minutes"
"""What may stand after any baseline's name, the latter also after nsfse's: `tirg:facts+minutes`."""
METHODS = ("nsfse", "tirg", "artemis", "combiner", "sum")
"""The methods of a block unless others are named."""
COMPARED = ("nsfse", "image-only", "text-only", "sum", "tirg", "combiner", "artemis")
"""The methods of a table without blocks."""
FITTED = (
    "The weights ω of nsfse's scores and its decision are fitted to validation queries (drawn) or to queries held out "
    "of training, which baselines never use: three numbers after every epoch, the decision after the last."
)
CAPTIONS = {
    "right-answers": f"Right answers alone: no method learns which words ask or what images show. {FITTED}",
    "facts": "The same facts: every method learns which words ask, for presence or absence, and which images of a "
    f"batch have what they name, with the same weights of both losses. {FITTED}",
    "minutes": "Equal minutes: facts as above, and each method takes as many steps as fit into the minutes of the "
    f"first one. {FITTED}",
}
"""The blocks by name, with what stands above their tables."""


@dataclass(frozen=True)
class Block:
    """Methods to compare with each other; a table without blocks is one of no name."""

    name: str
    caption: str
    methods: tuple[str, ...]


def blocks_of(names: Sequence[str], methods: Sequence[str]) -> list[Block]:
    """Return the blocks of a comparison.

    Args:
        names: Names of blocks; without names all methods are in one block.
        methods: Plain methods, which each block gives its own switches.

    Returns:
        The blocks, in the order of their names.

    Raises:
        UsageError: A block is unknown, or a method of a named block has switches of its own.
    """
    methods = list(dict.fromkeys(methods))
    if not names:
        return [Block("", "", tuple(methods))]
    for name in names:
        if name not in CAPTIONS:
            raise UsageError(f"no block {name!r}; there are: {', '.join(CAPTIONS)}")
    if spelled := [method for method in methods if ":" in method]:
        raise UsageError(f"a block spells its methods itself; name {spelled[0].partition(':')[0]}, not {spelled[0]}")
    return [_block(name, methods) for name in dict.fromkeys(names)]


def _block(name: str, methods: Sequence[str]) -> Block:
    spelled = []
    for index, method in enumerate(methods):
        if name == "right-answers":
            switches = ["unnamed"] if method == "nsfse" else []
        else:
            switches = [] if method == "nsfse" else [FACTS]
            switches += [MINUTES] if name == "minutes" and index else []
        spelled.append(":".join([method, "+".join(switches)]) if switches else method)
    return Block(name, CAPTIONS[name], tuple(spelled))
