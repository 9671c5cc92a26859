"""Where webhooks may go, and where they must never get to."""

from __future__ import annotations

import base64
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.errors import InvalidRequest
from app.webhooks.addresses import Refused, addresses_of, is_allowed, is_public
from app.webhooks.allow_list import AllowList
from app.webhooks.courier import Courier
from app.webhooks.policy import WebhookPolicy

SECRET = "whsec_" + base64.b64encode(bytes(32)).decode()
ANY = AllowList(("http://*",))

NASTY = [
    # nothing a webhook can be sent to
    "",
    "hooks.example.com",
    "//hooks.example.com/",
    "/etc/passwd",
    "https:",
    "https://",
    "https:///path",
    "https:hooks.example.com",
    "https://:443/",
    "https://?x",
    "file:///etc/passwd",
    "ftp://hooks.example.com/",
    "gopher://hooks.example.com/",
    "ws://hooks.example.com/",
    "javascript:alert(1)",
    "https://[hooks.example.com]/",
    "https://" + "a" * 2048 + ".com/",
    "https://hooks.example.com/" + "a" * 2048,
    # names that are not names
    "https://hooks..example.com/",
    "https://-hooks.example.com/",
    "https://hooks.example-.com/",
    "https://hooks.example.com../",
    "https://.example.com/",
    "https://hooks%2eexample.com/",
    "https://hooks%00.example.com/",
    "https://hooks,example.com/",
    "https://*.example.com/",
    "https://" + "a" * 64 + ".example.com/",
    "https://" + "a." * 127 + "com/",
    "https://ⓔxample.com/",
    "https://exa\u00admple.com/",
    "https://exa\u200bmple.com/",
    "https://exam\u202eple.com/",
    # what parsers disagree on
    "https://user@hooks.example.com/",
    "https://user:word@hooks.example.com/",
    "https://@hooks.example.com/",
    "https://hooks.example.com@127.0.0.1/",
    "https://127.0.0.1\\@hooks.example.com/",
    "https://hooks.example.com\\.evil.example/",
    "https://hooks.example.com/\\evil",
    "https://hooks.example.com:443@127.0.0.1/",
    "https://hooks.example.com /",
    " https://hooks.example.com/",
    "https://hooks.example.com/a b",
    "https://hooks.example.com/\r\nHost: evil",
    "https://hooks.example.com/\tx",
    "https://hooks.example.com/\x00",
    "https://hooks.example.com/\x85",
    "https://hooks.example.com/\u2028",
    "https://hooks.example.com/\u202etxt",
    "https://hooks.example.com/#fragment",
    "https://hooks.example.com#@127.0.0.1/",
    # ports
    "https://hooks.example.com:0/",
    "https://hooks.example.com:65536/",
    "https://hooks.example.com:-1/",
    "https://hooks.example.com:https/",
    "https://hooks.example.com:443:80/",
    # addresses in disguise
    "https://2130706433/",
    "https://0x7f000001/",
    "https://0x7f.0.0.1/",
    "https://127.0.0.0x1/",
    "https://017700000001/",
    "https://0177.0.0.1/",
    "https://127.1/",
    "https://127.0.1/",
    "https://8.8.8.8./",
    "https://256.1.1.1/",
    "https://1.1.1.1.1/",
    "https://１２７.0.0.1/",
    "https://127。0。0。1/",
    "https://[::1%25lo]/",
    "https://[fe80::1%25eth0]/",
    "https://[2606:4700::1111%25eth0]/",
    "https://[::1]evil/",
    "https://[::1/",
    # addresses and names that lead inside
    "http://127.0.0.1/",
    "http://127.8.9.10:8080/",
    "http://0.0.0.0/",
    "http://0/",
    "http://10.0.0.5/",
    "http://172.31.255.255/",
    "http://192.168.1.1/",
    "http://169.254.169.254/latest/meta-data/",
    "http://100.64.0.1/",
    "http://100.100.100.200/",
    "http://168.63.129.16/",
    "http://192.0.0.192/",
    "http://192.88.99.1/",
    "http://198.18.0.1/",
    "http://203.0.113.9/",
    "http://224.0.0.1/",
    "http://240.0.0.1/",
    "http://255.255.255.255/",
    "http://[::]/",
    "http://[::1]/",
    "http://[::127.0.0.1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:169.254.169.254]/",
    "http://[::ffff:8.8.8.8]/",
    "http://[0:0:0:0:0:ffff:7f00:1]/",
    "http://[64:ff9b::127.0.0.1]/",
    "http://[64:ff9b::a9fe:a9fe]/",
    "http://[64:ff9b:1::808:808]/",
    "http://[2002:7f00:1::]/",
    "http://[2002:808:808::]/",
    "http://[2001::1]/",
    "http://[2001:0:808:808::]/",
    "http://[2001:db8::1]/",
    "http://[3fff::1]/",
    "http://[5f00::1]/",
    "http://[100::1]/",
    "http://[fe80::1]/",
    "http://[fec0::1]/",
    "http://[fc00::1]/",
    "http://[fd00:ec2::254]/",
    "http://[ff02::1]/",
    "http://[ff0e::1]/",
    "http://localhost/",
    "http://LOCALHOST./",
    "http://metadata/",
    "http://metadata.google.internal/",
    "http://printer.local/",
    "http://a.localhost/",
]


