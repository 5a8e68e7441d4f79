#!/bin/sh
# Runs the tools of a call that another application made, such as the page attach.html: attaches to the call, waits for
# function calls by long-poll, runs them here, and returns their results. Leaving it does not end the call.
#
#   GATEWAY=http://127.0.0.1:8080 KEY=… ./attach.sh rtc_…
set -eu
gateway=${GATEWAY:-http://127.0.0.1:8080}
call() { curl -sS --max-time 70 ${KEY:+-H "Authorization: Bearer $KEY"} "$@"; }
string() { sed -En "s/.*\"$1\": *\"(([^\"\\]|\\\\.)*)\".*/\1/p" | head -n 1; }
lines() { sed 's/},{"id":/},\
{"id":/g'; } # one event a line
quoted() { printf '%s' "$1" | tr -d '\000-\037' | sed 's/[\\"]/\\&/g'; }
# Repeating is safe: the gateway runs a request with the same Idempotency-Key once.
sent=0
send() {
    sent=$((sent + 1))
    call -f -o /dev/null --retry 3 --retry-all-errors --retry-max-time 60 -H "Idempotency-Key: $sent-$session" --data-binary @- "$events"
}

# The function that runs here. Its argument is the JSON that the model wrote.
get_weather() { printf '{"city": %s, "celsius": 21}' "$(printf '%s' "$1" | sed -n 's/.*"city": *\("[^"]*"\).*/\1/p')"; }

opened=$(call --fail-with-body "$gateway/v1/sessions" -d "{\"call_id\": \"$1\"}") ||
    { printf 'Not attached to %s through %s. %s\n' "$1" "$gateway" "$opened" >&2; exit 1; }
session=$(printf '%s' "$opened" | grep -o 'gws_[A-Za-z0-9_-]*' | head -n 1)
events="$gateway/v1/sessions/$session/events"
cursor=$(printf '%s' "$opened" | string head)
trap 'call -X DELETE "$gateway/v1/sessions/$session"' EXIT

send <<'JSON'
{"type": "session.update", "session": {"type": "realtime", "tools": [{
    "type": "function", "name": "get_weather", "description": "The weather in a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
}]}}
JSON
printf 'attached to %s\n' "$1" >&2

owed=
while :; do
    page=$(call "$events?format=json&wait=25&after=$cursor&types=response.function_call_arguments.done,response.done") || page=
    [ -n "$page" ] || { sleep 2; continue; } # cut
    next=$(printf '%s' "$page" | string cursor)
    [ -n "$next" ] || { printf '%s\n' "$page" >&2; exit 1; } # a problem object: the session is over
    cursor=$next
    while IFS= read -r event; do
        case $event in
        *'"response.function_call_arguments.done"'*)
            arguments=$(printf '%s' "$event" | string arguments | sed 's/\\\(["\\]\)/\1/g')
            printf 'calling get_weather(%s)\n' "$arguments" >&2
            send <<JSON
{"type": "conversation.item.create", "item": {"type": "function_call_output",
    "call_id": "$(printf '%s' "$event" | string call_id)", "output": "$(quoted "$(get_weather "$arguments")")"}}
JSON
            owed=yes ;;
        *'"response.done"'*) # only now may the next response begin
            if [ -n "$owed" ]; then
                owed=
                echo '{"type": "response.create"}' | send
            fi ;;
        *'"gateway.closed"'*) exit 0 ;;
        esac
    done <<EVENTS
$(printf '%s\n' "$page" | lines)
EVENTS
done
