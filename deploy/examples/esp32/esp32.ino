// An ESP32 that asks one question over Wi-Fi and prints the answer as it is made. Memory: about 5 KiB.
// Requests are HTTP/1.0, whose answers are not chunked, so a line of NDJSON is a line of the socket.
// For https use WiFiClientSecure with your CA, and port 443.
#include <WiFi.h>
#include "events.h"

#ifndef GATEWAY_HOST
#define GATEWAY_HOST "192.168.1.10"
#define GATEWAY_PORT 8080
#define WIFI_NAME "your network"
#define WIFI_PASSWORD "its password"
#define KEY ""
#endif

WiFiClient http;
EventReader reader;
Event event;
char session[48], cursor[40] = "earliest";

// Send a request and skip the headers of its answer. Return the status, 0 without an answer.
int request(const char* method, const String& path, const String& body) {
    http.stop();
    if (!http.connect(GATEWAY_HOST, GATEWAY_PORT)) return 0;
    http.print(String(method) + " " + path + " HTTP/1.0\r\nHost: " GATEWAY_HOST ":" + String(GATEWAY_PORT) +
               "\r\nContent-Type: application/json\r\nContent-Length: " + String(body.length()) + "\r\n");
    if (KEY[0]) http.print(String("Authorization: Bearer ") + KEY + "\r\n");
    http.print(String("\r\n") + body);
    int status = 0;
    http.setTimeout(40000);  // the gateway sends a byte every 15 s
    for (;;) {
        String line = http.readStringUntil('\n');
        if (line.length() == 0) return 0;
        if (status == 0) status = line.substring(9, 12).toInt();
        if (line == "\r") return status;
    }
}

bool openSession() {
    if (request("POST", "/v1/sessions", "{\"session\":{\"instructions\":\"Be brief.\"}}") != 201) return false;
    String answer = http.readString();
    int at = answer.indexOf("gws_");
    if (at < 0) return false;
    answer.substring(at, answer.indexOf('"', at)).toCharArray(session, sizeof session);
    return true;
}

bool ask(const String& text) {
    String body = "[{\"type\":\"conversation.item.create\",\"item\":{\"type\":\"message\",\"role\":\"user\",\"content\":"
                  "[{\"type\":\"input_text\",\"text\":\"" + text + "\"}]}},{\"type\":\"response.create\"}]";
    return request("POST", String("/v1/sessions/") + session + "/events", body) == 202;
}

// Read until the response is done, over as many connections as it takes. Return false when the session has ended.
bool readAnswer() {
    for (;;) {
        // Only the short events: response.done holds the whole answer again, and its ID is enough.
        int status = request("GET", String("/v1/sessions/") + session + "/events?format=ndjson&after=" + cursor +
                             "&types=response.output_text.delta,response.done,error", "");
        if (status == 404 || status == 410) return false;
        unsigned long heard = millis();
        // A connection that is silent for 40 s is lost: TCP does not report an access point that has gone.
        while (status == 200 && (http.connected() || http.available()) && millis() - heard < 40000) {
            int byte = http.read();
            if (byte < 0) { delay(1); continue; }
            heard = millis();
            if (!reader.take(byte, event)) continue;
            if (event.id[0]) strcpy(cursor, event.id);
            if (!strcmp(event.type, "response.output_text.delta")) Serial.print(event.delta);
            if (!strcmp(event.type, "response.done")) { Serial.println(""); return true; }
            if (!strcmp(event.type, "gateway.closed") || !strcmp(event.type, "error")) return false;
        }
        delay(2000);  // cut: continue after the last whole event
    }
}

void setup() {
    Serial.begin(115200);
    WiFi.begin(WIFI_NAME, WIFI_PASSWORD);
    while (WiFi.status() != WL_CONNECTED) delay(500);
    if (!openSession()) { Serial.println("No session from " GATEWAY_HOST); return; }
    if (!ask("What is 6 times 7?") || !readAnswer()) Serial.println("No answer");
    request("DELETE", String("/v1/sessions/") + session, "");
}

void loop() {}
