"""The configurations of docs/guides/deploy.md: nginx and Caddy run with them in front of a server."""

import configparser
import os
import re
import shlex
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml  # type: ignore[import-untyped]  # it brings no types, and stubs would be one more package

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "docs/guides/deploy.md").read_text(), flags=re.M | re.S)
NAME = "maps.example.org"
Server = Any  # that of conftest.py, which cannot be imported
Png = Callable[[int], bytes]


def blocks(kind: str) -> list[str]:
    return [code for found, code in BLOCKS if found == kind]


def exec_start() -> list[str]:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # as its documentation says
    unit.read_string(blocks("ini")[0])
    return shlex.split(unit["Service"]["ExecStart"])


@pytest.fixture(scope="module")
def server(release: Path, start_server: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Server:
    """Return a server started as the unit of systemd starts it, with a small model."""
    tokens = tmp_path_factory.mktemp("deploy") / "tokens"
    tokens.write_text("another-token-of-16\n")
    binary, command, *arguments = exec_start()
    assert (Path(binary).name, command) == ("geoclip", "serve")
    replaced = {"earth": f"dir:{release}", "%d/tokens": str(tokens)}
    assert replaced.keys() <= set(arguments)
    return start_server(*(replaced.get(argument, argument) for argument in arguments), "--max-request-mb", "8")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={NAME}"]
    more = ["-addext", f"subjectAltName=DNS:{NAME}", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command, *more], check=True, capture_output=True)
    return certificate, key


def replace(text: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new)
    return text


def nginx(folder: Path, port: int, server: Server, certificate: tuple[Path, Path], below: bool) -> list[str]:
    whole, location = blocks("nginx")
    if below:
        whole = re.sub(r"    location / \{.*?\n    \}\n", location, whole, flags=re.S)
    config = replace(
        whole,
        ("listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;"),
        ("127.0.0.1:8000", f"127.0.0.1:{server.port}"),
        ("/etc/ssl/certs/maps.example.org.pem", str(certificate[0])),
        ("/etc/ssl/private/maps.example.org.key", str(certificate[1])),
        ("client_max_body_size 256m", "client_max_body_size 8m"),
    )
    paths = "".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    log = f"access_log off; error_log {folder}/error.log;"
    (folder / "nginx.conf").write_text(
        f"pid {folder}/pid; daemon off; events {{}} http {{ {log} {paths} {config} }}", encoding="utf-8"
    )
    return ["nginx", "-p", str(folder), "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf"]


def caddy(folder: Path, port: int, server: Server, certificate: tuple[Path, Path], below: bool) -> list[str]:
    whole, location = blocks("text")
    if below:
        whole = re.sub(r"\treverse_proxy .*?\n\t\}\n", lambda _: location, whole, flags=re.S)
    config = replace(
        whole,
        (f"{NAME} {{", f"https://{NAME}:{port} {{\n\tbind 127.0.0.1\n\ttls {certificate[0]} {certificate[1]}"),
        ("127.0.0.1:8000", f"127.0.0.1:{server.port}"),
    )
    (folder / "Caddyfile").write_text(f"{{\n\tadmin off\n\tauto_https off\n}}\n{config}", encoding="utf-8")
    return ["caddy", "run", "--adapter", "caddyfile", "--config", f"{folder}/Caddyfile"]


@pytest.fixture(params=["nginx", "caddy"])
def proxy(request: pytest.FixtureRequest) -> Callable[..., list[str]]:
    if shutil.which(request.param) is None:
        pytest.skip(f"there is no {request.param}: apt-get install {request.param}")
    return {"nginx": nginx, "caddy": caddy}[request.param]


