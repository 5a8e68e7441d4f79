/**
 * Google Apps Script: a spreadsheet that talks. In a cell: =ASK("What is 6 times 7?")
 *
 * UrlFetchApp returns only whole responses and ends a request after about a minute, so a turn is requested with ?wait: an
 * answer that takes longer is 202, and the same request with the same Idempotency-Key fetches it later. Nothing is asked
 * or billed twice. Put GATEWAY and KEY into Project Settings > Script properties.
 */

var PASSING = [409, 429, 502, 503, 504];

/** Asks one question without a history. For a cell, whose functions may take 30 s. */
function ASK(text) {
  return answerTo_("/v1/turns", text);
}

/** Asks within a conversation that lasts from call to call. For scripts, menus and buttons. */
function chat(text) {
  var properties = PropertiesService.getUserProperties();
  for (var attempt = 0; attempt < 2; attempt++) {
    var id = properties.getProperty("SESSION");
    if (!id) {
      id = fetch_("/v1/sessions", { session: { instructions: "Be brief." } }, Utilities.getUuid()).id;
      properties.setProperty("SESSION", id);
    }
    try {
      return answerTo_("/v1/sessions/" + id + "/turns", text);
    } catch (error) {
      // The session has ended: begin another one, once.
      if (attempt || !/session-(unknown|closed)/.test(error.message)) throw error;
      properties.deleteProperty("SESSION");
    }
  }
}

/** Returns the session's events after a cursor, and the next cursor: a long-poll, for scripts on a time trigger. */
function eventsAfter(id, cursor) {
  // linger gathers what follows the first event, so that an answer is a few pages and not a page a word.
  return fetch_("/v1/sessions/" + id + "/events?format=json&wait=25&linger=500&after=" + (cursor || "earliest"));
}

function answerTo_(path, text) {
  var key = Utilities.getUuid();
  var until = Date.now() + 5 * 60 * 1000; // Apps Script ends a run after six minutes
  while (Date.now() < until) {
    var turn = fetch_(path + "?wait=20", { input: text }, key);
    if (turn.status === "completed") return turn.output_text;
    if (turn.status !== "in_progress") {
      throw new Error("The answer is " + turn.status + ": " + JSON.stringify(turn.error || turn.incomplete_details));
    }
    Utilities.sleep(1000);
  }
  throw new Error("No answer within five minutes");
}

/** Sends a request until it is answered, and returns the JSON of its answer. */
function fetch_(path, body, key) {
  var properties = PropertiesService.getScriptProperties();
  var gateway = properties.getProperty("GATEWAY");
  if (!gateway) throw new Error("Set GATEWAY in Project Settings > Script properties");
  var options = { muteHttpExceptions: true, headers: { Accept: "application/json" } };
  if (properties.getProperty("KEY")) options.headers.Authorization = "Bearer " + properties.getProperty("KEY");
  if (body) {
    options.method = "post";
    options.contentType = "application/json";
    options.payload = JSON.stringify(body);
    options.headers["Idempotency-Key"] = key;
  }
  for (var wait = 500; ; wait *= 2) {
    try {
      var answer = UrlFetchApp.fetch(gateway + path, options);
      var status = answer.getResponseCode();
      if (status < 400) return JSON.parse(answer.getContentText());
      if (wait > 4000 || PASSING.indexOf(status) < 0) throw new Error(answer.getContentText());
    } catch (error) {
      // A problem object, or no connection for five tries: nothing that waiting would cure.
      if (wait > 4000 || /"code":/.test(error.message)) throw error;
    }
    Utilities.sleep(wait);
  }
}
