"""A stand-in for the Hub on localhost: repositories, preupload, LFS, commits; and failures when they are asked for."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_of_the_test"


@dataclass
class Hub:
    """What the stand-in holds.

    Attributes:
        url: its address.
        repos: by name, whether it is private, and its files.
        blobs: what was sent through LFS, by hash.
        failures: what to answer with an error: words of a path, the status (0: hang up), and how often.
        asked: method and path of every request.
    """

    url: str = ""
    repos: dict[str, dict[str, Any]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    failures: list[list[Any]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def sent(self) -> int:
        """How many files came through LFS."""
        return sum(line.startswith("PUT /lfs/") for line in self.asked)


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Serves until the end of a ``with`` block."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            for key, value in ({"Content-Type": "application/json"} | (headers or {})).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.split("?")[0]
            hub.asked.append(f"{self.command} {path}")
            for failure in hub.failures:
                if failure[0] in f"{self.command} {path}" and failure[2] > 0:
                    failure[2] -= 1
                    if not failure[1]:
                        self.close_connection = True
                        return
                    self.answer({"error": f"the hub says {failure[1]}"}, failure[1])
                    return
            if not path.startswith("/lfs/") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.answer({"error": "Invalid credentials in Authorization header"}, 401)
                return
            route(self, path, body)

        do_GET = do_POST = do_PUT = do_HEAD = handle_any

    def route(one: Handler, path: str, body: bytes) -> None:
        parts = path.strip("/").split("/")
        if path == "/api/repos/create":
            said = json.loads(body)
            name = f"{said['organization']}/{said['name']}" if said.get("organization") else said["name"]
            if name in hub.repos:
                one.answer({"error": "You already created this model repo", "url": f"{hub.url}/{name}"}, 409)
                return
            hub.repos[name] = {"private": said.get("visibility") == "private" or bool(said.get("private")), "files": {}}
            one.answer({"url": f"{hub.url}/{name}", "name": name, "id": name})
        elif path == "/api/validate-yaml":
            one.answer({"errors": [], "warnings": []})
        elif path.startswith("/lfs/"):
            assert hashlib.sha256(body).hexdigest() == parts[1]
            hub.blobs[parts[1]] = body
            one.answer({})
        elif path.endswith("/info/lfs/objects/batch"):
            wanted = json.loads(body)["objects"]
            objects = [
                {"oid": item["oid"], "size": item["size"]}
                | (
                    {}
                    if item["oid"] in hub.blobs
                    else {"actions": {"upload": {"href": f"{hub.url}/lfs/{item['oid']}"}}}
                )
                for item in wanted
            ]
            one.answer({"transfer": "basic", "objects": objects})
        elif "preupload" in parts:
            files = hub.repos["/".join(parts[2:4])]["files"]
            known = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
            one.answer(
                {
                    "files": [
                        {
                            "path": item["path"],
                            "uploadMode": "lfs" if item["path"].endswith(".safetensors") else "regular",
                            "shouldIgnore": False,
                            "oid": known.get(item["path"]),
                        }
                        for item in json.loads(body)["files"]
                    ]
                }
            )
        elif "commit" in parts:
            files = hub.repos["/".join(parts[2:4])]["files"]
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = hub.blobs[value["oid"]]
            name = "/".join(parts[2:4])
            one.answer({"success": True, "commitOid": "c" * 40, "commitUrl": f"{hub.url}/{name}/commit/{'c' * 40}"})
        elif parts[:2] == ["api", "models"] and "/".join(parts[2:4]) in hub.repos:
            name = "/".join(parts[2:4])
            one.answer({"id": name, "private": hub.repos[name]["private"], "sha": "c" * 40, "siblings": []})
        else:
            one.answer({"error": f"no such place: {path}"}, 404)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
