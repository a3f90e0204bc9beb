"""Answers held to the specification's own OpenAPI files, in every test that speaks HTTP.

The files are not in this repository: `HEARTH_SPECIFICATION` names a checkout of matrix-spec's folder `data/`, and
without it nothing is checked. Errors must have a code and a text; successes must be among the responses of the
operation and follow its schema.
"""

import functools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

VARIABLE = "HEARTH_SPECIFICATION"
_METHODS = ("get", "put", "post", "delete")
_KNOWN_OTHERWISE = ("/_matrix/client/v3/voip/turnServer",)
"""Answers that clients know from other servers and the files do not have: an empty object for no TURN server."""
_PARAMETER = re.compile(r"\{[^}]+\}")


@dataclass(frozen=True, slots=True)
class Operation:
    """One endpoint: where its responses stand."""

    method: str
    path: re.Pattern[str]
    parameters: int
    uri: str
    responses: dict[str, Any]


class Specification:
    """The operations of the Client-Server API."""

    def __init__(self, directory: Path) -> None:
        self._operations = sorted(_operations(directory), key=lambda operation: operation.parameters)
        self._registry: Registry[Any] = Registry(retrieve=_retrieve)  # type: ignore[call-arg]  # attrs renames it
        self._validators: dict[str, Draft202012Validator] = {}

    def check(self, method: str, path: str, status: int, body: Any) -> None:
        """Raise AssertionError unless this is an answer that the specification has for the request."""
        operation = self._find(method, path)
        if operation is None or (path in _KNOWN_OTHERWISE and body == {}):
            return
        if status >= 400:
            self._check_error(method, path, status, body)
            return
        name = f"{method} {path}"
        assert str(status) in operation.responses, f"{name}: status {status} is not in the specification"
        content = operation.responses[str(status)].get("content") or {}
        if "application/json" not in content:
            return
        uri = f"{operation.uri}/responses/{status}/content/application~1json/schema"
        errors = sorted(self._validator(uri).iter_errors(body), key=lambda error: list(map(str, error.path)))
        assert not errors, f"{name}: {errors[0].json_path}: {errors[0].message}"

    def _check_error(self, method: str, path: str, status: int, body: Any) -> None:
        assert isinstance(body, dict), f"{method} {path}: {status} without an error object"
        if status == 401 and "flows" in body:
            return
        for name in ("errcode", "error"):
            assert isinstance(body.get(name), str), f"{method} {path}: {status} without {name}"

    def _find(self, method: str, path: str) -> Operation | None:
        path = re.sub("^/_matrix/client/r0/", "/_matrix/client/v3/", path)
        for operation in self._operations:
            if operation.method == method and operation.path.fullmatch(path):
                return operation
        return None

    def _validator(self, uri: str) -> Draft202012Validator:
        if uri not in self._validators:
            self._validators[uri] = Draft202012Validator({"$ref": uri}, registry=self._registry)
        return self._validators[uri]


def _operations(directory: Path) -> Iterator[Operation]:
    for file in sorted((directory / "api" / "client-server").glob("*.yaml")):
        data = _load(file)
        base = data["servers"][0]["variables"].get("basePath", {}).get("default", "")
        for path, methods in data["paths"].items():
            whole = base + path.strip()
            pattern = re.compile("[^/]+".join(map(re.escape, _PARAMETER.split(whole))))
            for method in _METHODS:
                if method in methods:
                    escaped = path.replace("~", "~0").replace("/", "~1").replace("{", "%7B").replace("}", "%7D")
                    yield Operation(
                        method=method.upper(),
                        path=pattern,
                        parameters=len(_PARAMETER.findall(whole)),
                        uri=f"{file.as_uri()}#/paths/{escaped}/{method}",
                        responses={str(status): value for status, value in methods[method]["responses"].items()},
                    )


def _retrieve(uri: str) -> Resource[Any]:
    return DRAFT202012.create_resource(_load(Path(uri.removeprefix("file://"))))


@functools.cache
def _load(file: Path) -> Any:
    text = file.read_text(encoding="utf-8")
    data = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506  # both are safe loaders
    return _with_text_keys(data)


def _with_text_keys(data: Any) -> Any:
    """YAML's numbers as keys are JSON's texts."""
    if isinstance(data, dict):
        return {str(key): _with_text_keys(value) for key, value in data.items()}
    return [_with_text_keys(each) for each in data] if isinstance(data, list) else data


@functools.cache
def specification() -> Specification | None:
    """The specification to hold answers to, if there is one at hand."""
    directory = os.environ.get(VARIABLE)
    return Specification(Path(directory)) if directory else None
