"""Rules of the listening sockets."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path

import pytest

from stellane.config import ServerConfig
from stellane.errors import ConfigError
from stellane.supervisor.listeners import UDS_PATH_BYTES_MAX, open_listeners
from stellane.supervisor.port_owner import find_port_owner


def has_ipv6_loopback() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6_loopback(), reason="this machine has no IPv6 loopback address")


def test_a_free_port_is_chosen_and_named() -> None:
    with open_listeners(ServerConfig(port=0)) as listeners:
        (address,) = listeners.addresses
        (sock,) = listeners.sockets
        assert address == f"http://127.0.0.1:{sock.getsockname()[1]}"
        with socket.create_connection(sock.getsockname(), timeout=5):
            pass


def test_sockets_are_non_blocking_and_close_on_exec() -> None:
    with open_listeners(ServerConfig(port=0)) as listeners:
        assert [sock.getblocking() for sock in listeners.sockets] == [False]
        assert [os.get_inheritable(fd) for fd in listeners.filenos()] == [False]


def test_a_port_with_old_connections_in_time_wait_can_be_bound_again() -> None:
    with open_listeners(ServerConfig(port=0)) as listeners:
        listeners.sockets[0].setblocking(True)
        address = listeners.sockets[0].getsockname()
        client = socket.create_connection(address, timeout=5)
        served, _ = listeners.sockets[0].accept()
        served.close()  # the side that closes first is left in TIME_WAIT
        assert client.recv(1) == b""
        client.close()
    with open_listeners(ServerConfig(port=address[1])) as again:
        assert again.sockets[0].getsockname() == address


def test_each_slot_has_a_listener_of_its_own() -> None:
    """The kernel gives each of them some of the connections; what one has not accepted stays its own."""
    with open_listeners(ServerConfig(port=0), 2) as listeners:
        ((one,), (other,)) = (listeners.filenos(slot) for slot in range(2))
        sockets = {fd: socket.socket(fileno=os.dup(fd)) for fd in (one, other)}
        address = sockets[one].getsockname()
        assert sockets[other].getsockname() == address
        clients = [socket.create_connection(address, timeout=5) for _ in range(32)]
        accepted: dict[int, int] = {}
        for fd, sock in sockets.items():
            assert not os.get_blocking(fd)
            assert not os.get_inheritable(fd)
            accepted[fd] = 0
            with contextlib.suppress(BlockingIOError), sock:
                while True:
                    sock.accept()[0].close()
                    accepted[fd] += 1
        assert sum(accepted.values()) == len(clients)
        assert min(accepted.values()) > 0
        for client in clients:
            client.close()


def test_two_servers_with_listeners_for_each_slot_do_not_share_a_port() -> None:
    """SO_REUSEPORT alone would let the second one in, and each would get some of the other's connections."""
    with open_listeners(ServerConfig(port=0), 2) as listeners:
        port = listeners.sockets[0].getsockname()[1]
        with pytest.raises(ConfigError, match="already in use"):
            open_listeners(ServerConfig(port=port), 2)


@needs_ipv6
def test_ipv6_address() -> None:
    with open_listeners(ServerConfig(host="::1", port=0)) as listeners:
        port = listeners.sockets[0].getsockname()[1]
        assert listeners.addresses == (f"http://[::1]:{port}",)
        with socket.create_connection(("::1", port), timeout=5):
            pass


@needs_ipv6
def test_double_colon_takes_ipv4_too() -> None:
    with open_listeners(ServerConfig(host="::", port=0)) as listeners:
        port = listeners.sockets[0].getsockname()[1]
        for host in ("::1", "127.0.0.1"):
            with socket.create_connection((host, port), timeout=5) as client:
                assert client.getpeername()[:2] == (host, port)


def test_every_address_of_a_name_gets_the_same_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """One loopback name with two addresses, as localhost has on a machine with IPv6."""
    two = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 0)) for host in ("127.0.0.1", "127.0.0.2")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: two)
    with open_listeners(ServerConfig(host="two.example", port=0)) as listeners:
        names = [sock.getsockname() for sock in listeners.sockets]
        assert [name[0] for name in names] == ["127.0.0.1", "127.0.0.2"]
        assert names[0][1] == names[1][1]


def test_an_address_the_machine_lacks_is_passed_over_if_the_name_has_another(monkeypatch: pytest.MonkeyPatch) -> None:
    two = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 0)) for host in ("192.0.2.1", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: two)
    with open_listeners(ServerConfig(host="two.example", port=0)) as listeners:
        assert [sock.getsockname()[0] for sock in listeners.sockets] == ["127.0.0.1"]


