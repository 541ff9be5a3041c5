"""Who may send how much: a token bucket per device. Time is an argument."""

from __future__ import annotations

import math

import msgspec


class TokenBucket(msgspec.Struct):
    """``tokens`` as of ``at_s``; a full bucket holds one minute's worth."""

    tokens: float
    at_s: float

    def take(self, per_minute: int, now_s: float) -> int:
        """Take one token; return 0, or the milliseconds until there is one."""
        tokens = self.tokens + (now_s - self.at_s) * per_minute / 60.0
        self.at_s = now_s
        if tokens > per_minute:
            tokens = float(per_minute)
        if tokens >= 1.0:
            self.tokens = tokens - 1.0
            return 0
        self.tokens = tokens
        return max(1, math.ceil((1.0 - tokens) * 60_000 / per_minute))
