"""Pillow's warnings about damaged metadata, which programs may turn off."""

import warnings


def ignore_pillow_warnings() -> None:
    """Turn Pillow's warnings off for the whole process: only the rotation is read from metadata.

    It is for programs, at their start. warnings.catch_warnings around each image would not be safe
    in threads.
    """
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