@pytest.mark.parametrize("url", NASTY)
def test_what_can_be_seen_at_once_is_refused_at_once(url: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ANY.read(url)
    assert caught.value.param == "webhook"
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("url", "host", "port", "path"),
    [
        ("https://hooks.example.com", "hooks.example.com", 443, "/"),
        ("HTTPS://Hooks.Example.COM./a/../b?q=1", "hooks.example.com", 443, "/b?q=1"),
        ("https://hooks.example.com:8443/é?q=ü", "hooks.example.com", 8443, "/%C3%A9?q=%C3%BC"),
        ("https://hooks.example.com?to=me@there", "hooks.example.com", 443, "/?to=me@there"),
        ("https://bücher.example/", "xn--bcher-kva.example", 443, "/"),
        ("https://faß.example/", "xn--fa-hia.example", 443, "/"),
        ("https://_under_score.example.com/", "_under_score.example.com", 443, "/"),
        ("http://8.8.8.8:80/", "8.8.8.8", 80, "/"),
        ("https://[2606:4700:0::1111]:1/", "2606:4700::1111", 1, "/"),
    ],
)
def test_good_urls_are_read(url: str, host: str, port: int, path: str) -> None:
    target = ANY.read(url)
    assert (target.host, target.port, target.path) == (host, port, path)
    assert not target.inside


@settings(deadline=None)
@given(st.text("ab.:/\\@%[]#?é1*, ", max_size=20).map("https://a{}".format) | st.text())
def test_no_text_is_read_into_something_else(text: str) -> None:
    """What comes out is a plain name or address, and the sender's parser sees the same in it."""
    try:
        target = ANY.read(text)
    except InvalidRequest:
        return
    assert target.host.isascii()
    assert not set(target.host) & set("/\\?#@%[] ")
    again = httpx.URL(f"{target.scheme}://{target.authority}{target.path}")
    assert again.raw_host.decode() == target.host
    assert again.raw_path.decode() == target.path


