"""`accept`: the warnings that the operator has decided to live with, each with a reason. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from aiaas.config import codes
from aiaas.config.code_texts import CODES
from aiaas.config.load import Loaded
from aiaas.config.model import Config
from aiaas.config.problem import Finding, Problem
from aiaas.config.tree import problem_at

# Warnings of these kinds follow from the file alone: fields that contradict each other (AIA2xx, AIA5xx). Others depend
# on the files beside it, on the environment, or on what the backends answer.
_OF_THE_FILE: Final = ("AIA2", "AIA5")
_OF_A_DEPLOYMENT: Final = "AIA5"  # these occur in a cluster, and in containers (`check_compose`)
_ALSO_ASKED: Final = frozenset({codes.ENDPOINT_PATH, codes.KEYS_SIZE})
# Problems that are errors wherever they occur, and those of `accept` itself.
NEVER_WARNINGS: Final = frozenset(
    {
        *(codes.UNREADABLE_FILE, codes.SYNTAX, codes.DUPLICATE_KEY, codes.YAML_FEATURE, codes.VARIABLE),
        *(codes.PLAIN_SECRET, codes.CONFIG_MAP, codes.UNKNOWN_FIELD, codes.MISSING_FIELD, codes.WRONG_VALUE),
        *(codes.NO_BACKEND, codes.ADDRESS, codes.MODEL_NAME_TWICE, codes.PORT_CLASH, codes.BAD_NETWORK),
        *(codes.BURST_ALONE, codes.BACKEND_KEY, codes.ENGINE_MODELS, codes.ENGINE_ARGS, codes.FORWARD_HEADER),
        codes.BACKEND_TLS,
        *(codes.STORE_URL, codes.ACCEPT, codes.KEYS_UNREADABLE, codes.KEY_SCOPE, codes.NOT_DEPLOYABLE, codes.PATCH),
        *(
            codes.HOP_BODY,
            codes.REQUEST_ABOVE_LIMIT,
            codes.ENGINE_POD,
            codes.BACKEND_AWAY,
            codes.STORE_AWAY,
            codes.NO_MODEL_LIST,
        ),
    }
)


def check_accept(config: Config, _env: Mapping[str, str]) -> Iterator[Finding]:
    """Report an entry that accepts nothing, and one without a reason."""
    for code, reason in config.accept.items():
        if code not in CODES:
            hint = f"did you mean {code.upper()}?" if code.upper() in CODES else "docs/problems.md lists all"
            message = f"is not the code of a problem; {hint}"
        elif code in NEVER_WARNINGS:
            message = "is never a warning, and only warnings can be accepted; remove it, and fix that problem"
        elif not reason.strip():
            message = "has no reason; write why this warning may stay"
        else:
            continue
        yield codes.ACCEPT, "error", ("accept", code), message


def without_accepted(loaded: Loaded, problems: tuple[Problem, ...]) -> tuple[tuple[Problem, ...], tuple[Problem, ...]]:
    """Split problems into those that count and the accepted warnings."""
    codes_accepted = {} if loaded.partial is None else loaded.partial.accept
    accepted = tuple(each for each in problems if each.severity == "warning" and each.code in codes_accepted)
    return tuple(each for each in problems if each not in accepted), accepted


def accepted_in_vain(loaded: Loaded, accepted: tuple[Problem, ...], *, deployed: bool) -> tuple[Problem, ...]:
    """Report each accepted warning of the file that does not occur (any more).

    deployed  whether the rules of a deployment were asked, too; if not, their warnings may still occur
    """
    config = loaded.config
    occurring = {problem.code for problem in accepted}
    return tuple(
        problem_at(codes.ACCEPT, "warning", path, "this warning does not occur; remove it", loaded.place(path))
        for code in (config.accept if config is not None else ())
        if code.startswith(_OF_THE_FILE) and code not in occurring | _ALSO_ASKED
        if deployed or not code.startswith(_OF_A_DEPLOYMENT)
        for path in [("accept", code)]
    )
