"""The clients that `aiaas connect` knows: what each one needs of a gateway, and what its user pastes. Pure data.

docs/clients.md is made from this table. A block's text has placeholders that `paste.py` fills in and quotes for the
block's language: `«{model}»` becomes a complete quoted value, and so does `«openai/{model}»`. A line with a number that
is unknown (`«{context}»`, `«{output}»`) is left out. The key stands only in `sh` and `env` blocks, as the value of an
environment variable: all other blocks refer to that variable.
"""

from __future__ import annotations

from typing import Final

from aiaas.clients.client import Block, KnownClient, SentHeader
from aiaas.openai.paths import CHAT, MESSAGES, MODELS, RESPONSES

_COUNT_TOKENS: Final = "/v1/messages/count_tokens"
_ID: Final = "00000000-0000-4000-8000-000000000000"
_BY_DOCUMENTATION: Final = "its documentation"
_BY_RUN: Final = "`nox -s clients` runs it"
_KEY_VARIABLE: Final = "export AIAAS_API_KEY=«{key}»\n"
_SHELL: Final = "the shell that starts it"

_CLAUDE_CODE: Final = KnownClient(
    name="claude-code",
    title="Claude Code",
    what="Anthropic's coding agent for the terminal",
    needs=(MESSAGES,),
    uses=((_COUNT_TOKENS, "`/context` shows its own estimates; older versions send real requests instead"),),
    headers=(
        SentHeader("anthropic-version", "2023-06-01", "version of the API"),
        SentHeader("anthropic-beta", "claude-code-20250219", "features of the API that it uses"),
        SentHeader("x-claude-code-session-id", _ID, "its session"),
    ),
    tools=True,
    context=32_768,
    blocks=(
        Block(
            _SHELL,
            "sh",
            "unset ANTHROPIC_API_KEY\n"
            "export ANTHROPIC_BASE_URL=«{url}»\n"
            "export ANTHROPIC_AUTH_TOKEN=«{key}»\n"
            "export ANTHROPIC_MODEL=«{model}»\n"
            "export ANTHROPIC_DEFAULT_HAIKU_MODEL=«{model}» ANTHROPIC_DEFAULT_SONNET_MODEL=«{model}»\n"
            "export ANTHROPIC_DEFAULT_OPUS_MODEL=«{model}» CLAUDE_CODE_SUBAGENT_MODEL=«{model}»\n"
            "export CLAUDE_CODE_MAX_CONTEXT_TOKENS=«{context}»\n"
            "export CLAUDE_CODE_MAX_OUTPUT_TOKENS=«{output}»\n"
            "export CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1\n",
        ),
    ),
    notes=(
        "Without `CLAUDE_CODE_MAX_CONTEXT_TOKENS` it takes an unknown model for one of 200,000 tokens and compacts too"
        " late.",
    ),
    verified=_BY_RUN,
    source="https://code.claude.com/docs/en/llm-gateway",
)

_CODEX: Final = KnownClient(
    name="codex",
    title="Codex CLI",
    what="OpenAI's coding agent for the terminal",
    needs=(RESPONSES,),
    headers=(
        SentHeader("session-id", _ID, "its session"),
        SentHeader("thread-id", _ID, "its session"),
    ),
    tools=True,
    context=32_768,
    blocks=(
        Block(_SHELL, "sh", _KEY_VARIABLE),
        Block(
            "~/.codex/config.toml",
            "toml",
            "model = «{model}»\n"
            'model_provider = "aiaas"\n'
            "model_context_window = «{context}»\n"
            "\n"
            "[model_providers.aiaas]\n"
            'name = "aiaas"\n'
            "base_url = «{base}»\n"
            'env_key = "AIAAS_API_KEY"\n'
            'wire_api = "responses"\n',
        ),
    ),
    verified=_BY_RUN,
    source="https://developers.openai.com/codex/config-advanced#custom-model-providers",
)