# -- the operator's list ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "allowed", "refused"),
    [
        (
            "hooks.example.com",
            ["https://hooks.example.com/", "https://HOOKS.example.com.:8443/"],
            [
                "http://hooks.example.com/",
                "https://example.com/",
                "https://a.hooks.example.com/",
                "https://evilhooks.example.com/",
                "https://hooks.example.com.evil.example/",
            ],
        ),
        (
            "*.example.com",
            ["https://a.example.com/", "https://b.a.example.com:1/"],
            ["https://example.com/", "https://evilexample.com/", "https://example.com.evil.org/"],
        ),
        ("*.example.com:8443", ["https://a.example.com:8443/"], ["https://a.example.com/"]),
        (
            "http://hooks.example.com",
            ["http://hooks.example.com/", "https://hooks.example.com/"],
            [],
        ),
        ("*", ["https://anything.example/", "https://8.8.8.8/"], ["http://anything.example/"]),
        (
            "http://127.0.0.1:9000",
            ["http://127.0.0.1:9000/", "https://127.0.0.1:9000/"],
            ["http://127.0.0.1/", "http://127.0.0.1:9001/", "http://127.0.0.2:9000/"],
        ),
        ("127.0.0.1:9000", ["https://127.0.0.1:9000/"], ["http://127.0.0.1:9000/"]),
        ("[fd00::5]", ["https://[fd00:0::5]/"], ["https://[fd00::6]/"]),
        ("localhost:9000", ["https://localhost:9000/"], ["https://localhost/"]),
        ("hooks.internal", ["https://hooks.internal:1/"], ["https://other.internal/"]),
        ("*.corp.internal", ["https://a.corp.internal/"], ["https://a.internal/"]),
        ("Bücher.example", ["https://xn--bcher-kva.example/"], ["https://bucher.example/"]),
        ("169.254.169.254:80", [], ["https://169.254.169.254:80/"]),
        ("0.0.0.0:80", [], ["https://0.0.0.0:80/"]),
        ("[fd00:ec2::254]:80", [], ["https://[fd00:ec2::254]:80/"]),
    ],
)
def test_an_entry_allows_what_it_says(entry: str, allowed: list[str], refused: list[str]) -> None:
    entries = AllowList((entry,))
    for url in allowed:
        entries.read(url)
    for url in refused:
        with pytest.raises(InvalidRequest):
            entries.read(url)


@pytest.mark.parametrize(
    ("entries", "url", "inside"),
    [
        (("*",), "https://hooks.example.com/", False),
        (("hooks.example.com",), "https://hooks.example.com/", False),
        (("hooks.example.com:443",), "https://hooks.example.com/", True),
        (("*.example.com:443",), "https://hooks.example.com/", False),
        (("*.com",), "https://example.com/", False),
        (("*", "hooks.example.com:443"), "https://hooks.example.com/", True),
        (("http://*", "hooks.example.com:80"), "http://hooks.example.com/", False),
        (("hooks.internal",), "https://hooks.internal/", True),
        (("hooks",), "https://hooks/", True),
        (("*.corp.internal",), "https://hooks.corp.internal/", True),
        (("10.1.2.3",), "https://10.1.2.3/", True),
    ],
)
def test_only_entries_that_can_mean_nothing_else_lead_inside(
    entries: tuple[str, ...], url: str, inside: bool
) -> None:
    assert AllowList(entries).read(url).inside is inside


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "https://",
        "ftp://hooks.example.com",
        "https://hooks.example.com/path",
        "user@hooks.example.com",
        "hooks.example.com:0",
        "hooks.example.com:65536",
        "hooks.example.com:",
        "*example.com",
        "a.*.example.com",
        "**",
        "*.",
        "*.*",
        "*.0.0.1",
        "*.10.0.0.1",
        "::1",
        "[::1",
        "127.1",
        "0x7f000001",
        "hooks example",
        "10.0.0.0/8",
    ],
)
def test_an_entry_that_says_nothing_stops_the_server(entry: str) -> None:
    with pytest.raises(ValueError, match="webhook_hosts"):
        WebhookPolicy(hosts=(entry,), secret=SECRET)


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "hunter2hunter2hunter2hunter2hunter2",
        "whsec_",
        "whsec_!!!!",
        "whsec_" + base64.b64encode(bytes(23)).decode(),
        "whsec_" + base64.b64encode(bytes(65)).decode(),
        SECRET + " other",
        SECRET.removeprefix("whsec_"),
    ],
)
def test_without_a_good_secret_nothing_is_sent(secret: str) -> None:
    with pytest.raises(ValueError, match="webhook_secret") as caught:
        WebhookPolicy(hosts=("*",), secret=secret)
    assert "hunter2" not in str(caught.value)


