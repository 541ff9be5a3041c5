"""Checks the values of a record.

Small objects, which nearly all records are made of, are checked value by value. Many values of one level, as
in a record of empty arrays, are checked together, which takes a fifth of the time.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Generator
from itertools import chain
from math import isfinite
from typing import Any, Final

_INT_MIN: Final = -(2**63)
_INT_MAX: Final = 2**63 - 1
#: This many values, or containers of one level, are checked together.
_MANY: Final = 32

#: The containers that are checked in one step.
_AT_ONCE: Final = 1 << 14

_TEXT_FAULT: Final = "U+0000 and lone surrogates are not allowed"
_NAME_FAULT: Final = "names of fields must be strings"
_INTEGER_FAULT: Final = "integers must be from -2^63 to 2^63-1"
_FLOAT_FAULT: Final = "numbers must be finite"
_TYPE_FAULT: Final = "binary and extension values are not allowed"
_TYPES: Final = frozenset((str, int, float, bool, type(None), dict, list))
MAX_ID_CHARS: Final = 128
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def value_fault(data: dict[str, Any] | list[Any]) -> str | None:
    """Return the rule of values that decoded data breaks, None if it breaks none."""
    todo: list[Any] = []
    if len(data) < _MANY:
        fault = _alone(data, todo)
        if fault is not None:
            return fault
    else:
        todo.append(data)
    while todo:
        if len(todo) >= _MANY or len(todo[-1]) >= _MANY:
            fault, todo = _together(todo)
        else:
            fault = _alone(todo.pop(), todo)
        if fault is not None:
            return fault
    return None


def unescaped_fault(data: dict[str, Any]) -> str | None:
    """Do the same for data of JSON without a backslash, whose texts need no check.

    JSON can express U+0000 only as an escape, and the decoder refuses infinity (``engine.wire.floats``).
    """
    if len(data) >= _MANY:
        return value_fault(data)
    for value in data.values():
        kind = type(value)
        if kind is int:
            if not _INT_MIN <= value <= _INT_MAX:
                return _INTEGER_FAULT
        elif (kind is dict or kind is list) and value:
            fault = value_fault(value)
            if fault is not None:
                return fault
    return None


def value_steps(data: dict[str, Any]) -> Generator[None, None, str | None]:
    """Do as ``value_fault`` in steps of about ``_AT_ONCE`` containers."""
    todo: list[Any] = [data]
    while todo:
        some, todo = todo[:_AT_ONCE], todo[_AT_ONCE:]
        fault, inner = _together(some)
        if fault is not None:
            return fault
        todo += inner
        if len(some) + len(todo) >= _MANY:
            yield
    return None


def _alone(node: Any, todo: list[Any]) -> str | None:
    """Check the members of one object or array, and add the containers in it to ``todo``."""
    if type(node) is dict:
        try:
            if "\0" in "".join(node):
                return _TEXT_FAULT
        except TypeError:
            return _NAME_FAULT
        node = node.values()
    for value in node:
        kind = type(value)
        if kind is str:
            if "\0" in value:
                return _TEXT_FAULT
        elif kind is int:
            if not _INT_MIN <= value <= _INT_MAX:
                return _INTEGER_FAULT
        elif kind is float:
            if value - value != 0.0:
                return _FLOAT_FAULT
        elif kind is dict or kind is list:
            if value:
                todo.append(value)
        elif value is not None and kind is not bool:
            return _TYPE_FAULT
    return None


def _together(nodes: list[Any]) -> tuple[str | None, list[Any]]:
    """Check the members of many objects and arrays. Returns the fault, or the containers in them."""
    if dict in {*map(type, nodes)}:
        maps: list[Any] = [node for node in nodes if type(node) is dict]
        try:
            if "\0" in "".join(chain.from_iterable(maps)):
                return _TEXT_FAULT, []
        except TypeError:
            return _NAME_FAULT, []
        nodes = [node.values() if type(node) is dict else node for node in nodes]
    values = list(chain.from_iterable(nodes))
    kinds = {*map(type, values)}
    if not kinds <= _TYPES:
        return _TYPE_FAULT, []
    inner: list[Any] = []
    for kind in kinds:
        alike: list[Any] = values if len(kinds) == 1 else [value for value in values if type(value) is kind]
        if kind is str:
            if "\0" in "".join(alike):
                return _TEXT_FAULT, []
        elif kind is int:
            try:
                array("q", alike)
            except OverflowError:
                return _INTEGER_FAULT, []
        elif kind is float:
            if not all(map(isfinite, alike)):
                return _FLOAT_FAULT, []
        elif kind is dict or kind is list:
            inner += filter(None, alike)
    return None, inner


def id_fault(record_id: str) -> str | None:
    """Return the rule that a record's id breaks, None if it breaks none."""
    if not 1 <= len(record_id) <= MAX_ID_CHARS:
        return f"1 to {MAX_ID_CHARS} characters are required"
    if not record_id.isprintable() and _CONTROL.search(record_id):
        return "control characters are not allowed"
    return None
