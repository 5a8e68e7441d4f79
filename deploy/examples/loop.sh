#!/bin/sh
# A chat for shells without streams: each line of input is a turn, and the answers come by long-poll.
# Every read has the cursor, so that no answer is lost or shown twice if the network fails.
#
#   GATEWAY=http://127.0.0.1:8080 KEY=… ./loop.sh
set -eu
gateway=${GATEWAY:-http://127.0.0.1:8080}
call() { curl -sS --max-time 70 ${KEY:+-H "Authorization: Bearer $KEY"} "$@"; }
field() { sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p" | head -n 1; }

opened=$(call -f -X POST "$gateway/v1/sessions" -H "Idempotency-Key: open-$$-$(date +%s)" --retry 5 --retry-all-errors) || { printf 'No session from %s\n' "$gateway" >&2; exit 1; }
session=$(printf '%s' "$opened" | grep -o 'gws_[A-Za-z0-9_-]*' | head -n 1)
events="$gateway/v1/sessions/$session/events"
cursor=$(printf '%s' "$opened" | field head)
trap 'call -X DELETE "$gateway/v1/sessions/$session"' EXIT

turn=0
while IFS= read -r line; do
    turn=$((turn + 1))
    text=$(printf '%s' "$line" | tr -d '\000-\037' | sed 's/[\\"]/\\&/g')
    call -f "$events" -o /dev/null -H "Idempotency-Key: turn-$turn-$$" --retry 5 --retry-all-errors -d '[
        {"type": "conversation.item.create", "item": {"type": "message", "role": "user",
            "content": [{"type": "input_text", "text": "'"$text"'"}]}},
        {"type": "response.create"}]'
    answered=
    until [ -n "$answered" ]; do
        # Only the events of the answer and its end; the cursor skips the others.
        page=$(call "$events?format=json&wait=25&after=$cursor&types=response.output_text.done,response.done") || page=
        [ -n "$page" ] || { sleep 2; continue; } # cut
        next=$(printf '%s' "$page" | field cursor)
        [ -n "$next" ] || { printf '%s\n' "$page" >&2; exit 1; } # a problem object: the session is over
        cursor=$next
        printf '%s\n' "$page" | sed 's/},{"id":/},\n{"id":/g' |
            sed -n '/"response.output_text.done"/s/.*"text": *"\(\([^"\\]\|\\.\)*\)".*/\1/p' | sed 's/\\\(["\\]\)/\1/g'
        case $page in *'"response.done"'*) answered=yes ;; esac
    done
done
