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


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("如有任何问题请发送邮件至{}我们会尽快回复您。", "support@firma.com.cn"),
        ("お問い合わせは{}まで。", "info@firma.co.jp"),
        ("{}으로 보내 주세요", "abc@firma.kr"),
        ("ติดต่อ{}ได้", "abc@firma.th"),
        ("{}或访问www.firma.org", "a.b@firma.org"),
        ("或" * 70 + "{}", "abc@firma.org"),
        ("an {}!", "me@उदाहरण.भारत"),
        ("({})", "x@firma.xn--p1ai"),
    ],
)
def test_what_stands_close_to_an_address_stays(text, masked):
    assert mask(text.format(masked)) == (text.format("email@example.com"), {"email": 1})


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "IP:93.184.216.34",
        "8.8.4.4-8.8.8.8",
        "::ffff:8.8.8.8",
        "2606:4700:4700::1111",
        "IP:2a00:1450:4001:81b::",
    ],
)
def test_public_ip_addresses_are_masked(address):
    text, counts = mask(f"from {address}, and")
    assert not any(part in text for part in address.removeprefix("IP:").split("-"))
    assert counts == {"ip": 1 + ("-" in address)}
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
        "version 1.2.3.4, Version: 4.5.6.7, версия 4.5.6.7, バージョン4.5.6.7, §4.1.2.3",
        "a::b, dead::beef, 00:1b:44:11:3a:b7",
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
