"""The filter language, against Google's documented examples and against arbitrary text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dry_work.embedded.pubsub_filter import MAX_FILTER_BYTES, FilterError, parse_filter

MESSAGES = {
    1: {"lang": "en", "name": "com", "timezone": "UTC"},
    2: {"lang": "en", "name": "net", "timezone": "UTC"},
    3: {"lang": "cn", "name": "org", "timezone": "UTC"},
    4: {"lang": "jp", "name": "co", "timezone": "UTC"},
    5: {"lang": "jp", "timezone": "UTC"},
    6: {"name": "com", "iana.org/language_tag": "en"},
    7: {"my-key": 'a "quoted" \\ text', "みんな": "dummy"},
    8: {},
}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("attributes:name", [1, 2, 3, 4, 6]),
        ("attributes:my-key", [7]),
        ('attributes:"iana.org/language_tag"', [6]),
        ('attributes:"みんな"', [7]),
        (r'attributes:"\u307f\u3093\u306a"', [7]),
        ('attributes.name = "com"', [1, 6]),
        ('attributes.name="com"', [1, 6]),
        ('attributes.name != "com"', [2, 3, 4, 5, 7, 8]),
        ('attributes."iana.org/language_tag" = "en"', [6]),
        (r'attributes.my-key = "a \"quoted\" \\ text"', [7]),
        (r'attributes.lang = "\x65\156"', [1, 2]),
        ('hasPrefix(attributes.name, "co")', [1, 4, 6]),
        ('hasPrefix( attributes."name" , "" )', [1, 2, 3, 4, 6]),
        ("NOT attributes:name", [5, 7, 8]),
        ("-attributes:name", [5, 7, 8]),
        ("NOT NOT attributes:my-key", [7]),
        ('NOT hasPrefix(attributes.name, "co")', [2, 3, 5, 7, 8]),
        ('attributes:timezone AND attributes.lang = "en" AND NOT attributes.name = "net"', [1]),
        ('attributes.lang = "cn" OR attributes.lang = "jp" OR attributes:my-key', [3, 4, 5, 7]),
        ('attributes:name AND (attributes.lang = "cn" OR attributes.lang = "jp")', [3, 4]),
        ('NOT (attributes:name OR attributes.lang = "jp")', [7, 8]),
        ("((attributes:my-key))", [7]),
        ("  attributes:my-key\n", [7]),
    ],
)
def test_a_documented_filter_lets_the_right_messages_through(text: str, wanted: list[int]) -> None:
    predicate = parse_filter(text)
    assert predicate is not None
    assert [number for number, attributes in MESSAGES.items() if predicate(attributes)] == wanted


def test_the_empty_filter_is_no_filter() -> None:
    assert parse_filter("") is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (" ", '"attributes"'),
        ("attributes", '":" was expected'),
        ("attributes:", "an attribute key"),
        ("attributes.name", '"=" or "!="'),
        ("attributes.name = com", "a string in double quotes"),
        ("attributes.name = 'com'", "a string in double quotes"),
        ('attributes.name = "com', "a string in double quotes"),
        ('attributes.name > "com"', '"=" or "!="'),
        ('attributes . name = "com"', '":" was expected'),
        ("attributes:iana.org/language_tag", "AND, OR or the end"),
        ("attributes:a and attributes:b", "AND, OR or the end"),
        ("attributes:a attributes:b", "AND, OR or the end"),
        ("attributes:a AND attributes:b OR attributes:c", "parentheses, since AND and OR"),
        ("attributes:a OR", '"attributes"'),
        ("(attributes:a", '")" was expected'),
        ("attributes:a)", "AND, OR or the end"),
        ("not attributes:a", '"attributes"'),
        ('hasSuffix(attributes.a, "b")', '"hasPrefix"'),
        ("hasPrefix(attributes.a)", '"," was expected'),
        ('data = "x"', '"attributes"'),
        (r'attributes.a = "\q"', "a known escape sequence"),
        (r'attributes.a = "\ud800"', "of a Unicode character"),
        (r'attributes.a = "\U00110000"', "of a Unicode character"),
        (f'attributes.a = "{"x" * MAX_FILTER_BYTES}"', "at most 256 are allowed"),
    ],
)
def test_a_filter_outside_the_grammar_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(FilterError) as raised:
        parse_filter(text)
    assert reason in str(raised.value)


def test_a_filter_of_the_greatest_length_may_nest_as_deep_as_it_fits() -> None:
    depth = (MAX_FILTER_BYTES - len("attributes:a")) // 2
    predicate = parse_filter("(" * depth + "attributes:a" + ")" * depth)
    assert predicate is not None
    assert predicate({"a": ""})
    with pytest.raises(FilterError):
        parse_filter("(" * MAX_FILTER_BYTES)


@given(st.text(max_size=300))
def test_arbitrary_text_is_parsed_or_refused_and_nothing_else(text: str) -> None:
    check_parse(text)


PIECES = st.sampled_from(
    ["attributes", ".", ":", "=", "!=", "(", ")", ",", "-", " ", "AND", "OR", "NOT", "hasPrefix", '"', '"v"', "k", "\\"]
)


@given(st.lists(PIECES, max_size=40).map("".join))
def test_text_that_looks_like_a_filter_is_parsed_or_refused_and_nothing_else(text: str) -> None:
    check_parse(text)


def check_parse(text: str) -> None:
    try:
        predicate = parse_filter(text)
    except FilterError:
        return
    if predicate is None:
        assert text == ""
    else:
        assert all(predicate(attributes) in (True, False) for attributes in MESSAGES.values())


KEYS = st.sampled_from(["a", "b", "my-key"])
VALUES = st.text(st.sampled_from('xy"\\\n é'), max_size=3)


def quote(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


LEAVES = st.one_of(
    KEYS.map(lambda key: (f"attributes:{key}", lambda held: key in held)),
    st.tuples(KEYS, VALUES).map(
        lambda kv: (f"attributes.{kv[0]} = {quote(kv[1])}", lambda held: held.get(kv[0]) == kv[1])
    ),
    st.tuples(KEYS, VALUES).map(
        lambda kv: (f"attributes.{kv[0]}!={quote(kv[1])}", lambda held: held.get(kv[0]) != kv[1])
    ),
    st.tuples(KEYS, VALUES).map(
        lambda kv: (
            f"hasPrefix(attributes.{kv[0]},{quote(kv[1])})",
            lambda held: kv[0] in held and held[kv[0]].startswith(kv[1]),
        )
    ),
)
EXPRESSIONS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        inner.map(lambda one: (f"NOT ({one[0]})", lambda held: not one[1](held))),
        st.tuples(inner, inner).map(
            lambda two: (f"({two[0][0]}) AND ({two[1][0]})", lambda held: two[0][1](held) and two[1][1](held))
        ),
        st.tuples(inner, inner).map(
            lambda two: (f"({two[0][0]}) OR ({two[1][0]})", lambda held: two[0][1](held) or two[1][1](held))
        ),
    ),
    max_leaves=4,
)


@given(
    EXPRESSIONS.filter(lambda one: len(one[0].encode()) <= MAX_FILTER_BYTES),
    st.dictionaries(KEYS, VALUES, max_size=3),
)
def test_a_composed_filter_means_what_it_says(expression, attributes) -> None:
    text, meaning = expression
    predicate = parse_filter(text)
    assert predicate is not None
    assert predicate(attributes) == meaning(attributes)