def test_the_secret_is_not_shown() -> None:
    assert SECRET[6:] not in repr(WebhookPolicy(hosts=("*",), secret=SECRET))


# -- addresses -------------------------------------------------------------------------------------

PUBLIC = ["1.1.1.1", "8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "64:ff9b::808:808"]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(ip_address(address))


@settings(deadline=None)
@given(st.ip_addresses(v=4))
def test_an_ipv4_address_in_ipv6_clothes_is_no_more_public(address: IPv4Address) -> None:
    number = int(address)
    for clothed in (
        number,
        0xFFFF << 32 | number,
        0x0064FF9B << 96 | number,
        0x2002 << 112 | number << 80,
        0x20010000 << 96 | number << 64,
        0x20010000 << 96 | number ^ 0xFFFFFFFF,
    ):
        assert not is_public(IPv6Address(clothed)) or is_public(address)
        if not is_allowed(address, inside=True) and clothed > 1:
            assert not is_allowed(IPv6Address(clothed), inside=True)


@settings(deadline=None)
@given(st.ip_addresses())
def test_what_python_knows_to_be_private_is_not_public(address: IPv4Address | IPv6Address) -> None:
    if address.is_private or address.is_multicast or address.is_reserved:
        assert not is_public(address) or address in IPv6Network("64:ff9b::/96")


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("127.0.0.1", True),
        ("10.0.0.1", True),
        ("::1", True),
        ("fd12::1", True),
        ("::ffff:10.0.0.1", True),
        ("0.0.0.0", False),
        ("169.254.169.254", False),
        ("::ffff:169.254.169.254", False),
        ("::169.254.169.254", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("2002:a9fe:a9fe::", False),
        ("100.100.100.200", False),
        ("fd00:ec2::254", False),
        ("fe80::1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
    ],
)
def test_even_inside_some_addresses_are_out_of_bounds(address: str, allowed: bool) -> None:
    assert is_allowed(ip_address(address), inside=True) is allowed


class Names:
    """A resolver that gives one answer after the other."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked += 1
        return self.answers.pop(0)


@pytest.mark.parametrize(
    "answer", [["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["8.8.8.8", "::1"], ["fe80::1%eth0"]]
)
async def test_a_name_with_one_bad_address_is_refused(answer: list[str]) -> None:
    with pytest.raises(Refused):
        await addresses_of("a.example", 443, inside=False, resolve=Names(answer))


async def test_a_name_without_addresses_is_not_known() -> None:
    with pytest.raises(OSError, match="no address"):
        await addresses_of("a.example", 443, inside=False, resolve=Names([]))


async def test_a_name_that_changes_after_the_check_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The connection goes to the address that was checked; each further attempt checks anew."""
    sent: list[httpx.Request] = []

    async def handle(_: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(503)

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", handle)
    names = Names(["8.8.8.8"], ["127.0.0.1"], ["2606:4700::1111"])
    courier = Courier(WebhookPolicy(hosts=("*",), secret=SECRET), lambda: 0.0, names)
    target = AllowList(("*",)).read("https://rebind.example:8443/x?y")
    outcomes = [await courier.deliver(target, "id", b"{}") for _ in range(3)]
    await courier.close()
    assert names.asked == 3
    assert [outcome.again for outcome in outcomes] == [True, False, True]
    assert [str(request.url) for request in sent] == [
        "https://8.8.8.8:8443/x?y",
        "https://[2606:4700::1111]:8443/x?y",
    ]
    assert {request.headers["host"] for request in sent} == {"rebind.example:8443"}
    assert {request.extensions["sni_hostname"] for request in sent} == {"rebind.example"}
