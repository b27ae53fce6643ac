"""Values as Compose writes them: durations, sizes, mappings in two spellings; frozen models."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
SIZES = {"b": 1, "k": 1024, "m": 1024**2, "g": 1024**3}


def seconds(value: Any) -> Any:
    """A Compose duration (`1m30s`, `500ms`) or a number of seconds, as seconds."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    parts = re.findall(r"(\d+(?:\.\d+)?)(us|ms|s|m|h)", text)
    if text and "".join(number + unit for number, unit in parts) == text:
        return sum(float(number) * UNITS[unit] for number, unit in parts)
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    raise ValueError(f"{value!r} is not a duration: write seconds, or like 10s, 1m30s, 500ms")


def size(value: Any) -> Any:
    """A Compose byte value (`512m`, `1gb`) or a number of bytes, as bytes."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([bkmg]?)b?\s*", value.lower())
    if match is None:
        raise ValueError(f"{value!r} is not a size: write bytes, or like 512m, 1g")
    return int(float(match[1]) * SIZES[match[2] or "b"])


def pairs(value: Any) -> Any:
    """Compose's two spellings of a mapping, `KEY: value` and `- KEY=value`, as a mapping."""
    if isinstance(value, list | tuple):
        value = dict(str(item).partition("=")[::2] for item in value)
    if isinstance(value, dict):
        return {str(key): _text(item) for key, item in value.items()}
    return value


def several(value: Any) -> Any:
    """Compose's two spellings of a list that is often of one: `x` and `[x]`, as a tuple."""
    return (value,) if isinstance(value, str) else value


def entries(value: Any) -> Any:
    """Compose's spellings of host entries, `name: address` and `- name:address`, as a list."""
    return [f"{k}:{v}" for k, v in value.items()] if isinstance(value, dict) else value


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


class Quoted:
    """The schema has a number in quotes, too, as Compose writes it and `{{ $NAME }}` makes it."""

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """As a choice, whose limits stand beside it and are told in the server's words."""
        schema = handler(core)
        number, *others = schema.pop("anyOf", None) or [{"type": schema.pop("type")}]
        quoted = {"type": "string", "pattern": r"^-?\d+$"}
        if number["type"] == "number":
            quoted["pattern"] = r"^\d*\.?\d+$"
        return {"anyOf": [number, quoted, *others]} | schema


Whole = Annotated[int, Quoted()]
Decimal = Annotated[float, Quoted()]
Seconds = Annotated[float, BeforeValidator(seconds, json_schema_input_type=float | str)]
Bytes = Annotated[int, BeforeValidator(size, json_schema_input_type=int | str)]
Pairs = Annotated[
    dict[str, str],
    BeforeValidator(
        pairs, json_schema_input_type=dict[str, str | int | float | bool | None] | list[str]
    ),
]
Texts = tuple[str, ...]
Several = Annotated[Texts, BeforeValidator(several, json_schema_input_type=Texts | str)]


class Frozen(BaseModel):
    """A value: never changed, and strict about fields that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)  # JSON has neither
