"""`aiaas explain`: what a problem's code or a field of the config means, as `kubectl explain` does for objects; or what
a running gateway decided about a request."""

from __future__ import annotations

import difflib
import re
import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

from aiaas.cli.askadmin import ADMIN_ADDRESS, AdminUrlOption, ask_gateway
from aiaas.cli.common import new_app
from aiaas.cli.complete import complete_codes
from aiaas.errors import CheckFailed

if TYPE_CHECKING:
    from aiaas.config.describe import FieldText, SectionText

app = new_app()

_WIDTH = 100
_CODE = re.compile(r"AIA[0-9]+", re.IGNORECASE)
# A path in the config has no digit in its first part; ids of aiaas are hexadecimal, and those of proxies mostly UUIDs.
_ID = re.compile(r"(?=[^.\[]*[0-9])[A-Za-z0-9._:-]{4,128}")
_MOST_MATCHES = 10


@app.command(
    epilog="""Examples:

\b
  aiaas explain                       the sections of the config
  aiaas explain AIA402                what a problem of `aiaas validate` means, and how to fix it
  aiaas explain rate_limit            the fields of a section
  aiaas explain rate_limit.burst      one field: its type, its default, what it does
  aiaas explain backends.vllm.urls    where a name is yours to choose, any name does
  aiaas explain 3f2a9c                a request, by its X-Request-Id or the beginning of it: key, limits, queue,
                                      endpoints, retries, and who ended it (asks the gateway that runs at --url)
"""
)
def explain(
    what: Annotated[
        str,
        typer.Argument(
            metavar="[CODE|FIELD|ID]",
            help="A problem's code, a path in the config, or a request's id.",
            autocompletion=complete_codes,
        ),
    ] = "",
    url: AdminUrlOption = ADMIN_ADDRESS,
) -> None:
    """Say what a problem's code or a field of the config means, or tell a request's story."""
    if _CODE.fullmatch(what):
        print(_code(what.upper()))
    elif _ID.fullmatch(what):
        print(_request(what, url))
    else:
        print(_place(what))


def _request(request_id: str, url: str) -> str:
    """The story of the one request whose id begins like this."""
    from aiaas.cli.requeststory import headline, story
    from aiaas.proxy.admin.model import Requests, Status

    found = ask_gateway(url, f"/requests?limit={_MOST_MATCHES}&id={request_id}", Requests)
    matches = [*found.live, *found.ended]
    matches = [match for match in matches if match.id == request_id] or matches
    if not matches:
        raise CheckFailed(
            f"the gateway knows no request {request_id}; it keeps the last 10,000, and its log has the older ones"
        )
    if len(matches) > 1:
        lines = "\n".join(headline(match) for match in matches)
        raise CheckFailed(f"{len(matches)} requests have an id that begins with {request_id}:\n{lines}")
    return story(matches[0], ask_gateway(url, "/status", Status))


def _code(code: str) -> str:
    from aiaas.config.code_texts import CODES

    if code not in CODES:
        raise CheckFailed(f"there is no problem {code}; docs/problems.md lists all, from {min(CODES)} to {max(CODES)}")
    title, text = CODES[code]
    return _paragraphs(f"{code}: {title}", text)


def _place(written: str) -> str:
    """The section or the field at a path; a field's name alone is enough."""
    from aiaas.config.describe import described_sections

    sections = list(described_sections())
    path = tuple(part for part in re.split(r"[.\[\]]+", written) if part)
    for section in sections:
        if _matches(section, path):
            return _section(section)
    for section in sections:
        if path and _matches(section, path[:-1]):
            for field in section.fields:
                if field.name == path[-1]:
                    return _field(section, field)
    named = [(section, field) for section in sections for field in section.fields if path == (field.name,)]
    if named:
        return "\n\n".join(_field(section, field) for section, field in named)
    raise CheckFailed(f"the config has no field {written}; {_hint(sections, written, path)}")


def _matches(section: SectionText, path: tuple[str, ...]) -> bool:
    return len(section.path) == len(path) and all(
        part in ("*", given) for part, given in zip(section.path, path, strict=True)
    )


def _section(section: SectionText) -> str:
    width = max(len(field.name) for field in section.fields)
    lines = [_paragraphs(section.name or "The config", section.text), ""]
    for field in section.fields:
        lines.append(f"  {field.name.ljust(width)}  {_facts(field)}")
    return "\n".join([*lines, "", f"One field: aiaas explain {section.name + '.' if section.name else ''}FIELD"])


def _field(section: SectionText, field: FieldText) -> str:
    name = f"{section.name}.{field.name}" if section.name else field.name
    return _paragraphs(f"{name}: {_facts(field)}", field.text)


def _facts(field: FieldText) -> str:
    default = "required" if field.required else field.default and f"default {_plain(field.default)}"
    return "; ".join(part for part in (_plain(field.type), default) if part)


def _hint(sections: list[SectionText], written: str, path: tuple[str, ...]) -> str:
    """The nearest path, or where all of them are listed."""
    names = {f"{section.name}.{field.name}".lstrip("."): field.name for section in sections for field in section.fields}
    close = difflib.get_close_matches(written, names, n=1, cutoff=0.7)
    if not close and path:
        close = [name for name in names if difflib.get_close_matches(path[-1], [names[name]], cutoff=0.7)][:1]
    return f"did you mean {close[0]}?" if close else "aiaas explain lists its sections"


def _paragraphs(head: str, text: str) -> str:
    body = textwrap.wrap(_plain(text), _WIDTH, initial_indent="  ", subsequent_indent="  ", break_long_words=False)
    return "\n".join([head, "", *body])


def _plain(markdown: str) -> str:
    """The words without Markdown's marks: a link is its page, code has no backticks."""
    return re.sub(r"\[([^]]+)\]\([^)]+\)", r"docs/\1", markdown).replace("`", "")
