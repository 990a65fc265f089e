"""Which header fields and query parameters hold a secret, by the words in their names.

A name that is taken for one in error costs a replay that value; one that is missed puts a credential on the disk. So
the telling words count wherever they stand, also inside a longer word where no other word has them, and the short ones
only as words of their own.
"""

from __future__ import annotations

import re

_SECRET = re.compile(
    rb"token|secret|passw(?:or)?d|api[-_]?key"
    # a session's name is as good as its cookie, but how many there are is no secret
    rb"|(?<![a-z])session(?![a-z])|sess(?:ion)?[-_]?(?:id|key)(?![a-z])"
    # what proves an identity, and what signs an address (X-Amz-Signature, sig) or a body for whoever holds it
    rb"|jwt|assertion(?![a-z])|credentials?(?![a-z])|signature(?![a-z])|saml(?:response|art)(?![a-z])|[cx]srf"
    rb"|(?:access|account|auth|functions|master|private|shared|signing|subscription)[-_]?key(?![a-z])"
    rb"|(?<![a-z])(?:sig|otp|pwd|bearer|passphrase|passcode)(?![a-z])"
    rb"|(?<![a-z])(?:auth|pass)\Z"
)
_INNOCENT = re.compile(
    rb"tokeni[sz]|secretar(?:y|ies|iat)"
    rb"|(?<![a-z])(?:max|min|num)[-_]?token(?![a-z])"
    rb"|(?<![a-z])(?:max|min|num|limit|remaining|total|prompt|completion|input|output)[-_]?"
    rb"(?:(?:new|cached|reasoning|output|input|completion|prompt)[-_])?tokens(?![a-z])"
    rb"|(?<![a-z])tokens?[-_](?:count|limit|type)(?![a-z])"
)
_CAMEL = re.compile(rb"(?<=[a-z0-9])(?=[A-Z])")

HINT = rb"token|secret|pass|pwd|key|sess|jwt|assertion|credential|sig|saml|srf|otp|bearer|auth"
"""Matches, ignoring case, wherever a name is that `is_secret_name` takes for one, and in other places."""


def is_secret_name(name: bytes) -> bool:
    """Whether a field or parameter of this name, in any case, holds a secret."""
    # sessionSig has two words, and PassWord one.
    return _tells(name.lower()) or _tells(_CAMEL.sub(b"-", name).lower())


def _tells(words: bytes) -> bool:
    return _SECRET.search(_INNOCENT.sub(b" ", words)) is not None
