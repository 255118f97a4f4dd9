"""A small server that speaks the part of the Hub's HTTP API that uploads: repositories, commits, large files.

Routes as huggingface_hub's client calls them: POST api/repos/create, api/validate-yaml, api/{kind}s/{repo}/preupload,
{repo}.git/info/lfs/objects/batch with a PUT of each large file, and api/{kind}s/{repo}/commit, whose lines are a header
and files. A commit is taken whole or not at all.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_secret4711"
LARGE = (".parquet", ".safetensors")


class HubServer(ThreadingHTTPServer):
    """Keeps what it is sent.

    Attributes:
        repositories: "kind/name" -> "private" or "public". commits: (kind/name, files by path), in order.
        refused: repositories whose commits are refused. asked: methods and paths, in order.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories, self.commits, self.large, self.refused, self.asked = {}, [], {}, set(), []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """One request."""

    def read_body(self):
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        parts = []  # a stream, in chunks that each say how long they are
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do_POST(self):
        server, body = self.server, self.read_body()
        path = self.path.partition("?")[0].lstrip("/")
        server.asked.append(path)
        given = self.headers.get("Authorization")
        if given != f"Bearer {TOKEN}":
            return self.reply(401, {"error": f"Invalid credentials in Authorization header: {given}"})
        if path == "api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('type', 'model')}/{asked.get('organization') or 'me'}/{asked['name']}"
            if name in server.repositories:
                return self.reply(409, {"error": "You already created this repo", "url": self.write_address(name)})
            server.repositories[name] = asked.get("visibility", "private" if asked.get("private") else "public")
            return self.reply(200, {"url": self.write_address(name)})
        if path == "api/validate-yaml":
            return self.reply(200, {"errors": [], "warnings": []})
        if found := re.fullmatch(r"api/(dataset|model)s/(.+)/preupload/main", path):
            files = json.loads(body)["files"]
            return self.reply(200, {"files": [
                {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                 "shouldIgnore": False} for file in files]})  # fmt: skip
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [{"oid": one["oid"], "size": one["size"],
                        "actions": {"upload": {"href": f"{server.url}/large/{one['oid']}"}}}
                       for one in json.loads(body)["objects"]]  # fmt: skip
            return self.reply(200, {"transfer": "basic", "objects": objects})
        if found := re.fullmatch(r"api/(dataset|model)s/(.+)/commit/main", path):
            return self.commit("/".join(found.groups()), [json.loads(line) for line in body.splitlines()])
        return self.reply(404, {"error": f"no route {path}"})

    def do_PUT(self):
        content = self.read_body()
        oid = self.path.rpartition("/")[2]
        if hashlib.sha256(content).hexdigest() != oid:
            return self.reply(400, {"error": "another content"})
        self.server.large[oid] = content
        return self.reply(200, {})

    def commit(self, name, lines):
        if name in self.server.refused:
            return self.reply(403, {"error": f"refused, {self.headers['Authorization']}"})
        assert lines[0]["key"] == "header" and name in self.server.repositories
        files = {}
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                assert line["key"] == "lfsFile"
                files[value["path"]] = self.server.large[value["oid"]]
        self.server.commits.append((name, files))
        return self.reply(200, {"success": True, "commitOid": "0" * 40, "hookOutput": "",
                                "commitUrl": f"{self.write_address(name)}/commit/{'0' * 40}"})  # fmt: skip

    def write_address(self, name):
        kind, _, rest = name.partition("/")
        return f"{self.server.url}/{'datasets/' if kind == 'dataset' else ''}{rest}"

    def reply(self, code, body):
        content = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        """Say nothing."""
