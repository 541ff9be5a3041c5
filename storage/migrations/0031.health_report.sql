-- The status and score of every tenant as the last judgement left them: one row, for all processes.
CREATE TABLE health_report (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    health json NOT NULL
);