_OPENCODE: Final = KnownClient(
    name="opencode",
    title="OpenCode",
    what="a coding agent for the terminal",
    needs=(CHAT,),
    headers=(
        SentHeader("x-session-affinity", "ses_00000000000000000000000000", "its session"),
        SentHeader("x-session-id", "ses_00000000000000000000000000", "its session"),
    ),
    tools=True,
    context=32_768,
    blocks=(
        Block(_SHELL, "sh", _KEY_VARIABLE),
        Block(
            "opencode.json in the project, or ~/.config/opencode/opencode.json",
            "json",
            "{\n"
            '  "$schema": "https://opencode.ai/config.json",\n'
            '  "model": «aiaas/{model}»,\n'
            '  "provider": {\n'
            '    "aiaas": {\n'
            '      "npm": "@ai-sdk/openai-compatible",\n'
            '      "name": "aiaas",\n'
            '      "options": { "baseURL": «{base}», "apiKey": "{env:AIAAS_API_KEY}" },\n'
            '      "models": { «{model}»: {\n'
            '        "limit": { "context": «{context}», "output": «{output}» },\n'
            '        "tool_call": true\n'
            "      } }\n"
            "    }\n"
            "  }\n"
            "}\n",
        ),
    ),
    verified=_BY_RUN,
    source="https://opencode.ai/docs/providers/#custom-provider",
)

_AIDER: Final = KnownClient(
    name="aider",
    title="aider",
    what="pair programming in the terminal",
    needs=(CHAT,),
    context=8_192,
    blocks=(
        Block(
            _SHELL,
            "sh",
            "export OPENAI_API_BASE=«{base}»\nexport OPENAI_API_KEY=«{key}»\nexport AIDER_MODEL=«openai/{model}»\n",
        ),
        Block(
            ".aider.model.metadata.json in the project or the home folder",
            "json",
            "{\n"
            "  «openai/{model}»: {\n"
            '    "max_input_tokens": «{context}»,\n'
            '    "max_output_tokens": «{output}»,\n'
            '    "litellm_provider": "openai",\n'
            '    "mode": "chat"\n'
            "  }\n"
            "}\n",
        ),
    ),
    verified=_BY_DOCUMENTATION,
    source="https://aider.chat/docs/llms/openai-compat.html",
)

_CONTINUE: Final = KnownClient(
    name="continue",
    title="Continue",
    what="an assistant for VS Code and JetBrains",
    needs=(CHAT,),
    tools=True,
    context=16_384,
    blocks=(
        Block("~/.continue/.env", "env", "AIAAS_API_KEY=«{key}»\n"),
        Block(
            "~/.continue/config.yaml",
            "yaml",
            "name: aiaas\n"
            "version: 1.0.0\n"
            "schema: v1\n"
            "models:\n"
            "  - name: «{model}»\n"
            "    provider: openai\n"
            "    model: «{model}»\n"
            "    apiBase: «{base}»\n"
            "    apiKey: ${{ secrets.AIAAS_API_KEY }}\n"
            "    roles: [chat, edit, apply]\n"
            "    capabilities: [tool_use]\n"
            "    defaultCompletionOptions:\n"
            "      temperature: 0.2\n"
            "      contextLength: «{context}»\n"
            "      maxTokens: «{output}»\n",
        ),
    ),
    verified=_BY_DOCUMENTATION,
    source="https://docs.continue.dev/reference",
)

