"""Downloads from a server on this machine: good ones, and the sentence for each way they fail. Nothing unfinished is left behind."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import socket
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from conformer import data, download

Cifar = Callable[..., Path]
CONTENT = bytes(range(256)) * 4000
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `files` by path; what is in `headers` is added, in place of the true ones. A path in `redirects` is sent elsewhere."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.headers: dict[str, str] = {}
        self.redirects: dict[str, str] = {}
        self.requests: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        if self.path in self.server.redirects:
            self.send_response(302)
            self.send_header("Location", self.server.redirects[self.path])
            return self.end_headers()
        content = self.server.files.get(self.path)
        if content is None:
            return self.send_error(404)
        self.send_response(200)
        for name, value in {"Content-Length": str(len(content)), **self.server.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = True

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setattr(download, "SITE", f"http://127.0.0.1:{server.server_port}")
        yield server
        server.shutdown()
        thread.join()


def test_a_file_is_downloaded_once(server: Server, tmp_path: Path) -> None:
    server.files["/a.tar.gz"] = CONTENT
    lines: list[str] = []
    path = download.fetch("a.tar.gz", MD5, tmp_path / "new" / "cache", lines.append)
    assert path == tmp_path / "new" / "cache" / "a.tar.gz"
    assert path.read_bytes() == CONTENT
    assert lines == ["a.tar.gz: 1.0 MB, complete"]
    assert download.fetch("a.tar.gz", MD5, path.parent, lines.append) == path  # it is there: no second request
    assert server.requests == ["/a.tar.gz"]


def test_progress_is_said_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    lines: list[str] = []
    progress = download._Progress("a.tar.gz", 10_000_000, lines.append)
    for _ in range(10):
        now += 0.75
        progress.add(1_000_000)
    assert lines == [
        "a.tar.gz: 3.0 of 10.0 MB, 5 s left",
        "a.tar.gz: 6.0 of 10.0 MB, 3 s left",
        "a.tar.gz: 9.0 of 10.0 MB, 1 s left",
        "a.tar.gz: 10.0 MB, complete",
    ]


def refused(folder: Path, archive: str = "a.tar.gz") -> str:
    """The sentence with which a download fails; nothing is left in `folder`."""
    with pytest.raises(data.DataError) as caught:
        download.fetch(archive, MD5, folder, lambda text: None)
    assert not folder.exists() or list(folder.iterdir()) == []
    return str(caught.value)


def test_a_wrong_checksum_is_refused(server: Server, tmp_path: Path) -> None:
    server.files["/a.tar.gz"] = CONTENT[:-1] + b"?"
    assert refused(tmp_path).endswith(f"/a.tar.gz cannot be used: what came is not the original file, whose MD5 is {MD5}")


def test_a_download_cut_short_is_refused(server: Server, tmp_path: Path) -> None:
    server.files["/a.tar.gz"], server.headers["Content-Length"] = CONTENT[:-24_000], str(len(CONTENT))
    assert "cannot be downloaded: the connection broke after " in (text := refused(tmp_path))
    assert "of 1,024,000 bytes" in text


def test_a_download_without_end_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(download, "LARGEST", 1_000_000)
    server.files["/a.tar.gz"] = CONTENT
    for length in ("", "1024000"):  # unknown or known
        server.headers["Content-Length"] = length
        assert "cannot be used: more than 1,000,000 bytes came, and the original file has fewer" in refused(tmp_path)


def test_what_a_server_calls_encoded_is_not_unpacked(server: Server, tmp_path: Path) -> None:
    """The archive itself is what gzip made: it is not to be unpacked on its way."""
    server.files["/a.tar.gz"] = content = gzip.compress(CONTENT)
    server.headers["Content-Encoding"] = "gzip"
    path = download.fetch("a.tar.gz", hashlib.md5(content).hexdigest(), tmp_path, lambda text: None)
    assert path.read_bytes() == content


def test_a_length_that_is_no_number_does_not_matter(server: Server, tmp_path: Path) -> None:
    server.files["/a.tar.gz"], server.headers["Content-Length"] = CONTENT, "many"
    assert download.fetch("a.tar.gz", MD5, tmp_path, lambda text: None).read_bytes() == CONTENT


@pytest.mark.parametrize(("place", "reason"), [("/a.tar.gz", "Exceeded 30 redirects"), ("http://[", ".*URL"), ("http://a:b/", ".*[Pp]ort")])
def test_redirects_that_lead_nowhere_are_said(place: str, reason: str, server: Server, tmp_path: Path) -> None:
    server.redirects["/a.tar.gz"] = place
    assert re.search(f"/a.tar.gz cannot be downloaded: {reason}", refused(tmp_path))


def test_certificates_that_are_not_there_are_said(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/certificates")
    monkeypatch.setattr(download, "SITE", download.SITE.replace("http:", "https:"))
    assert re.search("cannot be downloaded: .*invalid path: /no/certificates$", refused(tmp_path))


def test_a_shared_cache_can_be_read_by_others(server: Server, tmp_path: Path) -> None:
    server.files["/a.tar.gz"] = CONTENT
    (tmp_path / "ordinary").touch()
    path = download.fetch("a.tar.gz", MD5, tmp_path, lambda text: None)
    assert path.stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_what_a_killed_download_left_is_removed(server: Server, tmp_path: Path) -> None:
    server.files["/a.tar.gz"] = CONTENT
    for name in ("tmp1x_abcde", "tmp2x_abcde", "tmp.tar.gz"):
        (tmp_path / name).touch()
    for name in ("tmp1x_abcde", "tmp.tar.gz"):
        os.utime(tmp_path / name, (time.time() - 3600,) * 2)
    download.fetch("a.tar.gz", MD5, tmp_path, lambda text: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.gz", "tmp.tar.gz", "tmp2x_abcde"]  # the last may be another's, at work


def test_a_file_that_the_server_has_not_is_said(server: Server, tmp_path: Path) -> None:
    assert "/b.tar.gz cannot be downloaded: the server answers 404" in refused(tmp_path, "b.tar.gz")


def test_a_server_that_cannot_be_reached_is_said(tmp_path: Path) -> None:
    assert "cannot be downloaded: no connection" in refused(tmp_path)


def test_a_server_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(download, "ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and says nothing
        monkeypatch.setattr(download, "SITE", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "no answer within 0.2 seconds" in refused(tmp_path)


def test_a_name_that_is_looked_up_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert download.ANSWER_SECONDS < 5
    monkeypatch.setattr(download, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(download, "SITE", "http://somewhere.invalid")
    ended = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: ended.wait(60))
    started = time.monotonic()
    assert "no answer within 0.2 seconds" in refused(tmp_path)
    assert time.monotonic() - started < 5
    ended.set()


def test_a_folder_that_cannot_be_written_is_said(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    server.files["/a.tar.gz"] = CONTENT
    with pytest.raises(data.DataError, match=r"cannot be saved in .*file.inner"):
        download.fetch("a.tar.gz", MD5, tmp_path / "file" / "inner", lambda text: None)


def test_a_python_without_ssl_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def get(*_: object, **__: object) -> None:
        raise ImportError("Can't connect to HTTPS URL because the SSL module is not available.")

    monkeypatch.setattr("requests.get", get)
    assert "cannot be downloaded: this Python has no ssl module, which HTTPS needs" in refused(tmp_path)


def test_without_pooch_one_sentence_says_so_and_no_other_data_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pooch", None)
    assert 'downloading needs pooch (in the project\'s folder, pip install -e ".[app]")' in refused(tmp_path)
    monkeypatch.setenv("CONFORMER_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    said: list[str] = []
    with pytest.raises(data.DataError, match="downloading needs pooch"):  # and no other data set in its place
        data.load("auto", say=said.append)
    assert said == []


def test_load_downloads_once_and_reads_the_archive(server: Server, cifar: Cifar, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From an empty cache to images, through the archive; the second time without the server."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(cifar(records=4), "cifar-10-batches-bin")
    server.files["/cifar-10-binary.tar.gz"] = packed.getvalue()
    version = replace(data.CIFAR10.versions[0], md5=hashlib.md5(packed.getvalue()).hexdigest())
    monkeypatch.setattr(data, "CIFAR10", replace(data.CIFAR10, versions=(version,)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CONFORMER_DATA", raising=False)
    lines: list[str] = []
    for _ in range(2):
        dataset = data.load("auto", say=lines.append)
        assert (dataset.name, len(dataset.train), dataset.notice) == ("cifar10", 20, "")
        assert dataset.source == tmp_path / "cache" / "conformer" / "cifar-10-binary.tar.gz"
    assert len(lines) == 2
    assert f"downloading {download.SITE}/cifar-10-binary.tar.gz" in lines[0]
    assert len(server.requests) == 1
