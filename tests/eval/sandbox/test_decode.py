"""What a candidate may write in place of an encoded value: it is refused with a ValueError, and in little time."""

from __future__ import annotations

import base64
import json
import random
import time

import pytest

from xft.eval.sandbox.values import decode, encode

PRIME = 2**61 - 1
"""Multiples of it are integers of one hash."""
COLLIDING = [{"i": hex(n * PRIME)} for n in range(1, 20001)]


def array(dtype: object, shape: object, data: bytes | str) -> bytes:
    text = base64.b64encode(data).decode() if isinstance(data, bytes) else data
    return json.dumps({"a": [dtype, shape, text]}).encode()


REFUSED = {
    "nothing": b"",
    "no text": b"\xff",
    "a number of many digits": b"9" * 10**6,
    "deep lists": b"[" * 10**6,
    "deep lists that end": b"[" * 90000 + b"]" * 90000,
    "deep tuples": b'{"t":' * 10**6,
    "an object without a tag": b"{}",
    "two tags": b'{"t":[],"s":[]}',
    "an unknown tag": b'{"x":1}',
    "a set of lists": b'{"s":[[1]]}',
    "a list as a key": b'{"d":[[1],2]}',
    "a key without a value": b'{"d":[1]}',
    "a complex number of integers": b'{"c":[1,2]}',
    "a complex number of one part": b'{"c":5}',
    "bytes that are no hex": b'{"b":"zz"}',
    "an integer that is no hex": b'{"i":"1_x"}',
    "an array larger than its data": array("<f8", [2**62, 4], ""),
    "an array of no data and huge shape": array("<f8", [0, 10**30], ""),
    "an array of negative shape": array("<f8", [-1, -1], bytes(8)),
    "an array of objects": array("|O8", [1], bytes(8)),
    "an array of structures": array([["x", "<f8"]], [1], bytes(8)),
    "an array of no text": array("<U1", [1], b"\xff" * 4),
    "an array of no text in the other order": array(">U1", [1], b"\xff\x00\x00\x00"),
    "text beyond the last letter": b'{"g":["<U1","AAARAA=="]}',
    "a scalar of no text": b'{"g":["<U1","/////w=="]}',
    "an odd width": array("<i3", [1], bytes(3)),
    "a huge width": array("|S99999999999999999999", [0], ""),
    "an unknown unit of time": array("<M8[xx]", [1], bytes(8)),
    "no unit of time": array("<M8[0s]", [1], bytes(8)),
    "too many dimensions": array("<f8", [1] * 100, bytes(8)),
    "a shape of truth": array("<f8", [True], bytes(8)),
    "data that is no base64": array("<f8", [1], "é"),
    "a set of one hash": json.dumps({"s": COLLIDING}).encode(),
    "a dictionary of one hash": json.dumps({"d": [part for key in COLLIDING for part in (key, 0)]}).encode(),
    "tuples of one hash": json.dumps({"s": [{"t": [each]} for each in COLLIDING]}).encode(),
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
def test_what_is_no_value_is_refused(data):
    pytest.importorskip("numpy", reason="not run: numpy")
    began = time.process_time()
    with pytest.raises(ValueError, match="not an encoded value") as caught:
        decode(data)
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()
    assert time.process_time() - began < 1


@pytest.mark.parametrize("size", [100, 900])
def test_many_small_sets_of_one_hash_take_little_time(size):
    """The time is quadratic up to the size from which on hashes are looked at."""
    groups = [{"s": COLLIDING[start : start + size]} for start in range(0, 20000, size)]
    began = time.process_time()
    if size == 100:
        assert len(decode(json.dumps(groups).encode())) == 200
    else:
        with pytest.raises(ValueError, match="same hash"):
            decode(json.dumps(groups).encode())
    assert time.process_time() - began < 1


def test_damaged_values_are_values_or_refused():
    numpy = pytest.importorskip("numpy", reason="not run: numpy")
    values = [
        *(
            [1, 2.5, "a", None, True, ...],
            (1, (2,)),
            {1: 2, "a": [3]},
            {1, 2},
            frozenset([1]),
            10**40,
            1j,
            b"ab",
            object,
        ),
        *(numpy.arange(3), numpy.float32(2), numpy.array(["a", "b"]), numpy.array(["2020-01-01"], "M8[D]")),
    ]
    seeds, chance = [encode(value) for value in values], random.Random(5)
    for _ in range(5000):
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.randint(1, 5)):
            place = chance.randrange(len(data))
            piece = chance.choice([bytes([chance.randrange(256)]), b"", chance.choice(seeds)[place : place + 6]])
            data[place : place + chance.randint(0, 2)] = piece or b"["
        try:
            found = decode(bytes(data))
        except ValueError:
            continue
        encode(found)
