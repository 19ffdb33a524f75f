"""A model hub on this machine: as much of its HTTP as pushing and pulling take, over a dict of files."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeHub:
    """`repositories` has for each OWNER/NAME its files; `requests` the method and path of each request."""

    def __init__(self):
        self.repositories, self.private, self.requests = {}, {}, []

    def commit_of(self, name):
        content = b"".join(key.encode() + value for key, value in sorted(self.repositories[name].items()))
        return hashlib.sha1(content).hexdigest()


def _handler(hub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def answer(self, body=b"", status=200, **headers):
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Length": len(data), **headers}.items():
                self.send_header(name.replace("_", "-"), str(value))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def do_POST(self):
            hub.requests.append(f"POST {self.path}")
            data = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/api/repos/create":
                named = json.loads(data)
                name = f"{named['organization']}/{named['name']}"
                hub.repositories.setdefault(name, {})
                hub.private[name] = named.get("private", named.get("visibility") == "private")
                return self.answer({"url": f"http://{self.headers['Host']}/{name}", "name": name})
            if self.path == "/api/validate-yaml":
                return self.answer({"warnings": [], "errors": []})
            name, action = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(\w+)/main.*", self.path).groups()
            if action == "preupload":
                files = [{"path": each["path"], "uploadMode": "regular"} for each in json.loads(data)["files"]]
                return self.answer({"files": [each | {"shouldIgnore": False} for each in files]})
            for line in map(json.loads, data.splitlines()):
                if line["key"] == "file":
                    hub.repositories[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            commit = hub.commit_of(name)
            url = f"http://{self.headers['Host']}/{name}/commit/{commit}"
            return self.answer({"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})

        def do_GET(self):
            hub.requests.append(f"{self.command} {self.path}")
            if found := re.fullmatch(r"/api/models/([^/]+/[^/?]+)(?:/revision/[^?]+)?(?:\?.*)?", self.path):
                if found[1] not in hub.repositories:
                    return self.answer({"error": "no"}, 404, X_Error_Code="RepoNotFound")
                names = [{"rfilename": name} for name in hub.repositories[found[1]]]
                commit = hub.commit_of(found[1])
                return self.answer({"id": found[1], "sha": commit, "siblings": names}, Content_Type="application/json")
            name, file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/([^?]+)(?:\?.*)?", self.path).groups()
            data = hub.repositories[name][file]
            etag = f'"{hashlib.sha1(data).hexdigest()}"'
            return self.answer(data, ETag=etag, X_Repo_Commit=hub.commit_of(name))

        do_HEAD = do_GET

    return Handler


@contextmanager
def fake_hub(monkeypatch):
    """Serve a hub on loopback and make `huggingface_hub` use it."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
