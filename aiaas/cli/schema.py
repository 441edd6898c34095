"""`aiaas schema`: the JSON Schema of the config, on stdout."""

from __future__ import annotations

from aiaas.cli.common import new_app, print_json

app = new_app()


@app.command(
    epilog="""Examples:

\b
  aiaas schema > aiaas.schema.json
  # first line of aiaas.yaml, for editors with the YAML language server:
  # yaml-language-server: $schema=aiaas.schema.json
"""
)
def schema() -> None:
    """Print the JSON Schema of the config, for editors."""
    from aiaas.config.schema import config_schema

    print_json(config_schema())