_OPEN_WEBUI: Final = KnownClient(
    name="open-webui",
    title="Open WebUI",
    what="a chat page for many users behind one key",
    needs=(CHAT, MODELS),
    headers=(
        SentHeader("x-openwebui-chat-id", _ID, "its conversation"),
        SentHeader("x-openwebui-user-id", _ID, "its user"),
    ),
    context=4_096,
    blocks=(
        Block(
            _SHELL,
            "sh",
            "export OPENAI_API_KEY=«{key}»\n"
            "docker run -d --name open-webui -p 3000:8080 -v open-webui:/app/backend/data \\\n"
            "  -e OPENAI_API_BASE_URL=«{base}» -e OPENAI_API_KEY \\\n"
            "  -e ENABLE_FORWARD_USER_INFO_HEADERS=true -e ENABLE_OLLAMA_API=false \\\n"
            "  ghcr.io/open-webui/open-webui:main\n",
        ),
    ),
    notes=(
        "Make its key with `aiaas keys create webui --users-header X-OpenWebUI-User-Id`, so that its users take turns.",
        "It reads the address and the key at its first start only; later they are changed in its settings.",
        "In a container, 127.0.0.1 is the container itself: give --url an address that it reaches.",
    ),
    verified=_BY_DOCUMENTATION,
    source="https://docs.openwebui.com/getting-started/env-configuration",
)

_LIBRECHAT: Final = KnownClient(
    name="librechat",
    title="LibreChat",
    what="a chat page for many users behind one key",
    needs=(CHAT, MODELS),
    headers=(SentHeader("x-conversation-id", _ID, "its conversation"),),
    context=4_096,
    blocks=(
        Block(".env of LibreChat", "env", "AIAAS_API_KEY=«{key}»\n"),
        Block(
            "librechat.yaml",
            "yaml",
            "version: 1.2.1\n"
            "endpoints:\n"
            "  custom:\n"
            "    - name: aiaas\n"
            "      apiKey: ${AIAAS_API_KEY}\n"
            "      baseURL: «{base}»\n"
            "      headers:\n"
            '        X-Conversation-Id: "{{LIBRECHAT_BODY_CONVERSATIONID}}"\n'
            "      models:\n"
            "        default: [«{model}»]\n"
            "        fetch: true\n"
            "      titleConvo: true\n"
            "      titleModel: current_model\n"
            "      modelDisplayLabel: aiaas\n",
        ),
    ),
    notes=("In a container, 127.0.0.1 is the container itself: give --url an address that it reaches.",),
    verified=_BY_DOCUMENTATION,
    source="https://www.librechat.ai/docs/configuration/librechat_yaml/object_structure/custom_endpoint",
)

_OPENAI_VARIABLES: Final = "export OPENAI_BASE_URL=«{base}»\nexport OPENAI_API_KEY=«{key}»\n"
_ANTHROPIC_VARIABLES: Final = "export ANTHROPIC_BASE_URL=«{url}»\nexport ANTHROPIC_API_KEY=«{key}»\n"

_OPENAI_PYTHON: Final = KnownClient(
    name="openai-python",
    title="OpenAI SDK for Python",
    what="`pip install openai`",
    needs=(CHAT,),
    blocks=(
        Block(_SHELL, "sh", _OPENAI_VARIABLES),
        Block(
            "Python",
            "python",
            "from openai import OpenAI\n"
            "\n"
            "client = OpenAI()  # reads OPENAI_BASE_URL and OPENAI_API_KEY\n"
            "answer = client.chat.completions.create(\n"
            "    model=«{model}»,\n"
            '    messages=[{"role": "user", "content": "Hello"}],\n'
            ")\n"
            "print(answer.choices[0].message.content)\n",
        ),
    ),
    verified=_BY_RUN,
    source="https://github.com/openai/openai-python",
)

_OPENAI_NODE: Final = KnownClient(
    name="openai-node",
    title="OpenAI SDK for Node",
    what="`npm install openai`",
    needs=(CHAT,),
    blocks=(
        Block(_SHELL, "sh", _OPENAI_VARIABLES),
        Block(
            "a module (.mjs)",
            "javascript",
            'import OpenAI from "openai";\n'
            "\n"
            "const client = new OpenAI(); // reads OPENAI_BASE_URL and OPENAI_API_KEY\n"
            "const answer = await client.chat.completions.create({\n"
            "  model: «{model}»,\n"
            '  messages: [{ role: "user", content: "Hello" }],\n'
            "});\n"
            "console.log(answer.choices[0].message.content);\n",
        ),
    ),
    verified=_BY_RUN,
    source="https://github.com/openai/openai-node",
)

