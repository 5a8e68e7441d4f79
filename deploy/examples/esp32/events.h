// Reads the gateway's NDJSON byte by byte in a buffer of fixed size, and returns type, ID and text of each event.
// No allocation, no library: it compiles for a microcontroller and for a PC.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct Event {
    char id[40];      // empty for events that are not in the log
    char type[64];
    char delta[512];  // the text of response.output_text.delta, as UTF-8
    bool cut;         // the line was longer than the buffer: only its beginning was read
};

class EventReader {
public:
    // Take one byte. Return true when it completes an event, which `event` then holds.
    bool take(char byte, Event& event) {
        if (byte != '\n') {
            // The beginning of a long line is enough: it has the ID and the type.
            if (length < sizeof line - 1) line[length++] = byte;
            else tooLong = true;
            return false;
        }
        line[length] = 0;
        event.cut = tooLong;
        bool whole = length > 1 && parse(event);  // an empty line is a heartbeat
        length = 0;
        tooLong = false;
        return whole;
    }

private:
    char line[4096];
    size_t length = 0;
    bool tooLong = false;

    bool parse(Event& event) {
        // {"id":"k3f9-42","event":{"type":"…",…}}: the first "id" is the envelope's.
        string(line, "\"id\":", event.id, sizeof event.id);
        const char* body = strstr(line, "\"event\":");
        event.delta[0] = 0;
        if (!body || !string(body, "\"type\":", event.type, sizeof event.type)) return false;
        string(body, "\"delta\":", event.delta, sizeof event.delta);
        return true;
    }

    // Copy the string that follows a name, with its escapes resolved. Leave "" if there is none (null, for example).
    static bool string(const char* text, const char* name, char* out, size_t size) {
        *out = 0;
        const char* at = strstr(text, name);
        if (!at) return false;
        at += strlen(name);
        while (*at == ' ') at++;
        if (*at++ != '"') return false;
        char* end = out + size - 5;  // room for one UTF-8 character and the 0
        while (*at && *at != '"' && out < end) {
            if (*at != '\\') {
                *out++ = *at++;
                continue;
            }
            at++;
            switch (*at) {
                case 'n': *out++ = '\n'; at++; break;
                case 't': *out++ = '\t'; at++; break;
                case 'r': *out++ = '\r'; at++; break;
                case 'b': case 'f': at++; break;
                case 'u': at++; out = unicode(at, out); break;
                case 0: break;
                default: *out++ = *at++;  // a quotation mark, a backslash or a slash
            }
        }
        *out = 0;
        return true;
    }

    static uint32_t hex(const char*& at) {
        uint32_t value = 0;
        for (int digit = 0; digit < 4 && *at; digit++, at++) {
            char c = *at | 32;
            value = value * 16 + (c >= 'a' ? c - 'a' + 10 : *at - '0');
        }
        return value;
    }

    static char* unicode(const char*& at, char* out) {
        uint32_t code = hex(at);
        if (code >= 0xD800 && code < 0xDC00 && at[0] == '\\' && at[1] == 'u') {
            at += 2;
            code = 0x10000 + ((code - 0xD800) << 10) + (hex(at) - 0xDC00);
        }
        if (code < 0x80) {
            *out++ = code;
        } else if (code < 0x800) {
            *out++ = 0xC0 | code >> 6;
            *out++ = 0x80 | (code & 63);
        } else if (code < 0x10000) {
            *out++ = 0xE0 | code >> 12;
            *out++ = 0x80 | (code >> 6 & 63);
            *out++ = 0x80 | (code & 63);
        } else {
            *out++ = 0xF0 | code >> 18;
            *out++ = 0x80 | (code >> 12 & 63);
            *out++ = 0x80 | (code >> 6 & 63);
            *out++ = 0x80 | (code & 63);
        }
        return out;
    }
};
