"""`stellane run TARGET`: from "module:object" or "path/file.py:object" to an Application."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from stellane.app.asgi import ASGIApplication
from stellane.app.signature import is_async
from stellane.errors import TargetError
from stellane.nearest import did_you_mean
from stellane.runtime.application import Application

DEFAULT_NAMES = ("server", "app", "application")
"""Objects tried, in order, when TARGET names only a module."""

_SELF_CALL = "()"


def load_target(target: str, *, factory: bool = False) -> Application:
    """Import TARGET and make an Application of what it names.

    TARGET is "module:object", "path/file.py:object" or either without the object. With
    `factory`, or when the object is written with "()" after it, it is called without arguments
    and makes the application. Raises TargetError for everything that can be wrong with it.
    """
    module_name, colon, object_name = target.rpartition(":")
    if not colon:
        module_name, object_name = target, ""
    if object_name.endswith(_SELF_CALL):
        object_name, factory = object_name.removesuffix(_SELF_CALL), True
    if not module_name or (colon and not object_name):
        raise TargetError(f"target {target!r}: write it as module:object or path/file.py:object, such as main:server")
    found = _find(_load_module(module_name, target), object_name, target)
    if factory:
        found = _call_factory(found, target)
    return as_application(found, f"target {target!r}")


def as_application(found: Any, what: str) -> Application:
    """A Server as it is, an ASGI 3 app wrapped. `what` begins the message of the TargetError
    that is raised for anything else."""
    if isinstance(found, Application):
        return found
    wanted = "a stellane.Server or an ASGI 3 app is needed"
    if not callable(found):
        # No more than a number is shown: what is named by mistake may be os.environ, with secrets in it.
        value = f"{found!r}, " if isinstance(found, int | float | None) else ""
        raise TargetError(f"{what} is {value}of type {type(found).__name__}; {wanted}")
    positional = _positional(found)
    if inspect.isclass(found):
        if issubclass(found, Application) or positional != 1:
            raise TargetError(f"{what} is the class {found.__name__}; name an instance of it: {wanted}")
        raise TargetError(
            f"{what} is an ASGI 2 app (a class called with the scope); {wanted}, see asgiref.compatibility"
        )
    if positional is None or positional == 3:
        return ASGIApplication(found)
    if positional == 0:
        raise TargetError(
            f"{what} takes no arguments: if it makes the application, write {_SELF_CALL} after its name; {wanted}"
        )
    if positional == 1:
        raise TargetError(f"{what} is an ASGI 2 app (called with the scope alone); {wanted}, see asgiref.compatibility")
    if positional == 2 and not is_async(found):
        raise TargetError(
            f"{what} is a WSGI app (called with environ and start_response); {wanted}, and a2wsgi makes one of it"
        )
    raise TargetError(f"{what} is called with {positional} arguments; an ASGI 3 app has three: scope, receive and send")


def _load_module(name: str, target: str) -> ModuleType:
    is_file = name.endswith(".py") or "/" in name
    try:
        return _import_file(Path(name), target) if is_file else importlib.import_module(name)
    except TargetError:
        raise
    except ModuleNotFoundError as error:
        # Only if it is this module that is missing, or the package it is in: not one that it imports.
        if error.name is not None and not is_file and (name == error.name or name.startswith(f"{error.name}.")):
            raise TargetError(
                f"target {target!r}: there is no module {error.name!r} on the Python path, "
                f"which begins with {sys.path[0] or 'the working directory'}. "
                "Run from the directory it is in, or name the file: path/file.py:object"
            ) from None
        raise TargetError(_raised(target, error)) from error
    except (Exception, SystemExit) as error:
        raise TargetError(_raised(target, error)) from error


def _raised(target: str, error: BaseException) -> str:
    text = "".join(traceback.format_exception(error)).rstrip()
    return f"target {target!r}: the module was found, but importing it raised {type(error).__name__}:\n{text}"


def _import_file(path: Path, target: str) -> ModuleType:
    if not path.is_file():
        raise TargetError(f"target {target!r}: there is no file {path}")
    name = path.stem
    if not name.isidentifier():
        raise TargetError(f"target {target!r}: {name!r} cannot be a module's name; rename the file {path.name}")
    path = path.resolve()
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) != str(path):
        raise TargetError(f"target {target!r}: another module is called {name!r}; rename the file {path.name}")
    # Its neighbours are importable, as they are when the file is run as a script.
    directory = str(path.parent)
    if directory not in sys.path:
        sys.path.insert(0, directory)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise TargetError(f"target {target!r}: {path.name} is not a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _find(module: ModuleType, name: str, target: str) -> Any:
    if not name:
        for default in DEFAULT_NAMES:
            if hasattr(module, default):
                return getattr(module, default)
        raise TargetError(
            f"target {target!r}: {module.__name__} has none of {', '.join(DEFAULT_NAMES)}; "
            f"write {target}:object. {_servable(module)}"
        )
    found: Any = module
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            candidates = _candidates(module)
            raise TargetError(
                f"target {target!r}: {name!r} is not in {module.__name__}."
                f"{did_you_mean(name, candidates)} {_servable(module)}"
            ) from None
    return found


def _servable(module: ModuleType) -> str:
    return f"It could serve: {', '.join(_candidates(module)) or 'nothing'}."


def _candidates(module: ModuleType) -> list[str]:
    """Names in the module that could be meant: Servers and what looks like an ASGI 3 app."""
    return [name for name, value in vars(module).items() if not name.startswith("_") and _looks_servable(value)]


def _looks_servable(value: Any) -> bool:
    if isinstance(value, Application):
        return True
    return callable(value) and not inspect.isclass(value) and is_async(value) and _positional(value) == 3


def _call_factory(found: Any, target: str) -> Any:
    if not callable(found):
        raise TargetError(f"target {target!r}: {found!r} cannot be called, so it is not a factory")
    try:
        made = found()
    except Exception as error:
        text = "".join(traceback.format_exception(error)).rstrip()
        raise TargetError(f"target {target!r}: the factory raised {type(error).__name__}:\n{text}") from error
    if inspect.iscoroutine(made):
        made.close()
        raise TargetError(f"target {target!r}: the factory is async; it must be a plain function")
    return made


def _positional(found: Any) -> int | None:
    """How many positional arguments it must be given; 3 also when it can be given three. None when
    nobody knows."""
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        return None
    try:
        signature.bind(None, None, None)
    except TypeError:
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        required = [p for p in signature.parameters.values() if p.kind in kinds and p.default is p.empty]
        return len(required)
    return 3
