"""Settings: one pydantic model for each stage. Its fields are the click options, the YAML keys and the `--set` keys.

Each source overrides those before it: default, recipe, flag, `--set`. Every source is checked against the fields. All
problems are reported at once, an unknown key with the nearest name. Imports no torch.
"""

from __future__ import annotations

import math
import os
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

import click
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.fields import FieldInfo

from rlhf.command import UserPath
from rlhf.errors import ConfigError, DataError, nearest
from rlhf.file_signs import what_it_is
from rlhf.files import expand_user
from rlhf.hardware import Machine


class Config(BaseModel):
    """Base of every config: unknown keys are errors, defaults are validated, values are fixed once built."""

    model_config = ConfigDict(extra="forbid", validate_default=True, frozen=True, protected_namespaces=())

    @field_validator("*")
    @classmethod
    def _home(cls, value: Any) -> Any:
        """`~` means the home in a file of settings and in --set as it does in a shell."""
        return expand_user(value) if isinstance(value, Path) else value

    # Headings of the help → names of fields. A heading without names fixes the place of a base class's heading.
    help_groups: ClassVar[Mapping[str, Sequence[str]]] = {}

    def problems(self, machine: Machine) -> list[str]:
        """Problems between fields, one line each with a way out; `machine` is what the run computes on."""
        return []

    def changed(self, name: str) -> bool:
        """Whether a field differs from its default."""
        return getattr(self, name) != type(self).model_fields[name].get_default(call_default_factory=True)


ConfigType = TypeVar("ConfigType", bound=Config)


def setting(
    default: Any, help: str, *, resumable: bool = False, flag: str = "", alike: bool = False, **bounds: Any
) -> Any:
    """A field: its default, its one line of help, and whether a resumed run may change it.

    `flag` names the pipeline setting that sets this field of a stage, if it has another name. `alike`: the stages of a
    run must agree on the value.
    """
    extra: Any = {"resumable": resumable, "flag": flag, "alike": alike}
    return Field(default, description=help, json_schema_extra=extra, **bounds)


def _extra(field: FieldInfo) -> dict[str, Any]:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def is_resumable(field: FieldInfo) -> bool:
    return bool(_extra(field).get("resumable"))


def flag_of(config_class: type[Config], name: str) -> str:
    """The pipeline setting that sets a stage's setting."""
    return str(_extra(config_class.model_fields[name]).get("flag") or name)


def must_be_alike(config_class: type[Config]) -> list[str]:
    """The settings on which the stages of a run must agree."""
    return [name for name, field in config_class.model_fields.items() if _extra(field).get("alike")]


# --- values in -------------------------------------------------------------------------------------------------------


def build(config_class: type[ConfigType], values: Mapping[str, Any], *, where: str) -> ConfigType:
    """Validate `values`; raises ConfigError with one line per problem, each naming `where.field`."""
    config, problems = build_leniently(config_class, values, where=where)
    if problems:
        raise ConfigError(*problems)
    return config


def build_leniently(
    config_class: type[ConfigType], values: Mapping[str, Any], *, where: str
) -> tuple[ConfigType, list[str]]:
    """A config in which invalid fields keep their defaults, and the problems. The other fields can still be checked."""
    try:
        return config_class.model_validate(dict(values)), []
    except ValidationError as error:
        items = error.errors()
    bad = {item["loc"][0] for item in items if item["loc"]}
    assert bad & set(values), f"the defaults of {config_class.__name__} are not valid"
    good = {name: value for name, value in values.items() if name not in bad}
    config, more = build_leniently(config_class, good, where=where)
    return config, [*dict.fromkeys(_problem(config_class, item, where) for item in items), *more]


def _problem(config_class: type[Config], item: Any, where: str) -> str:
    name = str(item["loc"][0]) if item["loc"] else ""
    prefix = f"{where}.{name}" if where else name
    if item["type"] == "extra_forbidden":
        return f"{prefix} is not a setting{nearest(name, config_class.model_fields)}"
    if item["type"] == "missing":
        return f"{prefix} is needed: {config_class.model_fields[name].description}"
    message = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"{prefix}={item['input']!r} is not valid: {message[:1].lower()}{message[1:]}"


class _Loader(yaml.SafeLoader):
    """Refuses a mapping with the same key twice, of which YAML would take the last without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            mark = next(key.start_mark for key, _ in reversed(node.value) if key.value == twice)
            raise yaml.constructor.ConstructorError(None, None, f"'{twice}' is given twice", mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; errors name the file and the line."""
    if other := what_it_is(path):
        raise DataError(f"{path} {other}")
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path} is not valid YAML{line}: {getattr(error, 'problem', error)}") from None
    except (ValueError, RecursionError) as error:  # a date that there is not, a number of 5,000 digits, [[[[…
        raise ConfigError(f"{path} holds a value that cannot be read: {error}") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must hold a mapping of settings, not a {type(value).__name__}")
    return value


