"""Answers, and what servers ask each other, held to the specification's own OpenAPI files, in every test that speaks
HTTP.

The files are those in `tests/specification/`; `HEARTH_SPECIFICATION` names another checkout of matrix-spec's folder
`data/`. Errors must have a code that the specification knows and a text, and follow the operation's schema where it
has one; successes must be among the responses of the operation and follow its schema.
"""

import functools
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml
from jsonschema import Draft202012Validator, ValidationError
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

CLIENTS = "client-server"
SERVERS = "server-server"
VARIABLE = "HEARTH_SPECIFICATION"
INCLUDED = Path(__file__).parent / "specification"
_METHODS = ("get", "put", "post", "delete")
_KNOWN_OTHERWISE = ("/_matrix/client/v3/voip/turnServer",)
"""Answers that clients know from other servers and the files do not have: an empty object for no TURN server."""
_CODE = re.compile(r"\bM_[A-Z_]*[A-Z]\b")
_CODES_IN_PROSE = frozenset(
    (
        "M_BAD_STATE",
        "M_CANNOT_LEAVE_SERVER_NOTICE_ROOM",
        "M_CAPTCHA_INVALID",
        "M_CAPTCHA_NEEDED",
        "M_GUEST_ACCESS_FORBIDDEN",
        "M_INCOMPATIBLE_ROOM_VERSION",
        "M_MISSING_TOKEN",
        "M_RESOURCE_LIMIT_EXCEEDED",
        "M_SESSION_EXPIRED",
        "M_SESSION_NOT_VALIDATED",
        "M_UNABLE_TO_AUTHORISE_JOIN",
        "M_UNABLE_TO_GRANT_JOIN",
        "M_UNAUTHORIZED",
        "M_UNKNOWN_DEVICE",
        "M_USER_LIMIT_EXCEEDED",
        "M_USER_LOCKED",
        "M_USER_SUSPENDED",
        "M_WEAK_PASSWORD",
    )
)
"""Error codes of the Client-Server API that its text names and its OpenAPI files do not."""
_PARAMETER = re.compile(r"\{[^}]+\}")


@dataclass(frozen=True, slots=True)
class Operation:
    """One endpoint: what the specification says of it, and where that stands."""

    name: str
    method: str
    template: str
    path: re.Pattern[str]
    parameters: int
    uri: str
    definition: dict[str, Any]

    @property
    def responses(self) -> dict[str, Any]:
        """By status."""
        responses: dict[str, Any] = self.definition["responses"]
        return responses


