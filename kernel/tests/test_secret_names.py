"""Names that hold secrets, names that do not, and that none of the former is passed over in a query."""

from __future__ import annotations

import re
import time

import pytest

from stellane.recovery.redact import Redactor
from stellane.recovery.secret_names import HINT, is_secret_name


def _words(text: str) -> list[str]:
    return text.split()


SECRET = _words("""
x-session-id session sessionid sessionId SESSION_ID jsessionid PHPSESSID x-session x-session-key
x-amz-credential X-Amz-Credential x-goog-credential credentials
x-jwt-assertion x-goog-iap-jwt-assertion jwt id_jwt jwtAssertion client_assertion clientAssertion assertion
X-Amz-Signature x-goog-signature signature Signature sig sessionSig x-hub-signature-256 signature-input
X-Amz-Security-Token token access_token accessToken refreshtoken csrfmiddlewaretoken device_tokens x-csrf x-xsrf-token
client-secret clientSecret secret secrets x-secret-key
password Password db-password passwd user_passwd newPassword PassWord passwordConfirm passphrase pwd db_pass pass
api-key api_key apikey apiKey x-api-keys x-access-key AWSAccessKeyId accessKey ocp-apim-subscription-key x-functions-key
private_key authkey x-auth auth basicAuth bearer x-github-otp otp SAMLResponse
input_access_token max_session_token output_refresh_token total_auth_token prompt-token limit_token input_csrf_token
""")

INNOCENT = _words("""
host accept accept-language content-type content-length user-agent date etag if-match range origin via forwarded
traceparent tracestate baggage x-request-id x-correlation-id idempotency-key x-idempotency-key prefer x-forwarded-for
sec-fetch-mode sec-websocket-key sec-ch-ua x-cache-key cache_key sortKey partition-key primary_key public-key keyword
monkey keyboard author authority x-author x-auth-request-email design designer assignee signal signed signin sigma
X-Amz-Date X-Amz-Algorithm X-Amz-Expires X-Amz-SignedHeaders obsession sessions possession insertion assertions
compass bypass passenger passport pass-through secretary x-secretariat tokenizer tokenize max_tokens maxTokens
max_completion_tokens x-ratelimit-remaining-tokens x-ratelimit-limit-tokens token_count token-type options robot photo
page q id name credentialing accredited desktop
""")


@pytest.mark.parametrize("name", SECRET)
def test_these_hold_secrets(name: str) -> None:
    """As they are, and in the lower case in which header fields come where their words are parted."""
    assert is_secret_name(name.encode())
    assert Redactor(bytes(32)).target(b"/p?a=1&%b=x" % name.encode())[0] == b"/p?a=1&%b=redacted" % name.encode()


@pytest.mark.parametrize("name", INNOCENT)
def test_these_do_not(name: str) -> None:
    """A replay needs them."""
    assert not is_secret_name(name.encode())
    assert Redactor(bytes(32)).headers([(name.lower().encode(), b"x")])[1] == []


@pytest.mark.parametrize("name", SECRET)
def test_the_first_look_at_a_query_passes_over_none(name: str) -> None:
    """HINT only saves taking a query apart."""
    assert re.search(HINT, name.encode(), re.IGNORECASE)


@pytest.mark.parametrize("part", [b"max", b"maxa-", b"a", b"aA", b"token-", b"tokeni", b"sess-"])
def test_a_name_of_any_length_is_judged_in_time_that_grows_with_it(part: bytes) -> None:
    """Strangers choose names: ten times the length must not take a hundred times as long."""

    def took_s(repetitions: int) -> float:
        begun = time.thread_time()
        is_secret_name(part * repetitions)
        return time.thread_time() - begun

    short_s = min(took_s(2_000) for _ in range(3))
    assert min(took_s(20_000) for _ in range(3)) < 40 * max(short_s, 0.0005)
