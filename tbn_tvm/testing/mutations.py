"""Damaged and hostile model files: seeded mutations of bytes, of protocol buffers, of archives."""

from __future__ import annotations

import io
import json
import random
import zipfile
from collections.abc import Iterator

_INTEGERS = (0, 1, -1, 2, 3, 7, 8, 127, 255, 2**16, 2**31 - 1, 2**31, 2**40, 2**62, -(2**31))
_FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-30, 3e38, float("inf"), float("-inf"), float("nan"))
_TEXTS = (
    *("", " ", "x", "../x", "/etc/passwd", "a b\n\"'\\", "é∆", "%s%n", "0", "int", "W" * 4000),
    *("Loop", "If", "Identity", "Expand", "ConstantOfShape", "NoSuchOperator", "batch", "2**40"),
)

_HOSTILE_JSON = (
    *("__import__('os').system('touch CANARY')", "torch.os.system", "torch.load", "9**9**9**9"),
    *("factorial(99999999)", "Symbol('s0', positive=True)", "torch.ops.aten.from_file.default"),
    *("torch.ops.aten.neg.default", "a.b", "x=__import__('os').system('touch CANARY')"),
)


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """One to three changes of bytes: flipped, overwritten, cut out, repeated or cut off."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        if not data:
            break
        at = rng.randrange(len(data))
        length = min(rng.choice((1, 1, 2, 4, 16, 256)), len(data) - at)
        kind = rng.randrange(6)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + length] = rng.choice((b"\0", b"\xff", b"\x80")) * length
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = data[at : at + length]
        elif kind == 4:
            data[at : at + length] = rng.randbytes(length)
        else:
            del data[at:]
    return bytes(data)


# -- protocol buffers -----------------------------------------------------------------------


def mutate_onnx(content: bytes, rng: random.Random) -> bytes:
    """One to three changes of fields of a model, which stays a well-formed protocol buffer."""
    from onnx import ModelProto

    model = ModelProto()
    model.ParseFromString(content)
    for _ in range(rng.randint(1, 3)):
        _mutate_field(model, rng)
    return model.SerializeToString()


def _messages(message) -> Iterator:
    yield message
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for inner in value if field.is_repeated else [value]:
            yield from _messages(inner)


def _mutate_field(model, rng: random.Random) -> None:
    messages = list(_messages(model))
    # Large messages have most fields; each kind of message gets its turn.
    kind = rng.choice(sorted({m.DESCRIPTOR.name for m in messages}))
    message = rng.choice([m for m in messages if m.DESCRIPTOR.name == kind])
    present = [field for field, _value in message.ListFields()]
    fields = present if present and rng.random() < 0.8 else list(message.DESCRIPTOR.fields)
    field = rng.choice(fields)
    if field.is_repeated:
        _mutate_list(message, field, messages, rng)
    elif rng.random() < 0.1:
        message.ClearField(field.name)
    elif field.message_type is not None:
        same = [m for m in messages if m.DESCRIPTOR is field.message_type]
        if same:
            _replace(getattr(message, field.name), rng.choice(same))
    else:
        _assign(message, field, _scalar(field, getattr(message, field.name), messages, rng))


def _replace(message, other) -> None:
    """By way of a copy: one may be a part of the other."""
    content = other.SerializeToString()
    message.ParseFromString(content)


def _mutate_list(message, field, messages: list, rng: random.Random) -> None:
    held = getattr(message, field.name)
    kind = rng.randrange(6)
    if kind == 0 and held:
        del held[rng.randrange(len(held))]
    elif kind == 1 and held:
        held.extend([held[rng.randrange(len(held))]])
    elif kind == 2 and len(held) > 1:
        items = list(held)
        rng.shuffle(items)
        copies = [type(item)() for item in items] if field.message_type is not None else items
        if field.message_type is not None:
            for copy, item in zip(copies, items, strict=True):
                copy.CopyFrom(item)
        del held[:]
        held.extend(copies)
    elif kind == 3 and rng.random() < 0.3:
        del held[:]
    elif field.message_type is None:
        value = _scalar(field, held[0] if held else None, messages, rng)
        try:
            if held and rng.random() < 0.7:
                held[rng.randrange(len(held))] = value
            else:
                held.append(value)
        except (ValueError, TypeError, OverflowError):
            return  # out of the field's range
    else:
        same = [m for m in messages if m.DESCRIPTOR is field.message_type]
        if same:
            _replace(held.add(), rng.choice(same))


def _scalar(field, old, messages: list, rng: random.Random):
    if field.cpp_type == field.CPPTYPE_STRING:
        if field.type == field.TYPE_BYTES:
            return mutate_bytes(old, rng) if old else rng.randbytes(rng.randrange(9))
        texts = [
            value
            for message in messages
            for f, value in message.ListFields()
            if not f.is_repeated and f.type == f.TYPE_STRING
        ]
        return rng.choice(texts if texts and rng.random() < 0.6 else _TEXTS)
    if field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return rng.choice(_FLOATS)
    near = [int(old or 0) + step for step in (-1, 1, 2)]
    return rng.choice(near if rng.random() < 0.4 else _INTEGERS)


def _assign(message, field, value) -> None:
    try:
        setattr(message, field.name, value)
    except (ValueError, TypeError, OverflowError):
        return  # out of the field's range


# -- archives -------------------------------------------------------------------------------


def mutate_archive(content: bytes, rng: random.Random) -> bytes:
    """One or two changes of a ``.pt2``'s members, zipped again with matching checksums."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    for _ in range(rng.randint(1, 2)):
        # The program's JSON is where most can go wrong.
        programs = [i for i, (name, _data) in enumerate(members) if name.endswith("model.json")]
        at = rng.choice(programs) if programs and rng.random() < 0.6 else None
        at = rng.randrange(len(members)) if at is None else at
        name, data = members[at]
        if name.endswith(".json") and rng.random() < 0.9:
            members[at] = name, mutate_json(data, rng)
            continue
        kind = rng.randrange(6)
        if kind == 0:
            del members[at]
        elif kind == 1:
            other = rng.randrange(len(members))
            members[at], members[other] = (name, members[other][1]), (members[other][0], data)
        elif kind == 2:
            members[at] = name + rng.choice(("x", "/x", "/../x")), data
        elif kind == 3:
            members.append((name, mutate_bytes(data, rng)))
        elif kind == 4 and name.endswith(".pt"):
            members[at] = name, _hostile_pickle()
        else:
            members[at] = name, mutate_bytes(data, rng)
        if not members:
            break
    copy = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if rng.random() < 0.03 else zipfile.ZIP_STORED
    with zipfile.ZipFile(copy, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return copy.getvalue()


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """One to three changes of values of a JSON document."""
    try:
        value = json.loads(data)
    except ValueError:
        return mutate_bytes(data, rng)
    for _ in range(rng.randint(1, 3)):
        places = list(_places(value))
        if not places:
            break
        holder, key = rng.choice(places)
        held = holder[key]
        kind = rng.randrange(5)
        if kind == 0:
            del holder[key]
        elif kind == 1:
            other, other_key = rng.choice(places)
            holder[key] = json.loads(json.dumps(other[other_key]))
        elif isinstance(held, list) and held:
            held.append(rng.choice(held))
            rng.shuffle(held)
        elif isinstance(held, str) and kind > 2:
            holder[key] = rng.choice((*_TEXTS, *_HOSTILE_JSON))
        elif isinstance(held, dict) and held and kind > 2:
            held[rng.choice(_TEXTS)] = held.pop(rng.choice(sorted(held)))
        else:
            holder[key] = rng.choice((*_INTEGERS, *_FLOATS, None, True, [], {}, "x"))
    return json.dumps(value).encode()


def _places(value) -> Iterator[tuple]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, held in list(pairs):
        yield value, key
        if isinstance(held, (dict, list)):
            yield from _places(held)


class _Touches:
    """Pickles as a call that leaves a file behind."""

    def __reduce__(self):
        return open, ("CANARY", "w")


def _hostile_pickle() -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save((_Touches(),), buffer)
    return buffer.getvalue()
