"""nginx and Caddy with the files of deploy/, on a free port of loopback, before a server of the tests."""

import os
import shutil
import socket
import subprocess
from contextlib import contextmanager
from pathlib import Path

from tests.serving import wait_until

DEPLOY = Path(__file__).parents[1] / "deploy"
NGINX = """daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{}}
http {{
    access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{ listen 127.0.0.1:{port}; {site} }}
}}
"""


def nginx(folder, port, upstream):
    site = (DEPLOY / "nginx.conf").read_text("utf-8").replace("127.0.0.1:8000", upstream)
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port, site=site))
    return ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]


def caddy(folder, port, upstream):
    site = (DEPLOY / "Caddyfile").read_text("utf-8").replace("127.0.0.1:8000", upstream).replace(":8080", f":{port}")
    (folder / "Caddyfile").write_text(f"{{\n\tadmin off\n\tauto_https off\n}}\n{site}")
    return ["caddy", "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


def replicas(folder, port, first, second):
    """Return the command of nginx before two servers."""
    text = (DEPLOY / "nginx.replicas.conf").read_text("utf-8").replace("listen 8000", f"listen 127.0.0.1:{port}")
    text = text.replace("search-1:8000", first).replace("search-2:8000", second)
    site = NGINX[: NGINX.index("    server {{")].format(folder=folder) + text + "}"
    (folder / "nginx.conf").write_text(site)
    return ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]


PROXIES = {"nginx": nginx, "caddy": caddy}


def path_of(name):
    """Return where the proxy is installed, None where it is not."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))


@contextmanager
def proxy(name, folder, upstream_port):
    """Run a proxy and yield the address of its /images."""
    with _running(PROXIES[name], folder, upstream_port) as address:
        yield f"{address}/images"


@contextmanager
def before_replicas(folder, first_port, second_port):
    """Run nginx before two servers and yield its address."""
    with _running(replicas, folder, first_port, second_port) as address:
        yield address


@contextmanager
def _running(command_of, folder, *upstream_ports):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program, *arguments = command_of(folder, port, *(f"127.0.0.1:{upstream}" for upstream in upstream_ports))
    home = {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    with open(folder / "output", "wb") as output:
        process = subprocess.Popen(
            [path_of(program), *arguments], env={**os.environ, **home}, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        wait_until(lambda: process.poll() is not None or _listens(port))
        assert process.poll() is None, (folder / "output").read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
