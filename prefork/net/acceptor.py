"""Between a listening socket and its connections.

Several workers watch one socket. Facts that decided this module (measured with four workers):
- Plain epoll wakes every worker for each connection; EPOLLEXCLUSIVE wakes one, but always the same
  one while it is quick, because waiters are woken last-in-first-out.
- nginx's cure is to delete and add the listening socket every 16 accepts, which moves the worker
  to the other end of the queue (`ngx_event_accept.c, ngx_reorder_accept_events`).
- That counts connections, not work. 200 clients who connect at once and ask 2 ms later are all
  accepted before anything is asked, 150 of them by the worker that was awake; when each request
  blocks for 5 ms, the median client waits 3.2 times as long as for workers who sit in a blocking
  accept(). So a worker that shares its listener reads from a new connection at once, in the same
  turn, and while the client has said nothing leaves the listener to the others: what is busy
  takes nobody whom an idle one could serve. That costs two calls of epoll_ctl for a connection
  whose request is not there yet, and nothing later. It waits for a millisecond at most, and after
  64 clients in a row who did not speak in time for none until one does, for those who open
  thousands of connections in advance (browsers, pools) are not to be let in one by one.
- The last close of a socket resets what is in its queue. A server that stops for good seals the
  entrance (`prefork.net.seal`), and every worker goes on accepting until nothing is left: one
  connection a turn, so that who is busy takes fewer. Handshakes that were under way need as long
  as a packet to the client and back, hence the last look a little later.
- With no descriptors left (EMFILE, ENFILE) the socket stays readable: a loop that just goes on
  takes all of the CPU. nginx rests for `accept_mutex_delay`, half a second; so does this.
"""

import errno
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from prefork.event.reactor import NOMORE, READABLE, Reactor, TimeEvent

if TYPE_CHECKING:
    from prefork.log import ErrorLog
    from prefork.net.connection import Connection
    from prefork.net.listener import Listener

ACCEPTS_A_TURN: Final = 64
REORDER_EVERY: Final = 16
REST_SECONDS: Final = 0.5
HANDSHAKE_SECONDS: Final = 0.1  # a round trip across an ocean
LAST_ACCEPTS: Final = 4096  # at the last look; no queue is longer (net.core.somaxconn)
FIRST_WORD_SECONDS: Final = 0.001  # how long the others have the listener to themselves
SILENT_IN_A_ROW: Final = 64
# Returns what is to be read from at once, if anything is.
OnConnection = Callable[[socket.socket, Any, "Listener"], "Connection | None"]

