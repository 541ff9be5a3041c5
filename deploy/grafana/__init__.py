"""Dashboards for Grafana, as tables of panels; ``dashboards`` writes their JSON."""
