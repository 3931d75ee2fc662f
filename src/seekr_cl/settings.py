"""Groups of settings: declared as types, choices, ranges and needs, and checked by one loop.

A group is a frozen dataclass below ``Settings``. What a value may be stands in its annotation: ``int | None``,
``Literal["a", "b"]``, ``Annotated[float, Ge(0), Le(1)]`` (annotated_types), ``Annotated[str, OneOf(TABLE)]``. What a
setting needs to have any effect stands in its field: ``setting(0.5, needs={"form": "top_k"})``. A rule between several
values goes into ``check``.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from annotated_types import Ge, Gt, Le, Lt

from seekr_cl.errors import ConfigError, nearest
from seekr_cl.placement import unknown

__all__ = ["Ge", "Gt", "Hint", "Le", "Lt", "OneOf", "Settings", "as_mapping", "build", "check_value", "setting"]

_PLAIN = (bool, int, float, str, type(None))
Kind = TypeVar("Kind")


@dataclass(frozen=True, slots=True)
class OneOf:
    """A choice from a table that is known only when the library runs."""

    known: Iterable[str]


@dataclass(frozen=True, slots=True)
class Hint:
    """What a message about a value out of range adds, such as what its limit means."""

    text: str


def setting(default: Any, *, needs: Mapping[str, Any], why: str = "") -> Any:
    """A field that has no effect unless other settings of the group have certain values.

    Args:
        default: of the field.
        needs: by name, the value or tuple of values that the other setting must have; ``...`` is any that is not null.
        why: said in the message.
    """
    return dataclasses.field(default=default, metadata={"needs": dict(needs), "why": why})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of every group. Raises ConfigError for a value of the wrong type or out of range, naming section and key."""

    section: ClassVar[str] = "method"
    example: ClassVar[str] = ""
    aside: ClassVar[str] = ""

    def __post_init__(self) -> None:
        hints = _hints(type(self))
        for field in dataclasses.fields(self):
            value = check_value(getattr(self, field.name), hints[field.name], f"{self.section}.{field.name}")
            object.__setattr__(self, field.name, value)
        self.check()
        self.check_needs(name for name in self.given() if name in hints)

    def check(self) -> None:
        """Rules between several values; raises ConfigError."""

    def given(self) -> dict[str, Any]:
        """The values that differ from their defaults."""
        return {f.name: value for f in dataclasses.fields(self) if (value := getattr(self, f.name)) != f.default}

    def check_needs(self, names: Iterable[str]) -> None:
        """Refuses settings that were given and can have no effect.

        Raises:
            ConfigError: naming the setting and what it needs.
        """
        for name in names:
            if lacks := self._lacks(name):
                other, wanted, why = lacks
                shown = "" if wanted is ... else ": " + " or ".join(map(str, _tuple(wanted)))
                raise ConfigError(
                    f"{self.section}.{name}: would be ignored{': ' + why if why else ''}; "
                    f"set {self.section}.{other}{shown}, or remove it"
                )

    def replaced(self, **changes: Any) -> Self:
        """A copy with other values; what no longer has any effect with them is its default again."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)} | changes
        trial = object.__new__(type(self))
        for name, value in values.items():
            object.__setattr__(trial, name, value)
        idle = {f.name: f.default for f in dataclasses.fields(self) if f.name not in changes and trial._lacks(f.name)}
        return type(self)(**values | idle)

    def _lacks(self, name: str) -> tuple[str, Any, str] | None:
        """What a setting needs and does not have: the other setting, its values, the reason."""
        metadata = next(field.metadata for field in dataclasses.fields(self) if field.name == name)
        for other, wanted in metadata.get("needs", {}).items():
            value = getattr(self, other)
            if not (value is not None if wanted is ... else value in _tuple(wanted)):
                return other, wanted, metadata["why"]
        return None


def _tuple(wanted: Any) -> tuple[Any, ...]:
    return wanted if isinstance(wanted, tuple) else (wanted,)


def build(
    kind: type[Kind], given: Mapping[str, Any], where: str = "", defaults: Mapping[str, Any] | None = None
) -> Kind:
    """A group from a mapping such as a part of a YAML file.

    Args:
        kind: the group.
        given: what the user set; a key that could have no effect is refused even where it repeats the default.
        where: how messages call the group; default its section.
        defaults: a mapping of defaults other than the group's own, such as a preset's.

    Raises:
        ConfigError: for an unknown key, naming the nearest, or a value that cannot be.
    """
    where = where or getattr(kind, "section", "method")
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for key in given:
        if key not in names:
            raise ConfigError(f"{where}: {unknown(key, where, names)}")
    values = {**(defaults or {}), **given}
    if not issubclass(kind, Settings):
        # A method from outside may have a plain dataclass.
        hints = _hints(kind)
        return kind(**{key: check_value(value, hints[key], f"{where}.{key}") for key, value in values.items()})
    # A default that has no effect beside what the user set is left out.
    made = kind(**(defaults or {})).replaced(**given)
    made.check_needs(given)
    return made


def build_kind(kinds: Mapping[str, type[Kind]], value: Any, where: str, key: str, example: str) -> Kind:
    """One of several groups, from its name or from a mapping with the name and settings.

    Args:
        kinds: the groups by name.
        value: what the user set.
        where: how messages call the setting.
        key: under which a mapping has the name.
        example: a mapping, for the message.

    Raises:
        ConfigError: for an unknown name or key, naming the nearest, or a value that cannot be.
    """
    given = dict(value) if isinstance(value, Mapping) else {key: value}
    name = given.pop(key, None)
    if not isinstance(name, str) or name not in kinds:
        known = f"known: {', '.join(kinds)}; with settings: {example}"
        raise ConfigError(f"{where}: {name!r} is unknown{nearest(str(name), kinds)} ({known})")
    return build(kinds[name], given, where)


def as_mapping(value: Any, kind: type[Settings], where: str) -> dict[str, Any]:
    """What a user set, given as a mapping, an object of the group, or nothing.

    Raises:
        ConfigError: if it is something else.
    """
    if value is None:
        return {}
    if isinstance(value, kind):
        return value.given()
    if isinstance(value, Mapping):
        return dict(value)
    aside = f"; {kind.aside}" if kind.aside else ""
    raise ConfigError(f"{where}: {value!r} is not a mapping of settings, such as {where}: {{{kind.example}}}{aside}")


def check_value(value: Any, hint: Any, where: str) -> Any:
    """The value as its annotation wants it; YAML reads 1e-4 as text, and 1 may stand for 1.0.

    Raises:
        ConfigError: if it is of another type, no choice, or out of range.
    """
    kinds, choices, limits = _parts(hint)
    if kinds is None:
        return value
    value = _coerced(value, kinds)
    if value is None and type(None) in kinds:
        return value
    if choices and (type(value) is str or str not in kinds):
        if value in choices or type(value) in kinds - {str, type(None)}:
            pass
        elif kinds - {str, type(None)}:
            raise ConfigError(f"{where}: {value!r} is neither a number nor {' or '.join(map(repr, choices))}")
        else:
            raise ConfigError(
                f"{where}: {value!r} is unknown{nearest(str(value), choices)} (choose from {', '.join(choices)})"
            )
    elif type(value) not in kinds or (type(value) is float and not math.isfinite(value)):
        names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in _PLAIN if kind in kinds)
        raise ConfigError(f"{where}: {value!r} is not {'an' if names.startswith('int') else 'a'} {names}")
    if type(value) in (int, float):
        _check_range(value, limits, where)
    return value


def _check_range(value: float, limits: list[Any], where: str) -> None:
    low = next((one for one in limits if isinstance(one, Ge | Gt)), None)
    high = next((one for one in limits if isinstance(one, Le | Lt)), None)
    hint = next((f"; {one.text}" for one in limits if isinstance(one, Hint)), "")
    least: Any = low.ge if isinstance(low, Ge) else low.gt if low else None
    most: Any = high.le if isinstance(high, Le) else high.lt if high else None
    too_low = least is not None and (value < least or (isinstance(low, Gt) and value == least))
    too_high = most is not None and (value > most or (isinstance(high, Lt) and value == most))
    if not (too_low or too_high):
        return
    if least is not None and most is not None:
        wanted = f"must lie between {least} and {most}"
    elif too_high:
        wanted = f"must be {'at most' if isinstance(high, Le) else 'below'} {most}"
    elif isinstance(low, Ge) and least == 0:
        wanted = "is negative" if hint else "is negative; it must be at least 0"
    else:
        wanted = f"must be {'at least' if isinstance(low, Ge) else 'above'} {least}"
    raise ConfigError(f"{where}: {value} {wanted}{hint}")


def _parts(hint: Any) -> tuple[set[type] | None, list[str], list[Any]]:
    """Plain types, text choices and limits of an annotation; ``None`` where it holds a type that is not plain."""
    origin = typing.get_origin(hint)
    if origin is Annotated:
        inner, *extras = typing.get_args(hint)
        kinds, choices, limits = _parts(inner)
        known = [str(word) for one in extras if isinstance(one, OneOf) for word in one.known]
        return kinds, choices + known, limits + [one for one in extras if not isinstance(one, OneOf)]
    if origin is Literal:
        literals = typing.get_args(hint)
        return {type(word) for word in literals}, [word for word in literals if isinstance(word, str)], []
    if origin is typing.Union or isinstance(hint, types.UnionType):
        all_kinds: set[type] = set()
        all_choices: list[str] = []
        all_limits: list[Any] = []
        for part in typing.get_args(hint):
            kinds, choices, limits = _parts(part)
            if kinds is None:
                return None, [], []
            all_kinds |= kinds
            all_choices += choices
            all_limits += limits
        return all_kinds, all_choices, all_limits
    return ({hint}, [], []) if hint in _PLAIN else (None, [], [])


def _coerced(value: Any, kinds: set[type]) -> Any:
    """Text and whole numbers as the number that is wanted, where that loses nothing."""
    if float in kinds and (type(value) is str or (type(value) is int and int not in kinds)):
        for kind in (int, float):
            if kind in kinds:
                with suppress(ValueError, OverflowError):
                    return kind(value)
    if type(value) is str and int in kinds and float not in kinds and str not in kinds:
        # An environment variable in a YAML file is text.
        with suppress(ValueError):
            return int(value)
    return value


def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)