class Specification:
    """The operations of one API."""

    def __init__(self, directory: Path, api: str = CLIENTS) -> None:
        self.operations = sorted(_operations(directory, api), key=lambda operation: operation.parameters)
        self.registry: Registry[Any] = Registry(retrieve=_retrieve)  # type: ignore[call-arg]  # attrs renames it
        files = (file for each in {api, CLIENTS} for file in _api_files(directory, each))
        self._codes = _CODES_IN_PROSE.union(*(_CODE.findall(file.read_text()) for file in files))
        self._validators: dict[str, Draft202012Validator] = {}

    def check(self, method: str, path: str, status: int, body: Any) -> None:
        """Raise AssertionError unless this is an answer that the specification has for the request."""
        path = _current(path)
        operation = self.find(method, path)
        if operation is None or (path in _KNOWN_OTHERWISE and body == {}):
            return
        name = f"{method} {path}: {status}"
        if status >= 400:
            self.check_error(name, status, body)
            if status == 401 and "flows" not in body:
                return  # no usable token, which endpoints do not say of themselves
        else:
            assert str(status) in operation.responses, f"{name} is not in the specification"
        content = operation.responses.get(str(status), {}).get("content") or {}
        if "application/json" not in content:
            return
        self.check_value(name, f"{operation.uri}/responses/{status}/content/application~1json/schema", body)

    def check_request(self, method: str, path: str, query: Iterable[tuple[str, str]], body: Any) -> None:
        """Raise AssertionError unless this is a request that the specification has."""
        operation = self.find(method, path)
        assert operation is not None, f"{method} {path} is not in the specification"
        name, given = f"{method} {path}", Counter(key for key, _ in query)
        for uri, parameter in self._parameters(operation):
            if parameter["in"] != "query":
                continue
            wanted, is_given = parameter["name"], given.pop(parameter["name"], 0)
            assert is_given or not parameter.get("required"), f"{name} lacks {wanted}"
            values = [_read(value, parameter["schema"]) for key, value in query if key == wanted]
            if parameter["schema"].get("type") == "array":
                values = [values] if values else []
            assert len(values) <= 1, f"{name} has {wanted} more than once"
            for value in values:
                self.check_value(f"{name}: {wanted}", f"{uri}/schema", value)
        assert not given, f"{name} has parameters that the specification does not know: {sorted(given)}"
        if "requestBody" in operation.definition:
            self.check_value(name, f"{operation.uri}/requestBody/content/application~1json/schema", body)
        else:
            assert body is None, f"{name} has a body"

    def _parameters(self, operation: Operation) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Where each parameter is defined, and what it is."""
        for index, parameter in enumerate(operation.definition.get("parameters", ())):
            if "$ref" in parameter:
                uri = operation.uri.partition("#")[0] + parameter["$ref"]
                yield uri, self.registry.resolver(uri).lookup(uri).contents
            else:
                yield f"{operation.uri}/parameters/{index}", parameter

    def check_value(self, name: str, uri: str, value: Any) -> None:
        """Raise AssertionError unless the value is of this schema."""
        found = (error for error in self._validator(uri).iter_errors(value) if not _is_of_several_kinds(error))
        errors = sorted(found, key=lambda error: list(map(str, error.path)))
        assert not errors, f"{name}: {errors[0].json_path}: {errors[0].message}"

    def check_error(self, name: str, status: int, body: Any) -> None:
        """Raise AssertionError unless this is an error object with a code that exists, or asks to authenticate."""
        assert isinstance(body, dict), f"{name} without an error object"
        if status == 401 and "flows" in body:
            return
        for member in ("errcode", "error"):
            assert isinstance(body.get(member), str), f"{name} without {member}"
        code = body["errcode"]
        assert code in self._codes or not code.startswith("M_"), f"{name} with the unknown code {code}"

    def find(self, method: str, path: str) -> Operation | None:
        """The operation that a request is for, if the specification has it."""
        path = _current(path)
        for operation in self.operations:
            if operation.method == method and operation.path.fullmatch(path):
                return operation
        return None

    def _validator(self, uri: str) -> Draft202012Validator:
        if uri not in self._validators:
            self._validators[uri] = Draft202012Validator({"$ref": uri}, registry=self.registry)
        return self._validators[uri]


def _current(path: str) -> str:
    """The path, by its present name if it is an old one."""
    return re.sub("^/_matrix/client/r0/", "/_matrix/client/v3/", path)


def _is_of_several_kinds(error: ValidationError) -> bool:
    """Whether the answer is of more than one of a schema's kinds: an event is also `an object`, which is no mistake."""
    return error.validator == "oneOf" and not error.context


def _read(value: str, schema: Mapping[str, Any]) -> Any:
    """A parameter of a query as what it means; as it is, if it means nothing."""
    if schema.get("type") == "boolean":
        return {"true": True, "false": False}.get(value, value)
    if schema.get("type") == "integer":
        return int(value) if value.isdecimal() else value
    return value


def _api_files(directory: Path, api: str) -> list[Path]:
    return sorted((directory / "api" / api).glob("*.yaml"))


def _operations(directory: Path, api: str) -> Iterator[Operation]:
    for file in _api_files(directory, api):
        data = _load(file)
        base = data["servers"][0]["variables"].get("basePath", {}).get("default", "")
        for path, methods in data["paths"].items():
            whole = base + path.strip()
            pattern = re.compile("[^/]+".join(map(re.escape, _PARAMETER.split(whole))))
            for method in _METHODS:
                if method in methods:
                    escaped = path.replace("~", "~0").replace("/", "~1").replace("{", "%7B").replace("}", "%7D")
                    yield Operation(
                        name=methods[method]["operationId"],
                        method=method.upper(),
                        template=whole,
                        path=pattern,
                        parameters=len(_PARAMETER.findall(whole)),
                        uri=f"{file.as_uri()}#/paths/{escaped}/{method}",
                        definition=methods[method],
                    )


def _retrieve(uri: str) -> Resource[Any]:
    return DRAFT202012.create_resource(_load(Path(unquote(uri.removeprefix("file://")))))


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
def specification(api: str = CLIENTS) -> Specification:
    """The specification to hold answers to."""
    return Specification(directory(), api)


def directory() -> Path:
    """Where its files are."""
    return Path(os.environ.get(VARIABLE) or INCLUDED).resolve()
