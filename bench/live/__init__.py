"""How soon devices see what others push; the scenarios of subscribers."""
