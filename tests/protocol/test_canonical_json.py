"""`canonical_json`: the reference encoding is that of the canonicaljson package; reading is strict."""

import contextlib
import json
from typing import Any

import canonicaljson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from federation.protocol import canonical_json
from federation.protocol.errors import InvalidInput
from tests.processor import cpu_within
from tests.protocol.strategies import ANY_JSON, STRICT_JSON

SPECIFICATION_EXAMPLES = [
    ("{}", "{}"),
    ('{"one": 1, "two": "Two"}', '{"one":1,"two":"Two"}'),
    ('{"b": "2", "a": "1"}', '{"a":"1","b":"2"}'),
    ('{"b":"2","a":"1"}', '{"a":"1","b":"2"}'),
    (
        """{"auth": {"success": true, "mxid": "@john.doe:example.com", "profile": {"display_name": "John Doe",
        "three_pids": [{"medium": "email", "address": "john.doe@example.org"},
        {"medium": "msisdn", "address": "123456789"}]}}}""",
        '{"auth":{"mxid":"@john.doe:example.com","profile":{"display_name":"John Doe","three_pids":'
        '[{"address":"john.doe@example.org","medium":"email"},{"address":"123456789","medium":"msisdn"}]},'
        '"success":true}}',
    ),
    ('{"a": "日本語"}', '{"a":"日本語"}'),
    ('{"本": 2, "日": 1}', '{"日":1,"本":2}'),
    (r'{"a": "\u65E5"}', '{"a":"日"}'),
    ('{"a": null}', '{"a":null}'),
    ('{"a": -0}', '{"a":0}'),
]


@pytest.mark.parametrize(("text", "canonical"), SPECIFICATION_EXAMPLES)
def test_the_specifications_examples_hold(text: str, canonical: str) -> None:
    assert canonical_json.encode(canonical_json.loads(text)).decode() == canonical


@given(ANY_JSON)
@example({"\U00010000": 1, "\uffff": 2, "\ue000": 3, "é": 4, "\x7f": 5, "": 6})
@example({"float": [1e16, 1e-5, 1e22, -0.0, 5e-324, 0.1]})
def test_the_encoding_is_that_of_canonicaljson_and_is_stable(value: Any) -> None:
    encoded = canonical_json.encode(value)

    assert encoded == canonicaljson.encode_canonical_json(value)
    assert canonical_json.encode(canonical_json.loads(encoded)) == encoded


@given(STRICT_JSON)
def test_strict_values_pass_the_check_and_the_fast_encoding_is_the_same(value: Any) -> None:
    canonical_json.check_strict(value)

    assert canonical_json.encode_checked(value) == canonicaljson.encode_canonical_json(value)


def test_every_character_is_escaped_as_little_as_possible() -> None:
    everything = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))

    assert canonical_json.encode(everything) == canonicaljson.encode_canonical_json(everything)
    assert canonical_json.encode('\b\t\n\f\r"\\\x00\x0b\x1f') == b'"\\b\\t\\n\\f\\r\\"\\\\\\u0000\\u000b\\u001f"'


@pytest.mark.parametrize("value", [2**53 - 1, -(2**53) + 1, 0, True, None, "1.5", [1, [2, {"a": 3}]]])
def test_numbers_within_the_range_are_strict(value: object) -> None:
    canonical_json.check_strict(value)


@pytest.mark.parametrize("value", [2**53, -(2**53), 1.0, 1e10, [[2**60]], {"a": [{"b": 0.5}]}, {"a": {"b": 2**53}}])
def test_numbers_beyond_the_range_and_floats_are_not_strict(value: object) -> None:
    with pytest.raises(InvalidInput) as raised:
        canonical_json.check_strict(value)

    assert raised.value.errcode == "M_BAD_JSON"


@pytest.mark.parametrize("value", [2**64, -(2**70), {"a": [2**100]}])
def test_integers_beyond_64_bits_are_encoded_as_they_are(value: object) -> None:
    assert canonical_json.encode(value) == canonicaljson.encode_canonical_json(value)


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth - 1):
        value = [value]
    return value


def test_what_is_deeper_than_orjson_goes_is_encoded_too() -> None:
    assert canonical_json.encode(nested(300)) == b"[" * 300 + b"]" * 300


