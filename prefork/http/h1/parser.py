"""The seam to llhttp, which checks the grammar of heads (RFC 9112 sections 2.2, 3 and 5)."""

from collections.abc import Callable

from httptools import HttpRequestParser


class HeadParser:
    """llhttp, fed one whole head at a time; shared by all connections of a process."""

    __slots__ = ("complete", "feed_data", "keep_alive", "should_keep_alive")

    feed_data: Callable[[bytes], None]
    should_keep_alive: Callable[[], bool]

    def __init__(self) -> None:
        self.complete = False  # the head that was fed is the whole request
        self.keep_alive = False
        self.reset()

    def reset(self) -> None:
        parser = HttpRequestParser(self)
        # "Connection: close" ends a connection, not this parser: it sees those of all. (With
        # lenient_data_after_close it would swallow the next head unchecked.)
        parser.set_dangerous_leniencies(lenient_keep_alive=True)
        self.feed_data = parser.feed_data
        self.should_keep_alive = parser.should_keep_alive

    def on_message_complete(self) -> None:
        self.complete = True
        self.keep_alive = self.should_keep_alive()
