DROP TABLE health_report;
