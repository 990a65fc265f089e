"""What `stellane run TARGET` may name, and what it says when TARGET names something else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stellane import Server
from stellane.app.asgi import ASGIApplication
from stellane.app.target import as_application, load_target
from stellane.errors import TargetError

APP = """
from stellane import Server
import functools

server = Server()
number = 7
nested = type("Nested", (), {"inner": server})()

async def asgi(scope, receive, send): ...

class Framework:
    async def __call__(self, scope, receive, send): ...

framework = Framework()
wrapped = functools.partial(lambda extra, *args: asgi(*args), "extra")

def wsgi(environ, start_response): ...
def asgi2(scope): ...
class Asgi2:
    def __init__(self, scope): ...
    async def __call__(self, receive, send): ...
async def five(a, b, c, d, e): ...
async def two(a, b): ...

def make(): return server
def make_asgi(): return asgi
def make_badly(): raise OSError("no database")
def make_number(): return 7
async def make_later(): return server
"""


@pytest.fixture(autouse=True)
def modules_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test imports shop.py afresh, from a directory that is on the path for it alone."""
    (tmp_path / "shop.py").write_text(APP)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.chdir(tmp_path)
    known = set(sys.modules)
    yield
    for name in set(sys.modules) - known:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def refused(target: str, **options: Any) -> str:
    with pytest.raises(TargetError) as caught:
        load_target(target, **options)
    assert target in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "target", ["shop:server", "shop", "shop.py:server", "./shop.py", "shop:nested.inner", "shop:make()"]
)
def test_a_server_is_served_as_it_is(target: str) -> None:
    application = load_target(target)
    assert isinstance(application, Server)
    assert application.kind == "native"


@pytest.mark.parametrize("name", ["asgi", "framework", "wrapped", "make_asgi()"])
def test_an_asgi_3_app_is_wrapped(name: str) -> None:
    assert isinstance(load_target(f"shop:{name}"), ASGIApplication)


def test_a_factory_is_called() -> None:
    assert isinstance(load_target("shop:make", factory=True), Server)
    assert "OSError" in refused("shop:make_badly()")
    assert "no database" in refused("shop:make_badly()")
    assert "must be a plain function" in refused("shop:make_later()")
    assert "cannot be called" in refused("shop:number()")
    assert "is 7, of type int" in refused("shop:make_number", factory=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("number", "is 7, of type int; a stellane.Server or an ASGI 3 app is needed"),
        ("wsgi", "is a WSGI app .* a2wsgi"),
        ("asgi2", "is an ASGI 2 app"),
        ("Asgi2", "is an ASGI 2 app"),
        ("Framework", "is the class Framework; name an instance"),
        ("Server", "is the class Server; name an instance"),
        ("five", "is called with 5 arguments"),
        ("two", "is called with 2 arguments"),
        ("make", r"if it makes the application, write \(\) after its name"),
        ("sever", "'sever' is not in shop. Did you mean 'server'.*It could serve: server, asgi, framework"),
        ("server.none", "'server.none' is not in shop"),
    ],
)
def test_anything_else_is_refused_with_what_it_is(name: str, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        load_target(f"shop:{name}")


@pytest.mark.parametrize("target", ["", ":", "shop:", ":server"])
def test_a_target_of_another_form_is_refused(target: str) -> None:
    assert "write it as module:object" in refused(target)


def test_a_missing_module_is_told_from_one_that_misses_something() -> None:
    assert "there is no module 'shopp' on the Python path" in refused("shopp:server")
    assert "there is no module 'none'" in refused("none.shop:server")
    assert "there is no file missing.py" in refused("missing.py:server")
    Path("needy.py").write_text("import not_installed_anywhere")
    for target in ("needy:server", "needy.py:server"):
        message = refused(target)
        assert "importing it raised ModuleNotFoundError" in message
        assert "No module named 'not_installed_anywhere'" in message


@pytest.mark.parametrize(
    ("text", "said"),
    [("1 / 0", "ZeroDivisionError"), ("def broken(:", "SyntaxError"), ("raise SystemExit(3)", "SystemExit")],
)
def test_a_module_that_raises_is_shown_with_its_traceback(text: str, said: str) -> None:
    Path("failing.py").write_text(text)
    for target in ("failing:server", "failing.py:server"):
        message = refused(target)
        assert f"the module was found, but importing it raised {said}" in message
        assert text in message
        assert "failing" not in sys.modules


def test_a_module_without_a_usual_name_says_what_it_has() -> None:
    Path("unusual.py").write_text("from stellane import Server\nmine = Server()")
    message = refused("unusual")
    assert "has none of server, app, application; write unusual:object. It could serve: mine" in message
    Path("empty.py").touch()
    assert "It could serve: nothing" in refused("empty:app")


def test_a_file_finds_its_neighbours() -> None:
    directory = Path("elsewhere")
    directory.mkdir()
    (directory / "neighbour.py").write_text("from stellane import Server\nserver = Server()")
    (directory / "front.py").write_text("from neighbour import server")
    assert isinstance(load_target("elsewhere/front.py:server"), Server)


def test_a_file_that_hides_another_module_is_refused() -> None:
    """It would be imported in place of the other one by everybody else."""
    Path("json.py").write_text("app = None")
    assert "another module is called 'json'" in refused("json.py:app")
    Path("my-app.py").write_text("app = None")
    assert "cannot be a module's name" in refused("my-app.py:app")


def test_the_same_file_may_be_loaded_again() -> None:
    assert load_target("shop.py:server") is not load_target("shop.py:server")


def test_as_application_names_what_it_was_given_for() -> None:
    with pytest.raises(TargetError, match=r"^TestClient is 7"):
        as_application(7, "TestClient")


def test_a_wrong_object_is_not_printed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be os.environ, with every secret of this process in it."""
    monkeypatch.setenv("DATABASE_PASSWORD", "s3cret-word")
    with pytest.raises(TargetError, match="of type _Environ; a") as refused:
        load_target("os:environ")
    assert "s3cret-word" not in str(refused.value)
