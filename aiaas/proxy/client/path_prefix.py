"""The prefix in front of all paths (`server.path_prefix`), taken off before anything looks at a path. Pure.

Log, metrics, routes and vLLM know paths without it. A path that comes without the prefix is served, too: a probe inside
the cluster and a proxy that has taken the prefix off need not know of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from aiaas.openai import paths


class PrefixedPaths:
    """A prefix such as `/llm`; "" for none.

    lines  the first line of each plain request -> its path without the prefix (`plain.py`)
    """

    __slots__ = ("lines", "text")

    def __init__(self, text: str = "") -> None:
        self.text = text
        self.lines: Mapping[bytes, str] = {
            f"POST {prefix}{path} HTTP/1.1".encode(): path for path in paths.GENERATE for prefix in {"", text}
        }

    def __repr__(self) -> str:
        return f"<PrefixedPaths {self.text!r}>"

    def strip(self, target: str) -> str:
        """A request target without the prefix; the target itself if it does not begin with that.

        /llm/v1/models?x=1            /v1/models?x=1
        /llm                          /
        http://host/llm/v1/models     http://host/v1/models    the form of a proxy's clients (`request_target.py`)
        /llmodels                     /llmodels
        """
        if target[:1] == "/":
            return self._strip(target)
        scheme, found, rest = target.partition("://")
        host, slash, path = rest.partition("/")
        return f"{scheme}{found}{host}{self._strip(slash + path)}" if slash else target

    def _strip(self, path: str) -> str:
        rest = path.removeprefix(self.text)
        if len(rest) == len(path) or rest[:1] not in ("", "/", "?"):
            return path
        return rest if rest[:1] == "/" else f"/{rest}"


NO_PREFIX: Final = PrefixedPaths()
