// Runs deploy/examples/apps-script.gs in Node: stand-ins for the services of Google Apps Script that it uses. They are
// synchronous there, so a request is a curl of its own. `node apps_script.mjs FILE 'EXPRESSION'` prints what it gives.
import { spawnSync } from "node:child_process";
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import vm from "node:vm";

const [file, expression] = process.argv.slice(2);

function store(values) {
  const kept = new Map(Object.entries(values));
  return {
    getProperty: (name) => kept.get(name) ?? null,
    setProperty: (name, value) => kept.set(name, String(value)),
    deleteProperty: (name) => kept.delete(name),
  };
}

const scriptProperties = store({ GATEWAY: process.env.GATEWAY, ...(process.env.KEY && { KEY: process.env.KEY }) });
const userProperties = store({});

const UrlFetchApp = {
  fetch(url, { method = "get", contentType = "application/x-www-form-urlencoded", payload, headers = {}, muteHttpExceptions } = {}) {
    if (!muteHttpExceptions) throw new Error("the stand-in knows muteHttpExceptions only");
    const words = ["-sS", "--max-time", "60", "-X", method.toUpperCase(), "-w", "\n%{http_code}", url];
    if (payload !== undefined) words.push("-H", `Content-Type: ${contentType}`, "--data-binary", "@-");
    for (const [name, value] of Object.entries(headers)) words.push("-H", `${name}: ${value}`);
    const { status, stdout, stderr } = spawnSync("curl", words, { input: payload ?? "", encoding: "utf8" });
    if (status !== 0) throw new Error(`Address unavailable: ${url} ${stderr.trim()}`);
    const at = stdout.lastIndexOf("\n");
    return { getResponseCode: () => Number(stdout.slice(at + 1)), getContentText: () => stdout.slice(0, at) };
  },
};
const Utilities = {
  getUuid: randomUUID,
  sleep: (ms) => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms),
};
const PropertiesService = { getScriptProperties: () => scriptProperties, getUserProperties: () => userProperties };

const context = vm.createContext({ UrlFetchApp, Utilities, PropertiesService, console });
vm.runInContext(readFileSync(file, "utf8"), context, { filename: file });
try {
  const value = vm.runInContext(expression, context);
  console.log(typeof value === "string" ? value : JSON.stringify(value));
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
}
