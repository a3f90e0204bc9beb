"""An S3-compatible store for tests: moto's, in a process of its own, with a bucket."""

import subprocess
import sys
import time
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryFile

from homeserver.config import S3, Secret
from tests.federation.servers import free_port

BUCKET = "hearth"


class S3Server:
    """Keeps what it is given in memory. It checks hashes of bodies and no signatures; botocore's are compared."""

    def __init__(self) -> None:
        self.port = free_port()
        self._said = TemporaryFile()  # noqa: SIM115  # closed with the server
        program = Path(sys.executable).with_name("moto_server")
        self._process = subprocess.Popen([program, "-p", str(self.port)], stdout=self._said, stderr=self._said)
        for _ in range(600):
            try:
                connection = HTTPConnection("127.0.0.1", self.port, timeout=5)
                connection.request("PUT", f"/{BUCKET}")
                connection.getresponse().close()
                connection.close()
            except OSError:
                assert self._process.poll() is None, "moto_server ended"
                time.sleep(0.05)
            else:
                return
        raise AssertionError("moto_server does not answer")

    @property
    def url(self) -> str:
        """Its endpoint."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def settings(self) -> S3:
        """How a server finds it."""
        return S3(endpoint=self.url, bucket=BUCKET, access_key="a key", secret_key=Secret("a secret"))

    def close(self) -> None:
        """End it, and forget all."""
        self._process.kill()
        self._process.wait()
        self._said.close()
