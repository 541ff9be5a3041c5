CREATE TABLE cluster_job (
    job text PRIMARY KEY,
    holder text NOT NULL,
    held_until timestamptz,
    began_at timestamptz NOT NULL,
    report json
);

DROP TABLE job_runs;
