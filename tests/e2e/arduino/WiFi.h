// Stand-ins for what a sketch uses of the Arduino core and of the ESP32's Wi-Fi, over a PC's sockets. A test compiles the
// sketch with them and runs it.
#pragma once
#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

enum { WL_CONNECTED = 3 };

class String {
public:
    String(const char* text = "") : text(text) {}
    String(std::string text) : text(std::move(text)) {}
    String(int number) : text(std::to_string(number)) {}
    String(unsigned int number) : text(std::to_string(number)) {}
    unsigned int length() const { return text.size(); }
    String substring(int from, int to) const { return text.size() <= size_t(from) ? "" : text.substr(from, to - from); }
    int toInt() const { return std::atoi(text.c_str()); }
    int indexOf(const char* other) const { auto at = text.find(other); return at == std::string::npos ? -1 : int(at); }
    int indexOf(char other, int from) const { auto at = text.find(other, from); return at == std::string::npos ? -1 : int(at); }
    void toCharArray(char* out, size_t size) const { std::snprintf(out, size, "%s", text.c_str()); }
    bool operator==(const char* other) const { return text == other; }
    std::string text;
};
inline String operator+(const String& one, const String& other) { return one.text + other.text; }

#ifndef MILLIS_PACE
#define MILLIS_PACE 1
#endif
// A test lets time pass faster, so that it does not have to wait for a time-out.
inline unsigned long millis() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (now.tv_sec * 1000ul + now.tv_nsec / 1000000) * MILLIS_PACE;
}
inline void delay(unsigned long ms) { usleep(ms * 1000 / MILLIS_PACE); }

struct {
    void begin(long) {}
    void print(const char* text) { std::fputs(text, stdout); std::fflush(stdout); }
    void println(const char* text) { std::puts(text); std::fflush(stdout); }
} Serial;

struct {
    void begin(const char*, const char*) {}
    int status() { return WL_CONNECTED; }
} WiFi;

class WiFiClient {
public:
    bool connect(const char* host, int port) {
        addrinfo hints{}, *found = nullptr;
        hints.ai_socktype = SOCK_STREAM;
        if (getaddrinfo(host, std::to_string(port).c_str(), &hints, &found)) return false;
        socket = ::socket(found->ai_family, SOCK_STREAM, 0);
        bool open = ::connect(socket, found->ai_addr, found->ai_addrlen) == 0;
        freeaddrinfo(found);
        if (!open) stop();
        return open;
    }
    void print(const String& text) { (void)!::send(socket, text.text.data(), text.text.size(), MSG_NOSIGNAL); }
    void setTimeout(unsigned long ms) { patience = ms; }
    int available() { return ready(0); }
    bool connected() { return socket >= 0; }
    int read() { return ready(1) ? next() : -1; }
    String readStringUntil(char end) {
        std::string text;
        for (int byte; ready(patience) && (byte = next()) >= 0 && byte != end;) text += char(byte);
        return text;
    }
    String readString() {
        std::string text;
        for (int byte; ready(patience) && (byte = next()) >= 0;) text += char(byte);
        return text;
    }
    void stop() {
        if (socket >= 0) close(socket);
        socket = -1;
    }

private:
    int socket = -1;
    int patience = 1000;
    bool ready(int ms) {
        pollfd one{socket, POLLIN, 0};
        return socket >= 0 && poll(&one, 1, ms) > 0;
    }
    int next() {
        unsigned char byte;
        if (recv(socket, &byte, 1, 0) == 1) return byte;
        stop();
        return -1;
    }
};

void setup();
int main() { setup(); }
