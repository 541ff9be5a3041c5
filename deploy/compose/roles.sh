#!/bin/sh
# Makes the roles and the database, once, while the volume of PostgreSQL is empty. The passwords are in the DSNs.
set -eu
password() { sed -n 's|^postgresql://[^:]*:\([^@]*\)@.*|\1|p' "/run/secrets/$1"; }
psql --set ON_ERROR_STOP=1 --username postgres --dbname postgres --set owner="$(password owner.dsn)" \
    --set serving="$(password serving.dsn)" --set jobs="$(password jobs.dsn)" <<'SQL'
CREATE ROLE tidemark LOGIN PASSWORD :'owner';
CREATE ROLE tidemark_serving LOGIN PASSWORD :'serving';
CREATE ROLE tidemark_jobs LOGIN PASSWORD :'jobs';
CREATE DATABASE tidemark OWNER tidemark ENCODING 'UTF8' TEMPLATE template0;
REVOKE ALL ON DATABASE tidemark FROM PUBLIC;
SQL
