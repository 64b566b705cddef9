"""A W&B server of the smallest size that the real client can talk to: for tests of the online path without a network.

It keeps what arrives (`runs`, `history`, `summary`, `config`, `uploads`, `artifacts`, `views`) and answers only what a
run or a saved workspace needs; an operation that it does not know gets ``{"data": {}}``, so that a newer client is not
refused for asking something more. It checks nothing.
"""

from __future__ import annotations

import gzip
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

ENTITY = "tester"


@dataclass
class FakeWandbServer:
    """Serve on a free port of 127.0.0.1 while the context is open."""

    refuse: int | None = None
    """An HTTP status, such as 403, that answers everything from now on."""
    requests: int = 0
    """Number of requests of any kind."""
    runs: list[dict[str, Any]] = field(default_factory=list)
    """The variables of every new run that was registered, in order."""
    history: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """History rows by run id."""
    summary: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The last summary by run id."""
    config: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The last config by run id, without what the client adds about itself."""
    uploads: dict[str, bytes] = field(default_factory=dict)
    """Uploaded files by path."""
    artifacts: list[dict[str, Any]] = field(default_factory=list)
    """The variables of every artifact that was made, in order."""
    views: list[dict[str, Any]] = field(default_factory=list)
    """The variables of every workspace that was saved, in order; ``spec`` is JSON."""
    ignore: frozenset[str] = frozenset()
    """Names of GraphQL operations that get no answer: the request hangs until the server stops."""
    operations: list[str] = field(default_factory=list)
    """Names of all GraphQL operations, in order."""
    exit_codes: dict[str, int] = field(default_factory=dict)
    """By run id, of the runs that were finished."""

    stopped: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> FakeWandbServer:
        handler = type("Handler", (_Handler,), {"state": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """What goes into ``WANDB_BASE_URL``."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def stop(self) -> None:
        """Close the port, so that clients get "connection refused" from now on; once more does nothing."""
        if self.stopped.is_set():
            return
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Return the ``data`` of a GraphQL reply."""
        if operation == "Viewer":
            viewer = {"id": "1", "entity": ENTITY, "username": ENTITY, "flags": "{}", "teams": {"edges": []}}
            return {"viewer": viewer}
        if operation == "RunResumeStatus":
            return {"model": None}
        if operation == "UpsertBucket":
            known = [run["name"] for run in self.runs]
            name = variables.get("name")
            if name is not None and name not in known:
                self.runs.append(variables)
            if variables.get("config"):
                values = json.loads(variables["config"])
                self.config[name] = {key: item["value"] for key, item in values.items() if key != "_wandb"}
            project = {"id": "p", "name": variables.get("project"), "entity": {"id": "e", "name": ENTITY}}
            bucket = {
                "id": f"bucket-{name}",
                "name": name,
                "displayName": variables.get("displayName") or f"fake-{len(self.runs)}",
                "description": "",
                "config": variables.get("config"),
                "sweepName": None,
                "historyLineCount": 0,
                "project": project,
            }
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in variables.get("files", [])]
            return {"createRunFiles": {"runID": variables.get("run"), "uploadHeaders": [], "files": files}}
        if operation == "ArtifactType":
            return {"project": {"artifact": None}}
        if operation == "CreateArtifact":
            self.artifacts.append(variables["input"])
            artifact = {"id": f"artifact-{len(self.artifacts)}", "state": "PENDING"}
            return {"createArtifact": {"artifact": {**artifact, "artifactSequence": {"latestArtifact": None}}}}
        if operation == "CreateArtifactManifest":
            file = {"id": "file", "uploadUrl": f"{self.url}/upload/{variables['name']}", "uploadHeaders": []}
            return {"createArtifactManifest": {"artifactManifest": {"id": "manifest", "file": file}}}
        if operation == "CreateArtifactFiles":
            edges = [
                {
                    "node": {
                        "storagePath": file["name"],
                        "uploadUrl": f"{self.url}/upload/{file['name']}",
                        "uploadHeaders": [],
                        "uploadMultipartUrls": None,
                        "artifact": {"id": file["artifactID"]},
                    }
                }
                for file in variables["input"]["artifactFiles"]
            ]
            return {"createArtifactFiles": {"files": {"edges": edges}}}
        if operation == "CommitArtifact":
            return {"commitArtifact": {"artifact": {"id": variables.get("artifactID")}}}
        if operation == "UpsertView2":
            self.views.append(variables)
            return {"upsertView": {"view": {"id": "v", "name": variables["name"]}, "inserted": True}}
        return {}

    def receive_stream(self, run_id: str, body: dict[str, Any]) -> None:
        """Keep what one file_stream post brings."""
        for name, chunk in body.get("files", {}).items():
            lines = [json.loads(line) for line in chunk["content"] if line.strip()]
            if name == "wandb-history.jsonl":
                self.history.setdefault(run_id, []).extend(lines)
            elif name == "wandb-summary.json":
                self.summary[run_id] = lines[-1]
        if body.get("complete"):
            self.exit_codes[run_id] = body.get("exitcode", 0)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a client that hung up: tests kill clients."""


class _Handler(BaseHTTPRequestHandler):
    state: FakeWandbServer
    protocol_version = "HTTP/1.1"

    def _body(self) -> bytes:
        self.state.requests += 1
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(raw) if self.headers.get("Content-Encoding") == "gzip" else raw

    def _reply(self, payload: object, code: int = 200) -> None:
        raw = json.dumps(payload).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def do_GET(self) -> None:
        self._body()
        self._reply({})

    def do_POST(self) -> None:
        body = self._body()
        if self.state.refuse is not None:
            return self._reply({"errors": [{"message": "refused by the test"}]}, self.state.refuse)
        if self.path == "/graphql":
            request = json.loads(body)
            match = re.search(r"(?:query|mutation)\s+(\w+)", request.get("query", ""))
            operation = request.get("operationName") or (match.group(1) if match else "")
            self.state.operations.append(operation)
            if operation in self.state.ignore:
                self.state.stopped.wait()
            return self._reply({"data": self.state.answer(operation, request.get("variables") or {})})
        if self.path.endswith("/file_stream"):
            # /files/<entity>/<project>/<run id>/file_stream
            self.state.receive_stream(self.path.split("/")[-2], json.loads(body))
        return self._reply({})

    def do_PUT(self) -> None:
        self.state.uploads[self.path.removeprefix("/upload/")] = self._body()
        self._reply({})

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: stderr belongs to the test."""
