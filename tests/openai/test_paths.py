"""The allow-list."""

from __future__ import annotations

import pytest

from aiaas.openai import paths


def test_nothing_but_the_contracts_paths_is_forwarded() -> None:
    """These paths, and no more."""
    assert set(paths.GENERATE) == {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/embeddings",
        "/v2/embed",
        "/v1/score",
        "/score",
        "/v1/rerank",
        "/rerank",
        "/v2/rerank",
        "/classify",
        "/pooling",
        "/tokenize",
        "/detokenize",
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
    }


def test_every_path_that_generates_has_a_field_for_its_bound() -> None:
    """A bound can be spliced in wherever output is reserved."""
    assert set(paths.OUTPUT_FIELD) == paths.OUTPUT


def test_each_group_is_within_the_allow_list() -> None:
    """No rule for a path that is not served."""
    groups = (paths.OUTPUT, paths.CHEAP, paths.USAGE_ON_REQUEST, paths.MANY_PROMPTS, paths.MANY_CHOICES)
    for group in (*groups, paths.ANTHROPIC, paths.UPLOADS):
        assert group <= set(paths.GENERATE)


def test_paths_that_only_begin_alike_are_others() -> None:
    """`/v1/modelsx` is not a model."""
    assert paths.is_models_path("/v1/models")
    assert not paths.is_models_path("/v1/modelsx")


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/chat/completions", "/v1/chat/completions"),
        ("/models", "/v1/models"),
        ("/models/a/b", "/v1/models/a/b"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/chat/completions", None),
        ("/tokenize", None),
        ("/v1/tokenize", None),
        ("/embed", None),
        ("/", None),
        ("*", None),
    ],
)
def test_base_url_without_or_with_two_v1_is_recognised(path: str, meant: str | None) -> None:
    """Only where the path that was meant is served."""
    assert paths.meant(path) == meant
