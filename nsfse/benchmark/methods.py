"""Methods by name, with their switches and ablations: `nsfse:gamma=0+no-infusion`, `tirg:facts+minutes`."""

from nsfse.benchmark.blocks import FACTS, MINUTES
from nsfse_runtime.errors import UsageError

ABLATIONS = {
    "fixed-t": "model.boundary",
    "gamma": "model.gamma",
    "alpha": "model.alpha",
    "no-infusion": "model.infusion=false",
    "no-blocks": "model.attribute_blocks=false",
    "unnamed": "train.word_role_weight=0 train.word_grounding_weight=0 train.attribute_weight=0",
    "sentence": 'model.words="sentence"',
    "signed-sentence": 'model.sentence="signed"',
    "cross-only": 'model.branches="cross"',
    "visual-only": 'model.branches="visual"',
}
"""What may stand after `nsfse:`, as settings; those without a value here take one: nsfse:gamma=0."""


def method_settings(method: str) -> list[str]:
    """Return the settings of a method with its switches.

    Args:
        method: Such as `nsfse:gamma=0+no-infusion` or `tirg:facts+minutes`.

    Returns:
        Overrides, `section.key=value`. `minutes` adds none: its number of steps is measured.

    Raises:
        UsageError: The method or a switch is unknown.
    """
    from nsfse.models.baselines import known_methods

    name = method.partition(":")[0]
    if name not in ("nsfse", *known_methods()):
        raise UsageError(f"no method {method!r}; there are: nsfse, {', '.join(known_methods())}, and nsfse:ABLATION")
    settings = [f"model.method={name}"]
    for switch in switches(method) if ":" in method else ():
        if switch != MINUTES:
            settings += _ablation(switch) if name == "nsfse" else _baseline_switch(name, switch)
    return settings


def _ablation(switch: str) -> list[str]:
    key, _, value = switch.partition("=")
    if key not in ABLATIONS or bool(value) == ("=" in ABLATIONS[key]):
        known = ", ".join(name if "=" in setting else f"{name}=NUMBER" for name, setting in ABLATIONS.items())
        raise UsageError(f"no ablation {switch!r} of nsfse; there are: {known}, {MINUTES}")
    return [f"{ABLATIONS[key]}={value}"] if value else ABLATIONS[key].split()


def _baseline_switch(name: str, switch: str) -> list[str]:
    if switch != FACTS:
        raise UsageError(f"no method '{name}:{switch}'; of {name} there are: {name}:{FACTS}, {name}:{MINUTES}")
    return ["model.attribute_supervision=true"]


def switches(method: str) -> list[str]:
    """Return what follows a method's name: `tirg:facts+minutes` has facts and minutes."""
    return method.partition(":")[2].split("+")
