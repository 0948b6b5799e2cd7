"""Values that cross from the candidate to the parent keep their kind; nothing of theirs runs on the way."""

import collections
import enum
import json
import math
import subprocess
import sys
import time
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest

from xft.eval.sandbox.values import MAX_DEPTH, Opaque, decode, encode

VALUES = Path(sys.modules["xft.eval.sandbox.values"].__file__)

PLAIN = [
    *(None, True, False, 0, 1, -1, 10**17, 10**18, -(10**18), 2**64, -(3**5000), 0.0, 1.0, 0.1, 1e300, 5e-324),
    *(
        math.inf,
        -math.inf,
        1 + 2j,
        complex(0.0, -math.inf),
        "",
        "text",
        'a "quoted"\n\x00\u2028',
        "naïve 😀",
        b"",
        b"\0\xff",
    ),
    *("\ud800", "\ud83d\ude00", ...),
    *(Decimal("0.10"), Decimal("-Infinity"), Decimal("1E+999999"), Fraction(-1, 3), Fraction(2**200, 7)),
    *([], (), set(), frozenset(), {}, [1, 2.5, "x"], (1,), [1, [2, (3,)]], {1, 2}, frozenset({"a"}), {"a": 1, 2: (3,)}),
    *({(1, 2): [3]}, {None: {True: 1.5}}, {frozenset({1}): {2}}, [True, 1, 1.0], (1, [2, {3: {4, 5}}], "6", None)),
]


