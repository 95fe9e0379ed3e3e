"""A stand-in for huggingface.co on this machine: as much of its HTTP interface as uploads and downloads use.

Repositories live in memory. Files that end in one of `LFS` take the route of large files: uploaded by themselves, named
by their SHA-256 in the commit, and downloaded through a redirect.
"""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_stand_in"
OWNER = "someone"
LFS = (".safetensors", ".bin")


@dataclass
class Commit:
    """A state of a repository."""

    oid: str
    message: str
    files: dict[str, bytes]


@dataclass
class Repository:
    """Commits by branch, the newest last; pull requests are branches `refs/pr/<number>`."""

    branches: dict[str, list[Commit]]
    private: bool = False

    def find(self, revision: str) -> Commit | None:
        if revision in self.branches:
            return self.branches[revision][-1]
        return next((commit for log in self.branches.values() for commit in log if commit.oid == revision), None)

    def commit(self, branch: str, message: str, files: dict[str, bytes]) -> Commit:
        log = self.branches.setdefault(branch, [])
        oid = hashlib.sha1(f"{branch} {len(log)} {message} {sorted(files)}".encode()).hexdigest()
        log.append(Commit(oid, message, files))
        return log[-1]


class Refusal(Exception):
    """An error of the hub, with the header that huggingface_hub tells it by."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message or code)
        self.status, self.code = status, code


@dataclass
class HubStandIn:
    """The server; `with HubStandIn() as hub:` runs it.

    Attributes:
        repositories: By `"owner/name"`, those of data sets by `"datasets/owner/name"`.
        requests: All requests so far, as `"METHOD path"`.
        large_files: Contents by SHA-256.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    large_files: dict[str, bytes] = field(default_factory=dict)

    def __enter__(self) -> "HubStandIn":
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def serve(self, name: str, folder: Path) -> None:
        """Make the files of a local folder a repository."""
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        self.repositories.setdefault(name, Repository({"main": []})).commit("main", "Serve a folder", files)

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        return self.repositories[name].find(revision).files

    def repository(self, name: str, revision: str | None = None) -> tuple[Repository, Commit]:
        if name not in self.repositories:
            raise Refusal(404, "RepoNotFound", f"There is no repository {name}.")
        commit = self.repositories[name].find(unquote(revision or "main"))
        if commit is None:
            raise Refusal(404, "RevisionNotFound", f"{name} has no revision {revision}.")
        return self.repositories[name], commit