# The connection was there and is gone, or the network has an opinion (accept(2), "Error
# handling"): nothing of ours is wrong and the next one may be fine.
_TRANSIENT: Final = frozenset(
    {
        errno.ECONNABORTED,
        errno.EPERM,
        errno.EPROTO,
        errno.ENETDOWN,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EOPNOTSUPP,
        errno.ENETUNREACH,
        *({errno.ENONET} if hasattr(errno, "ENONET") else ()),
    }
)
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Acceptor:
    """Accepts from `listener` and hands each socket, non-blocking, to `on_connection`."""

    def __init__(
        self,
        reactor: Reactor,
        listener: "Listener",
        on_connection: OnConnection,
        error_log: "ErrorLog",
        *,
        exclusive: bool = True,
    ) -> None:
        self.listener = listener
        self._reactor = reactor
        self._on_connection = on_connection
        self._error_log = error_log
        self._exclusive = exclusive
        self._sock = listener.sock
        self._fd = listener.sock.fileno()
        self._nodelay = listener.sock.family != socket.AF_UNIX
        self._accepted = 0
        self._started = False
        self._paused = False
        self._resting: TimeEvent | None = None
        self._held: Connection | None = None  # accepted, and has yet to speak
        self._hold_ends: TimeEvent | None = None
        self._silent = 0  # in a row, who did not speak in time
        self._on_dry: Callable[[], None] | None = None  # set while the queue is drained
        self._turn: TimeEvent | None = None
        self._last_look = 0.0  # seconds after the queue was first found empty

    def start(self) -> None:
        self._started = True
        self._watch()

    def stop(self) -> None:
        """Accept no more. The queue stays with the other owners of the socket: nothing is reset."""
        self._started = False
        if self._resting is not None:
            self._reactor.delete_time_event(self._resting)
            self._resting = None
        if self._turn is not None:
            self._reactor.delete_time_event(self._turn)
            self._turn = None
        self._on_dry = None
        self._let_go()
        self._unwatch()

    def drain(self, on_dry: Callable[[], None], *, sealed: bool) -> None:
        """Accept what waits, a connection a turn, then close our copy and call `on_dry`.

        `sealed`: nobody new gets into the queue, so what is found empty stays so, but for
        handshakes under way. Otherwise only what is there now is taken. `stop` ends it early.
        """
        self._let_go()
        self._unwatch()
        self._started = True
        self._on_dry = on_dry
        self._last_look = HANDSHAKE_SECONDS if sealed and self._nodelay else 0.0
        self._watch()

    def pause(self) -> None:
        self._paused = True
        self._unwatch()

    def resume(self) -> None:
        self._paused = False
        self._watch()

    def _watch(self) -> None:
        if not self._started or self._paused or self._resting is not None:
            return
        if self._held is not None:
            return
        if self._on_dry is not None:
            # A sealed Unix socket is readable for ever: a turn of the loop is what we wait for.
            if self._turn is None:
                self._turn = self._reactor.create_time_event(0.0, self._drain_turn)
        else:
            self._reactor.create_file_event(
                self._fd, READABLE, self._on_readable, exclusive=self._exclusive
            )

    def _unwatch(self) -> None:
        self._reactor.delete_file_event(self._fd, READABLE)

    def _drain_turn(self) -> float:
        self._turn = None
        waits = self._paused or self._resting is not None
        if not waits and self._accept_one() is False:
            self._turn = self._reactor.create_time_event(self._last_look, self._drain_rest)
        else:
            self._watch()  # or when there is room again
        return NOMORE

    def _drain_rest(self) -> float:
        """The last look: until there is nothing, and closed before anything else happens."""
        self._turn = None
        for _ in range(LAST_ACCEPTS):
            if self._paused or self._resting is not None or not self._started:
                return NOMORE  # `_watch` begins again when there is room
            if self._accept_one() is False:
                break
        on_dry = self._on_dry
        self.listener.close()
        self.stop()
        if on_dry is not None:
            on_dry()
        return NOMORE

    def _accept_one(self) -> bool | None:
        """True: one was taken; False: nobody waits; None: it did not come to that."""
        try:
            sock, address = self._sock.accept()
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            if error.errno in _TRANSIENT:
                self._error_log.info(f"accept() failed ({error.errno}: {error.strerror})")
            else:
                self._rest(error)
            return None
        sock.setblocking(False)
        if self._nodelay:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = self._on_connection(sock, address, self.listener)
        if connection is not None and self._exclusive and self._on_dry is None:
            self._hear(connection)
        return True

    def _hear(self, connection: "Connection") -> None:
        """Serve what a new client has said; leave the others to idle workers while it is silent."""
        if connection.has_spoken():
            self._silent = 0
            connection.on_readable()
        elif self._silent < SILENT_IN_A_ROW:
            self._unwatch()
            self._held = connection
            self._reactor.create_file_event(connection.fd, READABLE, self._first_word)
            self._hold_ends = self._reactor.create_time_event(FIRST_WORD_SECONDS, self._no_word)

    def _first_word(self) -> None:
        connection = self._let_go()
        self._silent = 0
        try:
            if connection is not None:
                connection.on_readable()
        finally:
            self._watch()

    def _no_word(self) -> float:
        self._let_go()
        self._silent += 1
        self._watch()
        return NOMORE

    def _let_go(self) -> "Connection | None":
        """From here on the held connection is one like the others."""
        connection, self._held = self._held, None
        if self._hold_ends is not None:
            self._reactor.delete_time_event(self._hold_ends)
            self._hold_ends = None
        if connection is not None and connection.reading:
            self._reactor.create_file_event(connection.fd, READABLE, connection.on_readable)
        return connection

    def _on_readable(self) -> None:
        for _ in range(ACCEPTS_A_TURN):
            taken = self._accept_one()
            if taken is None and self._resting is None:
                continue
            if not taken:
                return
            if self._exclusive:
                self._accepted += 1
                if self._accepted % REORDER_EVERY == 0 and self._started and not self._paused:
                    self._unwatch()
                    self._watch()
                # One connection a wake-up: the others belong to whoever is idle.
                return
            if not self._started or self._paused:
                return

    def _rest(self, error: OSError) -> None:
        what = "crit" if error.errno in _EXHAUSTED else "alert"
        getattr(self._error_log, what)(
            f"accept() failed ({error.errno}: {error.strerror}), "
            f"accepting again in {REST_SECONDS:g} s"
            + ("; raise rlimits.nofile" if error.errno in (errno.EMFILE, errno.ENFILE) else "")
        )
        self._unwatch()
        self._resting = self._reactor.create_time_event(REST_SECONDS, self._rested)

    def _rested(self) -> float:
        self._resting = None
        self._watch()
        return NOMORE
