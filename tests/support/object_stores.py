"""Real servers of object stores on this machine: S3 by moto, Azure Blob by azurite."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

AZURITE = Path(__file__).parents[2] / ".venv" / "azurite"
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""azurite's own account and key, the same everywhere: https://github.com/Azure/Azurite."""


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def answers(port: int, process: subprocess.Popen[bytes], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    pytest.fail(f"no answer at port {port}")


class Server:
    """One server that can be stopped and started again with what it holds."""

    def __init__(self, url: str, env: dict[str, str], command: list[str], port: int) -> None:
        self.url, self.env, self._command, self._port = url, env, command, port
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self._command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **self.env},
        )
        answers(self._port, self.process)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


@pytest.fixture
def s3() -> Iterator[Server]:
    """An S3 with an empty bucket `fleet`."""
    import sys

    import boto3

    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    env = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = Server("s3://fleet/caudal", env, command, port)
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    client.create_bucket(Bucket="fleet")
    yield server
    server.stop()


@pytest.fixture
def azure(tmp_path: Path) -> Iterator[Server]:
    """An Azure Blob Storage with an empty container `fleet`. Skips where npm is not installed."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("azurite needs npm: apt-get install npm")
    program = AZURITE / "node_modules" / ".bin" / "azurite-blob"
    if not program.exists():
        AZURITE.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [npm, "install", "--silent", "--prefix", str(AZURITE), "azurite"], check=True, timeout=300
        )
    port = free_port()
    env = {
        "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
        "AZURE_STORAGE_ACCOUNT_KEY": KEY,
        "AZURE_STORAGE_USE_EMULATOR": "true",
        "AZURITE_BLOB_STORAGE_URL": f"http://127.0.0.1:{port}",
    }
    command = [str(program), "--blobHost", "127.0.0.1", "--blobPort", str(port), "--silent"]
    command += ["--location", str(tmp_path / "azurite"), "--skipApiVersionCheck"]
    server = Server("az://fleet/caudal", env, command, port)
    _make_container(port)
    yield server
    server.stop()


def _make_container(port: int) -> None:
    """`PUT /account/container?restype=container`, signed as Azure Storage asks for (shared key)."""
    import base64
    import hashlib
    import hmac
    import urllib.request
    from email.utils import formatdate

    date, version = formatdate(usegmt=True), "2021-08-06"
    text = (
        "PUT"
        + "\n" * 12
        + f"x-ms-date:{date}\nx-ms-version:{version}\n/{ACCOUNT}/{ACCOUNT}/fleet\nrestype:container"
    )
    signature = base64.b64encode(
        hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()
    ).decode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/{ACCOUNT}/fleet?restype=container",
        method="PUT",
        headers={
            "x-ms-date": date,
            "x-ms-version": version,
            "Authorization": f"SharedKey {ACCOUNT}:{signature}",
        },
    )
    with urllib.request.urlopen(request, timeout=10.0) as answer:
        assert answer.status == 201
