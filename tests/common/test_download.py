"""Whatever a server does, the right file arrives or one line says what to do; never half a file, never a wrong one."""

import hashlib
import io
import os
import random
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from contextlib import nullcontext
from pathlib import Path

import pytest
from misbehaving_server import Server

from common import download as module
from common.download import download, unpack
from common.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
CONTENT = random.Random(0).randbytes(40_000)
LENGTH = len(CONTENT)
SHA, MD5 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}", f"md5:{hashlib.md5(CONTENT).hexdigest()}"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module, "BACKOFF", 0.01)
    monkeypatch.setattr(module, "TIMEOUT", (1, 0.3))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    running = Server({"f.bin": CONTENT})
    yield running
    running.close()


def fails(target, urls, digest=SHA, size=LENGTH, words=()):
    """Assert that a download fails with one complete line and leaves nothing behind."""
    before = target.read_bytes() if target.exists() else None
    with pytest.raises(UserError) as error:
        download(target, urls, digest, size)
    message = str(error.value)
    assert "\n" not in message
    for word in (target.name, module.readable_size(size), digest, *urls, f"put it at {target}", *words):
        assert str(word) in message, f"{word!r} not in {message}"
    assert (target.read_bytes() if target.exists() else None) == before
    assert [p.name for p in target.parent.iterdir()] == ([target.name] if before is not None else [])
    return message


@pytest.mark.parametrize("digest", [SHA, MD5, SHA.upper().replace("SHA256", "sha256")])
@pytest.mark.parametrize("how", ["good", "unannounced", "redirect"])
@pytest.mark.parametrize("size", [LENGTH, None])
def test_right_file_arrives(server, tmp_path, how, digest, size):
    target = tmp_path / "deep" / "f.bin"
    assert download(target, [server.url(f"{how}/f.bin")], digest, size) is True
    assert target.read_bytes() == CONTENT and list(target.parent.iterdir()) == [target]
    assert stat.S_IMODE(target.stat().st_mode) == 0o644
    assert download(target, [server.url(f"{how}/f.bin")], digest, size) is False
    assert server.requests[f"{how}/f.bin"] == 1


@pytest.mark.parametrize("how", ["drop", "truncate", "quiet_truncate", "failing", "hang", "stall"])
@pytest.mark.parametrize("size", [LENGTH, None])
def test_passing_trouble_is_overcome(server, tmp_path, how, size):
    url = server.url(f"once-{how}/f.bin")
    assert download(tmp_path / "f.bin", [url], SHA, size)
    assert (tmp_path / "f.bin").read_bytes() == CONTENT and server.requests[f"once-{how}/f.bin"] == 2


TROUBLE = [
    # how the server answers, words of the reason, requests until it is given up
    ("missing", "HTTP 404", 1),
    ("failing", "HTTP 503", module.ATTEMPTS),
    ("drop", "connection lost after 0 bytes", module.ATTEMPTS),
    ("truncate", "connection lost after", module.ATTEMPTS),
    ("quiet_truncate", "wrong content, 20000 bytes", module.ATTEMPTS),
    ("announce_more", "announces 80000 bytes, expected 40000", 1),
    ("announce_less", "announces 20000 bytes, expected 40000", 1),
    ("announce_nonsense", "not a usable http address or answer", 1),
    ("wrong", "wrong content, 40000 bytes", 1),
    ("misdirect", "wrong content, 40000 bytes", 1),
    ("page", "announces 32 bytes", 1),
    ("empty", "wrong content, 0 bytes", module.ATTEMPTS),
    ("compressed", "connection lost", module.ATTEMPTS),
    ("hang", "silent for 0.3 s after 0 bytes", module.ATTEMPTS),
    ("stall", "silent for 0.3 s after", module.ATTEMPTS),
    ("endless", "more than the expected 40000 bytes", 1),
    ("loop", "TooManyRedirects", None),
]


@pytest.mark.parametrize(("how", "reason", "requests"), TROUBLE, ids=[row[0] for row in TROUBLE])
def test_lasting_trouble_is_one_line_and_no_file(server, tmp_path, how, reason, requests):
    fails(tmp_path / "f.bin", [server.url(f"{how}/f.bin")], words=[reason])
    assert requests is None or server.requests[f"{how}/f.bin"] == requests


