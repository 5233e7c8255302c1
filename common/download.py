"""Fetch a file so that only the right bytes ever reach their place; unpack an archive so that it cannot write elsewhere.

pooch transfers and verifies. Here: mirrors in order, waiting between attempts, one transfer at a time, and one line that
says what to do by hand when every address fails.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from common.errors import UserError

#: Seconds until a server must accept the connection, and until it must send something.
TIMEOUT = (5, 10)
ATTEMPTS = 3
#: Waiting time in seconds before the second attempt at one address; it doubles with every further one.
BACKOFF = 1.0
#: A transfer below this many bytes per second, measured over `SLOW_AFTER` seconds, is given up.
MINIMUM_SPEED, SLOW_AFTER = 2000, 20
#: What an interrupted process left behind is removed after this many seconds.
STALE = 86_400


class _Rejected(ValueError):
    """A transfer that was stopped because it cannot become the expected file."""


class _Sink:
    """The file that a transfer is written to: counts, shows progress, and stops what is too long or too slow."""

    def __init__(self, file, size: int | None, progress):
        self.file, self.size, self.progress = file, size, progress
        self.received, self.mark, self.at_mark = 0, time.monotonic(), 0

    def write(self, block: bytes) -> None:
        self.received += len(block)
        if self.size is not None and self.received > self.size:
            raise _Rejected(f"sent more than the expected {self.size} bytes")
        now = time.monotonic()
        if now - self.mark > SLOW_AFTER:
            if self.received - self.at_mark < MINIMUM_SPEED * (now - self.mark):
                raise _Rejected(f"slower than {MINIMUM_SPEED} bytes/s")
            self.mark, self.at_mark = now, self.received
        self.file.write(block)
        self.progress.update(len(block))

    def flush(self) -> None:
        """Do nothing: pooch flushes after every kilobyte, closing the file once is enough."""


def readable_size(size: int | None) -> str:
    """Size of a file for a message."""
    if size is None:
        return "size not published"
    return f"{size} bytes" if size < 1e6 else f"{size / 1e6:.1f} MB"


def matches(path: Path, digest: str) -> bool:
    """Return True if a file is here and has the digest, `"sha256:..."` or `"md5:..."`."""
    if not path.is_file():
        return False
    from pooch import file_hash

    algorithm, expected = digest.split(":")
    return file_hash(str(path), alg=algorithm) == expected.lower()


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one process at a time work on `path`.

    The lock only saves a second transfer; that no file is ever damaged rests on private folders and atomic renames, so
    a file system without locks does no harm.
    """
    from filelock import FileLock, Timeout

    guard = path.with_name(f".{path.name}.lock.part")
    lock = FileLock(str(guard))
    try:
        lock.acquire(timeout=1)
    except Timeout:
        print(f"another process works on {path.name}: waiting for it", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        # Before the release: afterwards it could be the lock of the next process. Windows refuses and removes it itself.
        with contextlib.suppress(OSError):
            guard.unlink()
        lock.release()


@contextlib.contextmanager
def _private_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path`, on the same file system, and remove it; remove what killed processes left."""
    prefix = f".{path.name}."
    for old in path.parent.glob(f"{prefix}*.part"):
        with contextlib.suppress(OSError):
            if old.is_dir() and time.time() - old.stat().st_mtime > STALE:
                shutil.rmtree(old)
    folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=".part", dir=path.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def download(target: Path, urls: Sequence[str], digest: str, size: int | None = None, expected: str = "") -> bool:
    """Fetch one file from the first address that gives the right bytes.

    Parameters
    ----------
    target : Path
        Where the file goes. A file with the right digest that is already there is kept, another one is replaced, but
        only once the right one has arrived.
    urls : sequence of str
        Addresses (http or https) in the order in which they are tried.
    digest : str
        `"sha256:..."` or `"md5:..."`.
    size : int, optional
        Exact number of bytes, if known: a server that announces or sends another number is left early.
    expected : str, optional
        Size for the error message when the exact one is unknown.

    Returns
    -------
    bool
        True if the file was transferred, False if it was already here.

    Raises
    ------
    UserError
        No address gave the file, or it cannot be written: one line with file, size, digest, every address with what was
        wrong, and where to put the file by hand.
    """
    if matches(target, digest):
        return False
    described = f"{target.name} ({expected or readable_size(size)}, {digest})"
    tried = []
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target):
            if matches(target, digest):
                return False
            for url in urls:
                problem = _try_address(url, target, digest, size)
                if problem is None:
                    return True
                tried.append(f"{url} ({problem})")
    except OSError as error:
        raise UserError(f"cannot write {described} to {target}: {error.strerror or error}") from error
    raise UserError(
        f"{described} could not be downloaded; tried {', '.join(tried) or 'nothing: no address is known'};"
        f" fetch it by hand and put it at {target}, then repeat the command"
    )


def _try_address(url: str, target: Path, digest: str, size: int | None) -> str | None:
    """Transfer from one address, again after a pause if that may help; return what was wrong, None after success."""
    import pooch
    from requests import RequestException

    pooch.get_logger().setLevel("WARNING")
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(BACKOFF * 2 ** (attempt - 1))
        counter: list[int] = []
        with _private_folder(target) as folder:
            try:
                staged = Path(pooch.retrieve(url, digest, target.name, folder, downloader=_transfer(size, counter)))
            except (RequestException, ValueError) as error:
                problem, again = _diagnose(error, size, sum(counter))
            else:
                # pooch makes files that only their owner can read; data folders are shared.
                staged.chmod(0o644)
                os.replace(staged, target)
                return None
        if not again:
            break
    return problem


def _transfer(size: int | None, counter: list[int]) -> Callable:
    """Return the downloader that pooch calls; it appends the number of received bytes to `counter`."""
    import requests
    from pooch import HTTPDownloader
    from tqdm import tqdm

    def check_length(response, **_) -> None:
        announced = response.headers.get("Content-Length", "")
        plain = response.status_code == 200 and "Content-Encoding" not in response.headers
        if plain and announced and not announced.isdigit():
            response.close()
            raise requests.exceptions.InvalidHeader("unreadable Content-Length")
        if plain and announced and size is not None and int(announced) != size:
            response.close()
            raise _Rejected(f"announces {announced} bytes, expected {size}")

    def transfer(url: str, output: str, pooch) -> None:
        # Packed files must arrive as they are: transport compression would be undone and change them.
        downloader = HTTPDownloader(
            timeout=TIMEOUT, headers={"Accept-Encoding": "identity"}, hooks={"response": check_length}
        )
        # disable=None: no bar where stderr is not a terminal.
        bar = tqdm(total=size, unit="B", unit_scale=True, desc=url.rsplit("/", 1)[-1], disable=None, leave=False)
        with bar, open(output, "wb") as file:
            sink = _Sink(file, size, bar)
            try:
                downloader(url, sink, pooch)
            finally:
                counter.append(sink.received)

    return transfer


def _diagnose(error: Exception, size: int | None, received: int) -> tuple[str, bool]:
    """Return what was wrong with a transfer, in words, and whether another attempt at the same address may help."""
    from requests import exceptions
    from urllib3.exceptions import NewConnectionError

    if isinstance(error, exceptions.HTTPError):
        status = error.response.status_code
        return f"HTTP {status}", status in (408, 425, 429) or status >= 500
    # Offline, nobody listens, or a firewall swallows everything: no second attempt, so that a machine without network
    # has its answer in seconds.
    cause = getattr(error.args[0] if error.args else None, "reason", None)
    if isinstance(error, exceptions.ConnectTimeout):
        return f"no connection within {TIMEOUT[0]} s", False
    if isinstance(error, exceptions.SSLError):
        return "no trusted certificate", False
    if isinstance(error, exceptions.ProxyError) or isinstance(cause, NewConnectionError):
        return "no connection", False
    if isinstance(error, exceptions.RequestException) and "timed out" in str(error):
        return f"silent for {TIMEOUT[1]} s after {received} bytes", True
    if isinstance(error, (exceptions.ConnectionError, exceptions.ChunkedEncodingError, exceptions.ContentDecodingError)):
        return f"connection lost after {received} bytes", True
    if isinstance(error, _Rejected):
        return str(error), False
    if isinstance(error, exceptions.RequestException):
        return f"{type(error).__name__}: not a usable http address or answer", False
    # Last, pooch's comparison failed. Bytes missing without notice may come the next time; others will not.
    return f"wrong content, {received} bytes", received != size


def unpack(archive: Path, into: Path, folder: str, done: Callable[[], bool] = lambda: False) -> None:
    """Unpack one folder of a verified archive.

    Parameters
    ----------
    archive : Path
        A `.tar`, `.tar.gz`, `.tgz` or `.zip` file whose digest was checked.
    into : Path
        Where the folder is put: by one rename if it is not there, else file by file over what is there.
    folder : str
        Name of the folder at the top of the archive; whatever else it holds is dropped.
    done : callable, optional
        Asked once no other process works on the archive: True if nothing is left to do.

    Raises
    ------
    UserError
        Damaged, without that folder, or with a member that would leave it.
    """
    try:
        with _alone(archive):
            if done():
                return
            with _private_folder(archive) as staging:
                _extract(archive, staging)
                if not (staging / folder).is_dir():
                    found = ", ".join(sorted(p.name for p in staging.iterdir())[:5]) or "nothing"
                    raise UserError(f"archive {archive} holds no folder {folder}, but {found}")
                into.mkdir(parents=True, exist_ok=True)
                _put(staging / folder, into / folder)
    except OSError as error:
        raise UserError(f"cannot unpack {archive} into {into}: {error.strerror or error}") from error


def _put(source: Path, target: Path) -> None:
    """Move a folder to its place; over an existing one file by file, so that nothing of the user's is deleted."""
    if not target.exists():
        os.replace(source, target)
        return
    for path in sorted(source.rglob("*")):
        place = target / path.relative_to(source)
        if path.is_dir():
            place.mkdir(parents=True, exist_ok=True)
        else:
            os.replace(path, place)


def _extract(archive: Path, staging: Path) -> None:
    """Extract into an empty folder; a member that would be written outside stops it."""
    import tarfile
    import zipfile
    import zlib

    try:
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as packed:
                for name in packed.namelist():
                    # zipfile would silently write such a member under another name.
                    parts = name.replace("\\", "/").split("/")
                    if ".." in parts or parts[0] == "" or ":" in parts[0]:
                        raise UserError(f"archive {archive} is not safe to unpack: it would write {name!r}")
                packed.extractall(staging)
            return
        if not hasattr(tarfile, "data_filter"):
            raise UserError(f"this Python cannot unpack {archive} safely: update it, or unpack the archive by hand")
        with tarfile.open(archive) as packed:
            packed.extractall(staging, filter="data")
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        # The filter's own errors are among them: a member outside the folder, a device, a link that leads out.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"archive {archive} is damaged or not safe to unpack ({reason}): delete it and repeat the command"
        ) from error
