"""The wire cases against a real vLLM, to which the simulator is held; `nox -s vllm` runs them.

`vllm_url` is a vLLM with default options. The crowded cases need one of their own and are skipped without: the one that
$AIAAS_VLLM_CROWDED_URL names, started with

    --max-num-seqs 1 --max-num-queued-reqs 3 --api-key sk-wire --enable-request-id-headers
"""

from __future__ import annotations

import pytest

from tests.e2e.processes import CROWDED_KEY
from tests.e2e.wire_cases import BEHAVIOURS, CROWDED, Case, case_id
from tests.e2e.wire_client import Target, target_of
from tests.e2e.wire_continued import CONTINUATIONS
from tests.e2e.wire_refusals import REFUSALS, Refusal, check_refusal
from tests.e2e.wire_shapes import STREAMS, WHOLE, Stream, Whole, check_stream, check_whole

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def target(vllm_url: str) -> Target:
    """The vLLM with default options; its model and context length are asked of it."""
    return target_of(vllm_url)


@pytest.fixture(scope="module")
def crowded(vllm_crowded_url: str) -> Target:
    """The vLLM with one place."""
    return target_of(vllm_crowded_url, max_num_seqs=1, api_key=CROWDED_KEY)


@pytest.mark.parametrize("case", REFUSALS, ids=case_id)
def test_refusal(target: Target, case: Refusal) -> None:
    """vLLM refuses in these words."""
    check_refusal(target, case)


@pytest.mark.parametrize("case", WHOLE, ids=case_id)
def test_whole_answer(target: Target, case: Whole) -> None:
    """An answer has these keys in this order."""
    check_whole(target, case)


@pytest.mark.parametrize("case", STREAMS, ids=case_id)
def test_stream(target: Target, case: Stream) -> None:
    """A stream has these events in this order."""
    check_stream(target, case)


@pytest.mark.parametrize("case", BEHAVIOURS, ids=case_id)
def test_behaviour(target: Target, case: Case) -> None:
    """vLLM behaves so with default options."""
    case(target)


@pytest.mark.parametrize("case", CONTINUATIONS, ids=case_id)
def test_continuation(target: Target, case: Case) -> None:
    """vLLM continues an answer and counts its tokens so."""
    case(target)


@pytest.mark.parametrize("case", CROWDED, ids=case_id)
def test_crowded(crowded: Target, case: Case) -> None:
    """vLLM behaves so with one place in the batch and a bounded queue."""
    case(crowded)
