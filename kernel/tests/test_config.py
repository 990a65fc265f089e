"""Loading the configuration: every key, every source, and the text of every refusal."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stellane.config import Config, LoadedConfig, Origin, Source, load, with_application_defaults
from stellane.config.environment import variable
from stellane.config.keys import bare_type, keys_of
from stellane.config.loader import KEYS, SECTIONS
from stellane.config.positions import positions
from stellane.config.schema import COUNT_MAX, SECONDS_MAX, WORKERS_MAX
from stellane.errors import ConfigError

# The specification's two examples, word for word.
RUNTIME_EXAMPLE = """\
[runtime]
backend = "libuv"           # Backend type: "epoll", "libuv", "io_uring", "custom"
worker_threads = 4          # Number of worker threads (multi-loop backends)
max_tasks_per_loop = 1000   # Task queue size per loop
enable_cpu_affinity = true  # Pin workers to specific CPU cores
"""
DEPENDENCIES_EXAMPLE = """\
# stellane.config.toml
[runtime]
backend = "io_uring"
worker_threads = 8
max_connections = 10000

[recovery]
enabled = true
journal_backend = "rocksdb"
journal_path = "/var/log/stellane/recovery"
max_recovery_attempts = 3

[performance]
enable_cpu_affinity = true
numa_aware = true
zero_copy_io = true
"""


@pytest.fixture(autouse=True)
def empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of these tests is ./s.toml, so that texts can be compared whole."""
    monkeypatch.chdir(tmp_path)


def from_file(
    text: str, environ: dict[str, str] | None = None, overrides: dict[str, Any] | None = None
) -> LoadedConfig:
    Path("s.toml").write_text(text)
    return load(Path("s.toml"), environ=environ or {}, overrides=overrides)