def parse_sets(
    items: Iterable[str], classes: Mapping[str, type[Config] | None]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """`["step3_ppo.kl_coef=0.1"]` → `{"step3_ppo": {"kl_coef": 0.1}}`, and the problems. Values are read as YAML.

    A section whose class is None takes any key.
    """
    values: dict[str, dict[str, Any]] = {}
    problems: list[str] = []
    for item in items:
        key, equals, text = item.partition("=")
        section, _, name = key.strip().partition(".")
        if not equals or not name:
            example = next((f"{name}.seed=1" for name, known in classes.items() if known), "package.field=value")
            problems.append(f"--set {item}: write it as package.field=value, for example {example}")
        elif section not in classes:
            problems.append(f"--set {item}: '{section}' is not one of {', '.join(classes)}{nearest(section, classes)}")
        elif (known := classes[section]) and name not in known.model_fields:
            problems.append(f"--set {item}: {section} has no setting '{name}'{nearest(name, known.model_fields)}")
        else:
            try:
                value = _yaml_value(text, known.model_fields[name].annotation if known else None)
            except (yaml.YAMLError, ValueError, RecursionError):
                problems.append(f"--set {item}: '{text}' is not a YAML value; quote it")
                continue
            given = values.setdefault(section, {})
            if name in given and given[name] != value:
                problems.append(f"--set {key} is given twice: {given[name]!r} and {value!r}")
            given[name] = value
    return values, problems


def _yaml_value(text: str, annotation: Any) -> Any:
    """A YAML scalar or list; unlike YAML 1.1, `1e-5` is a number. A single value for a list is a list of one."""
    value = yaml.safe_load(text)
    if annotation is str and not isinstance(value, str):
        return text
    if _click_type(annotation)[1] and not isinstance(value, list):
        return [value]
    if isinstance(value, str) and annotation is not str:
        try:
            return float(value)
        except ValueError:
            return value
    return value


# --- click options ---------------------------------------------------------------------------------------------------

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def options(config_class: type[Config], *, exclude: Iterable[str] = ()) -> Decorator:
    """A decorator that adds one click option per field. An option that is not given stays None, so that its default
    does not overwrite a recipe's value; `given()` selects the given ones."""
    skipped = set(exclude)

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for name, field in reversed(config_class.model_fields.items()):
            if name not in skipped:
                function = _option(name, field)(function)
        return function

    return decorate


def groups_of(config_class: type[Config], **more: Sequence[str]) -> dict[str, list[str]]:
    """The headings of a command's help with the names below each: those of the class, then those of its bases.

    `more` are names of options that are not fields, by heading.
    """
    groups: dict[str, list[str]] = {}
    placed: set[str] = set()
    for cls in config_class.__mro__:
        for heading, names in vars(cls).get("help_groups", {}).items():
            fresh = [name for name in names if name in config_class.model_fields and name not in placed]
            groups.setdefault(heading, []).extend(fresh)
            placed.update(fresh)
    for heading, names in more.items():
        groups.setdefault(heading, []).extend(names)
    return groups


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that the user gave, out of all of click's values."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items() if v is not None and v != ()}


def _option(name: str, field: FieldInfo) -> Decorator:
    flag = f"--{name.replace('_', '-')}"
    kind, multiple = _click_type(field.annotation)
    text = _default_text(field)
    if kind is bool:
        off = f"--{name[3:] if name.startswith('no_') else f'no_{name}'}".replace("_", "-")
        return click.option(f"{flag}/{off}", name, default=None, help=f"{field.description}{text}")
    return click.option(
        flag, name, type=kind, multiple=multiple, default=None, metavar=None, help=f"{field.description}{text}"
    )


def _default_text(field: FieldInfo) -> str:
    if field.is_required():
        return "  [required]"
    default = field.get_default(call_default_factory=True)
    if default is None or default == [] or default == "" or default == {}:
        return ""
    shown = ("on" if default else "off") if isinstance(default, bool) else default
    if isinstance(shown, list):
        shown = ", ".join(map(str, shown))
    return f"  [default: {shown}]"


def _click_type(annotation: Any) -> tuple[Any, bool]:
    """The click type of an annotation, and whether the option may be repeated."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        inner = [a for a in arguments if a is not type(None)]
        return _click_type(inner[0]) if len(inner) == 1 else (str, False)
    if origin is Literal:
        return click.Choice(arguments), False
    if origin is list:
        return _click_type(arguments[0])[0], True
    if annotation in (bool, int, float, str):
        return annotation, False
    if annotation is Path:
        return UserPath(), False
    return str, False


# --- what a resumed run may change -----------------------------------------------------------------------------------


def differences(old: Mapping[str, Any], new: Config) -> list[str]:
    """Fields in which `new` differs from the saved `old`, except resumable ones: `"kl_coef: 0.05 → 0.1"`."""
    fresh, fields = new.model_dump(mode="json"), type(new).model_fields
    before = {name: _as_saved(type(new), name, value) for name, value in old.items()}
    changed = [n for n, f in fields.items() if not is_resumable(f) and before.get(n, fresh[n]) != fresh[n]]
    gone = [n for n in old if n not in fields]
    return [f"{n}: {before[n]!r} → {fresh[n]!r}" for n in changed] + [f"{n}: no longer a setting" for n in gone]


def _as_saved(config_class: type[Config], name: str, value: Any) -> Any:
    """A value from YAML as the field has it: YAML 1.1 reads 1e-5 as text."""
    if name not in config_class.model_fields:
        return value
    config, problems = build_leniently(config_class, {name: value}, where="")
    return value if problems else config.model_dump(mode="json")[name]


def seconds_of(variable: str, default: float) -> float:
    """The number of seconds in an environment variable. Raises ConfigError when it holds something else."""
    text = os.environ.get(variable, "").strip()
    try:
        value = float(text) if text else default
    except ValueError:
        value = math.nan
    if not value > 0:
        raise ConfigError(f"{variable}={text} must be a number of seconds above 0")
    return value
