<?php
// A session in PHP with the curl extension: reads the event stream as it arrives, and resumes it after a cut.
//
//   GATEWAY=http://127.0.0.1:8080 KEY=… php php-curl.php 'What is 6 times 7?'
declare(strict_types=1);

$gateway = getenv('GATEWAY') ?: 'http://127.0.0.1:8080';
$authorization = getenv('KEY') ? ['Authorization: Bearer ' . getenv('KEY')] : [];

/** Sends a request until it is answered. One key for all tries: the gateway does it once. */
function send(string $method, string $path, mixed $body = null): ?array
{
    global $gateway, $authorization;
    $headers = [...$authorization, 'Content-Type: application/json', 'Idempotency-Key: ' . bin2hex(random_bytes(16))];
    foreach ([0.5, 1, 2, 4, null] as $wait) {
        $curl = curl_init($gateway . $path);
        curl_setopt_array($curl, [
            CURLOPT_CUSTOMREQUEST => $method, CURLOPT_RETURNTRANSFER => true, CURLOPT_HTTPHEADER => $headers,
            CURLOPT_CONNECTTIMEOUT => 10, CURLOPT_TIMEOUT => 60,
        ] + ($body === null ? [] : [CURLOPT_POSTFIELDS => json_encode($body)]));
        $answer = curl_exec($curl);
        $status = curl_getinfo($curl, CURLINFO_RESPONSE_CODE);
        if ($answer !== false && $status < 400) {
            return json_decode($answer, true);
        }
        if ($wait === null || ($answer !== false && !in_array($status, [409, 429, 502, 503, 504]))) {
            fwrite(STDERR, ($answer ?: "$gateway does not answer: " . curl_error($curl)) . "\n");
            exit(1);
        }
        usleep((int) ($wait * 1e6));
    }
}

/** Decodes an event. PHP refuses half of a surrogate pair, with which a delta may end: it becomes U+FFFD. */
function decode(string $json): ?array
{
    $half = '/\\\\ud[89ab]..(?!\\\\ud[c-f])|(?<!\\\\ud[89ab]..)\\\\ud[c-f]../i';
    return json_decode(preg_replace($half, '\\\\ufffd', $json), true);
}

/** Calls $take with every event after the cursor, each once and in order, until it returns false. */
function read_events(string $path, string $cursor, callable $take): void
{
    global $gateway, $authorization;
    for ($wanted = true; $wanted; $wanted && sleep(2)) {
        [$rest, $id, $data] = ['', $cursor, []];
        $curl = curl_init($gateway . $path);
        curl_setopt_array($curl, [
            CURLOPT_HTTPHEADER => [...$authorization, 'Accept: text/event-stream', "Last-Event-ID: $cursor"],
            CURLOPT_FAILONERROR => true, CURLOPT_CONNECTTIMEOUT => 10,
            // The gateway sends something every 15 s; a stream that is silent for 40 s is dead.
            CURLOPT_LOW_SPEED_LIMIT => 1, CURLOPT_LOW_SPEED_TIME => 40,
            // libcurl calls this as bytes arrive. What it returns other than the length ends the transfer.
            CURLOPT_WRITEFUNCTION => function ($curl, string $chunk) use (&$rest, &$id, &$data, &$cursor, &$wanted, $take) {
                $lines = explode("\n", $rest . $chunk);
                $rest = array_pop($lines);
                foreach ($lines as $line) {
                    if (str_starts_with($line, 'id: ')) {
                        $id = substr($line, 4);
                    } elseif (str_starts_with($line, 'data: ')) {
                        $data[] = substr($line, 6);
                    } elseif ($line === '' && $data) {
                        $event = decode(implode("\n", $data));
                        [$cursor, $data] = [$id, []];
                        if ($take($event) === false || in_array($event['type'], ['gateway.closed', 'gateway.superseded'])) {
                            $wanted = false;
                            return 0;
                        }
                    }
                }
                return strlen($chunk);
            },
        ]);
        curl_exec($curl);
        $status = curl_getinfo($curl, CURLINFO_RESPONSE_CODE);
        if ($wanted && ($status === 204 || ($status >= 400 && !in_array($status, [429, 502, 503, 504])))) {
            fwrite(STDERR, "The session cannot be read any more: status $status\n");
            exit(1);
        }
    }
}

$session = send('POST', '/v1/sessions', new stdClass());
send('POST', $session['events_url'], [
    ['type' => 'conversation.item.create', 'item' => ['type' => 'message', 'role' => 'user',
        'content' => [['type' => 'input_text', 'text' => $argv[1] ?? 'What is 6 times 7?']]]],
    ['type' => 'response.create'],
]);
$failure = null;
read_events($session['events_url'], $session['head'], function (array $event) use (&$failure) {
    if ($event['type'] === 'response.output_text.delta') {
        echo $event['delta'];
    } elseif ($event['type'] === 'gateway.gap') {
        fwrite(STDERR, "[{$event['missed']} events are lost]\n");
    }
    $failure = $event['error'] ?? $event['response']['status_details']['error'] ?? null;
    return $failure === null && $event['type'] !== 'response.done';
});
echo "\n";
send('DELETE', "/v1/sessions/{$session['id']}");
if ($failure !== null) {
    fwrite(STDERR, 'OpenAI did not answer: ' . json_encode($failure) . "\n");
    exit(1);
}
