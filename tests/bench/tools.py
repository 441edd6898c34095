"""The load generators that are held against each other: how each is called, and what its results say.

A tool's command leaves its results in a folder; `read_*` turn them into the figures of `script.KEYS`, in seconds and
per second. A tool that could not be installed says so in `missing`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from tests.bench import setup
from tests.bench.script import Figures
from tests.e2e.vllm import setup as vllm_setup

OURS: Final = "aiaas loadtest"
VLLM: Final = "vllm bench serve"
GUIDELLM: Final = "guidellm"
PROMPT_TOKENS: Final = 100
OUT: Final = "out"  # the file of what a tool prints, in its folder


@dataclass(frozen=True, slots=True)
class Load:
    """The settings for a tool; one of users (closed loop) and rate (open loop, constant)."""

    url: str
    model: str
    requests: int
    tokens: int
    users: int | None = None
    rate: float | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """A tool's measurements, and its warning about itself: that it was too slow, say; "" for none."""

    figures: Figures
    says: str = ""


@dataclass(frozen=True, slots=True)
class Tool:
    """A load generator. `command` and `read` get the folder for its results."""

    name: str
    version: str = ""
    command: Callable[[Load, Path], list[str]] = lambda _load, _folder: []
    read: Callable[[Path], Report] = lambda _folder: Report({})
    environment: Mapping[str, str] = field(default_factory=dict)
    missing: str = ""


def tools(names: Collection[str]) -> list[Tool]:
    """Those of the names, installed where they are not; what cannot be says why."""
    makers = {OURS: _ours, VLLM: _vllm, GUIDELLM: _guidellm}
    return [make() for name, make in makers.items() if name in names]


def _ours() -> Tool:
    return Tool(OURS, version("aiaas"), our_command, read_ours)


def _vllm() -> Tool:
    try:
        installation = vllm_setup.ensure()
    except vllm_setup.SetupError as error:
        return Tool(VLLM, missing=str(error).splitlines()[0])

    def command(load: Load, folder: Path) -> list[str]:
        return [str(installation.vllm), *vllm_arguments(load, folder, installation.model)]

    return Tool(VLLM, vllm_setup.VLLM_VERSION, command, read_vllm, {"HF_HUB_OFFLINE": "1"})


def _guidellm() -> Tool:
    try:
        program = setup.ensure("guidellm") / "bin" / "guidellm"
        tokenizer = vllm_setup.ensure().model
    except (setup.SetupError, vllm_setup.SetupError) as error:
        return Tool(GUIDELLM, missing=str(error).splitlines()[0])

    def command(load: Load, folder: Path) -> list[str]:
        return [str(program), *guidellm_arguments(load, folder, tokenizer)]

    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    return Tool(GUIDELLM, setup.version("guidellm"), command, read_guidellm, offline)


def our_command(load: Load, _folder: Path) -> list[str]:
    """Its results are what it prints."""
    pacing = ["--users", str(load.users)] if load.rate is None else ["--rate", f"{load.rate:g}", "--arrival=constant"]
    arguments = [load.url, "--model", load.model, "--requests", str(load.requests), *pacing,
                 "--prompt-tokens", str(PROMPT_TOKENS), "--output-tokens", str(load.tokens), "-o", "json"]  # fmt: skip
    return [sys.executable, "-m", "aiaas", "loadtest", *arguments]


def vllm_arguments(load: Load, folder: Path, tokenizer: Path) -> list[str]:
    """Random prompts, for which it needs a tokenizer; no network."""
    closed = ["--max-concurrency", str(load.users)]
    pacing = closed if load.rate is None else ["--request-rate", f"{load.rate:g}", "--burstiness", "inf"]
    return ["bench", "serve", "--backend", "openai-chat", "--endpoint", "/v1/chat/completions",
            "--base-url", load.url, "--model", load.model, "--tokenizer", str(tokenizer), "--dataset-name", "random",
            "--random-input-len", str(PROMPT_TOKENS), "--random-output-len", str(load.tokens), "--ignore-eos",
            "--num-prompts", str(load.requests), *pacing, "--percentile-metrics", "ttft,tpot,itl,e2el",
            "--metric-percentiles", "50,99", "--disable-tqdm", "--save-result", "--result-dir", str(folder),
            "--result-filename", "vllm.json"]  # fmt: skip


