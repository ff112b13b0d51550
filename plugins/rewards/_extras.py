"""Libraries that only some rewards need."""

from importlib.util import find_spec


def needs(module: str, *, extra: str) -> None:
    """ValueError, with what to install, where a library is not there. For a settings' check, before anything runs."""
    if find_spec(module) is None:
        raise ValueError(
            f"the library {module} is not installed: pip install 'unified-post-training[{extra}]'",
        )
