"""`request_signing`: the X-Matrix header, made strictly and read loosely."""

import contextlib

import canonicaljson
import pytest
import signedjson.key
import signedjson.sign
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from federation.protocol import canonical_json, request_signing
from federation.protocol.errors import InvalidInput, Unauthorized
from federation.protocol.event_hashes import encode_base64
from federation.protocol.request_signing import Authorization, SignedRequest
from federation.protocol.types import JsonObject, KeyID, ServerName
from tests.processor import cpu_within
from tests.protocol.builders import HOME, HOME_KEY, OTHER, OTHER_KEY

URI = "/_matrix/federation/v1/send/1?a=b&é=%20"
REQUEST = SignedRequest(method="PUT", uri=URI, origin=HOME, destination=OTHER, content=b'{"pdus":[]}')


@pytest.mark.parametrize("content", [None, {}, {"b": [1, "é"], "a": None}])
def test_a_request_is_signed_as_signedjson_signs_it(content: JsonObject | None) -> None:
    json = {"method": "PUT", "uri": URI, "origin": HOME, "destination": OTHER}
    if content is not None:
        json["content"] = content  # type: ignore[assignment] # the one object
    reference_key = signedjson.key.decode_signing_key_base64("ed25519", "home", encode_base64(HOME_KEY.seed))
    signature = signedjson.sign.sign_json(json, HOME, reference_key)["signatures"][HOME]["ed25519:home"]
    request = replace(REQUEST, content=None if content is None else canonical_json.encode(content))

    header = request_signing.make_header(request, HOME_KEY)

    assert header == f'X-Matrix origin="{HOME}",destination="{OTHER}",key="ed25519:home",sig="{signature}"'
    del json["signatures"]
    assert request.signed_bytes() == canonicaljson.encode_canonical_json(json)


def test_what_is_made_is_read_and_verified() -> None:
    authorization = request_signing.parse_header(request_signing.make_header(REQUEST, HOME_KEY))

    assert (authorization.origin, authorization.destination) == (HOME, OTHER)
    assert authorization.key_id == HOME_KEY.key_id
    request_signing.verify(authorization, REQUEST, HOME_KEY.public_key)
    request_signing.verify(replace(authorization, destination=None), REQUEST, HOME_KEY.public_key)


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "GET"},
        {"uri": "/_matrix/federation/v1/send/2"},
        {"origin": ServerName("evil.example")},
        {"destination": ServerName("elsewhere.example")},
        {"content": b'{"pdus":[{}]}'},
        {"content": None},
    ],
)
def test_another_request_than_the_signed_one_is_refused(changes: dict[str, object]) -> None:
    authorization = request_signing.parse_header(request_signing.make_header(REQUEST, HOME_KEY))

    with pytest.raises(Unauthorized) as raised:
        request_signing.verify(authorization, replace(REQUEST, **changes), HOME_KEY.public_key)

    assert (raised.value.errcode, raised.value.http_status) == ("M_UNAUTHORIZED", 401)


def test_another_key_is_refused() -> None:
    authorization = request_signing.parse_header(request_signing.make_header(REQUEST, HOME_KEY))

    with pytest.raises(Unauthorized, match="signature"):
        request_signing.verify(authorization, REQUEST, OTHER_KEY.public_key)
    with pytest.raises(Unauthorized, match="signature"):
        request_signing.verify(replace(authorization, signature="é"), REQUEST, HOME_KEY.public_key)


def test_a_request_line_that_is_no_unicode_is_refused() -> None:
    authorization = request_signing.parse_header(request_signing.make_header(REQUEST, HOME_KEY))

    with pytest.raises(InvalidInput):
        request_signing.verify(authorization, replace(REQUEST, uri="/\udcff"), HOME_KEY.public_key)


CLAIM = Authorization(
    origin=ServerName("a.example:80"), destination=ServerName("b.example"), key_id=KeyID("ed25519:1"), signature="Ab+/9"
)


