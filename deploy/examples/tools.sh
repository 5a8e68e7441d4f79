#!/bin/sh
# A whole function call with curl: ask, run the function that the model names, return its result, print the answer.
# Bodies come from files and pipes with --data-binary: plain -d would remove the line ends.
#
#   GATEWAY=http://127.0.0.1:8080 KEY=… ./tools.sh 'What is the weather in Paris?'
set -eu
gateway=${GATEWAY:-http://127.0.0.1:8080}
question=${1:-What is the weather in Paris?}
# Repeating is safe: the gateway runs a request with the same Idempotency-Key once.
run=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
post() {
    curl -sS --fail-with-body --max-time 330 --retry 3 --retry-all-errors --retry-max-time 60 \
        ${KEY:+-H "Authorization: Bearer $KEY"} -H "Idempotency-Key: $1-$run" \
        -H 'Content-Type: application/json' -H 'Accept: application/json' \
        --data-binary @- "$gateway$2"
}
string() { sed -En "s/.*\"$1\": *\"(([^\"\\]|\\\\.)*)\".*/\1/p" | head -n 1; }
quoted() { printf '%s' "$1" | tr -d '\000-\037' | sed 's/[\\"]/\\&/g'; }

# The function that runs here. Its argument is the JSON that the model wrote.
get_weather() { printf '{"city": %s, "celsius": 21}' "$(printf '%s' "$1" | sed -n 's/.*"city": *\("[^"]*"\).*/\1/p')"; }

opened=$(post open /v1/sessions <<'JSON'
{"session": {"tools": [{
    "type": "function", "name": "get_weather", "description": "The weather in a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
}]}}
JSON
) || { printf "No session from %s. %s\n" "$gateway" "$opened" >&2; exit 1; }
turns=/v1/sessions/$(printf '%s' "$opened" | grep -o 'gws_[A-Za-z0-9_-]*' | head -n 1)/turns
trap 'curl -sS -X DELETE ${KEY:+-H "Authorization: Bearer $KEY"} "$gateway${turns%/turns}"' EXIT

answer=$(printf '{"input": "%s"}' "$(quoted "$question")" | post ask "$turns")
round=0
while call=$(printf '%s' "$answer" | grep -o '"type": *"function_call".*' | head -n 1); [ -n "$call" ] && [ $round -lt 5 ]; do
    round=$((round + 1))
    arguments=$(printf '%s' "$call" | string arguments | sed 's/\\\(["\\]\)/\1/g')
    printf 'calling get_weather(%s)\n' "$arguments" >&2
    output=$(quoted "$(get_weather "$arguments")")
    answer=$(post "output-$round" "$turns" <<JSON
{"input": [{"type": "function_call_output", "call_id": "$(printf '%s' "$call" | string call_id)", "output": "$output"}]}
JSON
)
done
case $answer in *'"status":"failed"'*) printf '%s\n' "$answer" >&2 && exit 1 ;; esac
printf '%b\n' "$(printf '%s' "$answer" | string output_text | sed 's/\\"/"/g')"
