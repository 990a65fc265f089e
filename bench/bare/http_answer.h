/* What the HTTP reference servers answer: one fixed response, and the errors a correct server must tell
 * (RFC 9110, RFC 9112). Its includer names itself by SERVER_NAME. */
#ifndef HTTP_ANSWER_H
#define HTTP_ANSWER_H
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <time.h>

enum {
    HEAD_BYTES_MAX = 8192,  /* one request head; longer: 431 */
    OUT_BYTES = 32768,      /* answers waiting for the socket; full: stop reading requests */
    ANSWER_BYTES_MAX = 512, /* the longest single answer below */
};

static char date[64];
static time_t date_second;
static char hello[ANSWER_BYTES_MAX];
static size_t hello_len;

static size_t format_answer(char *to, const char *status, const char *body, const char *extra) {
    return (size_t)snprintf(to, ANSWER_BYTES_MAX,
                            "HTTP/1.1 %s\r\ncontent-type: text/plain\r\ncontent-length: %zu\r\n"
                            "date: %s\r\nserver: " SERVER_NAME "\r\n%s\r\n%s",
                            status, strlen(body), date, extra, body);
}

static void refresh_date(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME_COARSE, &now);
    if (now.tv_sec == date_second) return;
    date_second = now.tv_sec;
    struct tm parts;
    gmtime_r(&date_second, &parts);
    strftime(date, sizeof date, "%a, %d %b %Y %H:%M:%S GMT", &parts); /* RFC 9110 section 5.6.7 */
    hello_len = format_answer(hello, "200 OK", "hello, world", "");
}

/* Whether `name` (with its colon) begins the line at `line`. */
static bool field_is(const char *line, const char *end, const char *name, size_t name_len) {
    return (size_t)(end - line) >= name_len && strncasecmp(line, name, name_len) == 0;
}

static bool value_has_close(const char *value, const char *end) {
    for (; end - value >= 5; value++)
        if (strncasecmp(value, "close", 5) == 0) return true;
    return false;
}

/* Answer the request head in [head, end), which ends with an empty line; returns bytes written. Sets `closing`
 * when the connection ends with this answer. */
static size_t answer(const char *head, const char *end, char *to, bool *closing) {
    static const char version[] = " HTTP/1.1";
    const char *line_end = memchr(head, '\r', (size_t)(end - head));
    size_t line_len = (size_t)(line_end - head);
    if (line_len < sizeof version + 1 || memcmp(line_end - (sizeof version - 1), version, sizeof version - 1) != 0) {
        *closing = true;
        return format_answer(to, "400 Bad Request", "bad request line\n", "connection: close\r\n");
    }
    bool has_host = false, has_body = false;
    for (const char *line = line_end + 2; line < end - 2;) {
        const char *next = memchr(line, '\n', (size_t)(end - line));
        switch (line[0] | 0x20) { /* one test skips most fields */
        case 'h':
            has_host |= field_is(line, next, "host:", 5);
            break;
        case 'c':
            if (field_is(line, next, "connection:", 11)) *closing |= value_has_close(line + 11, next);
            has_body |= field_is(line, next, "content-length:", 15) && !field_is(line, next, "content-length: 0\r", 18);
            break;
        case 't':
            has_body |= field_is(line, next, "transfer-encoding:", 18);
            break;
        default:
            break;
        }
        line = next + 1;
    }
    if (!has_host || has_body) { /* a body would be read as the next request, so end here */
        *closing = true;
        return has_host ? format_answer(to, "501 Not Implemented", "no request bodies here\n", "connection: close\r\n")
                        : format_answer(to, "400 Bad Request", "no Host field\n", "connection: close\r\n");
    }
    if (memcmp(head, "GET ", 4) != 0) {
        *closing = true;
        return format_answer(to, "405 Method Not Allowed", "GET only\n", "allow: GET\r\nconnection: close\r\n");
    }
    if (line_len != sizeof "GET / HTTP/1.1" - 1 || head[4] != '/')
        return format_answer(to, "404 Not Found", "not found\n", *closing ? "connection: close\r\n" : "");
    if (*closing) return format_answer(to, "200 OK", "hello, world", "connection: close\r\n");
    memcpy(to, hello, hello_len);
    return hello_len;
}

#endif
