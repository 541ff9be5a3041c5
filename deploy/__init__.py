"""Files for the programs around a server: nginx, systemd, PgBouncer, Prometheus, Grafana."""
