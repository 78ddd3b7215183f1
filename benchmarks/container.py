"""What the container is meant to run, run without an engine: an installed server, its page, its health check.

python benchmarks/container.py /opt/geoclip/bin/geoclip
"""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

DOCKERFILE = Path(__file__).resolve().parents[1] / "Dockerfile"


def health_check(port: int) -> list[str]:
    """The Dockerfile's own, at another port."""
    found = re.search(r"^HEALTHCHECK .*?CMD (\[.*?\])$", DOCKERFILE.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert found is not None, "the Dockerfile has no health check"
    command: list[str] = json.loads(found[1])
    return [part.replace(":8000", f":{port}") for part in command]


def check_server(geoclip: Path, options: Sequence[str] = ()) -> str:
    """Serve from an installed environment; return what the page and the API answer."""
    geoclip = geoclip.absolute()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    found = []
    with tempfile.TemporaryDirectory() as data:
        env = {
            "PATH": f"{geoclip.parent}:{os.defpath}",
            "HOME": data,
            "OPEN_GEOCLIP_CACHE": f"{data}/cache",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        command = ["geoclip", "serve", "--port", str(port), *options]
        server = subprocess.Popen(command, executable=geoclip, env=env, cwd=data)
        try:
            deadline = time.monotonic() + 300
            while subprocess.run(health_check(port), env=env, stderr=subprocess.DEVNULL).returncode:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("the server did not become healthy: see above")
                time.sleep(0.5)
            for path in ("/", "/readyz", "/v1/models"):
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
                        found.append(f"{path}: {answer.status}, {len(answer.read()):,} bytes")
                except urllib.error.HTTPError as error:
                    raise RuntimeError(f"{path}: {error.code} {error.read()[:300]!r}") from error
        finally:
            server.terminate()
            server.wait(90)
    return "\n".join([*found, f"healthy: {shlex.join(command)}"])


if __name__ == "__main__":
    print(check_server(Path(sys.argv[1])))
