"""moto's EC2 inside this process, called as its own server calls it. The only module that imports moto.

Its backends belong to the process, not to this object: two fakes in one process would share instances. Not for threads:
the gate lets one request in at a time.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlencode

from caudal.domain.errors import UsageError
from caudal.providers.aws_fake.wire import Answer

SIGNED = "AWS4-HMAC-SHA256 Credential=fake/20260101/{region}/{service}/aws4_request, SignedHeaders=host, Signature=0"


class Moto:
    """Calls moto. Raises UsageError where it is not installed."""

    def __init__(self) -> None:
        # The gate lets any image be: loading moto's thousand costs a second in every region.
        os.environ.setdefault("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")
        try:
            from moto.moto_server import werkzeug_app as server  # noqa: PLC0415 - an extra, and a second to load
        except ImportError as error:
            remedy = "pip install 'caudal[fakes]'"
            raise UsageError("the fake of AWS needs moto's server", why=str(error), remedy=remedy) from error
        self._app = server.DomainDispatcherApplication(server.create_backend_app)
        self.machine_types()
        # What moto loads at its first call takes seconds: who waits for a fake to be up waits for that, too.
        self.ec2("us-east-1", {"Action": "DescribeInstances"})

    def ec2(self, region: str, form: Mapping[str, str]) -> Answer:
        """One action of EC2."""
        body = urlencode({**form, "Version": "2016-11-15"}).encode()
        return self.call(
            "POST",
            "/",
            body,
            region,
            "ec2",
            {"CONTENT_TYPE": "application/x-www-form-urlencoded; charset=utf-8"},
        )

    def call(
        self, method: str, path: str, body: bytes, region: str, service: str, headers: Mapping[str, str]
    ) -> Answer:
        """One request to any service, as WSGI hands it over; `headers` are WSGI's names."""
        environ: dict[str, Any] = {
            "REQUEST_METHOD": method,
            "PATH_INFO": path,
            "QUERY_STRING": "",
            "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "HTTP_HOST": f"{service}.{region}.amazonaws.com",
            "HTTP_AUTHORIZATION": SIGNED.format(region=region, service=service),
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.input": io.BytesIO(body),
            "wsgi.errors": sys.stderr,
            "wsgi.url_scheme": "http",
            "wsgi.version": (1, 0),
            "wsgi.multithread": False,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            **headers,
        }
        heard: dict[str, Any] = {"status": "500", "headers": []}

        def start_response(status: str, found: Iterable[tuple[str, str]], _error: Any = None) -> None:
            heard.update(status=status, headers=list(found))

        try:
            answer = b"".join(self._app.get_application(environ)(environ, start_response))
        except RuntimeError as error:  # of an action that moto has not
            return Answer(501, str(error).encode(), "text/plain")
        types = [value for key, value in heard["headers"] if key.lower() == "content-type"]
        return Answer(int(str(heard["status"]).split()[0]), answer, types[0] if types else "text/xml")

    def machine_types(self) -> Mapping[str, Mapping[str, Any]]:
        """What DescribeInstanceTypes says of every type, by its name."""
        from moto.ec2.models.instance_types import INSTANCE_TYPES  # noqa: PLC0415 - as above

        found: Mapping[str, Mapping[str, Any]] = INSTANCE_TYPES
        return found

    def reset(self) -> None:
        """Forget everything, in all regions."""
        self.call("POST", "/moto-api/reset", b"", "us-east-1", "moto", {})
