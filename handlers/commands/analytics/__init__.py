"""``run.py analytics``: figures as a table, as CSV, or as a page of HTML that loads nothing."""
