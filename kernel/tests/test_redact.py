"""Secrets do not reach the journal; everything else does."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from stellane.recovery.journal import Journal
from stellane.recovery.redact import TAG_BYTES, Redactor
from stellane.testing.journal_records import make_request
from stellane.testing.plain_journal import PlainJournal

KEY = bytes(range(32))


@pytest.mark.parametrize(
    "name",
    [
        b"authorization",
        b"proxy-authorization",
        b"cookie",
        b"set-cookie",
        b"x-api-key",
        b"x-auth-token",
        b"x-csrf-token",
        b"my-token-header",
        b"client-secret",
        b"db-password",
        b"apikey",
        b"x-api_key",
        b"X-Api-Key",
        b"x-internal",
    ],
)
def test_secret_fields_are_taken_out(name: bytes) -> None:
    """The field goes, its name and tag stay; other fields keep their order."""
    redactor = Redactor(KEY, ["X-Internal"])
    headers = [(b"host", b"h"), (name, b"value"), (b"accept", b"*/*")]
    kept, taken = redactor.headers(headers)
    assert kept == [(b"host", b"h"), (b"accept", b"*/*")]
    assert [(found, len(tag)) for found, tag in taken] == [(name.lower().decode(), TAG_BYTES)]


@pytest.mark.parametrize("name", [b"idempotency-key", b"traceparent", b"content-type", b"x-request-id", b"host"])
def test_ordinary_fields_are_kept(name: bytes) -> None:
    """What a replay needs is there, the very same list."""
    headers = [(name, b"value")]
    assert Redactor(KEY).headers(headers) == (headers, [])


@pytest.mark.parametrize(
    ("target", "expected", "names"),
    [
        (b"/p", b"/p", []),
        (b"/p?a=1&b=2", b"/p?a=1&b=2", []),
        (b"/p?token=abc", b"/p?token=redacted", ["?token"]),
        (b"/p?a=1&access_token=abc&b=2", b"/p?a=1&access_token=redacted&b=2", ["?access_token"]),
        (b"/p?%74oken=abc", b"/p?%74oken=redacted", ["?token"]),
        (b"/p?PassWord=a;b=2", b"/p?PassWord=redacted;b=2", ["?PassWord"]),
        (b"/p?api_key=a&api-key=b", b"/p?api_key=redacted&api-key=redacted", ["?api_key", "?api-key"]),
        (b"/p?a=%41", b"/p?a=%41", []),
        (b"/p?Authorization=abc", b"/p?Authorization=redacted", ["?Authorization"]),
        (b"/p?cookie=a&x=1", b"/p?cookie=redacted&x=1", ["?cookie"]),
        (b"/p?x-own=abc", b"/p?x-own=redacted", ["?x-own"]),
        (b"/token/abc", b"/token/abc", []),
        (b"http://user:pw@host/p?a=1", b"http://host/p?a=1", ["user info"]),
        (b"/users/me@example.org", b"/users/me@example.org", []),
    ],
)
def test_targets(target: bytes, expected: bytes, names: list[str]) -> None:
    """Secret query parameters are replaced, by their decoded name; the rest is untouched."""
    clean, taken = Redactor(KEY, ["X-Own"]).target(target)
    assert clean == expected
    assert [name for name, _ in taken] == names


def test_a_referer_is_cleaned_as_well() -> None:
    """The page before may have had a token in its address."""
    kept, taken = Redactor(KEY).headers([(b"referer", b"https://site/cb?token=abc&x=1")])
    assert kept == [(b"referer", b"https://site/cb?token=redacted&x=1")]
    assert [name for name, _ in taken] == ["referer ?token"]


def test_tags_tell_principals_apart_without_the_credential() -> None:
    """Equal for equal credentials, different for others, and under another key."""
    one, other = Redactor(KEY), Redactor(bytes(32))
    assert one.tag(b"authorization", b"a") == one.tag(b"authorization", b"a")
    tags = {one.tag(b"authorization", b"a"), one.tag(b"authorization", b"b"), one.tag(b"cookie", b"a")}
    tags.add(other.tag(b"authorization", b"a"))
    assert len(tags) == 4


def test_the_name_cache_is_bounded() -> None:
    """Strangers choose header names; deciding stays right when the cache is full."""
    redactor = Redactor(KEY)
    for number in range(3000):
        redactor.headers([(b"x-%d" % number, b"v")])
    assert len(redactor._decisions) <= 1025
    assert redactor.headers([(b"x-late-token", b"v")])[0] == []
    assert redactor.headers([(b"x-late", b"v")])[1] == []


def test_no_canary_is_found_in_the_files(tmp_path: Path) -> None:
    """A thousand planted secrets, then every byte of the journal's files is searched for them."""
    engine = PlainJournal()
    journal = Journal.open(tmp_path / "w0", engine_name="plain", engine=engine, redact_headers=["x-tenant"])
    redactor = journal.redactor()
    canaries = []
    for number in range(125):
        planted = [f"canary{secrets.token_hex(12)}".encode() for _ in range(8)]
        canaries += planted
        request = make_request(number, body=b"an ordinary body")
        request.headers, taken = redactor.headers(
            [
                *request.headers,
                (b"authorization", b"Bearer " + planted[0]),
                (b"cookie", b"sid=" + planted[1]),
                (b"x-session-token", planted[2]),
                (b"x-tenant", planted[3]),
                (b"referer", b"http://a/?password=" + planted[4]),
            ]
        )
        target = b"/p?n=1&api_key=" + planted[5] + b"&%73ecret=" + planted[6] + b"&token=" + planted[7]
        request.target, more = redactor.target(target)
        request.redacted = taken + more
        journal.done(journal.begin(request), 200, delivered=True)
    journal.snapshot()
    journal.close()
    content = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert b"an ordinary body" not in content, "the snapshot dropped what is done"
    assert len(canaries) == 1000
    assert [canary for canary in canaries if canary in content] == []


def test_canaries_would_be_found(tmp_path: Path) -> None:
    """The search above can fail: without the redactor the secret is in the file."""
    journal = Journal.open(tmp_path / "w0", engine_name="plain", engine=PlainJournal())
    request = make_request(1)
    request.headers = [(b"authorization", b"canary")]
    journal.begin(request)
    journal.close()
    assert b"canary" in b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
