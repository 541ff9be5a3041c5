"""Files for other programs: alert rules, dashboards."""