@pytest.mark.parametrize(
    "header",
    [
        'X-Matrix origin="a.example:80",destination="b.example",key="ed25519:1",sig="Ab+/9"',
        "X-Matrix origin=a.example:80,destination=b.example,key=ed25519:1,sig=Ab+/9",
        'x-matrix   origin="a.example:80" , destination="b.example" ,\tkey="ed25519:1", sig="Ab+/9"  ',
        '  X-MATRIX SIG="Ab+/9",KEY="ed25519:1",Destination="b.example",ORIGIN="a.example:80"',
        'X-Matrix origin="a.example:80",,destination="b.example", ,key="ed25519:1",sig="Ab+/9",',
        'X-Matrix origin="a\\.example:80",destination="b.example",key="ed2\\5519:1",sig="Ab+/9"',
        'X-Matrix origin = "a.example:80",destination= b.example,key ="ed25519:1",sig="Ab+/9"',
        'X-Matrix origin="a.example:80",destination="b.example",key="ed25519:1",sig="Ab+/9",new="a,\\"b=c"',
        'X-Matrix origin="a.example:80",destination="b.example",key="ed25519:1",signature="Ab+/9"',
    ],
)
def test_the_header_is_read_however_loosely_it_is_written(header: str) -> None:
    assert request_signing.parse_header(header) == CLAIM


def test_older_servers_do_not_name_the_destination() -> None:
    authorization = request_signing.parse_header('X-Matrix origin=a.example:80,key="ed25519:1",sig="Ab+/9"')

    assert authorization == replace(CLAIM, destination=None)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "X-Matrix",
        "Bearer abc",
        "X-Matrixorigin=a",
        'X-Matrix key="ed25519:1",sig="x"',
        'X-Matrix origin="a.example",sig="x"',
        'X-Matrix origin="a.example",key="ed25519:1"',
        'X-Matrix origin="a.example",key="ed25519:1",sig=""',
        'X-Matrix origin="a example",key="ed25519:1",sig="x"',
        'X-Matrix origin="a.example",key="1",sig="x"',
        'X-Matrix origin="a.example",key="ed25519:1",sig="x",destination="b b"',
        'X-Matrix origin="a.example",origin="b.example",key="ed25519:1",sig="x"',
        'X-Matrix origin="a.example",Origin="a.example",key="ed25519:1",sig="x"',
        'X-Matrix origin="a.example,key="ed25519:1",sig="x"',
        'X-Matrix origin="a.example" key="ed25519:1" sig="x"',
        'X-Matrix origin="a.example',
        "X-Matrix origin",
        "X-Matrix =a",
        "X-Matrix ;",
    ],
)
def test_a_header_that_claims_nothing_is_refused(header: str) -> None:
    with pytest.raises(Unauthorized) as raised:
        request_signing.parse_header(header)

    assert (raised.value.errcode, raised.value.http_status) == ("M_UNAUTHORIZED", 401)


@given(
    st.text()
    | st.text('XMatrix-origin=key,sig"\\ \t:.a1\n\ud800', max_size=40).map(lambda text: "X-Matrix " + text)
    | st.lists(st.sampled_from(["origin=", '"', "a.b", ",", "key=ed25519:1", "sig=x", " ", "\\", "destination"])).map(
        lambda parts: "X-Matrix " + "".join(parts)
    )
)
def test_any_header_is_read_or_refused(header: str) -> None:
    with contextlib.suppress(Unauthorized):
        authorization = request_signing.parse_header(header)

        with contextlib.suppress(Unauthorized, InvalidInput):
            request_signing.verify(authorization, REQUEST, HOME_KEY.public_key)


@pytest.mark.parametrize("piece", ["a", ",", '"', "\\", '"\\', " ", "a=,", 'a="', "a=b ", 'a="b",', "=", "\t"])
def test_a_long_header_is_read_quickly(piece: str) -> None:
    with cpu_within(1.0):
        with contextlib.suppress(Unauthorized):
            request_signing.parse_header("X-Matrix " + piece * 100_000)
        with contextlib.suppress(Unauthorized):
            request_signing.parse_header('X-Matrix origin="' + piece * 100_000)
