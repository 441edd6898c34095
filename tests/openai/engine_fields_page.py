"""docs/engine-fields.md, made from the table of fields: `python -m tests.openai.engine_fields_page` writes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from aiaas.openai import grammar, paths
from aiaas.openai.engine_fields import ENGINE_FIELDS, MCP, MCP_WHY, PARTS, EngineField

PAGE: Final = Path(__file__).parents[2] / "docs" / "engine-fields.md"

_INTRO: Final = f"""# Engine fields

vLLM's request models have many more fields than OpenAI's, and every client may set them. Most concern the request
itself. Some reach beyond it: `priority` moves a request ahead of everybody else's, `kv_transfer_params` names a host
from which the engine fetches, `cache_salt` decides whose cache a prompt meets, and one grammar of 500 choices of 1,000
characters each kept every other client's JSON schema waiting for 80 s. So aiaas has a rule for each field of vLLM 0.32:

| rule | meaning |
| --- | --- |
| pass | the field goes on as it was written |
| reject | 400 `invalid_request`, with the field in `param` |
| at most N | 400 for a value above N |
| false | aiaas writes `false` into the request |
| strip | aiaas removes the field; never a default |

`null`, the default value (`priority: 0`), and an empty object or list are not a use. Values are read as vLLM reads
them: `"priority": "5"` is a use. A body that has a field with a rule twice is refused. A request without such a field
goes on byte for byte.

## Change a rule

    request:
      fields:
        priority: pass              # clients may set it
        seed: reject
        user: strip
        prompt_logprobs: {{max: 5}}
      unknown_fields: reject        # fields that vLLM 0.32 does not know; they pass by default

A rule in the config replaces the default of that field, on all paths that have it. A reload puts it in force.

Some keys may be trusted with more. Rules for the keys of a class replace those above:

    request:
      fields_by_class:
        interactive:
          prompt_logprobs: {{max: 100}}
        batch:
          seed: reject

and a single key can be allowed a field, whatever the config says:

    aiaas keys create evaluation --allow-field prompt_logprobs --allow-field logit_bias

It is then as if the rule were `pass` for this key: a bound does not hold either. The key file has the names in
`allow_fields`, where you can change them by hand; `aiaas validate` finds misspelt ones. The class is the key's: a
client that asks for `service_tier: flex` keeps the rules of its key.

Think twice about `priority`. A key that may set it goes ahead of everybody in vLLM's queue: with
`backends.X.scheduling: priority` its own value replaces that of its class, while a request without one has its class's.
aiaas's own queue goes by the class as before, so with `max_inflight` a value such as -1 helps only among the requests
that vLLM already has. `cache_salt` stays refused where `isolate_cache` writes one.

## One prefix cache for each key

    backends:
      vllm:
        isolate_cache: key
        isolate_cache_secret_env: CACHE_SECRET    # openssl rand -hex 32, the same on all gateways

vLLM answers sooner where it has seen the beginning of a prompt, from any client, so a client can find out what others
asked (CVE-2025-46570). With these lines aiaas writes a `cache_salt` into each request: an HMAC of the key's id. Clients
cannot set it then, whatever `request.fields` says. The price: a prompt that several keys share is cached once for each.

## Grammars

`response_format`, `structured_outputs`, `text`, `output_config`, the `guided_*` fields of older vLLMs, and `tools`
where one must be called or is `strict`: the engine compiles them to a grammar, and others' grammars wait meanwhile.
Besides the bytes in the table, which do not count `description` and other texts for readers (all together may have
{grammar.TEXT_FACTOR} times as many):

| part | bound |
| --- | --- |
| choices | {grammar.MOST_CHOICES} |
| levels of lists and objects | {grammar.DEEPEST_GRAMMAR} |
| characters of a regex (`pattern` too) | {grammar.LONGEST_REGEX} |
| repetitions that a regex spells out (`[a-z]{{1,1000}}`: 1,000) | {grammar.MOST_UNROLLED} |
| `maxLength`, `maxItems` and the like | {grammar.LARGEST_COUNT}; all together {grammar.MOST_COUNTED} |

`request.fields: {{response_format: pass}}` lifts all of them for that field.

## Fields with a rule

| field | paths | rule | why |
| --- | --- | --- | --- |
"""

_PASSED: Final = """
## Fields that pass

| field | paths | why |
| --- | --- | --- |
"""

_END: Final = """
`nox -s vllm` compares this table with the request models of the installed vLLM, so a field that a new version adds is
found before it is served. The page is made by `python -m tests.openai.engine_fields_page`.
"""


def page() -> str:
    """The text of docs/engine-fields.md."""
    ruled = [field for field in ENGINE_FIELDS if field.action != "pass"]
    passed = sorted((field for field in ENGINE_FIELDS if field.action == "pass"), key=lambda field: field.name)
    return "".join((_INTRO, *map(_ruled, ruled), *_inside(), _PASSED, *map(_passed, passed), _END))


def _ruled(field: EngineField) -> str:
    note = "" if field.known else " (not in vLLM 0.32)"
    return f"| `{field.name}`{note} | {_paths(field)} | {_rule(field)} | {field.why} |\n"


def _passed(field: EngineField) -> str:
    return f"| `{field.name}` | {_paths(field)} | {field.why} |\n"


def _inside() -> Iterator[str]:
    for name, why in PARTS.items():
        yield f"| `{name}` in a message's part | all with messages | reject | {why} |\n"
    yield f"| MCP tools (`{MCP}` in the config) | `{paths.RESPONSES}` | reject | {MCP_WHY} |\n"
    why = "As `chat_template`, whose rule holds."
    yield f"| `chat_template`, `tokenize` in `chat_template_kwargs` | those of `chat_template` | reject | {why} |\n"


def _paths(field: EngineField) -> str:
    return "all" if field.paths == paths.GENERATE else ", ".join(f"`{path}`" for path in field.paths)


def _rule(field: EngineField) -> str:
    if field.action != "bound":
        return field.action
    unit = {"number": "", "entries": " entries", "members": " in each number"}.get(field.unit or "", " bytes")
    return f"at most {field.most}{unit}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
