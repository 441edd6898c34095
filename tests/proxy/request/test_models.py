"""aiaas.proxy.request.models: ids in paths, and lists that are prepared once. The content of the answers is tested over
the wire in test_gateway.py."""

import json
from collections.abc import Mapping, Sequence

import pytest

from aiaas.errors import ClientError
from aiaas.keys.model import NO_LIMITS, Principal
from aiaas.openai import paths
from aiaas.plan.model import PublicModel
from aiaas.proxy.request import models
from aiaas.proxy.request.models import ModelLists, model_id, model_not_found
from aiaas.proxy.request.served_models import Listed, ServedModel

ANYONE = Principal("k", "alice", None, NO_LIMITS)
NOTHING: Mapping[str, Sequence[Listed]] = {"b": [{}]}


def lists(*names: str) -> ModelLists:
    """Models of one backend."""
    return ModelLists([PublicModel(name, "b", None) for name in names])


def names(body: bytes) -> list[str]:
    """The ids in a list."""
    return [entry["id"] for entry in json.loads(body)["data"]]


def test_a_list_is_prepared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For every key and every request, until a backend lists something else."""
    prepared: list[str] = []
    entry = models._entry
    monkeypatch.setattr(models, "_entry", lambda model, listed: prepared.append(model.name) or entry(model, listed))
    answers, member = lists("a", "b", "c"), Principal("k", "bob", frozenset({"c", "a", "other"}), NO_LIMITS)
    for _ in range(3):
        assert names(answers.body(ANYONE, paths.MODELS, {"b": [{}]})) == ["a", "b", "c"]
        assert names(answers.body(member, paths.MODELS, {"b": [{}]})) == ["a", "c"]
        answers.body(ANYONE, f"{paths.MODELS}/b", {"b": [{}]})
    assert prepared == ["a", "b", "c"]


def test_a_list_follows_what_its_backend_lists() -> None:
    """The context length is there as soon as the backend has told it."""
    answers = lists("a")
    assert "max_model_len" not in json.loads(answers.body(ANYONE, f"{paths.MODELS}/a", NOTHING))
    told = {"b": [{"a": ServedModel("a", max_model_len=4096)}]}
    assert json.loads(answers.body(ANYONE, f"{paths.MODELS}/a", told))["max_model_len"] == 4096
    assert json.loads(answers.body(ANYONE, paths.MODELS, told))["data"][0]["max_model_len"] == 4096


def test_no_model_is_an_empty_list() -> None:
    """Also for a key whose models are all gone."""
    assert json.loads(lists().body(ANYONE, paths.MODELS, NOTHING)) == {"object": "list", "data": []}
    member = Principal("k", "bob", frozenset({"gone"}), NO_LIMITS)
    assert json.loads(lists("a").body(member, paths.MODELS, NOTHING)) == {"object": "list", "data": []}


@pytest.mark.parametrize("name", ["gone", "b"])
def test_a_model_of_others_does_not_exist(name: str) -> None:
    """One answer for an unknown model and for one that the key may not use."""
    with pytest.raises(ClientError, match=f"`{name}` does not exist"):
        lists("a", "b").body(Principal("k", "bob", frozenset({"a"}), NO_LIMITS), f"{paths.MODELS}/{name}", NOTHING)


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/v1/models/m", "m"),
        ("/v1/models/org/m", "org/m"),
        ("/v1/models/org%2Fm", "org/m"),
        ("/v1/models/", ""),
        ("/v1/models/%ff", "�"),
        ("/v1/models/a+b", "a+b"),
    ],
)
def test_an_id_may_have_slashes_sent_as_they_are_or_escaped(path: str, wanted: str) -> None:
    """A plus is a plus: a path is not form-encoded."""
    assert paths.is_models_path(path)
    assert model_id(path) == wanted


def test_a_long_or_odd_name_is_shown_in_part() -> None:
    """An error message is for a person, and must be encodable."""
    assert len(model_not_found("x" * 10_000).message) < 200
    model_not_found("\udcff").message.encode()
