DROP TABLE sync_analytics_snapshot;