_ANTHROPIC: Final = KnownClient(
    name="anthropic",
    title="Anthropic SDK for Python",
    what="`pip install anthropic`",
    needs=(MESSAGES,),
    uses=((_COUNT_TOKENS, "`messages.count_tokens` fails"),),
    headers=(SentHeader("anthropic-version", "2023-06-01", "version of the API"),),
    key_in="x-api-key",
    blocks=(
        Block(_SHELL, "sh", _ANTHROPIC_VARIABLES),
        Block(
            "Python",
            "python",
            "from anthropic import Anthropic\n"
            "\n"
            "client = Anthropic()  # reads ANTHROPIC_BASE_URL and ANTHROPIC_API_KEY\n"
            "answer = client.messages.create(\n"
            "    model=«{model}»,\n"
            "    max_tokens=500,\n"
            '    messages=[{"role": "user", "content": "Hello"}],\n'
            ")\n"
            "print(answer.content[0].text)\n",
        ),
    ),
    verified=_BY_RUN,
    source="https://github.com/anthropics/anthropic-sdk-python",
)

_LANGCHAIN: Final = KnownClient(
    name="langchain",
    title="LangChain",
    what="`pip install langchain-openai`",
    needs=(CHAT,),
    blocks=(
        Block(_SHELL, "sh", "export OPENAI_API_BASE=«{base}»\nexport OPENAI_API_KEY=«{key}»\n"),
        Block(
            "Python",
            "python",
            "from langchain_openai import ChatOpenAI\n"
            "\n"
            "model = ChatOpenAI(model=«{model}»)  # reads OPENAI_API_BASE and OPENAI_API_KEY\n"
            'print(model.invoke("Hello").content)\n',
        ),
    ),
    verified=_BY_RUN,
    source="https://docs.langchain.com/oss/python/integrations/chat/openai",
)

_AI_SDK: Final = KnownClient(
    name="ai-sdk",
    title="AI SDK",
    what="`npm install ai @ai-sdk/openai-compatible`",
    needs=(CHAT,),
    blocks=(
        Block(_SHELL, "sh", _KEY_VARIABLE),
        Block(
            "a module (.mjs)",
            "javascript",
            'import { createOpenAICompatible } from "@ai-sdk/openai-compatible";\n'
            'import { generateText } from "ai";\n'
            "\n"
            "const apiKey = process.env.AIAAS_API_KEY;\n"
            'const aiaas = createOpenAICompatible({ name: "aiaas", baseURL: «{base}», apiKey });\n'
            'const { text } = await generateText({ model: aiaas(«{model}»), prompt: "Hello" });\n'
            "console.log(text);\n",
        ),
    ),
    verified=_BY_RUN,
    source="https://ai-sdk.dev/providers/openai-compatible-providers",
)

_CURL: Final = KnownClient(
    name="curl",
    title="curl",
    what="one request by hand",
    needs=(CHAT,),
    blocks=(
        Block(
            "a shell",
            "sh",
            "export AIAAS_API_KEY=«{key}»\n"
            "curl «{base}/chat/completions» \\\n"
            '  -H "Authorization: Bearer $AIAAS_API_KEY" \\\n'
            "  -H 'Content-Type: application/json' \\\n"
            "  -d «{chat_body}»\n",
        ),
    ),
    verified=_BY_RUN,
    source="https://curl.se/docs/",
)

CLIENTS: Final = (
    *(_CLAUDE_CODE, _CODEX, _OPENCODE, _AIDER, _CONTINUE, _OPEN_WEBUI, _LIBRECHAT),
    *(_OPENAI_PYTHON, _OPENAI_NODE, _ANTHROPIC, _LANGCHAIN, _AI_SDK, _CURL),
)
