"""An in-memory substitute for W&B's service on loopback, with the requests that the client and sweep agent need."""

from __future__ import annotations

import base64
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

import yaml

KEY = "planted" + "0123456789abcdef" * 2 + "x"
"""An API key of W&B's length, 40 characters."""

ENTITY = "tester"


@dataclass
class Run:
    """The service's data of a run.

    Attributes:
        fields: non-null variables of the ``UpsertBucket`` requests.
        config: config values by name.
        history: logged rows.
        summary: summary values by name.
        exit_code: exit code from the client, once it has ended the run.
        sessions: number of clients that have opened it.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None
    sessions: int = 0

    def curve(self, name: str) -> list[tuple[int, float]]:
        """Return the pairs of epoch and value of the metric ``name``."""
        return [(row["epoch"], row[name]) for row in self.history if name in row]


@dataclass
class Sweep:
    """The service's data of a sweep.

    Attributes:
        fields: non-null variables of ``UpsertSweep``.
        config: the uploaded sweep file.
        trials: parameters of the next trials.
        given: run id and parameters of the trials given to agents.
    """

    fields: dict[str, Any]
    config: dict[str, Any]
    trials: list[dict[str, Any]] = field(default_factory=list)
    given: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


class WandbServer:
    """A service on its own port.

    Attributes:
        url: address of the service.
        runs: runs by id.
        sweeps: sweeps by id.
        requests: names of GraphQL operations, and paths of other requests.
        stop_runs: report to every client that the "Stop" button of its run was pressed.
    """

    def __init__(self, key: str = KEY) -> None:
        self.runs: dict[str, Run] = {}
        self.sweeps: dict[str, Sweep] = {}
        self.requests: list[str] = []
        self.stop_runs = False
        self._authorization = "Basic " + base64.b64encode(f"api:{key}".encode()).decode()
        self._silent, self._over = threading.Event(), threading.Event()
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                service._answer(self)

            do_POST = do_PUT = do_GET

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Http(ThreadingHTTPServer):
            def handle_error(self, request: Any, client_address: Any) -> None:
                """Do not print errors of clients that disconnect."""

        self._http = Http(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fall_silent(self) -> None:
        """Keep accepting connections, but stop responding."""
        self._silent.set()

    def close(self) -> None:
        """Close the port."""
        self._silent.set()
        self._over.set()
        self._http.shutdown()
        self._http.server_close()

    # -- answering ---------------------------------------------------------------------------------------------------

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        body = _body(request)
        if self._silent.is_set():
            self._over.wait()
            request.close_connection = True
            return
        graphql = json.loads(body) if request.path == "/graphql" else {}
        named = re.search(r"(?:query|mutation)\s+(\w+)", graphql.get("query", ""))
        operation = graphql.get("operationName") or (named[1] if named else "")
        self.requests.append(operation or request.path)
        if request.headers.get("Authorization") != self._authorization and not request.path.startswith("/upload/"):
            _send(request, 401, {"error": "invalid API key"})
        elif graphql:
            _send(request, 200, {"data": self._graphql(operation, graphql.get("variables") or {})})
        else:
            if request.path.endswith("/file_stream"):
                self._file_stream(self.runs[request.path.split("/")[-2]], json.loads(body))
            _send(request, 200, {"stopped": self.stop_runs} if request.path.endswith("/file_stream") else {})

    def _graphql(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        match operation:
            case "UpsertBucket":
                return {"upsertBucket": self._upsert(variables)}
            case "RunResumeStatus":
                return {"model": self._resume(variables)}
            case "GetDefaultEntity" | "GetViewer" | "Viewer":
                return {"viewer": {"id": ENTITY, "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}"}}
            case "UpsertSweep":
                return {"upsertSweep": self._new_sweep(variables)}
            case "SweepWithRuns":
                return {"project": {"sweep": self._sweep(variables["sweep"])}}
            case "CreateAgent":
                return {"createAgent": {"agent": {"id": variables["sweep"]}}}  # the agent's id is that of its sweep
            case "Heartbeat":
                commands = self._commands(self.sweeps[variables["id"]], json.loads(variables["runState"]))
                return {"agentHeartbeat": {"agent": {"id": variables["id"]}, "commands": json.dumps(commands)}}
            case "CreateRunFiles":
                files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in variables["files"]]
                return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}
        return {}

    def _project(self, name: str) -> dict[str, Any]:
        return {"id": name, "name": name, "entity": {"id": ENTITY, "name": ENTITY}}

    def _new_sweep(self, variables: dict[str, Any]) -> dict[str, Any]:
        id = f"sweep{len(self.sweeps)}"
        fields = {name: value for name, value in variables.items() if value is not None}
        self.sweeps[id] = Sweep(fields, yaml.safe_load(variables["config"]))
        return {
            "sweep": {"name": id, "project": self._project(variables["projectName"])},
            "configValidationWarnings": [],
        }

    def _sweep(self, id: str) -> dict[str, Any] | None:
        if id not in self.sweeps:
            return None
        return {"id": id, "name": id, "config": yaml.safe_dump(self.sweeps[id].config), "runs": {"edges": []}}

    def _commands(self, sweep: Sweep, running: dict[str, bool]) -> list[dict[str, Any]]:
        if running:
            return []
        if not sweep.trials:
            return [{"type": "exit"}]
        run, parameters = f"trial{len(sweep.given)}", sweep.trials.pop(0)
        sweep.given.append((run, parameters))
        arguments = {name: {"value": value} for name, value in parameters.items()}
        return [{"type": "run", "run_id": run, "program": sweep.config["program"], "args": arguments}]

    def _upsert(self, variables: dict[str, Any]) -> dict[str, Any]:
        id = variables["name"]
        new = id not in self.runs
        run = self.runs.setdefault(id, Run())
        run.fields |= {name: value for name, value in variables.items() if value is not None}
        if variables.get("config"):
            run.config |= {key: node["value"] for key, node in json.loads(variables["config"]).items()}
        bucket = {
            "id": f"bucket-{id}",
            "name": id,
            "displayName": run.fields.get("displayName"),
            "config": _wrapped(run.config),
            "project": self._project(run.fields["project"]),
            "historyLineCount": len(run.history),
        }
        return {"bucket": bucket, "inserted": new}

    def _resume(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(variables["name"])
        bucket = run and {
            "id": f"bucket-{variables['name']}",
            "name": variables["name"],
            "displayName": run.fields.get("displayName"),
            "summaryMetrics": json.dumps(run.summary),
            "historyLineCount": len(run.history),
            "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
            "eventsLineCount": 0,
            "eventsTail": "[]",
            "logLineCount": 0,
            "config": _wrapped(run.config),
            "tags": run.fields.get("tags") or [],
            "notes": run.fields.get("notes"),
            "wandbConfig": json.dumps({"t": 1}),
        }
        return {**self._project(variables["project"]), "bucket": bucket}

    def _file_stream(self, run: Run, document: dict[str, Any]) -> None:
        for name, part in (document.get("files") or {}).items():
            rows = [json.loads(line) for line in part["content"]]
            if name == "wandb-history.jsonl":
                if part["offset"] == 0 or not run.history:
                    run.sessions += 1
                run.history[part["offset"] :] = rows
            elif name == "wandb-summary.json":
                run.summary = rows[-1]
        if document.get("complete"):
            run.exit_code = document["exitcode"]


def _wrapped(config: dict[str, Any]) -> str:
    return json.dumps({key: {"value": value} for key, value in config.items()})


def _body(request: BaseHTTPRequestHandler) -> bytes:
    if request.headers.get("Transfer-Encoding") != "chunked":
        return request.rfile.read(int(request.headers.get("Content-Length") or 0))
    parts = []
    while size := int(request.rfile.readline(), 16):
        parts.append(request.rfile.read(size))
        request.rfile.readline()
    request.rfile.readline()
    return b"".join(parts)


def _send(request: BaseHTTPRequestHandler, status: int, document: dict[str, Any]) -> None:
    text = json.dumps(document).encode()
    request.send_response(status)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(text)))
    request.end_headers()
    request.wfile.write(text)
