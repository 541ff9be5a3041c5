"""When a device is stalled: its syncs succeed, but its queue grows hour by hour.

Of the last ``STALLED_HOURS`` hours in which it told its queue, each has a sync that succeeded and a longer
queue than the one before, and the queue has grown by ``STALLED_ITEMS`` or more since the first of them.
"""

from __future__ import annotations

from typing import Final

#: With fewer hours, one busy hour would count.
STALLED_HOURS: Final = 3
#: A few items wait at any moment.
STALLED_ITEMS: Final = 10
