"""When the next bar of a feed that is replayed in its place comes, told without putting it into the longer bar. Engine
thread only.

Backtrader's loop asks every feed for its next bar, gives the turn to the earliest, and takes the others back. A bar
that is replayed is in the longer bar by then, for good: stock shows the longer bar with a bar of the future in it, or
takes all of it away until that bar's turn.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

import backtrader as bt
from backtrader.resamplerfilter import Replayer


class Announcement:
    """The time of a feed's next bar, in the place in which Backtrader's loop looks for it.

    Args:
        feed: one that is replayed in its place, whose `load` puts its next bar into the longer one.
    """

    def __init__(self, feed: Any) -> None:
        self._feed = feed
        self._length = 0  # of the feed with the announced bar

    def make(self, time: float) -> None:
        """Show a bar that has a time and nothing else, until the loop has decided whose turn it is."""
        feed = self._feed
        feed.forward()
        feed.lines.datetime[0] = time
        self._length = len(feed)
        feed.get_notifications = self._settle  # what the loop asks each data for when they have moved

    def _settle(self) -> Any:
        """Take the announced bar away, and load it if the turn is the feed's; return the feed's notifications."""
        feed = self._feed
        del feed.get_notifications  # its own again
        is_due = len(feed) == self._length
        if not is_due:
            feed.lines.advance()
        feed.backwards(force=True)
        if is_due:
            feed.load()
        elif any(replayer.doadjusttime or type(replayer) is Replayer for replayer, _, _ in feed._filters):
            # The time of others tells the end of the longer bar with a tick of its own, and Backtrader's own replayer
            # takes note of sessions.
            turn = _TurnTime(feed._env)
            feed._check(forcedata=turn)
            if feed._barstack:
                bt.DataBase.next(feed, datamaster=turn, ticks=False)
        return feed.get_notifications()


class _TurnTime:
    """The time of a turn of Backtrader's loop, in the form of the data that has it."""

    def __init__(self, cerebro: Any) -> None:
        self._time = bt.date2num(cerebro._udtmaster)
        self._moment: dt.datetime = cerebro._dtmaster  # in the zone of the data that has the turn
        self.lines = self.datetime = self

    def __getitem__(self, _ago: int) -> float:
        return float(self._time)

    def __call__(self, _ago: int = 0) -> dt.datetime:
        return self._moment