@pytest.mark.parametrize(
    "value", ["\ud800", {"\udfff": 1}, float("nan"), [float("inf")], nested(100_000)], ids=range(5)
)
def test_what_has_no_canonical_form_is_refused(value: object) -> None:
    with pytest.raises(InvalidInput) as raised:
        canonical_json.encode(value)

    assert raised.value.errcode == "M_BAD_JSON"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"nul",
        b"NaN",
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b"[-Infinity]",
        b'{"a":1e400}',
        b'{"a":"\xff"}',
        b'"\\ud800"',
        b'"\\udc00\\ud800"',
        b"\xef\xbb\xbf{}",
        b"{} {}",
        b"{'a':1}",
        b'{"a":01}',
        b'{"a":1,}',
        b"[1,]",
        b'"\n"',
        b"// no\n{}",
        b"[" * 1025 + b"]" * 1025,
        b"[" * 1_000_000,
        "\ud800",
        b'{"a":1' + b"0" * 400 + b"}",
    ],
    ids=lambda data: f"{len(data)}",
)
def test_what_is_not_json_is_refused(data: bytes | str) -> None:
    with pytest.raises(InvalidInput) as raised:
        canonical_json.loads(data)

    assert raised.value.errcode == "M_NOT_JSON"


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":1,"a":1}',
        b'{"a":1,"b":2,"a":3}',
        b'{"a": {"b": 1, "b": 2}}',
        b'[[{"\\u0061":1,"a":2}]]',
        b'{"a":{"x":1},"a":{"x":1}}',
        # The room that the lost key leaves is filled again with white space, longer escapes and longer numbers.
        b'{"a":1,"a":2}      ',
        b'{"a":1e1,"a":12345678901234567890123}',
        b'{"a":1,"a":"\\u65e5"}',
    ],
)
def test_a_key_that_stands_twice_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput, match="twice") as raised:
        canonical_json.loads(data)

    assert raised.value.errcode == "M_BAD_JSON"


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":'])
def test_nesting_is_limited(opening: bytes) -> None:
    closing = opening.replace(b'"a":', b"").translate(bytes.maketrans(b"[{", b"]}"))[::-1]
    levels = canonical_json.MAX_DEPTH // len(closing)

    canonical_json.loads(opening * (levels - 1) + b"[]" + closing * (levels - 1))
    canonical_json.loads(b" " + opening * (levels - 1) + b"[]" + closing * (levels - 1))
    with pytest.raises(InvalidInput, match="nested") as raised:
        canonical_json.loads(opening * levels + b"[]" + closing * levels)
    assert raised.value.errcode == "M_BAD_JSON"


def test_bodies_that_carry_events_may_be_nested_more_than_each_event() -> None:
    data = b'{"pdus":[' + b"[" * 400 + b"]" * 400 + b"]}"

    assert list(canonical_json.loads(data, max_depth=None)) == ["pdus"]
    assert canonical_json.loads_object(data, max_depth=402)
    with pytest.raises(InvalidInput, match="nested"):
        canonical_json.loads_object(data, max_depth=401)
    with pytest.raises(InvalidInput, match="twice"):
        canonical_json.loads(data[:-1] + b',"pdus":[]}', max_depth=None)


def test_what_is_nested_too_deeply_for_our_stack_is_refused() -> None:
    with pytest.raises(InvalidInput) as raised:
        canonical_json.loads(b"[" * 1020 + b"]" * 1020, max_depth=None)

    assert raised.value.errcode == "M_BAD_JSON"


def test_width_is_not_limited() -> None:
    data = json.dumps([{"a": []} for _ in range(1000)], separators=(",", ":"))

    assert len(canonical_json.loads(data)) == 1000


def test_deep_nesting_hidden_below_a_duplicate_key_is_refused() -> None:
    with pytest.raises(InvalidInput) as raised:
        canonical_json.loads(b'{"a":' + b"[" * 1020 + b"]" * 1020 + b',"a":1}')

    assert raised.value.errcode == "M_BAD_JSON"


def test_white_space_and_escapes_are_read() -> None:
    assert canonical_json.loads(' {"\\u0061" : [ 1.50 , 1E2, -0 ] }\n') == {"a": [1.5, 100.0, 0]}


def test_integers_beyond_64_bits_are_read_as_floats_which_can_be_written_again() -> None:
    assert canonical_json.loads(b"[18446744073709551615,18446744073709551616]") == [2**64 - 1, float(2**64)]


@pytest.mark.parametrize("data", [b"[]", b"null", b'"a"', b"1"])
def test_an_object_is_asked_for(data: bytes) -> None:
    assert canonical_json.loads_object(b'{"a":1}') == {"a": 1}
    with pytest.raises(InvalidInput) as raised:
        canonical_json.loads_object(data)
    assert raised.value.errcode == "M_BAD_JSON"


@given(ANY_JSON, st.sampled_from([None, 1]), st.booleans(), st.booleans())
def test_json_is_read_as_it_was_written(
    value: Any,
    indent: int | None,
    ensure_ascii: bool,
    sort_keys: bool,
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, sort_keys=sort_keys)

    assert canonical_json.loads(text) == value
    assert canonical_json.loads(text.encode()) == value


@given(st.binary(max_size=40) | st.text('{}[]":,0123456789eE.+-\\u ntrfalsd', max_size=40))
def test_any_bytes_are_read_or_refused(data: bytes | str) -> None:
    with contextlib.suppress(InvalidInput):
        canonical_json.encode(canonical_json.loads(data))


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":[' + b"1 ," * 300_000 + b"1]}",
        b'{"a" :"' + b"\\\\" * 400_000 + b'"}',
        b"[" + b"9" * 300 + b" ," * 1 + b"9" * 300 + b"]",
        b"{ " + b",".join(b'"%d":{}' % n for n in range(60_000)) + b"}",
        b"[ " + b"{" * 90 + b"[" * 900_000,
    ],
    ids=lambda data: f"{len(data)}",
)
def test_a_megabyte_takes_no_more_than_its_length(data: bytes) -> None:
    with cpu_within(2.0), contextlib.suppress(InvalidInput):
        canonical_json.loads(data)


@pytest.mark.parametrize("piece", [b"[]", b"{}", b"1", b'{"a":1}', b'""'])
def test_small_bytes_that_become_much_are_not_read(piece: bytes) -> None:
    count = canonical_json.MAX_VALUES + 1
    with pytest.raises(InvalidInput, match="values") as refused:
        canonical_json.loads(b"[" + b",".join([piece] * count) + b"]")
    assert refused.value.errcode == "M_TOO_LARGE"


def test_a_long_text_is_one_value() -> None:
    assert len(canonical_json.loads(b'"' + b"x" * 2_000_000 + b'"')) == 2_000_000
