"""The fields of an object one by one, repeated ones included."""

from __future__ import annotations

import pytest

from aiaas.errors import ClientError
from aiaas.openai.toplevel import MAX_FIELDS, may_hide_keys, top_level


def test_repeated_fields_are_kept_in_order() -> None:
    """Every field comes out, its name without escapes, its value as it stands."""
    body = b' { "n" : 1 ,"mod\\u0065l":"a", "n": [ 2, {"n": 3} ] } '
    assert [(name, bytes(memoryview(value))) for name, value in top_level(body)] == [
        ("n", b"1"),
        ("model", b'"a"'),
        ("n", b'[ 2, {"n": 3} ]'),
    ]


def test_the_number_of_fields_is_bounded() -> None:
    """One more than MAX_FIELDS is refused, MAX_FIELDS are not."""
    fields = [b'"x": %d' % number for number in range(MAX_FIELDS + 1)]
    assert len(top_level(b"{" + b",".join(fields[1:]) + b"}")) == MAX_FIELDS
    with pytest.raises(ClientError) as caught:
        top_level(b"{" + b",".join(fields) + b"}")
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("body", "hidden"),
    [
        (b'{"mod\\u0065l": 1}', True),
        (b'{"max\\u005Ftokens": 1}', True),
        (b'{"max\\u005ftokens": 1}', True),
        (b'{"\\u006d": 1}', True),
        (b'{"\\u007A": 1}', True),
        (b'{"text": "a\\u003cb\\u00e9\\n"}', False),
        (b'{"model": "a"}', False),
    ],
)
def test_only_escaped_letters_can_hide_a_key(body: bytes, hidden: bool) -> None:
    """Characters that Go and Python escape of themselves cost nothing."""
    assert may_hide_keys(body) is hidden
