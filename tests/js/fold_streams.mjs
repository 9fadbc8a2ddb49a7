// Folds state documents from streams as a browser would that was given a resync, with fast-json-patch in validating mode.
//
// stdin:  a JSON array of streams: {lines: [chunk JSON, …], expected: {agentId: document}}
// stdout: "ok <number of documents>", or on the first difference a message and exit code 1.
import { deepStrictEqual } from "node:assert";
import { readFileSync } from "node:fs";
import jsonpatch from "fast-json-patch";

const VALIDATE = true;

function take({ documents, shared }, chunk) {
  const begin = (id, agent) => {
    if (agent.stateId === undefined) documents[id] = agent.state;
    else shared[id] = agent.stateId;
  };
  if (chunk.type === "resync") {
    for (const [id, agent] of Object.entries(chunk.snapshot.agents)) begin(id, agent);
  } else if (chunk.type === "run_start") {
    begin(chunk.agentId, chunk);
  } else if (chunk.type === "state_patch") {
    const id = chunk.stateId ?? shared[chunk.agentId] ?? chunk.agentId;
    documents[id] = jsonpatch.applyPatch(documents[id], chunk.patches, VALIDATE).newDocument;
  }
}

let count = 0;
for (const [number, { lines, expected }] of JSON.parse(readFileSync(0, "utf8")).entries()) {
  const state = { documents: {}, shared: {} };
  try {
    for (const line of lines) take(state, JSON.parse(line));
    deepStrictEqual(state.documents, expected);
  } catch (error) {
    console.error(`stream ${number}: ${error.message}`);
    process.exit(1);
  }
  count += Object.keys(state.documents).length;
}
console.log(`ok ${count}`);
