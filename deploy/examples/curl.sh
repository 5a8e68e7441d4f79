#!/bin/sh
# A session with curl alone: open it, say something, read the answer as it is made, close it.
#
#   GATEWAY=http://127.0.0.1:8080 KEY=… ./curl.sh 'What is 6 times 7?'
set -eu
gateway=${GATEWAY:-http://127.0.0.1:8080}
question=${1:-What is 6 times 7?}
call() { curl -sS --fail-with-body ${KEY:+-H "Authorization: Bearer $KEY"} "$@"; }
# Repeating is safe: one key for all tries, and the gateway does it once.
run=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
once() { call --retry 3 --retry-all-errors --retry-max-time 60 -H "Idempotency-Key: $1-$run" -X POST "$gateway$2" -d "${3:-}"; }

# One turn in one request is all that many need: curl -N http://127.0.0.1:8080/v1/turns -d 'Hello'
# A session keeps its history:
opened=$(once open /v1/sessions) || { printf 'No session from %s. %s\n' "$gateway" "$opened" >&2; exit 1; }
session=$(printf '%s' "$opened" | grep -o 'gws_[A-Za-z0-9_-]*' | head -n 1)
cursor=$(mktemp)
trap 'rm -f "$cursor"; call -X DELETE "$gateway/v1/sessions/$session"' EXIT

text=$(printf '%s' "$question" | tr -d '\000-\037' | sed 's/[\\"]/\\&/g')
once say "/v1/sessions/$session/events" '[
    {"type": "conversation.item.create", "item": {"type": "message", "role": "user",
        "content": [{"type": "input_text", "text": "'"$text"'"}]}},
    {"type": "response.create"}]' >/dev/null

# Read, and after a cut read on from the last event that came whole.
echo earliest >"$cursor"
until grep -qxE 'done|failed' "$cursor"; do
    call -N "$gateway/v1/sessions/$session/events?after=$(cat "$cursor")" | while IFS= read -r line; do
        case $line in
        id:*) id=${line#id: } data= ;;
        data:*) data=${line#data: } ;;
        '') # the event is whole
            case ${data:-} in
            *'"type":"response.output_text.delta"'*)
                # %b resolves the escapes of JSON, other than that of a quotation mark.
                printf '%b' "$(printf '%s' "$data" | sed -E 's/.*"delta":"(([^"\\]|\\.)*)".*/\1/; s/\\"/"/g')" ;;
            *'"type":"error"'* | *'"type":"response.done"'*)
                id=done
                case $data in
                *'"type":"error"'* | *'"status":"failed"'*) id=failed && printf '%s\n' "$data" >&2 ;;
                esac
                call -X DELETE "$gateway/v1/sessions/$session" ;; # which ends the stream
            esac
            grep -qxE 'done|failed' "$cursor" || echo "${id:-earliest}" >"$cursor" ;;
        esac
    done
    grep -qxE 'done|failed' "$cursor" || sleep 2
done
grep -qx done "$cursor" && echo
