"""YAML to `Config`. Every mistake is reported at once, with its line and what to write instead."""

import contextlib
import dataclasses
import difflib
import enum
import ipaddress
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, Protocol, runtime_checkable

import yaml

from homeserver.config import ByteCount, Config, ExistingFile, IPNetwork, Milliseconds, Secret

DEFAULT_FILE = Path("config.yaml")

_BYTE_UNITS = {
    "": 1,
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}
# Annotations, and values of the type that an annotation says.
_Any = Any

_TIME_UNITS = {"ms": 1, "s": 1000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}


@dataclasses.dataclass(frozen=True, slots=True)
class Mistake:
    """One thing that is wrong, where, and how to repair it."""

    line: int | None
    setting: str
    message: str

    def describe(self, file: str) -> str:
        """One line for the operator."""
        place = file if self.line is None else f"{file}:{self.line}"
        return f"{place}: {self.setting}: {self.message}" if self.setting else f"{place}: {self.message}"


class ConfigurationError(Exception):
    """The settings cannot be used; `mistakes` has all reasons."""

    def __init__(self, file: str, mistakes: list[Mistake]) -> None:
        super().__init__("\n".join(mistake.describe(file) for mistake in mistakes))
        self.file = file
        self.mistakes = mistakes


@runtime_checkable
class _Checked(Protocol):
    def complaints(self) -> Iterator[tuple[str, str]]: ...


class _UnusableError(Exception):
    """This value was reported as a mistake."""


def find(file: Path | None) -> Config:
    """The settings in this file, or in `config.yaml` if it is there, else those of a server named localhost; raises
    ConfigurationError.
    """
    if file is not None:
        return load(file)
    if DEFAULT_FILE.exists():
        return load(DEFAULT_FILE)
    return Config("localhost", data_directory=Path("data").absolute())


def load(file: Path) -> Config:
    """The settings of this file; paths in it are relative to its directory. Raises ConfigurationError."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(str(file), [Mistake(None, "", f"cannot be read: {error}")]) from None
    directory = file.absolute().parent
    config = parse(text, file=str(file), directory=directory)
    return dataclasses.replace(config, data_directory=directory / config.data_directory)  # the default is relative


def parse(text: str, *, file: str, directory: Path) -> Config:
    """The settings of this text. Raises ConfigurationError."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise ConfigurationError(file, [Mistake(line, "", f"not YAML: {error.problem}")]) from None
    except yaml.YAMLError as error:
        raise ConfigurationError(file, [Mistake(None, "", f"not YAML: {error}")]) from None
    reader = _Reader(directory)
    if node is None:
        node = yaml.MappingNode("tag:yaml.org,2002:map", [], yaml.Mark("", 0, 0, 0, "", 0))
    config: Config | None
    try:
        config = reader.read_section(node, Config, None, "")
    except _UnusableError:
        config = None
    if config is None or reader.mistakes:
        raise ConfigurationError(file, sorted(reader.mistakes, key=lambda mistake: mistake.line or 0))
    return config