@pytest.fixture(params=["/", "/geoclip/"])
def client(
    request: pytest.FixtureRequest,
    proxy: Callable[..., list[str]],
    server: Server,
    certificate: tuple[Path, Path],
    tmp_path: Path,
) -> Iterator[httpx2.Client]:
    """Return a client of a proxy in front of the server, at the root of a site or below a path."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = proxy(tmp_path, port, server, certificate, request.param != "/")
    context = ssl.create_default_context(cafile=str(certificate[0]))
    headers = {"Host": NAME, "Authorization": f"Bearer {server.token}"}
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | {"HOME": str(tmp_path)})
    url = f"https://127.0.0.1:{port}{request.param}"
    with httpx2.Client(base_url=url, headers=headers, verify=context, timeout=60) as client:
        client.event_hooks["request"].append(lambda sent: sent.extensions.update(sni_hostname=NAME))
        try:
            deadline = time.monotonic() + 30
            while True:
                with suppress(httpx2.TransportError):
                    if client.get("readyz").status_code == 200:
                        break
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield client
        finally:
            process.terminate()
            process.wait(20)


def test_what_a_proxy_has_to_do(client: httpx2.Client, server: Server, png: Png, tmp_path: Path) -> None:
    own = {"Origin": f"https://{NAME}", "Sec-Fetch-Site": "same-origin"}
    located = client.post("v1/locate", files={"images": ("a.png", png(1))}, headers=own)
    assert located.status_code == 200, located.text
    assert located.json() == server.locate(("a.png", png(1))).json()
    assert client.get("").status_code in (200, 404)  # 404: the page is not built
    assert client.get("v1/models").json()["data"]
    other = client.post("v1/text", json={"texts": ["ice"]}, headers={"Origin": "https://other.example"})
    assert other.status_code == 403
    refused = client.get("v1/models", headers={"Authorization": "Bearer wrong"})
    assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
    large = client.post("v1/locate", files={"images": ("a.png", bytes(7 * 2**20))})
    assert large.status_code == 200
    assert "error" in large.json()["data"][0]
    assert client.post("v1/locate", files={"images": ("a.png", bytes(9 * 2**20))}).status_code == 413
    records = [{"image": "a", "error": "x" * 1000}] * 5000
    answers = client.post("v1/export", json={"format": "json", "records": records})
    assert len(answers.json()) == len(records)
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and file.stat().st_size > 10**6]  # on disk


def test_a_connection_outlives_a_request_that_was_refused_before_its_body_came(
    client: httpx2.Client, server: Server, certificate: tuple[Path, Path]
) -> None:
    """A proxy that passes bodies on as they come hangs up after an answer that was quicker than the body."""
    context = ssl.create_default_context(cafile=str(certificate[0]))
    path, before = client.base_url.path, server.refused("cross_origin")
    connection = HTTPConnection(NAME)
    with context.wrap_socket(
        socket.create_connection(("127.0.0.1", client.base_url.port), timeout=60), server_hostname=NAME
    ) as connection.sock:
        connection.putrequest("POST", f"{path}v1/text")
        for name, value in {"Origin": "https://other.example", "Content-Length": "2"}.items():
            connection.putheader(name, value)
        connection.endheaders()
        server.wait_until(lambda: server.refused("cross_origin") > before, 20, "refused")
        connection.send(b"{}")
        refused = connection.getresponse()
        assert (refused.status, bool(refused.read())) == (403, True)
        connection.request("GET", f"{path}healthz")
        assert connection.getresponse().status == 200


def test_the_unit_is_one_of_systemd(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze")
    unit = tmp_path / "geoclip.service"
    unit.write_text(replace(blocks("ini")[0], ("/opt/geoclip/bin/geoclip", "/bin/true")))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    assert "geoclip.service" not in done.stderr, done.stderr
    assert "--" in " ".join(exec_start())


def test_the_manifest_fits_the_image_and_the_server(server: Server) -> None:
    deployment, service, ingress = yaml.safe_load_all(blocks("yaml")[0])
    dockerfile = (ROOT / "Dockerfile").read_text()
    pod = deployment["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["args"][0] == "serve"
    assert [one for one in container["args"][1:] if one.startswith("--")] == [
        one for one in exec_start() if one.startswith("--")
    ]
    port = container["ports"][0]
    assert f"EXPOSE {port['containerPort']}" in dockerfile
    assert f"USER {pod['securityContext']['runAsUser']}:" in dockerfile
    assert "VOLUME /data" in dockerfile
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts["data"] == "/data"
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    assert container["args"][container["args"].index("--token-file") + 1] == f"{mounts['tokens']}/tokens"
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] == port["name"] == service["spec"]["ports"][0]["targetPort"]
        assert server.client.get(container[probe]["httpGet"]["path"], headers={"Authorization": ""}).status_code == 200
    assert service["spec"]["selector"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    [rule] = ingress["spec"]["rules"]
    assert rule["host"] == container["args"][-1] == NAME
    assert rule["http"]["paths"][0]["backend"]["service"]["name"] == service["metadata"]["name"]
