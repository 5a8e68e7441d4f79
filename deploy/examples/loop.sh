#!/bin/sh
# A chat for shells without streams: each line of input is a turn, and the answers come by long-poll.
# Every read has the cursor, so that no answer is lost or shown twice if the network fails.
#
#   GATEWAY=http://127.0.0.1:8080 KEY=… ./loop.sh
set -eu
gateway=${GATEWAY:-http://127.0.0.1:8080}
run=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
call() { curl -sS --max-time 70 ${KEY:+-H "Authorization: Bearer $KEY"} "$@"; }
lines() { sed 's/},{"id":/},\
{"id":/g'; } # one event a line
field() { sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p" | head -n 1; }

opened=$(call -f -X POST "$gateway/v1/sessions" -H "Idempotency-Key: open-$run" --retry 5 --retry-all-errors --retry-max-time 60) || { printf 'No session from %s\n' "$gateway" >&2; exit 1; }
session=$(printf '%s' "$opened" | grep -o 'gws_[A-Za-z0-9_-]*' | head -n 1)
events="$gateway/v1/sessions/$session/events"
cursor=$(printf '%s' "$opened" | field head)
trap 'call -X DELETE "$gateway/v1/sessions/$session"' EXIT

turn=0
while IFS= read -r line; do
    turn=$((turn + 1))
    text=$(printf '%s' "$line" | tr -d '\000-\037' | sed 's/[\\"]/\\&/g')
    call -f "$events" -o /dev/null -H "Idempotency-Key: turn-$turn-$run" --retry 5 --retry-all-errors --retry-max-time 60 -d '[
        {"type": "conversation.item.create", "item": {"type": "message", "role": "user",
            "content": [{"type": "input_text", "text": "'"$text"'"}]}},
        {"type": "response.create"}]'
    answered=
    until [ -n "$answered" ]; do
        # Only the events of the answer, its end and errors; the cursor skips the others.
        page=$(call "$events?format=json&wait=25&after=$cursor&types=response.output_text.done,response.done,error") || page=
        [ -n "$page" ] || { sleep 2; continue; } # cut
        next=$(printf '%s' "$page" | field cursor)
        [ -n "$next" ] || { printf '%s\n' "$page" >&2; exit 1; } # a problem object: the session is over
        cursor=$next
        # %b resolves the escapes of JSON, other than that of a quotation mark.
        printf '%s\n' "$page" | lines |
            sed -En '/"response.output_text.done"/s/.*"text": *"(([^"\\]|\\.)*)".*/\1/p' | sed 's/\\"/"/g' |
            while IFS= read -r text; do printf '%b\n' "$text"; done
        case $page in *'"response.done"'* | *'"type":"error"'*) answered=yes ;; esac
        case $page in *'"status":"failed"'* | *'"type":"error"'*) printf '%s\n' "$page" >&2 ;; esac
    done
done
