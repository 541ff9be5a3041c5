// @tus/server as its guide sets it up, on a free port of loopback and a directory: node server.mjs DIRECTORY
import { FileStore } from "@tus/file-store";
import { Server } from "@tus/server";

const [directory] = process.argv.slice(2);
const server = new Server({
  path: "/v1/uploads",
  relativeLocation: true,
  datastore: new FileStore({ directory }),
});
const listener = server.listen({ host: "127.0.0.1", port: 0, backlog: 4096 }, () => {
  console.log(JSON.stringify({ event: "listening", port: listener.address().port }));
});
