"""What the service manager hears of the master: sd_notify(3), said at the right moments.

Which message means what is `prefork.unix.notify`'s business. Here is when: READY=1 once the workers
are, and again after each change, for a unit would stay "reloading" without it; STOPPING=1 only by
the last of two masters; and WATCHDOG=1 as long as somebody serves. A master that lives but cannot
keep one worker alive is no service: the manager may then restart it, which starts from nothing.
"""

import os
import time
from typing import TYPE_CHECKING, Final

from prefork.scoreboard import Verdict

if TYPE_CHECKING:
    from prefork.process.master import Master

MARGIN: Final = 5.0  # seconds the manager waits longer than the master means to take


class Service:
    """The master as a unit. Without a NOTIFY_SOCKET nothing is sent."""

    def __init__(self, master: "Master") -> None:
        self._master = master
        self._notifier = master.notifier
        self._ready_at = master.timers.clock()  # when a worker was last seen ready
        self._withheld = False

    def begin(self) -> None:
        """The start may take as long as a boot; the watchdog is fed from now on."""
        self.extend(self._master.cycle.conf.timeouts.boot)
        if self._notifier.watchdog_interval is not None:
            self._feed_watchdog(self._notifier.watchdog_interval)

    def tell(self) -> None:
        """READY=1, once we are, with the line `systemctl status` shows."""
        master = self._master
        if master.ending:
            return
        status = f"{master.processes}, generation {master.cycle.generation}"
        if master.noaccepting:
            status = "workers drained (WINCH)"
        header = master.board.header
        if header.reload_ended_ns:
            ended = time.strftime("%F %T", time.localtime(header.reload_ended_ns / 1e9))
            if header.reload_verdict == Verdict.OK:
                status += f"; reloaded {ended}"
            else:
                status += f"; {ended}: {header.reload_text}"
        if not master.served:
            self._notifier.status(status)
        elif master.predecessor.upgraded:
            self._notifier.ready(status=status, mainpid=os.getpid())
        else:
            self._notifier.ready(status=status)

    def progress(self, text: str, seconds: float) -> None:
        """What a change that is under way is waiting for, for `seconds` at most."""
        self._notifier.status(text)
        if seconds:
            self.extend(seconds)

    def reloading(self) -> None:
        """What is always followed by `tell`."""
        self._notifier.reloading()

    def extend(self, seconds: float) -> None:
        """What is under way may take `seconds`, and then the master ends it itself."""
        self._notifier.extend(int((seconds + MARGIN) * 1_000_000))

    def stopping(self, seconds: float) -> None:
        """The end has begun and takes `seconds` at most."""
        if not self._master.in_upgrade:
            self._notifier.stopping(status="shutting down")
        self.extend(seconds)

    def end(self) -> None:
        """An upgrade undone: the manager must not take our end for the service's."""
        predecessor = self._master.predecessor
        if predecessor.alive:
            self._notifier.mainpid(predecessor.parent)
            self._notifier.barrier(1.0)

    def _feed_watchdog(self, interval: float) -> None:
        """WATCHDOG=1, unless nobody has served for longer than a worker needs to boot."""
        master = self._master
        now = master.timers.clock()
        boot = master.cycle.conf.timeouts.boot
        if not master.wants_workers or any(
            row.ready and not row.exiting for row in master.table.living()
        ):
            self._ready_at = now
        withheld = now - self._ready_at > boot
        if not withheld:
            self._notifier.watchdog()
        if withheld != self._withheld:
            self._withheld = withheld
            if withheld:
                master.cycle.error_log.alert(
                    f"no worker has been ready for {boot:g} s (timeouts.boot):"
                    " the service manager's watchdog is left to bite"
                )
            else:
                master.cycle.error_log.notice("a worker is ready: the watchdog is fed again")
        master.timers.after(interval, lambda: self._feed_watchdog(interval))
