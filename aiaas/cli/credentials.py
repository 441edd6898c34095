"""Values for the config's `${NAME}`, and for `api_key_env`, from files: `$CREDENTIALS_DIRECTORY/NAME`.

systemd gives a service its secrets this way (`LoadCredential=`): no unit, no environment file and no list of processes
shows them. A container's secrets (`/run/secrets`) have the same form. A variable that is set wins over its file.
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from pathlib import Path
from typing import Final

from aiaas.cli.common import CREDENTIALS_VARIABLE
from aiaas.errors import EnvironmentFault

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def add_credentials(environ: MutableMapping[str, str]) -> None:
    """Add the text of each file in `$CREDENTIALS_DIRECTORY` whose name can be a variable's, without the last newline.

    Raises EnvironmentFault if the folder or a file cannot be read, or a file is not text.
    """
    folder = environ.get(CREDENTIALS_VARIABLE)
    if not folder:
        return
    try:
        for path in sorted(Path(folder).iterdir()):
            if _NAME.fullmatch(path.name) and path.name not in environ and path.is_file():
                environ[path.name] = _text_of(path)
    except OSError as error:
        raise EnvironmentFault(f"{error.filename}: {error.strerror} (from ${CREDENTIALS_VARIABLE})") from error


def _text_of(path: Path) -> str:
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise EnvironmentFault(f"{path}: a credential must be text") from error
    if "\0" in text:
        raise EnvironmentFault(f"{path}: a credential must not contain a zero byte")
    return text.removesuffix("\n").removesuffix("\r")
