"""aiaas.proxy.probes: reading a backend's list of models. The rest is tested in a server's life (test_server.py)."""

import pytest

from aiaas.proxy.probes import listed_models


def test_the_ids_of_a_list_of_models() -> None:
    """As vLLM writes it."""
    assert listed_models(b'{"object":"list","data":[{"id":"a","root":"/x"},{"id":"b"}]}') == {"a", "b"}
    assert listed_models(b'{"data":[]}') == set()


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b"{}", b'{"data":1}', b'{"data":[1]}', b'{"data":[{}]}', b'{"data":null}', b'"\xff"',
     b"[" * 100_000],
    ids=["empty", "html", "list", "no data", "number", "numbers", "no id", "null", "not UTF-8", "deep"],
)  # fmt: skip
def test_what_is_no_list_of_models_is_none(body: bytes) -> None:
    """A backend that says nonsense there is no reason to fail."""
    assert listed_models(body) is None
