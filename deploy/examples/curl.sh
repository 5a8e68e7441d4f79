#!/bin/sh
# A session with curl alone: open it, say something, read the answer as it is made, close it.
#
#   GATEWAY=http://127.0.0.1:8080 KEY=… ./curl.sh 'What is 6 times 7?'
set -eu
gateway=${GATEWAY:-http://127.0.0.1:8080}
question=${1:-What is 6 times 7?}
call() { curl -sS --fail-with-body ${KEY:+-H "Authorization: Bearer $KEY"} "$@"; }

# One turn in one request is all that many need.
call -N "$gateway/v1/turns" --data-raw "$question"
echo

# A session keeps its history. --retry is safe on a create and on a send: the key makes the gateway do it once.
session=$(call -X POST "$gateway/v1/sessions" -H "Idempotency-Key: open-$$-$(date +%s)" --retry 3 |
    grep -o 'gws_[A-Za-z0-9_-]*' | head -n 1)
trap 'call -X DELETE "$gateway/v1/sessions/$session"' EXIT

call "$gateway/v1/sessions/$session/events" -H "Idempotency-Key: say-$$" --retry 3 -d '[
    {"type": "conversation.item.create", "item": {"type": "message", "role": "user",
        "content": [{"type": "input_text", "text": "Say hello."}]}},
    {"type": "response.create"}]'
echo

# Read until the response is done; grep ends the pipe, and curl with it.
call -N "$gateway/v1/sessions/$session/events?types=response.output_text.done,response.done" |
    grep -m 1 '"type": *"response.output_text.done"'
