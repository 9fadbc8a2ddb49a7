// Rebuilds state documents as a browser would, with fast-json-patch in validating mode.
//
// stdin:  a JSON array of runs: {initial, patches: [[operation, …], …], expected: [document, …]}
// stdout: "ok <number of documents>", or on the first difference a message and exit code 1.
import { deepStrictEqual } from "node:assert";
import { readFileSync } from "node:fs";
import jsonpatch from "fast-json-patch";

const VALIDATE = true;
let documents = 0;
const runs = JSON.parse(readFileSync(0, "utf8"));
for (const [run, { initial, patches, expected }] of runs.entries()) {
  let state = initial;
  for (const [n, operations] of patches.entries()) {
    try {
      state = jsonpatch.applyPatch(state, operations, VALIDATE).newDocument;
      deepStrictEqual(state, expected[n]);
    } catch (error) {
      console.error(`run ${run}, patch ${n}: ${JSON.stringify(operations)}\n${error.message}`);
      process.exit(1);
    }
    documents += 1;
  }
}
console.log(`ok ${documents}`);