def refused(text: str, environ: dict[str, str] | None = None, overrides: dict[str, Any] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        from_file(text, environ, overrides)
    return str(caught.value)


class TestSpecificationExamples:
    def test_first_is_accepted_whole(self) -> None:
        runtime = from_file(RUNTIME_EXAMPLE).config.runtime
        assert (runtime.backend, runtime.worker_threads) == ("libuv", 4)
        assert (runtime.max_tasks_per_loop, runtime.enable_cpu_affinity) == (1000, True)

    def test_second_has_exactly_two_keys_that_are_not_built_yet(self) -> None:
        """The backend is a plugin's name, which the factory looks for when it is selected."""
        assert refused(DEPENDENCIES_EXAMPLE) == (
            "2 problems in the configuration:\n"
            "  s.toml:15: performance.numa_aware = true: not built yet; the only value accepted is false.\n"
            "  s.toml:16: performance.zero_copy_io = true: not built yet; the only value accepted is false."
        )

    def test_second_is_accepted_with_those_two_off(self) -> None:
        text = DEPENDENCIES_EXAMPLE.replace("numa_aware = true", "numa_aware = false")
        config = from_file(text.replace("zero_copy_io = true", "zero_copy_io = false")).config
        assert (config.runtime.backend, config.runtime.max_connections) == ("io_uring", 10_000)
        assert config.recovery.enabled
        assert config.recovery.journal_backend == "rocksdb"
        assert config.recovery.journal_path == "/var/log/stellane/recovery"
        assert config.recovery.max_recovery_attempts == 3
        assert config.performance.enable_cpu_affinity


class TestSources:
    def test_nothing_given_is_all_defaults(self) -> None:
        loaded = load(None, environ={})
        assert loaded.config == Config()
        assert loaded.path is None
        assert set(loaded.origins) == set(KEYS)
        assert set(loaded.origins.values()) == {Origin(Source.DEFAULT)}

    def test_default_file_is_read_when_it_is_there(self) -> None:
        Path("stellane.config.toml").write_text("[server]\nport = 1\n")
        loaded = load(None, environ={})
        assert loaded.config.server.port == 1
        assert loaded.path == Path("stellane.config.toml")

    def test_named_file_must_be_there(self) -> None:
        with pytest.raises(ConfigError, match=r"^other\.toml: there is no such file\.$"):
            load(Path("other.toml"), environ={})

    def test_later_sources_win_and_are_remembered(self) -> None:
        text = "[server]\nhost = 'file'\nport = 1\nuds = 'file'\n"
        environ = {"STELLANE_SERVER_PORT": "2", "STELLANE_SERVER_UDS": "environment"}
        loaded = from_file(text, environ, {"server.uds": "command line", "server.backlog": None})
        server = loaded.config.server
        assert (server.host, server.port, server.uds, server.backlog) == ("file", 2, "command line", 2048)
        assert {key: str(loaded.origins[f"server.{key}"]) for key in ("host", "port", "uds", "backlog")} == {
            "host": "s.toml:2",
            "port": "environment STELLANE_SERVER_PORT",
            "uds": "command line",
            "backlog": "default",
        }

    def test_override_may_be_a_path(self, tmp_path: Path) -> None:
        assert load(None, environ={}, overrides={"server.uds": tmp_path}).config.server.uds == str(tmp_path)

    def test_wrong_value_is_told_even_when_a_later_source_replaces_it(self) -> None:
        said = refused("[server]\nport = 'http'\n", overrides={"server.port": 80})
        assert said == 's.toml:2: server.port = "http": must be an integer from 0 to 65535.'

    def test_every_problem_is_told_at_once(self) -> None:
        said = refused("[server]\nport = -1\nhots = 1\n", {"STELLANE_HTTP_DATE_HEADER": "maybe"}, {"server.host": 3})
        first, *problems = said.splitlines()
        assert first == "4 problems in the configuration:"
        assert [problem.split(": ")[0].strip() for problem in problems] == [
            "s.toml:2",
            "s.toml:3",
            "environment STELLANE_HTTP_DATE_HEADER",
            "command line",
        ]


class TestApplicationDefaults:
    def test_win_over_defaults_only(self) -> None:
        loaded = from_file("[recovery]\njournal_path = 'file'\n", {"STELLANE_RECOVERY_CONCURRENCY": "9"})
        wished = {"enabled": True, "journal_path": "application", "concurrency": 2, "methods": {"POST"}}
        merged = with_application_defaults(loaded, wished)
        recovery = merged.config.recovery
        assert (recovery.enabled, recovery.journal_path, recovery.concurrency) == (True, "file", 9)
        assert recovery.methods == ("POST",)
        assert str(merged.origins["recovery.enabled"]) == "application"
        assert str(merged.origins["recovery.journal_path"]) == "s.toml:2"
        assert loaded.config.recovery.enabled is False

    def test_are_checked_like_any_source(self) -> None:
        with pytest.raises(ConfigError) as caught:
            with_application_defaults(load(None, environ={}), {"enabld": True, "concurrency": 0})
        assert str(caught.value).splitlines()[1:] == [
            "  application: recovery.enabld = true: unknown key. Did you mean recovery.enabled? "
            f"Known keys of [recovery]: {', '.join(keys_of(SECTIONS['recovery'], 'recovery'))}.",
            f"  application: recovery.concurrency = 0: must be an integer from 1 to {COUNT_MAX}.",
        ]


class TestFileThatCannotBeRead:
    def test_syntax_error_has_line_and_column(self) -> None:
        assert refused("[server]\nport = \n") == "s.toml:2:8: is not valid TOML: Invalid value."

    def test_not_utf8(self) -> None:
        Path("s.toml").write_bytes(b"[server]\nhost = '\xff'\n")
        with pytest.raises(ConfigError, match=r"^s\.toml: is not UTF-8 text \(byte 17\); TOML must be\.$"):
            load(Path("s.toml"), environ={})

    def test_directory(self) -> None:
        Path("s.toml").mkdir()
        with pytest.raises(ConfigError, match=r"^s\.toml: cannot be read: Is a directory\.$"):
            load(Path("s.toml"), environ={})

    def test_byte_order_mark_and_carriage_returns_are_no_error(self) -> None:
        Path("s.toml").write_bytes(b"\xef\xbb\xbf[server]\r\nport = 1\r\n")
        loaded = load(Path("s.toml"), environ={})
        assert loaded.config.server.port == 1
        assert str(loaded.origins["server.port"]) == "s.toml:2"


class TestUnknown:
    KNOWN_SECTIONS = (
        "Known sections: [server], [runtime], [recovery], [performance], [http], [limits], [shutdown], "
        "[backend], [scheduler], [journal], [policy], [protocol], [extension]."
    )

    def test_key_names_the_nearest_and_all_known(self) -> None:
        assert refused("[shutdown]\n\ndrain_delay = 4\n") == (
            "s.toml:3: shutdown.drain_delay = 4: unknown key. Did you mean shutdown.drain_delay_s? "
            "Known keys of [shutdown]: drain_delay_s, graceful_timeout_s, hard_timeout_s."
        )

    def test_key_of_another_section_is_shown_its_place(self) -> None:
        assert "s.toml:2: server.worker_threads = 4: unknown key. Did you mean runtime.worker_threads?" in refused(
            "[server]\nworker_threads = 4\n"
        )

    def test_section(self) -> None:
        assert refused("[runtme]\nbackend = 'epoll'\n") == (
            f"s.toml:1: [runtme]: unknown section. Did you mean [runtime]? {self.KNOWN_SECTIONS}"
        )

    def test_key_outside_every_section(self) -> None:
        assert refused("port = 1\n") == (
            "s.toml:1: port = 1: unknown key; every key belongs to a section. Did you mean server.port? "
            f"{self.KNOWN_SECTIONS}"
        )

    def test_backend_outside_its_section(self) -> None:
        """[backend] is a section too, of plugin options, so this mistake needs its own words."""
        assert refused("backend = 'epoll'\n") == (
            's.toml:1: backend = "epoll": must be a table. Did you mean runtime.backend?'
        )

    def test_plugin_option_without_its_plugin(self) -> None:
        assert refused("[backend]\ndebug = true\n") == (
            "s.toml:2: backend.debug = true: must be a table; "
            "[backend.<name>] holds the options of the backend named <name>."
        )

    def test_command_line_key(self) -> None:
        assert "command line: server.prot = 1: unknown key. Did you mean server.port?" in refused(
            "", overrides={"server.prot": 1}
        )


class TestWrongValues:
    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ("worker_threads = 'four'", 'worker_threads = "four": must be an integer from 1 to 1024.'),
            ("worker_threads = 4.0", "worker_threads = 4.0: must be an integer from 1 to 1024."),
            ("worker_threads = true", "worker_threads = true: must be an integer from 1 to 1024."),
            ("worker_threads = 0", "worker_threads = 0: must be an integer from 1 to 1024."),
            ("enable_cpu_affinity = 1", "enable_cpu_affinity = 1: must be true or false."),
            ("backend = 1979-05-27", "backend = 1979-05-27: must be a string."),
            ("backend = {a = [1]}", "backend = {a = [1]}: must be a string."),
            ("extensions = 'metrics'", 'extensions = "metrics": must be a list of strings.'),
            ("extensions = [1]", "extensions = [1]: must be a list of strings."),
            ("restart_delay_s = nan", "restart_delay_s = nan: must be a number from 0 to 31536000."),
            ("restart_delay_s_max = 0", "must be a number greater than 0 and of at most 31536000."),
            ("restart_delay_s_max = inf", "must be a number greater than 0 and of at most 31536000."),
            ("worker_model = 'fork'", 'worker_model = "fork": must be one of: "auto", "process".'),
            ("worker_model = 'thread'", 'worker_model = "thread": not built yet; must be one of: "auto", "process".'),
            (
                "dispatch = 'random'",
                'must be one of: "auto", "shared", "reuseport", "round_robin", "least_loaded", "affinity".',
            ),
        ],
    )
    def test_runtime(self, line: str, said: str) -> None:
        text = refused(f"[runtime]\n{line}\n")
        assert text.startswith("s.toml:2: runtime.")
        assert text.endswith(said)

    @pytest.mark.parametrize(
        ("section", "line", "said"),
        [
            ("recovery", "methods = ['put']", "must be a list, each item of which is a method name in upper case."),
            ("recovery", "redact_headers = ['a b']", "must be a list, each item of which is a header field name."),
            ("recovery", "durability = 'power'", 'not built yet; must be one of: "none", "process".'),
            ("http", 'server_header = "a\\r\\nb"', "must be a header field value"),
            ("http", 'server_header = "a\\n"', "must be a header field value"),
            ("http", "root_path = 'api'", 'must be "" or a path that begins with "/" and does not end with it.'),
            ("http", "root_path = '/api/'", 'must be "" or a path that begins with "/" and does not end with it.'),
            ("performance", "poll_spin_us_max = 0", "must be an integer from 1 to 10000."),
            ("performance", "batch_wait_us_max = 10001", "must be an integer from 0 to 10000."),
            ("performance", 'ready_order = "lifo"', 'must be one of: "fifo", "priority".'),
            ("performance", "turn_budget_us = 0", "must be an integer from 1 to 1000000."),
        ],
    )
    def test_other_sections(self, section: str, line: str, said: str) -> None:
        assert said in refused(f"[{section}]\n{line}\n")

    def test_integer_is_a_number_and_a_list_becomes_a_tuple(self) -> None:
        config = from_file("[runtime]\nrestart_delay_s = 2\nextensions = ['a']\n").config
        assert config.runtime.restart_delay_s == 2.0
        assert config.runtime.extensions == ("a",)

    def test_two_keys_that_contradict_each_other_name_both_places(self) -> None:
        assert refused("[runtime]\nrestart_delay_s = 60\n") == (
            "runtime.restart_delay_s = 60.0 (s.toml:2) is more than runtime.restart_delay_s_max = 30.0 (default)."
        )

    @pytest.mark.parametrize(
        ("dispatch", "why"),
        [
            ("reuseport", "the kernel distributes no connections of a unix socket"),
            ("affinity", "clients of a unix socket have no address"),
        ],
    )
    def test_a_dispatch_that_a_unix_socket_cannot_have(self, dispatch: str, why: str) -> None:
        assert refused(f"[runtime]\ndispatch = '{dispatch}'\n", overrides={"server.uds": "s"}) == (
            f'runtime.dispatch = "{dispatch}" (s.toml:2) cannot be used with server.uds = "s" (command line): {why}. '
            'Use dispatch = "shared", "least_loaded" or "round_robin", or listen on server.host and server.port.'
        )

    @pytest.mark.parametrize("dispatch", ["auto", "shared", "least_loaded", "round_robin"])
    def test_a_dispatch_that_a_unix_socket_can_have(self, dispatch: str) -> None:
        loaded = from_file(f"[runtime]\ndispatch = '{dispatch}'\n", overrides={"server.uds": "s"})
        assert loaded.config.runtime.dispatch == dispatch


