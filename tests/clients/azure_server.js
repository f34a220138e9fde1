// An Azure blob service, in memory, for as long as standard input is open.
//
// Run as `node azure_server.js AZURITE_HOME CONTAINER...`. Prints its address as one line once those containers are there.
// The account and its key are those of Azure's own emulator, which everybody knows.
"use strict";

const crypto = require("node:crypto");
const path = require("node:path");

const ACCOUNT = "devstoreaccount1";
const KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
const VERSION = "2021-12-02";

const [home, ...containers] = process.argv.slice(2);

async function createContainer(address, name) {
  const date = new Date().toUTCString();
  const resource = `/${ACCOUNT}/${ACCOUNT}/${name}\nrestype:container`;
  // Method, eleven headers that are empty here, those of Azure, the resource.
  const signed = `PUT${"\n".repeat(12)}x-ms-date:${date}\nx-ms-version:${VERSION}\n${resource}`;
  const signature = crypto.createHmac("sha256", Buffer.from(KEY, "base64")).update(signed, "utf8").digest("base64");
  const answer = await fetch(`${address}/${ACCOUNT}/${name}?restype=container`, {
    method: "PUT",
    headers: {
      "x-ms-date": date,
      "x-ms-version": VERSION,
      authorization: `SharedKey ${ACCOUNT}:${signature}`,
    },
  });
  if (answer.status !== 201) {
    throw new Error(`container ${name} is not made: ${answer.status} ${await answer.text()}`);
  }
}

async function main() {
  const azurite = (file) => require(path.join(home, "node_modules/azurite/dist/src", file));
  // It reads its settings from the command line.
  process.argv.splice(2, Infinity, "--inMemoryPersistence", "--silent", "--skipApiVersionCheck", "--blobHost", "127.0.0.1", "--blobPort", "0");
  const { BlobServerFactory } = azurite("blob/BlobServerFactory");
  const environment = new (azurite("blob/BlobEnvironment").default)();
  azurite("common/ConfigurationBase").setExtentMemoryLimit(environment, true);
  const server = await new BlobServerFactory().createServer();
  await server.start();
  const address = server.getHttpServerAddress();
  for (const name of containers) {
    await createContainer(address, name);
  }
  console.log(address);
  // Whoever started us ends, however it ends: then so do we.
  process.stdin.on("end", () => process.exit()).resume();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