class _Reader:
    """Turns nodes into values and gathers what is wrong with them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.mistakes: list[Mistake] = []

    def read_section(self, node: yaml.Node, kind: type[Any], default: _Any, name: str) -> _Any:
        """The section as an instance of `kind`; what it leaves out is as in `default`, if there is one."""
        settings = self._settings(_expand_shorthand(node, kind), kind, name)
        hints = typing.get_type_hints(kind)
        values: dict[str, Any] = {}
        unusable: set[str] = set()
        for field in dataclasses.fields(kind):
            full_name = _join(name, field.name)
            if field.name in settings:
                try:
                    values[field.name] = self._read_field(settings[field.name], hints[field.name], field, full_name)
                except _UnusableError:
                    unusable.add(field.name)
                    if field.default is dataclasses.MISSING:
                        values[field.name] = None
            elif default is None and field.default is dataclasses.MISSING:
                self._note(node, full_name, f"missing: add {field.name}: VALUE")
                unusable.add(field.name)
                values[field.name] = None
        section = kind(**values) if default is None else dataclasses.replace(default, **values)
        if isinstance(section, _Checked):
            for field_name, message in section.complaints():
                if field_name not in unusable:
                    place = settings[field_name].node if field_name in settings else node
                    self._note(place, _join(name, field_name), message)
        if unusable:
            raise _UnusableError
        return section

    def _settings(self, node: yaml.Node, kind: type[Any], name: str) -> dict[str, "_Given"]:
        """What a section sets, by field; unknown and repeated names are noted."""
        if not isinstance(node, yaml.MappingNode):
            self._refuse(node, name, "expected settings below it, each as NAME: VALUE")
        known = _known_names(kind)
        settings: dict[str, _Given] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else "?"
            if key not in known:
                self._note(key_node, _join(name, key), _suggest(key, known))
            elif known[key] in settings:
                self._note(key_node, _join(name, key), f"set twice: keep one of them ({known[key]})")
            else:
                settings[known[key]] = _Given(value_node, is_file=key != known[key])
        return settings

    def _read_field(self, given: "_Given", hint: _Any, field: dataclasses.Field[Any], name: str) -> _Any:
        if given.is_file:
            return self._read_secret(given.node, f"{name}_file")
        default = field.default if dataclasses.is_dataclass(field.default) else None
        value = self._read_value(given.node, hint, default, name)
        minimum, maximum = field.metadata.get("minimum"), field.metadata.get("maximum")
        if minimum is not None and value is not None and value < minimum:
            self._refuse(given.node, name, f"too small: at least {minimum}")
        if maximum is not None and value is not None and value > maximum:
            self._refuse(given.node, name, f"too large: at most {maximum}")
        return value

    def _read_value(self, node: yaml.Node, hint: _Any, default: _Any, name: str) -> _Any:
        if hint != IPNetwork and _is_union(hint):
            if _is_null(node):
                return None
            [hint] = [part for part in typing.get_args(hint) if part is not types.NoneType]
        if _origin(hint) is tuple:
            return self._read_list(node, typing.get_args(hint)[0], name)
        if dataclasses.is_dataclass(hint) and isinstance(hint, type) and hint is not Secret:
            if _is_null(node) and default is not None:
                return default
            return self.read_section(node, hint, default, name)
        if not isinstance(node, yaml.ScalarNode):
            self._refuse(node, name, "expected a single value")
        return self._read_scalar(node, hint, name)

    def _read_list(self, node: yaml.Node, hint: _Any, name: str) -> tuple[Any, ...]:
        if not isinstance(node, yaml.SequenceNode):
            self._refuse(node, name, "expected a list: write [] or a line `- VALUE` for each entry")
        values = []
        for place, entry in enumerate(node.value):
            with contextlib.suppress(_UnusableError):
                values.append(self._read_value(entry, hint, None, f"{name}[{place}]"))
        if len(values) < len(node.value):
            raise _UnusableError
        return tuple(values)

    def _read_scalar(self, node: yaml.ScalarNode, hint: _Any, name: str) -> _Any:
        if isinstance(hint, type) and issubclass(hint, enum.StrEnum):
            if node.value not in list(hint):
                self._refuse(node, name, f"{node.value!r} is not known: choose one of {', '.join(hint)}")
            return hint(node.value)
        try:
            value = _READERS[hint](node)
        except ValueError as error:
            self._refuse(node, name, str(error))
        if isinstance(value, Path):
            value = self.directory / value
            if hint is ExistingFile and not value.is_file():
                self._refuse(node, name, f"there is no file {value}: correct the path, or create it")
        return value

    def _read_secret(self, node: yaml.Node, name: str) -> Secret:
        if not isinstance(node, yaml.ScalarNode) or not node.value:
            self._refuse(node, name, "expected the path of a file that holds the value")
        path = self.directory / node.value
        try:
            value = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            self._refuse(node, name, f"{path} cannot be read: {error}")
        if not value:
            self._refuse(node, name, f"{path} is empty: write the value into it")
        return Secret(value)

    def _note(self, node: yaml.Node, name: str, message: str) -> None:
        self.mistakes.append(Mistake(node.start_mark.line + 1, name, message))

    def _refuse(self, node: yaml.Node, name: str, message: str) -> NoReturn:
        self._note(node, name, message)
        raise _UnusableError


@dataclasses.dataclass(frozen=True, slots=True)
class _Given:
    node: yaml.Node
    is_file: bool  # the value stands in a file of that name


def _known_names(kind: type[Any]) -> dict[str, str]:
    """The names that a section may use, each with the field that it sets."""
    names = {}
    for name, hint in typing.get_type_hints(kind).items():
        if name in {field.name for field in dataclasses.fields(kind)}:
            names[name] = name
            if hint == Secret | None:
                names[f"{name}_file"] = name
    return names


def _suggest(key: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(key, known, n=1)
    if nearest:
        return f"unknown setting: did you mean {nearest[0]}?"
    return f"unknown setting: remove it; known here are {', '.join(known)}"


def _expand_shorthand(node: yaml.Node, kind: type[Any]) -> yaml.Node:
    """`log: debug` for `log: {level: debug}`, where the section says so."""
    shorthand = getattr(kind, "SHORTHAND", None)
    if shorthand is None or not isinstance(node, yaml.ScalarNode):
        return node
    key = yaml.ScalarNode("tag:yaml.org,2002:str", shorthand, node.start_mark, node.end_mark)
    return yaml.MappingNode("tag:yaml.org,2002:map", [(key, node)], node.start_mark, node.end_mark)


def _join(section: str, name: str) -> str:
    return f"{section}.{name}" if section else name


def _origin(hint: _Any) -> _Any:
    return typing.get_origin(hint)


def _is_union(hint: _Any) -> bool:
    return _origin(hint) in (types.UnionType, typing.Union)


def _is_null(node: yaml.Node) -> bool:
    return bool(node.tag == "tag:yaml.org,2002:null")


def _tag(node: yaml.ScalarNode) -> str:
    return str(node.tag).removeprefix("tag:yaml.org,2002:")


def _read_bool(node: yaml.ScalarNode) -> bool:
    if _tag(node) != "bool":
        raise ValueError(f"{node.value!r} is not a switch: write true or false")
    return node.value.lower() in ("true", "yes", "on")


def _read_int(node: yaml.ScalarNode) -> int:
    if re.fullmatch(r"-?[0-9][0-9_]*", node.value) is None:
        raise ValueError(f"{node.value!r} is not a whole number")
    return int(node.value)


def _read_float(node: yaml.ScalarNode) -> float:
    if re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", node.value) is None:
        raise ValueError(f"{node.value!r} is not a number")
    return float(node.value)


def _read_text(node: yaml.ScalarNode) -> str:
    if _tag(node) in ("bool", "null") and node.style is None:
        raise ValueError(f"{node.value!r} is not text in YAML: put it into quotation marks")
    if not node.value:
        raise ValueError("it is empty: write a value, or remove the setting")
    return str(node.value)


def _read_path(node: yaml.ScalarNode) -> Path:
    return Path(_read_text(node))


def _read_quantity(node: yaml.ScalarNode, units: Mapping[str, int], example: str) -> int:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *([A-Za-z]*)", node.value)
    if match is None or match[2] not in units:
        known = ", ".join(unit for unit in units if unit)
        raise ValueError(f"{node.value!r} is no such quantity: write it like {example}, with a unit of {known}")
    return round(float(match[1]) * units[match[2]])


def _read_network(node: yaml.ScalarNode) -> IPNetwork:
    try:
        return ipaddress.ip_network(node.value)
    except ValueError as error:
        raise ValueError(f"not a range of addresses ({error}): write it like 10.0.0.0/8 or fc00::/7") from None


_READERS: dict[Any, Callable[[yaml.ScalarNode], Any]] = {
    bool: _read_bool,
    int: _read_int,
    float: _read_float,
    str: _read_text,
    Path: _read_path,
    ExistingFile: _read_path,
    Secret: lambda node: Secret(_read_text(node)),
    ByteCount: lambda node: _read_quantity(node, _BYTE_UNITS, "50 MB"),
    Milliseconds: lambda node: _read_quantity(node, _TIME_UNITS, "5 min"),
    IPNetwork: _read_network,
}
