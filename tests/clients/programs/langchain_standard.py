"""LangChain's standard tests of a chat model, for langchain-openai: pytest collects them from this file.

The server's address, its key and a model come in BASE_URL, API_KEY and MODEL.
"""

from __future__ import annotations

import os
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


class TestThroughChatCompletions(ChatModelIntegrationTests):
    """All tests of the library; a small model fails some, and the same ones through a gateway."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        """The class under test."""
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        """Its settings."""
        return {
            "model": os.environ["MODEL"],
            "base_url": f"{os.environ['BASE_URL']}/v1",
            "api_key": os.environ["API_KEY"],
            "temperature": 0,
            "seed": 1,
            "max_tokens": 32,
            "max_retries": 0,
            "timeout": 60,
            "stream_usage": True,
        }

    @property
    def supports_image_inputs(self) -> bool:
        """The model reads text."""
        return False
