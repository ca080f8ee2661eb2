"""Files of one name in several folders, in one process: each is imported with the modules beside it.

`flowpilot worker v1/flow.py:f v2/flow.py:f` runs two versions, and both may import a `models` of their own. Python
knows one module a name, so the second would get the first one's. Here a folder's own modules have the names while a
file of that folder is imported, and the first folder's have them afterwards: what imports inside a function finds
those.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from pydantic import BaseModel

files: dict[str, ModuleType] = {}
"""The modules that were loaded from a file, by its path."""

_own: dict[str, dict[str, ModuleType]] = {}
"""By folder, its modules whose names another folder's have."""


def is_file(place: str) -> bool:
    """Whether the first half of a reference is a path, not a module."""
    return place.endswith(".py") or "/" in place or os.sep in place


@contextmanager
def modules_beside(place: str) -> Iterator[None]:
    """Inside, the modules beside the file `place` go before those of the same names beside other files."""
    if not is_file(place):
        yield
        return
    folder = str(Path(place).resolve().parent)
    others = {str(Path(path).parent) for path in files} - {folder}
    hidden = {name: module for name, module in sys.modules.items() if _is_of_another(name, module, folder, others)}
    for name in hidden:
        del sys.modules[name]
    sys.modules.update(_own.get(folder, {}))
    path = list(sys.path)
    if others:
        sys.path[:] = [folder, *(each for each in sys.path if each not in others)]
    try:
        yield
    finally:
        sys.path[:] = [*(each for each in sys.path if each not in path), *path]
        mine = {name: sys.modules[name] for name in hidden if name in sys.modules}
        for module in mine.values():
            _complete_models(module)
        _own.setdefault(folder, {}).update(mine)
        sys.modules.update(hidden)


def _complete_models(module: ModuleType) -> None:
    """A model that names a later one is completed at its first use, which would look in `sys.modules` then."""
    for found in list(vars(module).values()):
        is_model = isinstance(found, type) and issubclass(found, BaseModel) and found is not BaseModel
        if is_model and not found.__pydantic_complete__:
            found.model_rebuild(raise_errors=False)


def _is_of_another(name: str, module: ModuleType, folder: str, others: set[str]) -> bool:
    """Whether it was imported from one of the `others`, and `folder` has its own of that name."""
    origin = getattr(module, "__file__", None)
    if origin is None or module in files.values():
        return False
    depth = name.count(".") + (2 if os.path.basename(origin) == "__init__.py" else 1)
    root = name.partition(".")[0]
    has_own = os.path.isfile(os.path.join(folder, f"{root}.py")) or os.path.isdir(os.path.join(folder, root))
    return has_own and str(Path(origin).resolve().parents[depth - 1]) in others
