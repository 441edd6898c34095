"""The verdicts on single answers: passes, failures, and the suspect that a hint names."""

from __future__ import annotations

import json

import pytest

from aiaas.openai.usage import TokenUsage
from aiaas.smoke.judge import (
    hint_for,
    judge_completion,
    judge_hidden,
    judge_ids,
    judge_models,
    judge_ready,
    judge_redirect,
    judge_refusal,
    judge_status,
    says,
    usage_in,
)
from aiaas.smoke.result import Seen, Verdict

JSON = {"content-type": "application/json"}
HTML = Seen(404, {"content-type": "text/html"}, b"<html>", "http_404", "html", "text/html: 404 Not Found")


def error(status: int, code: str | int | None, **headers: str) -> Seen:
    """An error in OpenAI's form."""
    body = {"error": {"message": "No.", "type": "t", "param": None, "code": code}}
    return Seen(status, {**JSON, **headers}, json.dumps(body).encode(), f"http_{status}", "", "No.")


def ok(body: object, **headers: str) -> Seen:
    """A 200 of JSON."""
    return Seen(200, {**JSON, **headers}, json.dumps(body).encode())


REFUSED = error(401, "missing_api_key", **{"www-authenticate": 'Bearer realm="x"'})
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
MODELS = ok({"object": "list", "data": [{"id": "m"}, {"id": "n"}]})


@pytest.mark.parametrize(
    "verdict",
    [
        pytest.param(judge_status(Seen(200), 200, ""), id="status"),
        pytest.param(judge_ready(Seen(200)), id="ready"),
        pytest.param(judge_refusal(REFUSED, 401, "missing_api_key", "", challenge=True), id="refusal"),
        pytest.param(judge_hidden(HTML), id="hidden metrics"),
        pytest.param(judge_models(MODELS, None, has_key=True), id="models"),
        pytest.param(judge_models(MODELS, "n", has_key=True), id="the model in the list"),
        pytest.param(judge_completion(ok({"choices": [{}], "usage": USAGE}), 2), id="completion"),
        pytest.param(judge_ids([Seen(200, {"x-request-id": name}) for name in "ab"]), id="ids"),
        pytest.param(judge_redirect(Seen(308, {"location": "https://h/health"}), "h", 80), id="redirect"),
    ],
)
def test_a_right_answer_passes(verdict: Verdict) -> None:
    """And without a hint."""
    assert verdict.held
    assert verdict.hint == ""


@pytest.mark.parametrize(
    ("verdict", "seen", "hint"),
    [
        pytest.param(
            judge_status(HTML, 200, ""), "404: text/html", "an HTML page comes from the ingress", id="ingress"
        ),
        pytest.param(judge_status(Seen(502), 200, ""), "502 with no", "reaches no gateway", id="Traefik's 502"),
        pytest.param(
            judge_status(Seen(503, {"content-type": "text/plain"}), 200, ""), "503", "no gateway pod", id="Envoy's 503"
        ),
        pytest.param(judge_ready(Seen(503, JSON, b"{}")), "503 with application/json", "draining", id="ready"),
        pytest.param(judge_ready(error(503, None)), "503: No.", "draining", id="draining"),
        pytest.param(
            judge_refusal(error(401, "missing_api_key"), 401, "missing_api_key", "", challenge=True),
            "without WWW-Authenticate",
            "removes the header",
            id="no challenge",
        ),
        pytest.param(judge_refusal(error(401, 401), 401, "missing_api_key", "else"), "401: No.", "else", id="code"),
        pytest.param(judge_models(MODELS, "o", has_key=True), "m, n", "may use other models", id="another model"),
        pytest.param(judge_models(Seen(401, JSON, b"{}"), None, has_key=False), "401", "no key was given", id="no key"),
        pytest.param(judge_models(error(404, "not_found"), None, has_key=True), "404", "`endpoints`", id="no list"),
        pytest.param(judge_models(error(404, "not_offered"), None, has_key=True), "404", "`endpoints`", id="no models"),
        pytest.param(judge_models(Seen(404, {}), None, has_key=True), "404", "give --model", id="vLLM's 404"),
        pytest.param(judge_ids([HTML]), "1 without one", "an HTML page", id="no id on an ingress's page"),
        pytest.param(judge_completion(ok({}), 2), "JSON that is not a completion", "is vLLM", id="no completion"),
        pytest.param(judge_completion(ok({"choices": [], "usage": USAGE}), 2), "no choice", "is vLLM", id="no choice"),
        pytest.param(judge_completion(ok({"choices": [{}]}), 2), "no usage", "is vLLM", id="no usage"),
        pytest.param(
            judge_completion(ok({"choices": [{}], "usage": USAGE | {"prompt_tokens": 0}}), 2),
            "0 input",
            "did not reach",
            id="nothing asked",
        ),
        pytest.param(
            judge_completion(Seen(200, JSON, b"{", "cut", "", "closed"), 2), "200: closed", "was cut off", id="cut"
        ),
        pytest.param(
            judge_completion(Seen(200, JSON, b"{", "timeout", "", "late"), 2), "200: late", "overloaded", id="late"
        ),
        pytest.param(
            judge_completion(Seen(308, {"location": "https://h/"}, b"", "http_308"), 2),
            "308 to https://h/",
            "need https://",
            id="sent elsewhere",
        ),
        pytest.param(
            judge_completion(error(503, "no_healthy_backend"), 2), "503", "cannot reach an engine", id="no backend"
        ),
        pytest.param(judge_ids([Seen(200)]), "1 without one", "removes the header", id="no ids"),
        pytest.param(judge_ids([Seen(error="reset", detail="gone")]), "gone", "closed the connection", id="no answer"),
        pytest.param(judge_redirect(Seen(200, JSON), "h", 80), "200 with", "serves plain HTTP", id="served in plain"),
        pytest.param(
            judge_redirect(Seen(301, {"location": "https://other/"}), "h", 80),
            "301 to https://other/",
            "to another host",
            id="elsewhere",
        ),
        pytest.param(judge_redirect(Seen(301), "h", 80), "301 to nowhere", "to another host", id="nowhere"),
        pytest.param(judge_redirect(Seen(301, {"location": "https://[x"}), "h", 80), "301", "to another", id="no URL"),
    ],
)
def test_a_wrong_answer_fails_with_its_usual_cause(verdict: Verdict, seen: str, hint: str) -> None:
    """The message says the status that came, and where to look."""
    assert verdict.held is False
    assert seen in verdict.seen
    assert hint in verdict.hint


