"""`aiaas simulate`: run only the embedded vLLM simulator."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from aiaas.cli.common import new_app, read_duration
from aiaas.cli.complete import complete_faults
from aiaas.cli.outcome import note

app = new_app()


class RunnerOption(StrEnum):
    """The kind of vLLM to simulate."""

    text = "text"
    pooling = "pooling"
    classify = "classify"
    audio = "audio"


class PolicyOption(StrEnum):
    """The order of waiting requests."""

    fcfs = "fcfs"
    priority = "priority"


_EPILOG = """Examples:

\b
  aiaas simulate                                   on 127.0.0.1:8000, as the model "aiaas-simulator"
  aiaas simulate --served-model-name my-model --ttft 200ms --itl 20ms
  aiaas simulate --max-num-seqs 4 --max-num-queued-reqs 8
  aiaas simulate --fault reset-mid-stream:20       reset every stream after 20 tokens
  aiaas simulate --fault close-mid-stream:20,all   when one stream has 20 tokens, end like a killed process
"""


@app.command(epilog=_EPILOG)
def simulate(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for any free one.")] = 8000,
    served_model_name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="A model name to answer to; repeat it for aliases. [default: aiaas-simulator]"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of all generated words; the same request has the same answer.")] = 0,
    ttft: Annotated[str, typer.Option(metavar="TIME", help="Time to the first token, e.g. 50ms or 1.5s.")] = "50ms",
    itl: Annotated[
        str, typer.Option(metavar="TIME", help="Time between two tokens; 0 is as fast as possible.")
    ] = "10ms",
    jitter: Annotated[float, typer.Option(help="Vary each of these times by up to this share, 0 to 1.")] = 0.0,
    answer_tokens: Annotated[int, typer.Option(help="Longest answer to a request without a bound.")] = 64,
    max_model_len: Annotated[int, typer.Option(help="Context length: prompt and answer, tokens.")] = 8192,
    max_num_seqs: Annotated[int, typer.Option(help="Answers generated at once; more wait.")] = 256,
    max_num_queued_reqs: Annotated[
        int | None, typer.Option(help="Running and waiting requests; a further one gets 503. [default: no bound]")
    ] = None,
    scheduling_policy: Annotated[
        PolicyOption, typer.Option(help="The order of waiting requests: by arrival, or by their field `priority`.")
    ] = PolicyOption.fcfs,
    runner: Annotated[
        RunnerOption, typer.Option(help="Chat and completions; embeddings, scores and rerank; classes; or audio.")
    ] = RunnerOption.text,
    api_key: Annotated[str | None, typer.Option(envvar="VLLM_API_KEY", help="Key to require below /v1.")] = None,
    keep_alive: Annotated[str, typer.Option(metavar="TIME", help="Close idle connections after this time.")] = "5s",
    shutdown_timeout: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="After SIGTERM, wait this long for requests in flight. [default: they hang, as vLLM's do]",
        ),
    ] = None,
    enable_request_id_headers: Annotated[
        bool, typer.Option("--enable-request-id-headers", help="Send x-request-id back.")
    ] = False,
    enable_force_include_usage: Annotated[
        bool, typer.Option("--enable-force-include-usage", help="Send usage on every event of every stream.")
    ] = False,
    enable_auto_tool_choice: Annotated[
        bool,
        typer.Option("--enable-auto-tool-choice", help="Accept tools, and call those that a prompt names (docs)."),
    ] = False,
    fault: Annotated[
        str,
        typer.Option(
            metavar="KIND[:ARG][,WHO]",
            help="Misbehave; --fault list shows the kinds. WHO: each, once, all, sigterm (docs).",
            autocompletion=complete_faults,
        ),
    ] = "none",
) -> None:
    """Run the simulator: it answers as vLLM does on the wire, and says in every answer that it is not a model."""
    import uvloop

    from aiaas.simulator.faults import FAULT_KINDS, parse_fault
    from aiaas.simulator.options import DEFAULT_MODEL, SimulatorOptions
    from aiaas.simulator.server import run_simulator

    if fault == "list":
        for kind in FAULT_KINDS.values():
            print(f"{kind.name + (f':{kind.default:g}' if kind.default is not None else ''):28} {kind.what}")
        return
    options = SimulatorOptions(
        models=tuple(served_model_name or (DEFAULT_MODEL,)),
        seed=seed,
        ttft=read_duration("--ttft", ttft),
        itl=read_duration("--itl", itl),
        jitter=jitter,
        answer_tokens=answer_tokens,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_queued_reqs=max_num_queued_reqs,
        scheduling_policy=scheduling_policy.value,
        runner=runner.value,
        api_key=api_key,
        keep_alive=read_duration("--keep-alive", keep_alive),
        shutdown_timeout=None if shutdown_timeout is None else read_duration("--shutdown-timeout", shutdown_timeout),
        request_id_headers=enable_request_id_headers,
        force_include_usage=enable_force_include_usage,
        auto_tool_choice=enable_auto_tool_choice,
        fault=parse_fault(fault),
    )

    def ready(bound: int) -> None:
        misbehaving = "" if options.fault.name == "none" else f", fault {fault}"
        shown = f"[{host}]" if ":" in host else host
        note(
            f"aiaas simulator, not a model: http://{shown}:{bound} answers as {', '.join(options.models)}{misbehaving}"
        )

    uvloop.run(run_simulator(options, host=host, port=port, ready=ready))