def same(a, b):
    """Tell whether two values are equal and of the same kinds all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(map(repr, a.items())) == list(map(repr, b.items())) and a == b
    if isinstance(a, set | frozenset):
        return sorted(map(repr, a)) == sorted(map(repr, b)) and a == b
    return a == b


@pytest.mark.parametrize("value", PLAIN, ids=lambda value: ascii(value)[:40])
def test_plain_values_come_back_as_they_were(value):
    assert same(decode(encode(value)), value)


def test_kinds_that_are_equal_stay_apart():
    for a in (1, 1.0, True):
        for b in (1, 1.0, True):
            assert (encode(a) == encode(b)) == (type(a) is type(b))
    assert encode([1]) != encode((1,)) != encode({1}) != encode(frozenset({1}))
    assert encode("a") != encode(b"a")


def test_nan_and_negative_zero_come_back():
    assert math.isnan(decode(encode(math.nan)))
    assert decode(encode([math.nan])) != decode(encode([math.nan]))
    assert math.copysign(1, decode(encode(-0.0))) == -1
    assert math.copysign(1, decode(encode(complex(0.0, -0.0))).imag) == -1


def test_numpy_values_stay_apart_from_python_ones():
    np = pytest.importorskip("numpy", reason="not run: numpy")
    for array in (
        np.arange(6).reshape(2, 3),
        np.arange(6).reshape(2, 3).T,
        np.array([[True]]),
        np.array(2.5),
        np.zeros((0, 3), dtype="f4"),
        np.array(["a", "bcd"]),
        np.array([1 + 2j, np.nan]),
        np.array(["2024-01-31"], dtype="M8[D]"),
        np.array([1, 2], dtype=">i2"),
    ):
        back = decode(encode(array))
        assert type(back) is np.ndarray
        assert (back.dtype, back.shape) == (array.dtype, array.shape)
        assert np.array_equal(back, array, equal_nan=array.dtype.kind in "fc")
        back[...] = array  # writable, so of its own memory
    for scalar in (np.int64(3), np.float64(0.1), np.float32(0.1), np.bool_(True), np.str_("a"), np.complex128(1j)):
        back = decode(encode([scalar]))[0]
        assert type(back) is type(scalar)
        assert back == scalar


def test_what_is_no_plain_data_is_opaque_and_equal_to_nothing():
    np = pytest.importorskip("numpy", reason="not run: numpy")
    things = [
        *(object(), len, (x for x in []), range(3), {}.keys(), iter([]), sys, int, bytearray(b"a"), NotImplemented),
        *(np.array([None]), np.zeros(1, dtype=[("a", "i4")]), np.zeros(1, dtype=[("a", "i4")])[0], np.dtype("i4")),
    ]
    for thing in things:
        back = decode(encode([thing]))[0]
        assert type(back) is Opaque
        assert back != decode(encode(thing))
        assert back.type_name
    assert decode(encode(Path("."))).type_name.startswith("pathlib")


def test_subclasses_are_read_as_the_plain_type_they_extend():
    point = collections.namedtuple("point", "x y")
    colour = enum.IntEnum("colour", "red green")
    assert same(decode(encode(point(1, 2))), (1, 2))
    assert same(decode(encode(colour.green)), 2)
    assert same(decode(encode(collections.OrderedDict(a=1))), {"a": 1})
    assert same(decode(encode(collections.Counter("aab"))), {"a": 2, "b": 1})
    assert same(decode(encode(collections.defaultdict(list, a=[1]))), {"a": [1]})


def liar(base):
    """Make a subclass all of whose methods lie, and say when they are asked."""

    def asked(*_):
        raise AssertionError("a method of the candidate's ran")

    names = [
        *("__eq__", "__ne__", "__hash__", "__iter__", "__len__", "__getitem__", "__getattribute__", "__reduce__"),
        *("__reduce_ex__", "__repr__", "__str__", "__int__", "__index__", "__float__", "__complex__", "__bool__"),
        *("__pos__", "__add__", "__contains__", "__lt__", "__bytes__", "__format__", "items", "keys", "values"),
        *("__array__", "__array_ufunc__", "tobytes", "hex", "bit_length"),
    ]

    class Meta(type):
        def __getattribute__(cls, name):
            raise AssertionError("a metaclass of the candidate's ran")

        __instancecheck__ = __subclasscheck__ = __eq__ = __hash__ = __len__ = asked

    return Meta("Liar", (base,), {**dict.fromkeys(names, asked), "__class__": property(asked), "__module__": 5})


def test_lying_subclasses_are_never_asked():
    for base, content in [
        *((int, 7), (float, 0.5), (str, "ab"), (bytes, b"ab"), (complex, 1j)),
        *((list, [1, 2]), (tuple, [1, 2]), (set, [1, 2]), (frozenset, [1, 2]), (dict, {"a": 1})),
    ]:
        value = base.__new__(liar(base), content)
        if base in (list, set, dict):
            base.__init__(value, content)
        back = decode(encode(value))
        assert same(back, base(content))
    back = decode(encode(object.__new__(liar(object))))
    assert back.type_name == "Liar"


def test_a_fraction_of_odd_parts_is_opaque():
    odd = Fraction(1, 2)
    odd._numerator = liar(int)()
    assert type(decode(encode(odd))) is Opaque


def test_lying_arrays_are_never_asked():
    np = pytest.importorskip("numpy", reason="not run: numpy")

    class Liar(np.ndarray):
        dtype = shape = property(lambda self: 1 / 0)
        tobytes = __eq__ = __iter__ = __getitem__ = lambda *_: 1 / 0

    assert np.array_equal(decode(encode(np.arange(3).view(Liar))), np.arange(3))


def test_encode_never_raises():
    loop = []
    loop.append(loop)
    deep = ()
    for _ in range(10_000):
        deep = (deep,)
    cycle = {}
    cycle["self"] = [cycle]
    for value in (loop, deep, cycle, [loop, 1]):
        decode(encode(value))
    sys_limit = sys.getrecursionlimit()

    def at_the_limit(left):
        try:
            return at_the_limit(left - 1)
        except RecursionError:
            return encode([[[1]], {2: (3,)}])

    assert decode(at_the_limit(sys_limit)) is not None


def test_depth_is_bounded_and_what_lies_deeper_is_opaque():
    value = "bottom"
    for _ in range(MAX_DEPTH):
        value = [value]
    assert decode(encode(value)) == value
    back = decode(encode([[value]]))
    for _ in range(MAX_DEPTH + 1):
        back = back[0]
    assert type(back) is Opaque


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"{", b"\xff", b"nul", b'{"t":1}', b'{"t":[],"s":[]}', b"{}", b'{"x":1}', b'{"ts":[]}', b'{"":[]}'),
        *(b'{"d":[1]}', b'{"s":[[]]}', b'{"d":[[],1]}', b'{"i":5}', b'{"i":"zz"}', b'{"c":[1]}', b'{"c":["a","b"]}'),
        *(b'{"m":1}', b'{"m":"x"}', b'{"q":["1","0"]}', b'{"q":["1"]}', b'{"q":[1,2]}'),
        b'{"q":["' + b"f" * 1_000_000 + b'","3"]}',
        *(b'{"b":"x"}', b'{"b":1}', b'{"o":1}', b'{"a":1}', b'{"g":["O",""]}', b'{"a":["|O8",[1],"AAAAAAAAAAA="]}'),
        *(b'{"a":["<f8",[2],"AAAAAAAAAAA="]}', b'{"a":["<f8",[-1,-1],"AAAAAAAAAAA="]}', b'{"a":["<f8",["1"],""]}'),
        *(b'{"a":["(2,)f8",[1],""]}', b'{"a":["<f8",[1],"!"]}', b'{"a":["<f8",[1],5]}', b'{"a":["<M8[x]",[0],""]}'),
        *(b"[" * 100_000, b'{"t":[' * 100_000, b"[" * 3000 + b"]" * 3000, b"9" * 100_000),
    ],
    ids=lambda data: ascii(data)[:40],
)
def test_decode_refuses_what_is_no_encoding(data):
    with pytest.raises(ValueError, match="not an encoded value"):
        decode(data)


def test_many_keys_of_one_hash_are_refused_quickly():
    items = [i * (2**61 - 1) for i in range(40_000)]
    started = time.monotonic()
    for tag in "sf":
        with pytest.raises(ValueError, match="same hash"):
            decode(json.dumps({tag: [{"i": hex(item)} for item in items]}).encode())
    assert time.monotonic() - started < 5
    assert len(decode(encode(set(range(10_000))))) == 10_000


def test_an_opaque_name_is_short_and_printable():
    name = decode(encode(type("a\n\x1b[31m" + "b" * 1000, (), {})())).type_name
    assert name.isprintable()
    assert len(name) <= 200


PATCHED = """
import sys
sys.path.insert(0, sys.argv[1])
import values, builtins, json
json.dumps = json.loads = None
before = values.encode([1, (2.5, {"a": 10**30}), {3}, "x"])
for name in sys.argv[2:]:
    setattr(builtins, name, None)
    values.encode([1])
sys.stdout.buffer.write(before)
"""


def test_the_file_alone_works_and_never_raises_where_a_candidate_patched_the_builtins():
    names = ["int", "list", "len", "isinstance", "issubclass", "type", "map", "BaseException", "slice"]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", PATCHED, VALUES.parent, *names], capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert same(decode(done.stdout), [1, (2.5, {"a": 10**30}), {3}, "x"])


def test_numpy_data_are_opaque_where_numpy_is_missing():
    np = pytest.importorskip("numpy", reason="not run: numpy")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import values;"
        "print(values.decode(sys.stdin.buffer.read()), values.decode(values.encode((1, 2))))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, VALUES.parent],
        input=encode(np.arange(3)),
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.stdout.decode().strip() == "<numpy data; numpy is not installed here> (1, 2)"
