-- Runs of scheduled jobs: each due time is a row that one process inserts, by the database's clock, and a later attempt
-- of it another. cluster_job, the leases of before, has nothing that is still needed.
CREATE TABLE job_runs (
    job text COLLATE "C" NOT NULL,
    due_at timestamptz NOT NULL,
    attempt integer NOT NULL,
    by_hand boolean NOT NULL,
    place text NOT NULL,
    began_at timestamptz NOT NULL DEFAULT now(),
    held_until timestamptz NOT NULL,
    ended_at timestamptz,
    outcome text CHECK (outcome IN ('succeeded', 'failed', 'stopped', 'killed')),
    reason text,
    counts json NOT NULL DEFAULT '{}',
    PRIMARY KEY (job, due_at, attempt)
);

-- One run of a job at a time.
CREATE UNIQUE INDEX job_runs_running ON job_runs (job) WHERE outcome IS NULL;

DROP TABLE cluster_job;
