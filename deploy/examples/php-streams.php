<?php
// A session in PHP without any extension. PHP's HTTP stream holds back a chunked answer until it has 8 KiB, so an event
// would come late by many others. An HTTP/1.0 answer is not chunked, and every line comes at once.
//
//   GATEWAY=http://127.0.0.1:8080 KEY=… php php-streams.php 'What is 6 times 7?'
declare(strict_types=1);

$gateway = getenv('GATEWAY') ?: 'http://127.0.0.1:8080';

/** Opens one request and returns its stream, or null without a connection; $status is the response's. */
function request(string $method, string $path, mixed $body, array $headers, ?int &$status)
{
    global $gateway;
    $headers[] = 'Content-Type: application/json';
    if (getenv('KEY')) {
        $headers[] = 'Authorization: Bearer ' . getenv('KEY');
    }
    $context = stream_context_create(['http' => [
        'protocol_version' => '1.0', 'method' => $method, 'header' => $headers, 'ignore_errors' => true,
        // Seconds without a byte. The gateway sends something every 15 s.
        'timeout' => 40,
    ] + ($body === null ? [] : ['content' => json_encode($body)])]);
    $stream = @fopen($gateway . $path, 'r', false, $context);
    $status = $stream ? (int) explode(' ', stream_get_meta_data($stream)['wrapper_data'][0])[1] : 0;
    return $stream ?: null;
}

/** Sends a request until it is answered. One key for all tries: the gateway does it once. */
function send(string $method, string $path, mixed $body = null): ?array
{
    global $gateway;
    $key = 'Idempotency-Key: ' . bin2hex(random_bytes(16));
    foreach ([0.5, 1, 2, 4, null] as $wait) {
        $stream = request($method, $path, $body, [$key], $status);
        $answer = $stream ? stream_get_contents($stream) : '';
        $whole = $stream && ($status === 204 || json_decode($answer) !== null);
        if ($whole && $status < 400) {
            return json_decode($answer, true);
        }
        if ($wait === null || ($whole && !in_array($status, [409, 429, 502, 503, 504]))) {
            fwrite(STDERR, ($answer ?: "$gateway does not answer: " . (error_get_last()['message'] ?? 'time-out')) . "\n");
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

/** Yields every event after the cursor, each once and in order. */
function events(string $path, string $cursor): iterable
{
    for (;; sleep(2)) {
        $stream = request('GET', "$path?format=ndjson", null, ["Last-Event-ID: $cursor"], $status);
        if ($status >= 400 && !in_array($status, [429, 502, 503, 504])) {
            fwrite(STDERR, stream_get_contents($stream) . "\n");
            exit(1);
        }
        while ($stream && ($line = fgets($stream)) !== false) {
            $told = decode($line);
            if ($told === null) {
                continue; // a heartbeat, or a line that was cut
            }
            $cursor = $told['id'] ?? $told['event']['cursor'] ?? $cursor;
            yield $told['event'];
            if (in_array($told['event']['type'], ['gateway.closed', 'gateway.superseded'])) {
                return;
            }
        }
    }
}

$session = send('POST', '/v1/sessions', new stdClass());
send('POST', $session['events_url'], [
    ['type' => 'conversation.item.create', 'item' => ['type' => 'message', 'role' => 'user',
        'content' => [['type' => 'input_text', 'text' => $argv[1] ?? 'What is 6 times 7?']]]],
    ['type' => 'response.create'],
]);
foreach (events($session['events_url'], $session['head']) as $event) {
    if ($event['type'] === 'response.output_text.delta') {
        echo $event['delta'];
    } elseif ($event['type'] === 'gateway.gap') {
        fwrite(STDERR, "[{$event['missed']} events are lost]\n");
    }
    $failure = $event['error'] ?? $event['response']['status_details']['error'] ?? null;
    if ($failure !== null || $event['type'] === 'response.done') {
        break;
    }
}
echo "\n";
send('DELETE', "/v1/sessions/{$session['id']}");
if (isset($failure)) {
    fwrite(STDERR, 'OpenAI did not answer: ' . json_encode($failure) . "\n");
    exit(1);
}
