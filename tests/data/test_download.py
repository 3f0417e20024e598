import hashlib
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from latentflows.core.errors import ConfigurationError, DataError
from latentflows.data.download import SOURCES, Source, download

CONTENT = b"a small file" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        if self.path == "/absent.gz":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[:100] if self.path == "/cut.gz" else CONTENT)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.requests = []
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def table(server, file="good.gz", algorithm="sha256", digest=DIGEST):
    return {"toy": (Source(f"http://127.0.0.1:{server.server_port}/{file}", algorithm, digest),)}


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_a_verified_file_is_kept_and_not_fetched_again(server, tmp_path, algorithm):
    sources = table(server, algorithm=algorithm, digest=hashlib.new(algorithm, CONTENT).hexdigest())
    folder = download("toy", tmp_path / "new", sources=sources)
    assert download("toy", tmp_path / "new", sources=sources) == folder == tmp_path / "new" / "toy"
    assert [path.name for path in folder.iterdir()] == ["good.gz"]
    assert (folder / "good.gz").read_bytes() == CONTENT
    assert server.requests == ["/good.gz"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"digest": "0" * 64}, f"expected sha256 {'0' * 64}; got {DIGEST}"),
        ({"file": "absent.gz"}, "cannot be downloaded .*404"),
        ({"file": "cut.gz"}, "expected sha256|cannot be downloaded"),
    ],
)
def test_a_failed_download_leaves_nothing_behind(server, tmp_path, settings, message):
    with pytest.raises(DataError, match=message):
        download("toy", tmp_path, sources=table(server, **settings))
    assert list((tmp_path / "toy").iterdir()) == []


def test_no_connection_is_explained(server, tmp_path):
    sources = table(server)
    server.shutdown()
    server.server_close()
    with pytest.raises(DataError, match="Check the connection, or put the file into"):
        download("toy", tmp_path, sources=sources)


def test_a_different_file_in_place_is_not_overwritten(server, tmp_path):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "good.gz").write_bytes(b"mine")
    with pytest.raises(DataError, match="Delete it"):
        download("toy", tmp_path, sources=table(server))
    assert (tmp_path / "toy" / "good.gz").read_bytes() == b"mine"


def test_a_place_that_cannot_be_written_is_explained(server, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="Name another `root`"):
        download("toy", tmp_path / "file", sources=table(server))


def test_a_data_set_without_source_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="expected one of mnist, fashion_mnist, omniglot, cifar10"):
        download("digits", tmp_path)


def test_every_source_is_encrypted_and_has_a_whole_digest():
    for sources in SOURCES.values():
        for source in sources:
            assert source.url.startswith("https://")
            assert len(bytes.fromhex(source.digest)) == hashlib.new(source.algorithm).digest_size