def guidellm_arguments(load: Load, folder: Path, tokenizer: Path) -> list[str]:
    """Synthetic prompts, for which it needs a tokenizer; no network."""
    pacing = f"kind=concurrent,streams={load.users}" if load.rate is None else f"kind=constant,rate={load.rate:g}"
    return ["run", "--backend", f"kind=openai_http,target={load.url},model={load.model}",
            "--tokenizer", f"kind=huggingface_auto,model={tokenizer}",
            "--data", f"kind=synthetic_text,prompt_tokens={PROMPT_TOKENS},output_tokens={load.tokens}",
            "--profile", pacing, "--constraint", f"kind=max_requests,count={load.requests}",
            "--output", f"kind=json,path={folder / 'guidellm.json'}", "--disable-console"]  # fmt: skip


def read_ours(folder: Path) -> Report:
    """Durations are in seconds already."""
    answer = json.loads((folder / OUT).read_text())
    total = answer["total"]
    figures = {f"{name}_{at}": total[name][at] for name in ("ttft", "itl", "tpot", "e2e") for at in ("p50", "p99")}
    figures["itl_mean"] = total["itl"]["mean"]
    figures["tokens_per_second"] = total["output_tokens_per_second"]
    figures["requests_per_second"] = total["requests_per_second"]
    _all_answered(total["requests"], total["ok"])
    return Report(figures, " ".join(answer["remarks"]))


def read_vllm(folder: Path) -> Report:
    """It tells nothing of its own speed: `benchmark` in vllm/benchmarks/serve.py watches requests only."""
    answer = json.loads((folder / "vllm.json").read_text())
    names = {"ttft": "ttft", "itl": "itl", "tpot": "tpot", "e2e": "e2el"}
    figures = {f"{ours}_{at}": answer[f"{at}_{its}_ms"] / 1e3 for ours, its in names.items() for at in ("p50", "p99")}
    figures["itl_mean"] = answer["mean_itl_ms"] / 1e3
    figures["tokens_per_second"] = answer["output_throughput"]
    figures["requests_per_second"] = answer["request_throughput"]
    _all_answered(answer["completed"] + answer["failed"], answer["completed"])
    return Report(figures)


def read_guidellm(folder: Path) -> Report:
    """Its names mean other things (the page says which); they are shown under its own names."""
    [answer] = json.loads((folder / "guidellm.json").read_text())["benchmarks"]
    names = {
        "ttft": ("time_to_first_token_ms", 1e3),
        "itl": ("inter_token_latency_ms", 1e3),
        "tpot": ("time_per_output_token_ms", 1e3),
        "e2e": ("request_latency", 1.0),
    }
    good: dict[str, Any] = {name: values["successful"] for name, values in answer["metrics"].items()
                            if isinstance(values, dict) and isinstance(values.get("successful"), dict)}  # fmt: skip
    figures = {
        f"{ours}_{at}": good[its]["percentiles"][at] / scale
        for ours, (its, scale) in names.items()
        for at in ("p50", "p99")
    }
    figures["itl_mean"] = good["inter_token_latency_ms"]["mean"] / 1e3
    figures["tokens_per_second"] = good["output_tokens_per_second"]["mean"]
    figures["requests_per_second"] = good["requests_per_second"]["mean"]
    totals = answer["metrics"]["request_totals"]
    _all_answered(totals["total"], totals["successful"])
    return Report(figures, " ".join(each["message"] for each in answer["warnings"]))


class NotAnsweredError(Exception):
    """Some requests failed: the figures would be of something else."""


def _all_answered(sent: int, whole: int) -> None:
    if sent != whole or not whole:
        raise NotAnsweredError(f"{sent - whole} of {sent} requests had no whole answer")
