"""Ways of breaking conf.yaml, and every word of what is printed for each."""

import textwrap
from typing import Any

import pytest

from prefork.config.problems import Place, Source, problem_at

# Each is a whole file and the whole report.
BROKEN: dict[str, tuple[str, str]] = {
    "a mistyped key": (
        """
        app: a:b
        wrokers: 4
        """,
        """
        conf.yaml:2:1: error: unknown key "wrokers" (did you mean "workers"?)
             2 | wrokers: 4
               | ^~~~~~~
        """,
    ),
    "a mistyped key further in": (
        """
        app: a:b
        timeouts:
          keepalive: 5s
        """,
        """
        conf.yaml:3:3: error: unknown key "keepalive" in "timeouts" (did you mean "keep_alive"?)
             3 |   keepalive: 5s
               |   ^~~~~~~~~
        """,
    ),
    "another server's name for it": (
        """
        app: a:b
        bind: 0.0.0.0:80
        client_max_body_size: 1m
        """,
        """
        conf.yaml:2:1: error: unknown key "bind" (did you mean "listen"?)
             2 | bind: 0.0.0.0:80
               | ^~~~
        conf.yaml:3:1: error: unknown key "client_max_body_size" (did you mean "limits.body"?)
             3 | client_max_body_size: 1m
               | ^~~~~~~~~~~~~~~~~~~~
        """,
    ),
    "dots in a key": (
        """
        app: a:b
        log.error.level: info
        """,
        """
        conf.yaml:2:1: error: unknown key "log.error.level": dots are for --set, write """
        """log: {error: {level: …}}
             2 | log.error.level: info
               | ^~~~~~~~~~~~~~~
        """,
    ),
    "a key twice": (
        """
        app: a:b
        workers: 2
        log: {error: {level: info}}
        workers: 3
        """,
        """
        conf.yaml:4:1: error: duplicate key "workers" (first set at line 2)
             4 | workers: 3
               | ^~~~~~~
        """,
    ),
    "an octal number without its o": (
        """
        app: a:b
        umask: 0022
        listen: [{address: "unix:run/app.sock", mode: 0660}]
        """,
        """
        conf.yaml:2:8: error: "umask" is octal: write 0o022
             2 | umask: 0022
               |        ^~~~
        conf.yaml:3:47: error: "listen.mode" is octal: write 0o660
             3 | listen: [{address: "unix:run/app.sock", mode: 0660}]
               |                                               ^~~~
        """,
    ),
    "a leading zero elsewhere": (
        """
        app: a:b
        workers: 0660
        limits: {header_count: 08}
        """,
        """
        conf.yaml:2:10: error: "workers" is 0660, which some read as octal and some as decimal: """
        """write 0o660 (or 660)
             2 | workers: 0660
               |          ^~~~
        conf.yaml:3:24: error: "limits.header_count" must not begin with a zero: write 8
             3 | limits: {header_count: 08}
               |                        ^~
        """,
    ),
    "YAML 1.1's booleans": (
        """
        app: a:b
        daemon: yes
        master_process: off
        """,
        """
        conf.yaml:2:9: error: "daemon" must be true or false, not "yes" (did you mean "true"?)
             2 | daemon: yes
               |         ^~~
        conf.yaml:3:17: error: "master_process" must be true or false, not "off" """
        """(did you mean "false"?)
             3 | master_process: off
               |                 ^~~
        """,
    ),
    "units that do not exist": (
        """
        app: a:b
        timeouts: {head: 5 sec, body: fast}
        limits: {body: 1KB}
        """,
        """
        conf.yaml:2:18: error: "timeouts.head" must be a duration such as 30s, 5m or 250ms, """
        """not "5 sec" (did you mean "5s"?)
             2 | timeouts: {head: 5 sec, body: fast}
               |                  ^~~~~
        conf.yaml:2:31: error: "timeouts.body" must be a duration such as 30s, 5m or 250ms, """
        """not "fast"
             2 | timeouts: {head: 5 sec, body: fast}
               |                               ^~~~
        conf.yaml:3:16: error: "limits.body" must be a size such as 8KiB, 64k or 16MiB, """
        """not "1KB" (did you mean "1KiB"?)
             3 | limits: {body: 1KB}
               |                ^~~
        """,
    ),
    "a mistyped word": (
        """
        app: a:b
        log: {error: {level: warning, path: sterr}, access: {format: combind}}
        on_term: gracefull
        workers: atuo
        """,
        """
        conf.yaml:2:22: error: "log.error.level" must be one of debug, info, notice, warn, """
        """error, crit, alert, emerg, not "warning" (did you mean "warn"?)
             2 | log: {error: {level: warning, path: sterr}, access: {format: combind}}
               |                      ^~~~~~~
        conf.yaml:2:37: error: "log.error.path" must be a path, stderr or stdout, not "sterr" """
        """(did you mean "stderr"?)
             2 | log: {error: {level: warning, path: sterr}, access: {format: combind}}
               |                                     ^~~~~
        conf.yaml:2:62: error: "log.access.format" must be off, combined, json or a template, """
        """not "combind" (did you mean "combined"?)
             2 | log: {error: {level: warning, path: sterr}, access: {format: combind}}
               |                                                              ^~~~~~~
        conf.yaml:3:10: error: "on_term" must be fast or graceful, not "gracefull" """
        """(did you mean "graceful"?)
             3 | on_term: gracefull
               |          ^~~~~~~~~
        conf.yaml:4:10: error: "workers" must be a whole number from 1 to 512, or auto, """
        """not "atuo" (did you mean "auto"?)
             4 | workers: atuo
               |          ^~~~
        """,
    ),
    "the wrong shape": (
        """
        app: [a:b]
        timeouts: 5s
        workers: "4"
        environment: [DEBUG=1]
        listen: {address: ":80", mode: 0o660}
        """,
        """
        conf.yaml:1:6: error: "app" must be module:attribute or module:factory(), not a list
             1 | app: [a:b]
               |      ^~~~~
        conf.yaml:2:11: error: "timeouts" must be a mapping with keys such as boot, head, body, """
        """not "5s"
             2 | timeouts: 5s
               |           ^~
        conf.yaml:3:10: error: "workers" must be a whole number from 1 to 512: write 4, """
        """without quotes
             3 | workers: "4"
               |          ^~~
        conf.yaml:4:14: error: "environment" must be a mapping of names to values, not a list
             4 | environment: [DEBUG=1]
               |              ^~~~~~~~~
        conf.yaml:5:26: error: "listen.mode" belongs to a Unix socket, not to 0.0.0.0:80
             5 | listen: {address: ":80", mode: 0o660}
               |                          ^~~~
        """,
    ),
    "a variable that is not set": (
        """
        app: a:b
        workers: ${NPROC}
        user: ${APP_USER:?say who}
        """,
        """
        conf.yaml:2:10: error: environment variable NPROC is not set """
        """(give a default: ${NPROC:-value})
             2 | workers: ${NPROC}
               |          ^~~~~~~~
        conf.yaml:3:7: error: environment variable APP_USER is not set: say who
             3 | user: ${APP_USER:?say who}
               |       ^~~~~~~~~~~~~~~~~~~~
        """,
    ),
    "addresses": (
        """
        app: a:b
        listen: ["::1:8000", /run/app.sock, "127.0.0.1:80", 127.0.0.1:80]
        """,
        """
        conf.yaml:2:10: error: "listen" has "::1:8000": an IPv6 address is written in brackets """
        """(did you mean "[::1]:8000"?)
             2 | listen: ["::1:8000", /run/app.sock, "127.0.0.1:80", 127.0.0.1:80]
               |          ^~~~~~~~~~
        conf.yaml:2:22: error: "listen" has "/run/app.sock": a Unix socket is written with its """
        """prefix (did you mean "unix:/run/app.sock"?)
             2 | listen: ["::1:8000", /run/app.sock, "127.0.0.1:80", 127.0.0.1:80]
               |                      ^~~~~~~~~~~~~
        conf.yaml:2:53: error: "listen" has 127.0.0.1:80 twice
             2 | listen: ["::1:8000", /run/app.sock, "127.0.0.1:80", 127.0.0.1:80]
               |                                                     ^~~~~~~~~~~~
        """,
    ),
    "a file name for a module": (
        """
        app: ./my-project/web.py
        """,
        """
        conf.yaml:1:6: error: "app" must be module:attribute or module:factory(), not """
        """"./my-project/web.py" (did you mean "my_project.web:app"?)
             1 | app: ./my-project/web.py
               |      ^~~~~~~~~~~~~~~~~~~
        """,
    ),
    "a prefix": (
        """
        app: a:b
        root_path: "api"
        """,
        """
        conf.yaml:2:12: error: "root_path" must be a path such as /api, or "", not "api" """
        """(did you mean "/api"?)
             2 | root_path: "api"
               |            ^~~~~
        """,
    ),
    "an encoded prefix": (
        """
        app: a:b
        root_path: /caf%C3%A9/
        """,
        """
        conf.yaml:2:12: error: "root_path" is written without %-escapes """
        """(did you mean "/caf\u00e9"?)
             2 | root_path: /caf%C3%A9/
               |            ^~~~~~~~~~~
        """,
    ),
    "a prefix that no client sends": (
        """
        app: a:b
        root_path: /api/../x
        """,
        """
        conf.yaml:2:12: error: "root_path" must be a path without spaces, backslashes, "." and """
        """"..", not "/api/../x"
             2 | root_path: /api/../x
               |            ^~~~~~~~~
        """,
    ),
    "no application": (
        """
        workers: 2
        """,
        """
        conf.yaml: error: there is no application: set `app: module:attribute`, or give it to """
        """`prefork start`
        """,
    ),
    "growing numbers and percentages": (
        """
        app: a:b
        preload: true
        refork_after: [500, 200]
        recycle: {jitter: 0.1}
        """,
        """
        conf.yaml:3:21: error: "refork_after" has 200 behind 500: let them grow
             3 | refork_after: [500, 200]
               |                     ^~~
        conf.yaml:4:19: error: "recycle.jitter" must be a percentage such as 10%, not "0.1\""""
        """ (did you mean "10%"?)
             4 | recycle: {jitter: 0.1}
               |                   ^~~
        """,
    ),
    "settings that contradict each other": (
        """
        app: a:b
        timeouts: {graceful: 1s, keep_alive_min: 5s}
        limits: {request_line: 64KiB}
        listen: [":80", "127.0.0.1:80"]
        """,
        """
        conf.yaml:2:42: error: "timeouts.graceful" (1s) is shorter than """
        """"timeouts.keep_alive_min" (5s): idle connections would be cut
             2 | timeouts: {graceful: 1s, keep_alive_min: 5s}
               |                                          ^~
        conf.yaml:3:24: error: "limits.request_line" (64KiB) is larger than "limits.head" """
        """(32KiB), which includes it
             3 | limits: {request_line: 64KiB}
               |                        ^~~~~
        conf.yaml:4:9: error: "listen" has 127.0.0.1:80, which 0.0.0.0:80 already includes: """
        """remove one of them
             4 | listen: [":80", "127.0.0.1:80"]
               |         ^~~~~~~~~~~~~~~~~~~~~~~
        """,
    ),
    "YAML that has no meaning here": (
        """
        app: !!python/name:os.system a:b
        <<: {workers: 3}
        ? [a, b]
        : c
        listen: &x [*x]
        """,
        """
        conf.yaml:1:6: error: tags have no meaning here: remove !!python/name:os.system
             1 | app: !!python/name:os.system a:b
               |      ^~~~~~~~~~~~~~~~~~~~~~~~~~~
        conf.yaml:2:1: error: merge keys ("<<") are not in YAML 1.2: write the keys out, or use """
        """include
             2 | <<: {workers: 3}
               | ^~
        conf.yaml:3:3: error: a key must be one word
             3 | ? [a, b]
               |   ^~~~~~
        conf.yaml:5:9: error: an alias inside the value it stands for
             5 | listen: &x [*x]
               |         ^~~~~~~
        """,
    ),
}