def test_a_port_where_nobody_answers_redirects_nobody() -> None:
    """It serves nobody in plain text either, so that is not a failure; nor was anything shown to redirect."""
    verdict = judge_redirect(Seen(error="connect", detail="connection refused", connected=False), "h", 80)
    assert (verdict.held, verdict.seen) == (
        None,
        "nothing answers on port 80 (connection refused), so plain HTTP is not served",
    )


def test_a_long_list_of_models_is_cut() -> None:
    """A line stays a line."""
    verdict = judge_models(ok({"data": [{"id": str(n)} for n in range(9)]}), None, has_key=True)
    assert verdict.seen == "0, 1, 2, 3, 4 and 4 more"


@pytest.mark.parametrize(
    ("seen", "text"),
    [
        (Seen(error="reset", detail="closed"), "closed"),
        (error(404, "not_found"), "404 not_found: No."),
        (HTML, "404: text/html: 404 Not Found"),
        (Seen(200, JSON), "200 with application/json"),
        (Seen(204), "204 with no content type"),
        (Seen(404, {}, b"", "http_404"), "404 with no content type"),
        (error(404, 404), "404: No."),
        (error(404, None), "404: No."),
    ],
    ids=["none", "ours", "HTML", "JSON", "empty", "empty error", "vLLM's", "no code"],
)
def test_an_answer_is_told_in_a_few_words(seen: Seen, text: str) -> None:
    """Status first."""
    assert says(seen) == text


def test_usage_is_that_of_a_whole_answer() -> None:
    """A broken or refused answer has none."""
    good = ok({"usage": USAGE})
    assert usage_in(good) == TokenUsage(3, 2)
    assert usage_in(Seen(200, JSON, good.body, "cut")) is None
    assert usage_in(Seen(500, JSON, good.body)) is None


def test_ready_is_skipped_where_the_ingress_hides_it() -> None:
    """As the rendered Ingress does: its 404 tells nothing of the gateway."""
    verdict = judge_ready(HTML)
    assert verdict.held is None
    assert "for the kubelet" in verdict.seen


def test_own_413_is_told_from_an_ingresss() -> None:
    """Its form tells the gateway's from an ingress's."""
    assert "`server.max_body_size`" in hint_for(error(413, "request_too_large"), "")
    assert "the ingress" in hint_for(Seen(413, {"content-type": "text/html"}, b"<html>"), "")


def test_the_model_stands_in_what_was_expected() -> None:
    """If the run names one."""
    assert judge_models(MODELS, None, has_key=True).expected == "a list of models"
    assert judge_models(MODELS, "n", has_key=True).expected == "a list of models with n in it"


def test_the_hint_looks_at_the_answer_that_lacks_its_id() -> None:
    """Not at the first answer."""
    assert "an HTML page" in judge_ids([Seen(200, {"x-request-id": "a"}), HTML]).hint


def test_an_error_in_a_whole_answer_has_the_checks_own_hint() -> None:
    """The answer is wrong, and not the connection."""
    assert hint_for(Seen(200, JSON, b"{}", "garbage"), "otherwise") == "otherwise"


def test_a_cause_that_nobody_knows_is_the_checks_own() -> None:
    """As the last resort."""
    assert hint_for(error(418, "teapot"), "otherwise") == "otherwise"