NUMBERS = sorted(path for path, key in KEYS.items() if bare_type(key.type) in (int, float))


@pytest.mark.parametrize("path", NUMBERS)
def test_every_number_has_two_bounds_and_holds_them(path: str) -> None:
    key = KEYS[path]
    (meta,) = key.type.__metadata__
    step = 1 if bare_type(key.type) is int else 1e-3
    lowest = meta.ge if meta.ge is not None else meta.gt + step
    below = meta.ge - step if meta.ge is not None else meta.gt
    assert key.check(lowest) == lowest
    assert key.check(meta.le) == meta.le
    for beyond in (below, meta.le + step):
        with pytest.raises(ValueError, match="must be"):
            key.check(beyond)


def test_named_limits() -> None:
    assert (COUNT_MAX, SECONDS_MAX, WORKERS_MAX) == (2_147_483_647, 365 * 24 * 3600, 1024)


class TestEnvironment:
    @pytest.mark.parametrize(
        ("path", "text", "value"),
        [
            ("server.host", "::1", "::1"),
            ("server.uds", "", ""),
            ("server.port", "9000", 9000),
            ("runtime.restart_delay_s", "0.25", 0.25),
            ("http.date_header", "false", False),
            ("http.date_header", "0", False),
            ("http.date_header", "True", True),
            ("http.date_header", "1", True),
            ("recovery.methods", "POST, PUT", ("POST", "PUT")),
            ("runtime.extensions", "", ()),
        ],
    )
    def test_text_becomes_the_keys_type(self, path: str, text: str, value: Any) -> None:
        config = load(None, environ={variable(path): text}).config
        section, name = path.split(".")
        assert getattr(getattr(config, section), name) == value

    @pytest.mark.parametrize(
        ("name", "text", "said"),
        [
            ("STELLANE_SERVER_PORT", "http", 'server.port = "http": must be an integer from 0 to 65535.'),
            ("STELLANE_HTTP_DATE_HEADER", "yes", 'http.date_header = "yes": must be true or false.'),
            ("STELLANE_RUNTIME_RESTART_DELAY_S", "nan", "restart_delay_s = nan: must be a number from 0 to 31536000."),
            ("STELLANE_PERFORMANCE_NUMA_AWARE", "1", "not built yet; the only value accepted is false."),
            ("STELLANE_SERVER_PROT", "1", '"1": sets no known key. Did you mean STELLANE_SERVER_PORT? '),
            ("STELLANE_BACKEND_LIBUV_DEBUG", "1", "plugin options are set in the file only."),
            ("STELLANE_SHUTDOWN_ZZZZZZZZZZZZZ", "1", "Variables of [shutdown]: STELLANE_SHUTDOWN_DRAIN_DELAY_S, "),
            ("STELLANE_", "1", "sets no known key."),
        ],
    )
    def test_refusal_names_the_variable(self, name: str, text: str, said: str) -> None:
        message = refused("", {name: text})
        assert message.startswith(f"environment {name}: ")
        assert said in message

    def test_every_key_has_a_variable_of_its_own(self) -> None:
        assert len({variable(path) for path in KEYS}) == len(KEYS)

    def test_reserved_variables_are_left_alone(self) -> None:
        environ = {
            "STELLANE_TRACE_HOOKS": "1",
            "STELLANE_CLI_EXTENSIONS": "x",
            "STELLANE_TEST_SEED": "1",
            "STELLANE_REQUIRE_ROCKSDB": "1",
            "OTHER_SERVER_PORT": "x",
        }
        assert load(None, environ=environ).config == Config()

    def test_kubernetes_service_links_are_not_settings(self) -> None:
        """What a pod beside services named stellane and stellane-server finds in its environment."""
        environ = {
            f"STELLANE_{service}{name}": value
            for service in ("", "SERVER_")
            for name, value in {
                "SERVICE_HOST": "10.0.0.1",
                "SERVICE_PORT": "8000",
                "SERVICE_PORT_HTTP": "8000",
                "PORT": "tcp://10.0.0.1:8000",
                "PORT_8000_TCP": "tcp://10.0.0.1:8000",
                "PORT_8000_TCP_PROTO": "tcp",
                "PORT_8000_TCP_PORT": "8000",
                "PORT_8000_TCP_ADDR": "10.0.0.1",
            }.items()
        }
        assert load(None, environ=environ).config == Config()