# Syntax: one problem a file, because nothing behind it can be believed.
UNREADABLE: dict[str, tuple[str, str]] = {
    "a tab": (
        "app: a:b\nlog:\n\terror: {}\n",
        "conf.yaml:3:1: error: a tab cannot indent YAML: use spaces",
    ),
    "two colons": (
        "app: a:b\nlog: error: x\n",
        'conf.yaml:2:11: error: a second ": " in one line: quote the value, or mend the '
        "indentation",
    ),
    "an open list": (
        'app: a:b\nlisten: ["x:1"\nworkers: 2\n',
        'conf.yaml:2:9: error: this "[" is not closed: a "," or a "]" is missing before line 3',
    ),
    "an open mapping": (
        "app: a:b\nlog: {error: {}\nworkers: 2\n",
        'conf.yaml:2:6: error: this "{" is not closed: a "," or a "}" is missing before line 3',
    ),
    "an open quotation": (
        'app: "a:b\nworkers: 2\n',
        "conf.yaml:1:6: error: this quotation mark has no second one",
    ),
    "a crooked indentation": (
        "app: a:b\ntimeouts:\n    head: 5s\n  body: 6s\n",
        "conf.yaml:4:3: error: the indentation of this line matches nothing above it",
    ),
    "no colon": (
        "app: a:b\nworkers 4\non_term: fast\n",
        'conf.yaml:2:1: error: a ":" is missing after this key',
    ),
    "a star": (
        "app: a:b\nlisten: *:8000\n",
        'conf.yaml:2:9: error: a value that begins with "*" must be quoted',
    ),
    "an at sign": (
        "app: a:b\nuser: @web\n",
        'conf.yaml:2:7: error: a value cannot begin with "@": quote it',
    ),
    "two documents": (
        "app: a:b\n---\napp: c:d\n",
        "conf.yaml:2:1: error: a second document begins here: one file holds one",
    ),
    "a control character": (
        'app: a:b\nuser: "x\x01"\n',
        "conf.yaml:2:9: error: the character U+0001 is not allowed in YAML",
    ),
    "a list": (
        "- app\n",
        "conf.yaml:1:1: error: a configuration is a mapping of keys to values, not a list",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken(folder: Any, name: str) -> None:
    text, report = (textwrap.dedent(part).strip("\n") for part in BROKEN[name])
    assert folder.errors(text + "\n") == report


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable(folder: Any, name: str) -> None:
    text, headline = UNREADABLE[name]
    report = folder.errors(text).splitlines()
    assert report[0] == headline
    assert len(report) == 3


def test_bytes_that_are_no_text(folder: Any) -> None:
    report = folder.errors(b"app: a:b\nuser: caf\xe9\n")
    assert report.startswith(
        "conf.yaml:2:10: error: the byte 0xE9 is not UTF-8: save the file as UTF-8\n"
    )


def test_deep_nesting_is_refused_not_crashed_on(folder: Any) -> None:
    assert "error: " in folder.errors("app: " + "[" * 200_000)


def test_aliases_of_aliases_stay_as_small_as_their_text(folder: Any) -> None:
    laughs = ["a: &a [x, x, x, x, x, x, x, x]"]
    laughs += [
        f"{new}: &{new} [{', '.join([f'*{old}'] * 8)}]"
        for old, new in zip("abcdefghijkl", "bcdefghijklm", strict=True)
    ]
    assert folder.errors("\n".join(laughs)).count("unknown key") == 13


def test_a_thousand_problems_are_summed_up(folder: Any) -> None:
    text = "app: a:b\n" + "".join(f"x{n}: 1\n" for n in range(1000))
    folder.write("conf.yaml", text)
    with pytest.raises(Exception, match="and 950 more problems"):
        folder.source().load()


def test_caret_stands_below_wide_and_combining_characters() -> None:
    line = "environment: {\u540d\u524d: \u5024, e\u0301: [1]}"
    place = Place(Source("c.yaml", line), 0, line.index("["), 3)
    quoted, caret = str(problem_at(place, "x")).splitlines()[1:]
    assert quoted == f"     1 | {line}"
    # Three of the characters before the bracket fill two cells, one fills none.
    assert caret == "       | " + " " * (line.index("[") + 3 - 1) + "^~~"


def test_long_lines_are_cut_around_the_caret() -> None:
    line = "x" * 500 + "[bad]" + "y" * 500
    place = Place(Source("c.yaml", line), 0, 500, 5)
    quoted, caret = str(problem_at(place, "x")).splitlines()[1:]
    assert len(quoted) < 120
    assert quoted[caret.index("^") :].startswith("[bad]")


def test_the_quoted_line_is_the_one_that_was_counted(folder: Any) -> None:
    """str.splitlines() ends lines where pyyaml does not, and pyyaml where an editor does not."""
    report = folder.errors('app: a:b # \u2028\r\nuser: "a\x0bb"\nwrk: 1\n')
    assert "not allowed in YAML" in report
    report = folder.errors('app: a:b # \u2028\r\nuser: "a\xa0b"\nwrk: 1\n')
    assert "| wrk: 1" in report


def test_terminal_escapes_are_not_passed_on(folder: Any) -> None:
    report = folder.errors('app: a:b\nworkers: "\\e[31mred"\n')
    assert "\x1b" not in report
