"""One file for each cause of an outage: how it begins, how it shows, what the page's commands find."""
