"""The faults of a scripted vLLM, one script for one request: from nothing at all to rubbish behind a whole answer."""

from __future__ import annotations

from typing import Final

from tests.fakes.vllm import (
    BUSY,
    DONE,
    ENGINE_DEAD,
    LAST_CHUNK,
    STREAM_HEAD,
    Close,
    Hang,
    Reset,
    Send,
    SendSlowly,
    Step,
    chunk,
    error_answer,
    error_stream_event,
    json_answer,
    stream,
    token_event,
    usage_event,
)

_WHOLE: Final = stream(token_event(), token_event(), usage_event(), DONE)

FAULTS: Final[tuple[tuple[Step, ...], ...]] = (
    (Send(_WHOLE),),
    (SendSlowly(_WHOLE, size=100),),
    (SendSlowly(_WHOLE * 20, size=1000, pause=0.001),),
    (Send(json_answer({"usage": {"prompt_tokens": 1, "completion_tokens": 1}})),),
    (Send(json_answer({}) + b"rubbish"),),
    (Send(error_answer(400, "no")),),
    (Send(error_answer(503, BUSY)),),
    (Send(error_answer(500, ENGINE_DEAD)),),
    (Send(error_answer(500, "an exception that vLLM does not handle")), Close()),
    (Send(_WHOLE), Close()),
    (Send(stream(error_stream_event(), DONE)),),
    (Send(STREAM_HEAD + chunk(token_event()) + chunk(error_stream_event() + DONE) + LAST_CHUNK),),
    (Send(STREAM_HEAD + chunk(token_event() + b"data: half")), Close()),
    (Send(STREAM_HEAD + chunk(token_event())), Reset()),
    (Send(STREAM_HEAD + chunk(token_event())), Hang()),
    (Send(STREAM_HEAD), Hang()),
    (Hang(),),
    (Close(),),
    (Reset(),),
    (Send(b"nonsense\r\n\r\n"),),
    (Send(b"HTTP/1.1 200 OK\r\n\r\n{}"), Close()),
    (Send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"), Reset()),
)
