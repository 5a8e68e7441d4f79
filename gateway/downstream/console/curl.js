/** Requests as curl lines for a POSIX shell. A key is never shown: it is `$GATEWAY_KEY` there. */

import { $, copyButton, make } from "./page.js";

const SHOWN = 50;

/** Show a request at the top of the list. */
export function showCurl(title, url, options) {
  const line = curlLine(url, options);
  const block = make("pre", { text: line });
  const item = make("li", {}, make("h2", { text: title }), copyButton("Copy", line, block, `Copy: ${title}`), block);
  $("curl-list").prepend(item);
  while ($("curl-list").childElementCount > SHOWN) $("curl-list").lastElementChild.remove();
  $("curl-empty").hidden = true;
}

/** Return a request as one curl command. `stream` shows output as it arrives. */
export function curlLine(url, { method = "GET", body, keyed = false, stream = false } = {}) {
  const words = ["curl", stream ? "-sN" : "-s"];
  if (method !== "GET" && !(method === "POST" && body !== undefined)) words.push("-X", method);
  words.push(quoted(url));
  const lines = [words.join(" ")];
  if (keyed) lines.push('-H "Authorization: Bearer $GATEWAY_KEY"');
  if (body !== undefined) lines.push("-H 'Content-Type: application/json'", `-d ${quoted(body)}`);
  return lines.join(" \\\n  ");
}

function quoted(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}
