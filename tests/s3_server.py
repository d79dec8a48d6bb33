"""An S3 server on loopback, with dummy credentials in the environment and nothing of the user's."""

import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import fsspec
import pytest

BUCKET = "runs"


@contextmanager
def s3_server() -> Iterator[str]:
    """Run moto's server with one empty bucket; gives its address, http://host:port."""
    moto_server = pytest.importorskip("moto.server")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ACCESS_KEY_ID", "test-access")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
        server.start()
        host, port = server.get_host_and_port()
        address = f"http://{host}:{port}"
        fsspec.filesystem("s3", endpoint_url=address, skip_instance_cache=True).mkdir(BUCKET)
        yield address
        forget = urllib.request.Request(f"{address}/moto-api/reset", method="POST")
        urllib.request.urlopen(forget, timeout=10).close()  # else the next server has it all
        server.stop()