def test_port_in_use_names_the_culprit_and_the_key() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError) as caught:
            open_listeners(ServerConfig(port=port))
        message = str(caught.value)
        assert f"127.0.0.1 port {port}" in message
        assert "already in use" in message
        assert f"process {os.getpid()} (" in message
        assert "server.port" in message


def test_port_in_use_by_a_stranger_says_how_to_find_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user's process cannot be named; the message tells the command that can."""
    monkeypatch.setattr("stellane.supervisor.listeners.find_port_owner", lambda _port: None)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"ss -ltnp 'sport = :{port}'"):
            open_listeners(ServerConfig(port=port))


def test_nobody_owns_a_closed_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert find_port_owner(port) is not None
    assert find_port_owner(port) is None


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("", "server.host is empty"),
        ("no-such-host.invalid", 'server.host = "no-such-host.invalid" cannot be resolved'),
        ("a" * 300, "cannot be resolved"),
        ("192.0.2.1", "this machine has no such address"),
    ],
)
def test_bad_host(host: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        open_listeners(ServerConfig(host=host, port=0))


def test_privileged_port_without_the_capability() -> None:
    """Asked by a child that has really given up root, where the tests run as root."""
    first_free = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    if first_free <= 1:
        pytest.skip("not run: net.ipv4.ip_unprivileged_port_start leaves no privileged ports on this machine")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            open_listeners(ServerConfig(port=1))
        except BaseException as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "r") as answer:
        message = answer.read()
    os.waitpid(child, 0)
    assert message.startswith("ConfigError: cannot listen on 127.0.0.1 port 1: permission denied")
    assert "CAP_NET_BIND_SERVICE" in message


def test_unix_socket_is_for_owner_and_group_and_goes_away(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    umask = os.umask(0)
    try:
        with open_listeners(ServerConfig(uds=str(path))) as listeners:
            assert listeners.addresses == (f"unix:{path}",)
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
        assert not path.exists()
        assert os.umask(0) == 0  # put back as it was
    finally:
        os.umask(umask)


def test_stale_unix_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    assert path.is_socket()
    with open_listeners(ServerConfig(uds=str(path))), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


@pytest.mark.parametrize("queue_full", [False, True])
def test_live_unix_socket_is_left_alone(tmp_path: Path, queue_full: bool) -> None:
    """A server whose accept queue is full is alive as well."""
    path = tmp_path / "app.sock"
    clients = []
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen(0)
        while queue_full:
            client = socket.socket(socket.AF_UNIX)
            clients.append(client)
            client.setblocking(False)
            queue_full = client.connect_ex(str(path)) == 0
        before = path.stat().st_ino
        with pytest.raises(ConfigError, match="another server accepts connections on it"):
            open_listeners(ServerConfig(uds=str(path)))
        assert path.stat().st_ino == before
        for client in clients:
            client.close()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_text("precious")
    with pytest.raises(ConfigError, match="is not a socket"):
        open_listeners(ServerConfig(uds=str(path)))
    assert path.read_text() == "precious"


def test_a_unix_socket_that_another_server_has_replaced_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    first = open_listeners(ServerConfig(uds=str(path)))
    path.rename(tmp_path / "old.sock")  # keeps the inode number from being used again at once
    with open_listeners(ServerConfig(uds=str(path))):
        first.close()
        assert path.is_socket()


def test_unix_socket_path_length_limit(tmp_path: Path) -> None:
    """The longest path the kernel takes works, one byte more is refused by name."""
    room = UDS_PATH_BYTES_MAX - len(os.fsencode(tmp_path)) - 1
    if room < 1:
        pytest.skip(f"not run: the temporary directory's own path has over {UDS_PATH_BYTES_MAX} bytes")
    with open_listeners(ServerConfig(uds=str(tmp_path / ("s" * room)))):
        pass
    with pytest.raises(ConfigError, match=f"may have {UDS_PATH_BYTES_MAX} bytes"):
        open_listeners(ServerConfig(uds=str(tmp_path / ("s" * (room + 1)))))


def test_unix_socket_in_a_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory"):
        open_listeners(ServerConfig(uds=str(tmp_path / "missing" / "app.sock")))


def test_backlog_is_the_configured_one() -> None:
    """SYNs beyond the accept queue are dropped; within it the kernel completes them with nobody accepting."""
    with open_listeners(ServerConfig(port=0, backlog=3)) as listeners:
        clients = [socket.socket() for _ in range(6)]
        for client in clients:
            client.settimeout(0.2)
        refused = 0
        for client in clients:
            try:
                client.connect(listeners.sockets[0].getsockname())
            except TimeoutError:
                refused += 1
            finally:
                client.settimeout(None)
        assert refused == len(clients) - 4  # the queue takes one more than its size
        for client in clients:
            client.close()
