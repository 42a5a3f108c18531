"""The command line: one module per errand, imported only when its command is run.

`prefork --help` must stay a matter of milliseconds, so `main` knows every command by name and
one line, and the module behind it is imported on first use. Data goes to stdout, talk to
stderr. Exit codes: 0 ok, 1 failed, 2 usage, 3 not running, 78 bad configuration.
"""
