"""The parts that come with unified. They register as a stranger's plugin does and use only public names.

`unified_plugins` lists the modules that hold hook implementations: each file of each folder here, one concept a file.
"""

from importlib import import_module
from pathlib import Path

#: the version of the plugin contract that these parts were written for
unified_api = 1

FOLDERS = ("rules", "algorithms", "datasets", "formats", "sources", "rewards", "engines", "stages")

unified_plugins = [
    import_module(f"{__name__}.{folder}.{file.stem}")
    for folder in FOLDERS
    for file in sorted((Path(__file__).parent / folder).glob("[a-z]*.py"))
]
