from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dry_work.errors import ConfigError
from dry_work.market.symbols import (
    SymbolSpelling,
    encode_attribute,
    is_crypto,
    is_option,
    is_symbol,
    parse_attribute,
    parse_symbol,
    parse_symbols,
    read_symbols,
)

OPTION = "AAPL240315C00172500"
CANONICAL = ["AAPL", "A", "BRK.B", "BTC/USD", "SHIB/USDT", "1INCH/USD", OPTION]


@pytest.mark.parametrize("symbol", CANONICAL)
def test_canonical_symbols_stay_as_they_are(symbol):
    assert is_symbol(symbol)
    assert parse_symbol(symbol) == symbol


@pytest.mark.parametrize("symbol", CANONICAL)
def test_any_case_and_surrounding_blanks_are_accepted(symbol):
    assert parse_symbol(f" \t{symbol.lower()} \n") == symbol
    assert not is_symbol(symbol.lower())


@pytest.mark.parametrize(
    "text",
    ["", " ", "BTC/", "/USD", "BTC/USD/EUR", "BTC-USD", "AA PL", "AAPL!", "1AAPL", "BRK.", ".B", "A" * 40, "ÄPFEL"],
)
def test_what_is_no_symbol_is_named(text):
    assert not is_symbol(text)
    with pytest.raises(ConfigError, match="is not a symbol: expected a stock such as AAPL") as caught:
        parse_symbol(text)
    assert repr(text) in str(caught.value)


def test_kinds_of_symbols():
    assert [is_crypto(symbol) for symbol in ("BTC/USD", "AAPL", "BRK.B", OPTION)] == [True, False, False, False]
    assert [is_option(symbol) for symbol in (OPTION, "AAPL", "BTC/USD")] == [True, False, False]


@pytest.mark.parametrize(("symbol", "text"), [("BTC/USD", "BTC-USD"), ("BRK.B", "BRK.B"), ("AAPL", "AAPL")])
def test_attributes_spell_the_slash_as_a_dash(symbol, text):
    assert encode_attribute(symbol) == text
    assert parse_attribute(text) == symbol
    assert parse_attribute(f" {text.lower()} ") == symbol


@given(st.from_regex(r"[A-Z][A-Z0-9]{0,9}(\.[A-Z]{1,3})?|[A-Z0-9]{1,10}/[A-Z]{3,6}", fullmatch=True))
def test_attributes_keep_every_symbol(symbol):
    assert is_symbol(symbol)
    assert parse_attribute(encode_attribute(symbol)) == symbol


def test_a_spelling_without_the_slash_is_the_known_pair():
    spelling = SymbolSpelling(["BTC/USD", "AAPL"])
    assert spelling.canonical("BTCUSD") == "BTC/USD"
    assert spelling.canonical("btc/usd") == "BTC/USD"
    assert spelling.canonical("aapl") == "AAPL"
    assert spelling.canonical("ethusd") == "ETHUSD"  # not known: as it came, in upper case


def test_a_symbols_file_may_hold_comments_blank_lines_any_case_and_repeats():
    text = "\ufeff# stocks\nspy\r\n\n  IBM  \n# crypto\nbtc/usd\nSPY\n"
    assert parse_symbols(text) == ["SPY", "IBM", "BTC/USD"]


def test_a_malformed_symbol_is_named_with_its_line():
    with pytest.raises(ConfigError, match=r"^my\.txt, line 3: 'what\?' is not a symbol"):
        parse_symbols("# first\nSPY\nwhat?\n", source="my.txt")


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n  # here\n"])
def test_an_empty_list_is_an_error(text):
    with pytest.raises(ConfigError, match=r"my\.txt: no symbols in it; write one symbol a line"):
        parse_symbols(text, source="my.txt")


def test_a_file_is_read_as_utf8(tmp_path):
    path = tmp_path / "symbols.txt"
    path.write_text("# Börse\nAAPL\nBTC/USD\n", encoding="utf-8")
    assert read_symbols(path) == ["AAPL", "BTC/USD"]


def test_a_missing_file_a_folder_and_bytes_are_named(tmp_path):
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"\xff\xfe\x00")
    for path, sentence in (
        (tmp_path / "none.txt", "no such symbols file"),
        (tmp_path, "is a folder"),
        (binary, "cannot be read as UTF-8 text"),
    ):
        with pytest.raises(ConfigError, match=sentence) as caught:
            read_symbols(path)
        assert str(caught.value).startswith(str(path))


def test_the_symbols_file_of_the_repository_has_stocks_and_crypto():
    symbols = read_symbols(Path(__file__).parents[3] / "symbols.txt")
    assert symbols == ["SPY", "IBM", "BAC", "AIG", "BTC/USD", "ETH/USD"]
