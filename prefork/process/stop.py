"""What a request to stop means, before the cycle looks at its flags.

nginx's TERM and INT are fast and its QUIT is graceful. Two readings are added. `on_term: graceful`
is for orchestrators that can only send TERM: the first drains, a second is fast. Ctrl-C is a
person: the first drains and says what it waits for, the second is fast. INT from `kill`, with no
terminal about, stays fast.
"""

from collections.abc import Callable
from typing import Literal

from prefork.log import ErrorLog
from prefork.process import terminal
from prefork.unix.signals import SignalFlags


def decide(
    flags: SignalFlags,
    on_term: Literal["fast", "graceful"],
    log: ErrorLog,
    waits_for: Callable[[], str],
) -> None:
    """Turn `interrupt`, and a TERM that is to be gentle, into `terminate` or `quit`.

    To be called once for each wake-up, and no more once `terminate` has been acted on.
    `waits_for()` says what a drain would wait for now.
    """
    if flags.terminate and on_term == "graceful" and not flags.quit:
        flags.terminate = False
        flags.quit = True
    if flags.interrupt:
        flags.interrupt = False
        if flags.quit or not terminal.in_foreground():
            flags.terminate = True
        else:
            flags.quit = True
            log.notice(f"draining: {waits_for()}; press Ctrl-C again to stop at once")
