"""`transactions`: the limits and shape of `/send`."""

import contextlib

import canonicaljson
import pytest
from hypothesis import given

from federation.protocol import canonical_json, transactions
from federation.protocol.errors import InvalidInput
from federation.protocol.types import JsonObject
from tests.protocol.builders import HOME, NOW, OTHER, a_signed_event
from tests.protocol.strategies import ANY_JSON, mutated

GOOD: JsonObject = {"origin": HOME, "origin_server_ts": NOW, "pdus": [{"a": 1}], "edus": [{"b": 2}]}


def test_a_transaction_has_pdus_and_edus() -> None:
    transaction = transactions.parse(GOOD, HOME)

    assert transaction == transactions.Transaction(pdus=({"a": 1},), edus=({"b": 2},))


def test_what_is_left_out_is_empty() -> None:
    assert transactions.parse({}, HOME) == transactions.Transaction(pdus=(), edus=())


def test_what_is_no_object_spoils_nothing_else() -> None:
    transaction = transactions.parse({"pdus": [1, {"a": 1}, None], "edus": [[], {"b": 2}, "x"]}, HOME)

    assert transaction == transactions.Transaction(pdus=({"a": 1},), edus=({"b": 2},))


def test_there_are_at_most_50_pdus_and_100_edus() -> None:
    transaction = transactions.parse({"pdus": [{}] * 50, "edus": [{}] * 100}, HOME)

    assert (len(transaction.pdus), len(transaction.edus)) == (50, 100)
    too_much: list[JsonObject] = [{"pdus": [{}] * 51}, {"edus": [{}] * 101}, {"pdus": [None] * 51}]
    for too_many in too_much:
        with pytest.raises(InvalidInput, match="at most"):
            transactions.parse(too_many, HOME)


@pytest.mark.parametrize("json", [None, [], "x", {"pdus": None}, {"pdus": {}}, {"edus": "x"}])
def test_a_transaction_without_lists_is_refused(json: object) -> None:
    with pytest.raises(InvalidInput) as raised:
        transactions.parse(json, HOME)

    assert raised.value.errcode == "M_BAD_JSON"


@pytest.mark.parametrize("origin", [OTHER, None, 1, []])
def test_a_transaction_of_another_server_is_refused(origin: object) -> None:
    with pytest.raises(InvalidInput, match="origin"):
        transactions.parse({**GOOD, "origin": origin}, HOME)


@given(mutated(GOOD) | ANY_JSON)
def test_any_json_is_a_transaction_or_is_refused(json: object) -> None:
    with contextlib.suppress(InvalidInput):
        transaction = transactions.parse(json, HOME)

        assert all(isinstance(item, dict) for item in (*transaction.pdus, *transaction.edus))


@pytest.mark.parametrize("pdus", [0, 1, 3])
@pytest.mark.parametrize("edus", [[], [{"edu_type": "m.typing", "content": {"z": 1, "a": 1.5}}, {"x": "é"}]])
def test_what_is_encoded_is_canonical_and_can_be_parsed(pdus: int, edus: list[JsonObject]) -> None:
    events = [a_signed_event("11", depth=depth) for depth in range(pdus)]

    encoded = transactions.encode(HOME, NOW, [event.canonical for event in events], edus)

    value = canonical_json.loads_object(encoded)
    assert canonicaljson.encode_canonical_json(value) == encoded
    assert (value["origin"], value["origin_server_ts"]) == (HOME, NOW)
    transaction = transactions.parse(value, HOME)
    assert list(transaction.pdus) == [event.json for event in events]
    assert list(transaction.edus) == edus
