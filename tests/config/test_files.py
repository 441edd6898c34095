"""aiaas.config.files: how messages name the files of a config."""

from pathlib import Path

from aiaas.config.files import config_name, config_options


def test_files_of_a_config_are_named_in_their_order() -> None:
    """The first one is below the others; a config that does not come from a file has no name."""
    files = (Path("aiaas.yaml"), Path("over/prod.yaml"))
    assert config_name(files) == "aiaas.yaml + over/prod.yaml"
    assert config_name(files[:1]) == "aiaas.yaml"
    assert config_name(()) == ""


def test_options_give_a_command_the_same_files() -> None:
    """To paste behind `aiaas validate`."""
    assert config_options(["aiaas.yaml", Path("prod.yaml")]) == "-c aiaas.yaml -c prod.yaml"
