"""The words of texts: what is the same, what is found within what, and what long texts cost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.search_words import MAX_QUERY_WORDS, MAX_WORDS, fold, name_query, name_words, query_of, words_of
from tests.processor import cpu_within


@pytest.mark.parametrize(
    ("text", "plain", "exact"),
    [
        ("Hello, World! snake_case don't", ("hello", "world", "snake", "case", "don", "t"), ()),
        ("Straße Ångström ΣΊΣΥΦΟΣ Ёж", ("strasse", "angstrom", "σισυφοσ", "еж"), ()),
        ("हिन्दी भाषा", ("हिन्दी", "भाषा"), ()),
        ("東京", (), ("東", "京", "東京")),
        ("iPhone用ケース", ("iphone",), ("用", "用ケ", "ケー", "ース")),
        ("학교", (), ("학", "교", "학교")),
        ("ok 👍", ("ok",), ("👍",)),
        ("\u0000 \ud800 ?!", (), ()),
        ("مُحَمَّد", ("محمد",), ()),
    ],
)
def test_words_are_what_stands_between_spaces_or_next_to_each_other(
    text: str, plain: tuple[str, ...], exact: tuple[str, ...]
) -> None:
    words = words_of(text)

    assert (words.plain, words.exact) == (plain, frozenset(exact))


@given(st.text(max_size=60), st.text(max_size=20), st.text(max_size=60))
def test_what_is_cut_out_of_a_text_between_spaces_is_found_in_it(before: str, term: str, after: str) -> None:
    text = f"{before} {term} {after}"
    query, words = query_of(term), words_of(text)

    assert set(query.plain) <= set(words.plain)
    assert set(query.exact) <= set(words.exact)
    assert all(run in fold(text) for run in query.runs)


@given(st.text(alphabet=st.characters(max_codepoint=127), max_size=80))
def test_plain_english_makes_the_same_words_among_others(text: str) -> None:
    assert words_of(text).plain == words_of(f"{text} é").plain[: len(words_of(text).plain)]


@given(st.text())
def test_folding_twice_changes_nothing(text: str) -> None:
    assert fold(fold(text)) == fold(text)


@pytest.mark.parametrize("text", ["a " * 16_000, "x" * 32_000, "字" * 32_000, "".join(map(chr, range(0x4E00, 0x9FFF)))])
def test_long_texts_are_bounded_in_words_and_time(text: str) -> None:
    with cpu_within(0.5):
        words, query = words_of(text), query_of(text)

    assert len(words.plain) <= MAX_WORDS
    assert len(words.exact) <= MAX_WORDS
    assert len(query.plain) + len(query.exact) <= 2 * MAX_QUERY_WORDS


def test_names_are_found_by_how_their_words_begin() -> None:
    assert name_words("Jean-Luc O'Neil") == ["jean", "luc", "o", "neil"]
    assert name_words("田中太郎") == ["田中太郎", "中太郎", "太郎", "郎"]
    assert name_query(" @Alice:Example.ORG  Jean-L ") == ["alice:example.org", "jean", "l"]
    assert name_query("@ \0 @\0 %") == []
