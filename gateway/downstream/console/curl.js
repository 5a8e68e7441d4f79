/** What was done, as curl lines for a POSIX shell. Knows requests, and never writes a key: that is `$GATEWAY_KEY`. */

/** Give a request as one curl command. `stream` shows what comes as it comes. */
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