class _Handler(BaseHTTPRequestHandler):
    """One request: the first route whose pattern matches handles it."""

    hub: HubStandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""

    def do_GET(self) -> None:
        self._dispatch()

    do_HEAD = do_POST = do_PUT = do_GET

    def _dispatch(self) -> None:
        url = urlsplit(self.path)
        self.hub.requests.append(f"{self.command} {unquote(url.path)}")
        self.query = parse_qs(url.query)
        self.body = self._read()
        try:
            for methods, pattern, handle in _ROUTES:
                if self.command in methods and (match := re.fullmatch(pattern, url.path)):
                    if self.command in ("POST", "PUT") and not url.path.startswith("/large/"):
                        self._authorise()
                    handle(self, *match.groups())
                    return
            raise Refusal(404, "EntryNotFound", f"No such page: {self.command} {url.path}")
        except Refusal as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": str(refusal)}
            self._answer(json.dumps({"error": str(refusal)}).encode(), refusal.status, headers)

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _authorise(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refusal(401, message="Invalid credentials.")

    def _answer(self, body: bytes, status: int = 200, headers: dict[str, Any] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _answer_json(self, value: Any, status: int = 200) -> None:
        self._answer(json.dumps(value).encode(), status, {"Content-Type": "application/json"})

    # Repositories

    def create(self) -> None:
        payload = json.loads(self.body)
        short = f"{payload.get('organization') or OWNER}/{payload['name']}"
        name = f"datasets/{short}" if payload.get("type") == "dataset" else short
        created = name not in self.hub.repositories
        if created:
            repository = Repository({"main": []}, private=payload.get("visibility") == "private")
            repository.commit("main", "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
            self.hub.repositories[name] = repository
        url = f"{self.hub.endpoint}/{name}"
        self._answer_json({"url": url, "name": short, "id": short}, 200 if created else 409)

    def branch(self, name: str, branch: str) -> None:
        repository, commit = self.hub.repository(name)
        if unquote(branch) in repository.branches:
            raise Refusal(409, message="The branch exists.")
        repository.branches[unquote(branch)] = [commit]
        self._answer_json({})

    def info(self, name: str, revision: str | None = None) -> None:
        repository, commit = self.hub.repository(name, revision)
        files, short = [{"rfilename": path} for path in commit.files], name.removeprefix("datasets/")
        self._answer_json(
            {"id": short, "sha": commit.oid, "siblings": files, "tags": [], "private": repository.private}
        )

    def tree(self, name: str, revision: str, _: str | None = None) -> None:
        _, commit = self.hub.repository(name, revision)
        self._answer_json(
            [
                {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for path, content in sorted(commit.files.items())
            ]
        )

    def resolve(self, name: str, revision: str, path: str) -> None:
        _, commit = self.hub.repository(name, revision)
        if (content := commit.files.get(unquote(path))) is None:
            raise Refusal(404, "EntryNotFound", f"{name} has no file {path}.")
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        if not path.endswith(LFS):
            self._answer(content, 200, headers)
            return
        digest = hashlib.sha256(content).hexdigest()
        self.hub.large_files[digest] = content
        headers |= {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": len(content)}
        # Another host, as the real one's: the client reads the headers of this answer, and not of one it is sent on to.
        location = self.hub.endpoint.replace("127.0.0.1", "localhost")
        self._answer(b"", 302, {**headers, "Location": f"{location}/large/{digest}"})

    # Uploads

    def validate(self) -> None:
        header = re.match(r"---\n(.*?)\n---\n", json.loads(self.body)["content"], re.DOTALL)
        valid = header is not None and isinstance(yaml.safe_load(header[1]), dict)
        self._answer_json(
            {"errors": [] if valid else [{"message": "no metadata"}], "warnings": []}, 200 if valid else 400
        )

    def preupload(self, name: str, revision: str) -> None:
        self.hub.repository(name, revision)
        files = [file["path"] for file in json.loads(self.body)["files"]]
        modes = [{"uploadMode": "lfs" if path.endswith(LFS) else "regular", "shouldIgnore": False} for path in files]
        self._answer_json({"files": [{"path": path, **mode} for path, mode in zip(files, modes, strict=True)]})

    def batch(self, name: str) -> None:
        self.hub.repository(name)
        objects = [{"oid": file["oid"], "size": file["size"]} for file in json.loads(self.body)["objects"]]
        for file in objects:
            if file["oid"] not in self.hub.large_files:
                file["actions"] = {"upload": {"href": f"{self.hub.endpoint}/large/{file['oid']}"}}
        self._answer_json({"transfer": "basic", "objects": objects})

    def large(self, digest: str) -> None:
        if self.command == "PUT":
            if hashlib.sha256(self.body).hexdigest() != digest:
                raise Refusal(400, message="The content is not what its name says.")
            self.hub.large_files[digest] = self.body
            self._answer(b"")
        else:
            self._answer(self.hub.large_files[digest], 200, {"ETag": f'"{digest}"'})

    def commit(self, name: str, revision: str) -> None:
        repository, parent = self.hub.repository(name, revision)
        lines = [json.loads(line) for line in self.body.splitlines()]
        files, branch, extra = dict(parent.files), unquote(revision), {}
        for value in (line["value"] for line in lines if line["key"] == "file"):
            files[value["path"]] = base64.b64decode(value["content"])
        for value in (line["value"] for line in lines if line["key"] == "lfsFile"):
            files[value["path"]] = self.hub.large_files[value["oid"]]
        for value in (line["value"] for line in lines if line["key"] == "deletedFile"):
            del files[value["path"]]
        if self.query.get("create_pr"):
            number = sum(name.startswith("refs/pr/") for name in repository.branches) + 1
            branch, extra = f"refs/pr/{number}", {"pullRequestUrl": f"{self.hub.endpoint}/{name}/discussions/{number}"}
        made = repository.commit(branch, lines[0]["value"]["summary"], files)
        self._answer_json(
            {"commitUrl": f"{self.hub.endpoint}/{name}/commit/{made.oid}", "commitOid": made.oid, **extra}
        )


_NAME, _REVISION = r"((?:datasets/)?[^/]+/[^/]+)", r"([^/]+)"
_API = f"/api/(?:models/)?{_NAME}"
_ROUTES: list[tuple[tuple[str, ...], str, Callable[..., None]]] = [
    (("POST",), "/api/repos/create", _Handler.create),
    (("POST",), "/api/validate-yaml", _Handler.validate),
    (("POST",), f"{_API}/branch/{_REVISION}", _Handler.branch),
    (("POST",), f"{_API}/preupload/{_REVISION}", _Handler.preupload),
    (("POST",), f"{_API}/commit/{_REVISION}", _Handler.commit),
    (("POST",), f"/{_NAME}.git/info/lfs/objects/batch", _Handler.batch),
    (("PUT", "GET", "HEAD"), "/large/([0-9a-f]{64})", _Handler.large),
    (("GET",), _API, _Handler.info),
    (("GET",), f"{_API}/revision/{_REVISION}", _Handler.info),
    (("GET",), f"{_API}/tree/{_REVISION}(/.*)?", _Handler.tree),
    (("GET", "HEAD"), f"/{_NAME}/resolve/{_REVISION}/(.+)", _Handler.resolve),
]
