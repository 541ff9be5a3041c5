-- What each receiver of alerts knows of a metric of a tenant, and the alert that is to be sent to it. A tenant is
-- named, and '' is all tenants together: the end of an alert is told after its tenant is gone, too.
CREATE TABLE alerts (
    target text COLLATE "C" NOT NULL,
    tenant text COLLATE "C" NOT NULL,
    metric text COLLATE "C" NOT NULL,
    found json,
    told text CHECK (told IN ('info', 'warning', 'critical')),
    pending json,
    attempts integer NOT NULL DEFAULT 0,
    due_at timestamptz NOT NULL DEFAULT now(),
    held_until timestamptz,
    checked_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (target, tenant, metric)
);

CREATE INDEX alerts_pending ON alerts (due_at) WHERE pending IS NOT NULL;
