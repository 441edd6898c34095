"""aiaas.proxy.admin.rows: lists of rows, merged without decoding."""

from __future__ import annotations

import json

from aiaas.proxy.admin.model import FlightView
from aiaas.proxy.admin.rows import EncodedRow, Rows, encoded_rows, merged, row


def test_rows_of_several_workers_are_one_list_in_time() -> None:
    """Live requests the oldest first, all others the newest; `limit` holds for each list."""

    def rows(*moments: int) -> list[EncodedRow]:
        return [EncodedRow(moment, b"%d" % moment) for moment in moments]

    one, other = Rows({"live": rows(1, 4), "ended": rows(8, 5)}), Rows({"live": rows(2), "ended": rows(9)})
    assert json.loads(encoded_rows(merged([one, other], 2))) == {"live": [1, 2], "ended": [9, 8]}
    assert encoded_rows(merged([one], 0)) == b'{"live":[],"ended":[]}'


def test_numbers_by_code_are_added() -> None:
    """Also of a code that only one worker has."""
    parts = [Rows({"refusals": []}, {}), Rows({"refusals": []}, {"a": 1}), Rows({"refusals": []}, {"a": 2, "b": 1})]
    assert json.loads(encoded_rows(merged(parts, 9))) == {"refusals": [], "by_code": {"a": 3, "b": 1}}


def test_row_is_its_view_as_json() -> None:
    """With the moment that orders it."""
    assert row(3.0, FlightView(1, 0, 5)) == EncodedRow(3.0, b'{"in_flight":1,"queued":0,"output_tokens":5}')
