"""Messages as JSON: protobuf's own mapping with its field names, but 64-bit integers are numbers.

Protobuf writes int64 as text, for readers that hold every number as a double. Times and counts here stay far below
2**53, so numbers are exact, and protobuf's own parser reads both.
"""

import base64
import json
from typing import Any, cast

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

Json = Any  # what json.dumps takes


def to_json(message: Message) -> dict[str, Json]:
    """The message as an object: fields without presence are always there, others where they are set."""
    shown: dict[str, Json] = {}
    for field in cast("list[FieldDescriptor]", message.DESCRIPTOR.fields):
        if field.has_presence and not message.HasField(field.name):
            continue
        shown[field.name] = _field(field, getattr(message, field.name))
    return shown


def _field(field: FieldDescriptor, value: Any) -> Json:  # noqa: ANN401 -- whatever the field holds
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        inner = field.message_type.fields_by_name["value"]
        return {str(key): _value(inner, each) for key, each in sorted(value.items())}
    if field.is_repeated:
        return [_value(field, each) for each in value]
    return _value(field, value)


def _value(field: FieldDescriptor, value: Any) -> Json:  # noqa: ANN401
    if field.message_type is not None:
        return to_json(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known else value
    if field.type == FieldDescriptor.TYPE_BYTES:
        return base64.b64encode(value).decode()
    return value


def dumps(document: Json) -> bytes:
    """Compact JSON in ASCII, so that no text of a caller can break it; floats in full precision."""
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
