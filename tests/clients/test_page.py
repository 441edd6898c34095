"""docs/clients.md is the table."""

from __future__ import annotations

from pathlib import Path

from aiaas.clients.page import clients_page, main
from aiaas.clients.table import CLIENTS
from tests.repository_rules import ROOT


def test_clients_page_in_docs_is_up_to_date() -> None:
    """`python -m aiaas.clients.page docs` would change nothing."""
    assert (ROOT / "docs" / "clients.md").read_text(encoding="utf-8") == clients_page()


def test_page_has_a_section_for_each_client(tmp_path: Path) -> None:
    """The page shows what to paste for each client."""
    main(tmp_path)
    text = (tmp_path / "clients.md").read_text(encoding="utf-8")
    assert [client.title for client in CLIENTS if f"\n## {client.title}\n" not in text] == []