@pytest.mark.parametrize("how", [row[0] for row in TROUBLE if row[0] != "endless"])
def test_next_mirror_helps(server, tmp_path, how):
    urls = [server.url(f"{how}/f.bin"), server.url("good/f.bin")]
    assert download(tmp_path / "f.bin", urls, SHA, LENGTH)
    assert (tmp_path / "f.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("how", ["truncate", "announce_more", "announce_less", "wrong", "page", "compressed"])
def test_nothing_wrong_arrives_when_the_size_is_unknown(server, tmp_path, how):
    message = fails(tmp_path / "f.bin", [server.url(f"{how}/f.bin")], MD5, None)
    assert "size not published" in message


def test_file_that_is_here_is_replaced_only_by_the_right_one(server, tmp_path):
    target = tmp_path / "f.bin"
    target.write_bytes(CONTENT[:100])
    fails(target, [server.url("wrong/f.bin"), server.url("truncate/f.bin")])
    assert download(target, [server.url("good/f.bin")], SHA, LENGTH) and target.read_bytes() == CONTENT


def test_endless_answer_is_left_early(server, tmp_path):
    fails(tmp_path / "f.bin", [server.url("endless/f.bin")])
    server.closing.set()
    assert server.sent["endless/f.bin"] < 20_000_000


def test_dripping_server_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SLOW_AFTER", 0.5)
    monkeypatch.setattr(module, "MINIMUM_SPEED", 50_000)
    start = time.monotonic()
    fails(tmp_path / "f.bin", [server.url("drip/f.bin")], words=["slower than 50000 bytes/s"])
    assert time.monotonic() - start < 3


def test_without_network_the_answer_comes_at_once(tmp_path, monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        refused = f"http://127.0.0.1:{probe.getsockname()[1]}/f.bin"

    def offline(*_, **__):
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setenv("NO_PROXY", "*")
    start = time.monotonic()
    fails(tmp_path / "f.bin", [refused], words=["no connection"])
    monkeypatch.setattr(socket, "getaddrinfo", offline)
    fails(tmp_path / "f.bin", ["https://one.invalid/f.bin", "http://two.invalid/f.bin"], words=["no connection"])
    assert time.monotonic() - start < 2


def test_addresses_that_are_none(tmp_path):
    fails(tmp_path / "f.bin", ["ftp://127.0.0.1/f.bin", "nonsense", "http://"], words=["not a usable http address"])
    fails(tmp_path / "f.bin", [], words=["no address is known"])


def test_place_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write f\.bin .*: ") as error:
        download(tmp_path / "file" / "f.bin", [server.url("good/f.bin")], SHA)
    assert "\n" not in str(error.value)


def test_full_disk_leaves_nothing(server, tmp_path, monkeypatch):
    def full(self, block):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module._Sink, "write", full)
    with pytest.raises(UserError, match="No space left on device"):
        download(tmp_path / "f.bin", [server.url("good/f.bin")], SHA)
    assert list(tmp_path.iterdir()) == []


# ---- several processes

CHILD = "import sys; from pathlib import Path; from common.download import download; "
CHILD += "download(Path(sys.argv[1]), [sys.argv[2]], sys.argv[3])"


def child(target, url):
    command = [sys.executable, "-c", CHILD, str(target), url, SHA]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, seconds=20):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_two_processes_at_once_make_one_right_file(server, tmp_path):
    target = tmp_path / "f.bin"
    both = [child(target, server.url("slow/f.bin")) for _ in range(2)]
    results = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], results
    assert target.read_bytes() == CONTENT and list(tmp_path.iterdir()) == [target]
    assert server.requests["slow/f.bin"] == 1


