"""`MODULE:WORKFLOW` and `path/file.py:name`: from a word on the command line to a `Workflow` object."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from flowpilot.cli.failures import CommandFailed, Exit
from flowpilot.cli.modules import files, is_file, modules_beside
from flowpilot.core.errors import FlowPilotError

if TYPE_CHECKING:
    from flowpilot.authoring import Workflow


def load_workflow(reference: str) -> Workflow:
    """The workflow that `reference` names. Without `:name`, the only one of the module.

    Raises `CommandFailed` with what to write instead, or the workflow's own `DefinitionError`.
    """
    place, _, name = reference.rpartition(":") if ":" in reference else (reference, "", "")
    if not place or place.endswith(":"):
        raise CommandFailed(f"{reference!r} is not of the form MODULE:WORKFLOW or path/file.py:name", Exit.USAGE)
    with modules_beside(place):
        return _complete(_found(reference, place, name))


def _found(reference: str, place: str, name: str) -> Workflow:
    from flowpilot.authoring import Workflow

    module = _load_module(place)
    there = {key: value for key, value in vars(module).items() if isinstance(value, Workflow)}
    listed = ", ".join(f"{place}:{key}" for key in there) or "none"
    if not name:
        if len(there) == 1:
            return next(iter(there.values()))
        raise CommandFailed(f"{place} names no workflow; write one of its workflows: {listed}", Exit.USAGE)
    found: object = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise CommandFailed(f"{place} has no {name!r}; its workflows: {listed}", Exit.USAGE)
        found = getattr(found, part)
    if not isinstance(found, Workflow):
        kind = type(found).__name__
        raise CommandFailed(f"{reference} is a {kind}, not a Workflow; its workflows: {listed}", Exit.USAGE)
    return found


def _complete(workflow: Workflow) -> Workflow:
    _ = workflow.definition  # raises what can be told only when every step is there
    return workflow


def _load_module(place: str) -> ModuleType:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    if is_file(place):
        return _load_file(Path(place))
    return _run(place, lambda: importlib.import_module(place))


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        remedy = f"; did you mean {path}.py?" if path.with_name(path.name + ".py").is_file() else ""
        raise CommandFailed(f"there is no file {path}{remedy}", Exit.USAGE)
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)  # as `python path/file.py` does, for the modules beside it
    if (known := files.get(str(path.resolve()))) is not None and sys.modules.get(known.__name__) is known:
        return known
    name = path.stem
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__file__", None) == str(path.resolve()):
        return loaded
    if loaded is not None or not name.isidentifier():
        name = f"flowpilot_file_{abs(hash(path.resolve()))}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise CommandFailed(f"{path} is not a Python file", Exit.USAGE)
    module = importlib.util.module_from_spec(spec)
    loader = spec.loader

    def execute() -> ModuleType:
        sys.modules[name] = module
        try:
            loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        files[str(path.resolve())] = module
        return module

    return _run(str(path), execute)


def _run(place: str, load: object) -> ModuleType:
    """Import the user's code and say what is wrong with it in one sentence."""
    assert callable(load)
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # a file saved twice in a second would be stale
    try:
        module = load()
    except (FlowPilotError, KeyboardInterrupt):
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (place == error.name or place.startswith(error.name + ".")):
            raise CommandFailed(
                f"there is no module {error.name!r} here ({os.getcwd()}) or installed; "
                "write MODULE:WORKFLOW or path/file.py:name",
                Exit.USAGE,
            ) from error
        raise CommandFailed(f"importing {place} failed: {error}; install it or mend the import") from error
    except BaseException as error:
        raise CommandFailed(f"importing {place} failed: {_told(error)}") from error
    finally:
        sys.dont_write_bytecode = writes
    assert isinstance(module, ModuleType)
    return module


def _told(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f"{error.msg} ({error.filename}, line {error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"