class TestPluginTables:
    def test_are_kept_as_they_are_with_their_places(self) -> None:
        loaded = from_file("[backend.libuv]\ndebug = true\n[journal]\nfile = {segment_bytes = 1}\n")
        assert loaded.config.backend == {"libuv": {"debug": True}}
        assert loaded.config.journal == {"file": {"segment_bytes": 1}}
        assert str(loaded.origins["backend.libuv"]) == "s.toml:1"
        assert str(loaded.origins["backend.libuv.debug"]) == "s.toml:2"
        assert str(loaded.origins["journal.file.segment_bytes"]) == "s.toml:4"


def test_positions_of_every_form_of_statement() -> None:
    text = (
        "# [a] no header\n"
        'top = """\n'
        "[b]\n"
        'c = 1"""\n'
        "[a]\n"
        "x.y = 1\n"
        "'q z' = [\n"
        "  1, # ]\n"
        "  2,\n"
        "]\n"
        "\n"
        "  [ a . deep ]  # comment\n"
        "z = { k = 1 }\n"
        "[[list]]\n"
        "m = 1\n"
    )
    assert positions(text) == {
        "top": 2,
        "a": 5,
        "a.x": 6,
        "a.x.y": 6,
        "a.q z": 7,
        "a.deep": 12,
        "a.deep.z": 13,
        "a.deep.z.k": 13,
        "list": 14,
        "list.m": 15,
    }


def test_loaded_configuration_survives_the_way_to_a_worker() -> None:
    """The supervisor sends it as plain values; a worker must get the same one back."""
    loaded = from_file(RUNTIME_EXAMPLE + "[backend.libuv]\ndebug = true\n", {"STELLANE_SERVER_PORT": "1"})
    sent = msgspec.msgpack.decode(msgspec.msgpack.encode(msgspec.to_builtins(loaded.config)))
    assert msgspec.convert(sent, Config) == loaded.config
    origins = msgspec.msgpack.decode(msgspec.msgpack.encode(msgspec.to_builtins(loaded.origins)))
    assert msgspec.convert(origins, dict[str, Origin]) == loaded.origins


def test_defaults_of_the_schema_pass_their_own_checks() -> None:
    config = Config()
    for path, key in KEYS.items():
        section, name = path.split(".")
        default = getattr(getattr(config, section), name)
        assert key.check(default) == default
        assert not (isinstance(default, float) and not math.isfinite(default))
