"""The pid file of a configuration, seen at a glance.

`prefork status` is looked at while a server is in trouble, again and again, and wants one setting
of a file. To load the configuration takes as long as everything else it does together. So a file
that says in so many words where its pid file is, as `prefork init` writes it, is not loaded; where
there is any doubt, and for every mistake, the loader has the word.
"""

import os
import re
from collections.abc import Mapping
from typing import Final

_FILE_MAX: Final = 65536
# A plain scalar that nothing but a path can be: no variable, no quotes, no word of YAML's own.
# After it the line ends, and the next that says anything is not indented: it would belong to it.
_LINE: Final = re.compile(
    r"""
    ^pid_file:[ ]+
    ([A-Za-z0-9_./-]*(?:/[A-Za-z0-9_-]|\.pid\b)[A-Za-z0-9_./-]*)
    [ ]*(?:[ ]\#.*)?(?>\r?\n(?:[ ]*(?:\#.*)?\r?\n)*+|\Z)
    (?![ \t])
    """,
    re.MULTILINE | re.VERBOSE,
)
_DOUBT: Final = re.compile(r"""^[ ]*["']?(?:include|pid_file)\b""", re.MULTILINE)


def pid_file(path: str, base: str, environ: Mapping[str, str]) -> str | None:
    """The absolute path of the pid file; None when it takes the loader to say.

    `path` is the configuration as the operator named it, relative to `base`.
    """
    path = os.path.join(os.path.abspath(base), path)
    try:
        with open(path, encoding="utf-8", newline="") as file:
            text = file.read(_FILE_MAX)
    except (OSError, ValueError):
        return None
    if len(text) == _FILE_MAX or "PREFORK_PID_FILE" in environ or len(_DOUBT.findall(text)) != 1:
        return None
    found = _LINE.search(text)
    if found is None:
        return None
    return os.path.normpath(os.path.join(os.path.dirname(path), found[1]))
