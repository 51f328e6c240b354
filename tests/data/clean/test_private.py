"""Whose addresses are masked, and what only looks like one."""

import pytest

from polylm_jax.data.clean.private import mask


@pytest.mark.parametrize(
    "address",
    [
        "anna@mail.org",
        "a.b+c@x-y.co.uk",
        "O'Neil_7@sub.domain.info",
        "иван@почта.рф",
        "李@例子.中国",
    ],
)
def test_addresses_of_people_are_masked(address):
    for before, after in (("", ""), ("Write to ", "."), ("<", ">"), ("mailto:", "?x"), ("(", ",")):
        text, counts = mask(before + address + after)
        assert text == f"{before}email@example.com{after}"
        assert counts == {"email": 1}


@pytest.mark.parametrize(
    "text",
    ["a @ b.c", "@name", "me@localhost", "x@y..z", "user@", "10@5 euros", "@media.print", "a@b.1"],
)
def test_what_is_no_address_stays(text):
    assert mask(text) == (text, {})


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2606:4700:4700::1111"])
def test_public_ip_addresses_are_masked(address):
    text, counts = mask(f"from {address}, and")
    assert address not in text
    assert counts == {"ip": 1}
    assert mask(text) == (text, {})


@pytest.mark.parametrize(
    "text",
    [
        "192.168.0.1 and 127.0.0.1, 10.0.0.7",
        "version 1.2.3.4.5 of 1.2.3",
        "999.1.1.1",
        "at 12:30:45, ::1, fe80::1, std::vector::x",
        "v8.8.8.8-beta",
        "8.8.8.8.9",
    ],
)
def test_private_ones_versions_and_times_stay(text):
    assert mask(text) == (text, {})


def test_hostile_texts_take_no_longer():
    size = 30_000
    for text in (
        "a" * size + "@",
        "a@" * size,
        "a." * size + "@",
        "1." * size,
        ":" * size,
        "@" * size,
    ):
        mask(text)
    mask("x@" + "a-." * size)
    mask("a.a@" * size)
