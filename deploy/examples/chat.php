<?php // A chat page: php -S 127.0.0.1:8000 chat.php. The key and the session stay on the server; the browser sees text.
session_start();
$gateway = getenv('GATEWAY') ?: 'http://127.0.0.1:8080';
function gateway(string $path, array $body, ?callable $write = null): array {
    $headers = ['Content-Type: application/json', 'Idempotency-Key: ' . bin2hex(random_bytes(16))];
    if (getenv('KEY')) $headers[] = 'Authorization: Bearer ' . getenv('KEY');
    if ($write) $headers[] = 'Accept: text/plain';
    $curl = curl_init($GLOBALS['gateway'] . $path);
    curl_setopt_array($curl, [CURLOPT_POSTFIELDS => json_encode((object) $body), CURLOPT_HTTPHEADER => $headers,
        CURLOPT_RETURNTRANSFER => true, CURLOPT_CONNECTTIMEOUT => 10, CURLOPT_TIMEOUT => 330]
        + ($write ? [CURLOPT_WRITEFUNCTION => $write] : []));
    $answer = curl_exec($curl);
    return [curl_getinfo($curl, CURLINFO_RESPONSE_CODE), $answer, curl_error($curl)];
}
if ($_SERVER['REQUEST_METHOD'] === 'POST') {
    header('Content-Type: text/plain; charset=utf-8');
    header('X-Accel-Buffering: no'); // nginx would hold the answer back
    for ($try = 0; $try < 2; $try++) { // a session that has ended is replaced by a new one
        if (!isset($_SESSION['id'])) {
            [$status, $answer, $error] = gateway('/v1/sessions', ['session' => ['instructions' => 'Be brief.']]);
            if ($status !== 201) exit("The gateway opened no session: " . ($answer ?: $error));
            $_SESSION['id'] = json_decode($answer)->id;
        }
        $refusal = '';
        $write = function ($curl, $text) use (&$refusal) {
            if (curl_getinfo($curl, CURLINFO_RESPONSE_CODE) >= 400) {
                $refusal .= $text;
            } else {
                echo $text;
                @ob_flush();
                flush();
            }
            return strlen($text);
        };
        [$status, $whole, $error] = gateway("/v1/sessions/{$_SESSION['id']}/turns", ['input' => $_POST['text'] ?? ''], $write);
        if ($status !== 404 && $status !== 410) break;
        unset($_SESSION['id']);
    }
    if ($status >= 400) echo 'No answer: ', json_decode($refusal)->detail ?? $refusal;
    elseif ($whole === false) echo "\n[The answer was cut short: $error]";
    exit;
} ?>
<!doctype html>
<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Chat</title>
<style>body { font: 1rem/1.5 system-ui; max-width: 40rem; margin: 2rem auto; padding: 0 1rem; color-scheme: light dark }
form { display: flex; gap: .5rem } input { flex: 1; font: inherit } p { white-space: pre-wrap }</style>
<main aria-live="polite"></main>
<form><input name="text" aria-label="Message" autocomplete="off" autofocus required><button>Send</button></form>
<script>
document.querySelector('form').onsubmit = async (event) => {
  event.preventDefault();
  const line = (text) => document.querySelector('main').appendChild(Object.assign(document.createElement('p'), { textContent: text }));
  const body = new URLSearchParams(new FormData(event.target));
  line('> ' + body.get('text'));
  event.target.reset();
  const answer = line(''), text = (await fetch('', { method: 'POST', body })).body.pipeThrough(new TextDecoderStream());
  for (const reader = text.getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) break;
    answer.textContent += value;
  }
};
</script>
