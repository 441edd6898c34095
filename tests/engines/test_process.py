"""aiaas.engines.process: an engine's output, however it is cut. (Its processes: test_supervisor.py.)"""

from __future__ import annotations

import asyncio

from aiaas.engines.process import lines_of


async def test_lines_survive_any_cut_and_progress_bars_count_as_lines():
    """A character split between two reads is one character; a carriage return ends a line."""
    text = "Grüße\nloading 10%\rloading 20%\r\n\n  \nlast"
    data = text.encode()
    for cut in range(len(data)):
        stream = asyncio.StreamReader()

        async def feed(stream=stream, cut=cut) -> None:
            stream.feed_data(data[:cut])
            await asyncio.sleep(0)
            stream.feed_data(data[cut:])
            stream.feed_eof()

        feeding = asyncio.create_task(feed())
        assert [line async for line in lines_of(stream)] == ["Grüße", "loading 10%", "loading 20%", "last"]
        await feeding
