"""`prefork`: the page that lists the commands, and the door to them.

The page is what people ask for most often and needs nothing but this table. So it is written
before click is imported, which takes three times as long as the interpreter itself.
"""

import gc
import os
import sys
from typing import Final, NamedTuple


class Errand(NamedTuple):
    """One command: where its click object is (`module:attribute`), its section and its line.

    The line is the first sentence of the command's own help, copied so that `--help` imports
    no command; a test compares the two.
    """

    target: str
    section: str
    line: str


ERRANDS: Final = {
    "start": Errand("prefork.cli.start:start", "Serve", "Start the server, in the foreground."),
    "check": Errand("prefork.cli.check:check", "Serve", "Check a configuration."),
    "stop": Errand("prefork.cli.control:stop", "Control", "Stop the server gracefully."),
    "reload": Errand(
        "prefork.cli.reload:reload", "Control", "Load the configuration and the application anew."
    ),
    "reopen": Errand("prefork.cli.control:reopen", "Control", "Reopen the log files."),
    "scale": Errand("prefork.cli.control:scale", "Control", "Change the number of workers."),
    "status": Errand(
        "prefork.cli.status:status", "Control", "Show what the server and its workers are doing."
    ),
    "stacks": Errand(
        "prefork.cli.stacks:stacks", "Control", "Print what the workers are doing, by line."
    ),
    "config": Errand("prefork.cli.config:config", "Set up", "Show, explain or export settings."),
    "init": Errand("prefork.cli.init:init", "Set up", "Write a short commented configuration."),
    "migrate": Errand(
        "prefork.cli.migrate:migrate",
        "Set up",
        "Write a configuration from gunicorn's or uvicorn's.",
    ),
    "completion": Errand(
        "prefork.cli.completion:completion", "Set up", "Print a completion script for a shell."
    ),
}

EXAMPLES: Final = (
    "prefork start myproject:app              serve on http://127.0.0.1:8000",
    "prefork start -c conf.yaml --daemon      serve from a file, in the background",
    "prefork reload -c conf.yaml              new code and settings, nothing lost",
)


def page() -> str:
    """Twenty-five lines: what it is, three examples, the commands by section."""
    lines = ["prefork runs a Python web application the way nginx runs.", ""]
    lines += [f"  {example}" for example in EXAMPLES]
    section = ""
    for name, errand in ERRANDS.items():
        if errand.section != section:
            section = errand.section
            lines += ["", section]
        lines.append(f"  {name:<11} {errand.line}")
    lines += ["", "  -h, --help after any command explains it; --version [-v] says what this is."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """The console script."""
    # A shell that asks for completions runs the bare command with a variable set.
    if sys.argv[1:] in ([], ["-h"], ["--help"]) and "_PREFORK_COMPLETE" not in os.environ:
        sys.stdout.write(page())
        return
    # What the imports make is there to stay: looking for garbage in it finds none. A command is
    # over before there is any worth mention, and a server collects again when it has its workers.
    gc.disable()
    from prefork.cli.commands import run

    run()
