// Parse Server on PostgreSQL, as its guide sets it up: node server.mjs, with a plan in the environment.
import cluster from "node:cluster";
import { createServer } from "node:http";
import express from "express";
import { ParseServer } from "parse-server";

const plan = JSON.parse(process.env.TIDEMARK_BENCH_PLAN);
const signedIn = { requiresAuthentication: true };
const permissions = { get: signedIn, find: signedIn, create: signedIn, update: signedIn };

async function serve() {
  const parse = new ParseServer({
    appId: "bench",
    masterKey: plan.secret,
    serverURL: `http://127.0.0.1:${plan.port}/parse`,
    databaseURI: plan.database,
    allowClientClassCreation: false,
    allowCustomObjectId: true, // ids are made on the device
    cacheTTL: 3_600_000, // sessions stay in memory
    directAccess: true,
    verifyServerUrl: false,
    logLevel: "error",
    schema: {
      strict: false,
      lockSchemas: true,
      definitions: [
        {
          className: "Task",
          fields: { device: { type: "String" }, version: { type: "Number" }, data: { type: "Object" } },
          classLevelPermissions: permissions,
        },
        { className: "SyncKey", fields: {}, classLevelPermissions: permissions },
      ],
    },
  });
  await parse.start();
  const app = express();
  app.use("/parse", parse.app);
  const server = createServer({ keepAliveTimeout: 600_000 }, app);
  server.listen({ host: "127.0.0.1", port: plan.port, backlog: 4096 }, () => {
    console.log(JSON.stringify({ event: "listening", port: plan.port }));
  });
}

if (plan.processes === 1 || !cluster.isPrimary) {
  await serve();
} else {
  // The first makes the tables before the others start.
  for (let count = 0; count < plan.processes; count += 1) {
    const worker = cluster.fork();
    await new Promise((resolve) => worker.once("listening", resolve));
  }
  process.on("SIGTERM", () => {
    for (const worker of Object.values(cluster.workers)) worker.process.kill("SIGTERM");
    process.exit(0);
  });
}