def test_without_locks_nothing_is_corrupted_either(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_alone", lambda path: nullcontext())
    target, problems = tmp_path / "f.bin", []

    def run():
        try:
            download(target, [server.url("slow/f.bin")], SHA, LENGTH)
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert problems == [] and target.read_bytes() == CONTENT and list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_killed_process_leaves_no_file_and_the_next_one_succeeds(server, tmp_path):
    target = tmp_path / "f.bin"
    process = child(target, server.url("stall/f.bin"))
    wait_for(lambda: server.sent["stall/f.bin"])
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    assert not target.exists()
    left = [p for p in tmp_path.iterdir() if p.is_dir()]
    assert left and all(p.name.startswith(".") and p.name.endswith(".part") for p in tmp_path.iterdir())
    long_ago = time.time() - 2 * module.STALE
    os.utime(left[0], (long_ago, long_ago))
    assert download(target, [server.url("good/f.bin")], SHA) and list(tmp_path.iterdir()) == [target]


def test_importing_costs_nothing():
    code = "import sys, common.download; print({'pooch', 'requests', 'tqdm', 'filelock'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).strip() == "set()"


# ---- archives


def pack(path, members, links=()):
    """Write an archive of text members; `links` are (name, target) symbolic links of a tar file."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in members.items():
                archive.writestr(name, text)
        return path
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, text in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
        for name, target in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    return path


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tar", "a.zip"])
def test_archive_is_unpacked_into_its_place(tmp_path, name):
    archive = pack(tmp_path / name, {"set/x/1.png": "one", "set/2.png": "two", "__MACOSX/set/2.png": "junk"})
    unpack(archive, tmp_path / "into", "set")
    assert (tmp_path / "into/set/x/1.png").read_text() == "one" and (tmp_path / "into/set/2.png").read_text() == "two"
    assert {p.name for p in tmp_path.iterdir()} == {name, "into"} and len(list((tmp_path / "into").iterdir())) == 1


def test_unpacking_over_a_folder_repairs_it_and_deletes_nothing(tmp_path):
    archive = pack(tmp_path / "a.zip", {"set/x/1": "one", "set/2": "two"})
    (tmp_path / "set").mkdir()
    (tmp_path / "set/2").write_text("damaged")
    (tmp_path / "set/mine").write_text("mine")
    unpack(archive, tmp_path, "set")
    assert [(tmp_path / "set" / name).read_text() for name in ("x/1", "2", "mine")] == ["one", "two", "mine"]
    (tmp_path / "set/2").unlink()
    unpack(archive, tmp_path, "set", done=lambda: True)
    assert not (tmp_path / "set/2").exists()


@pytest.mark.parametrize("name", ["a.tar.gz", "a.zip"])
@pytest.mark.parametrize("member", ["../out", "set/../../out", "{absolute}/out"])
def test_archive_cannot_write_elsewhere(tmp_path, name, member):
    member = member.format(absolute=tmp_path)
    home = tmp_path / "home"
    home.mkdir()
    archive = pack(home / name, {"set/1": "one", member: "evil"})
    try:
        unpack(archive, home, "set")
    except UserError as error:
        assert "not safe" in str(error) and "\n" not in str(error) and not (home / "set").exists()
    else:
        # tarfile's filter reads an absolute name as one below the folder.
        assert member.startswith("/") and name == "a.tar.gz"
    assert {p.name for p in tmp_path.iterdir()} == {"home"}
    assert {p.name for p in home.iterdir()} <= {name, "set"}


def test_links_out_of_an_archive_are_refused(tmp_path):
    archive = pack(tmp_path / "a.tar.gz", {"set/1": "one"}, links=[("set/link", "../../../etc")])
    with pytest.raises(UserError, match="not safe"):
        unpack(archive, tmp_path, "set")
    assert list(tmp_path.iterdir()) == [archive]


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tar", "a.zip"])
@pytest.mark.parametrize("keep", [0, 10, -30])
def test_damaged_archive_leaves_nothing(tmp_path, name, keep):
    archive = pack(tmp_path / name, {"set/1": "one" * 500, "set/2": "two" * 500})
    keep = keep if name != "a.tar" or keep >= 0 else 800
    archive.write_bytes(archive.read_bytes()[:keep])
    with pytest.raises(UserError) as error:
        unpack(archive, tmp_path, "set")
    assert name in str(error.value) and "\n" not in str(error.value) and list(tmp_path.iterdir()) == [archive]


def test_archive_of_something_else_is_named(tmp_path):
    archive = pack(tmp_path / "a.zip", {"other/1": "one"})
    with pytest.raises(UserError, match="holds no folder set, but other"):
        unpack(archive, tmp_path, "set")
    assert list(tmp_path.iterdir()) == [archive]
