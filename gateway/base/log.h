/* Structured log: one line per event, on standard error.
 *
 * Must not know: what the events mean. Thread: any; a line leaves whole in one write(2) and never
 * interleaves with others. The thread of a running loop keeps its lines to the end of the turn, at
 * most 4 KiB of them, because a system call for each would cost more than making it. Peer text is
 * escaped and cut to 400 bytes. Two forms: `text` (time level event key=value ...) and `json` (one
 * object a line). Bodies, secrets and full addresses must not be passed in; see log_address(). */
#ifndef HEAVE_BASE_LOG_H
#define HEAVE_BASE_LOG_H

#include "gateway/base/buf.h"

#include <stdbool.h>
#include <stdint.h>

enum log_level {
    LOG_DEBUG,
    LOG_INFO,
    LOG_WARN,
    LOG_ERROR,
};
enum log_form {
    LOG_FORM_TEXT,
    LOG_FORM_JSON,
};

enum log_field_type {
    LOG_FIELD_END,
    LOG_FIELD_SPAN,
    LOG_FIELD_INT,
};
struct log_field {
    const char *key;
    enum log_field_type type;
    struct span text;
    int64_t number;
};

#define LOG_SPAN(name, value)                                  \
    (struct log_field)                                         \
    {                                                          \
        .key = (name), .type = LOG_FIELD_SPAN, .text = (value) \
    }
#define LOG_TEXT(name, value) LOG_SPAN(name, span_of(value))
#define LOG_INT(name, value)                                             \
    (struct log_field)                                                   \
    {                                                                    \
        .key = (name), .type = LOG_FIELD_INT, .number = (int64_t)(value) \
    }

/* Writes one line when `level` is at or above the configured one. Empty text fields are left out.
 * Example: log_event(LOG_INFO, "smtp.session", LOG_TEXT("id", id), LOG_INT("messages", n)); */
#define log_event(level, event, ...) \
    log_write(level, event, (const struct log_field[]){__VA_ARGS__, {.type = LOG_FIELD_END}})
void log_write(enum log_level level, const char *event, const struct log_field *fields);

/* From log_collect(true) on, this thread's lines wait for log_flush() (or for 4 KiB of them);
 * log_collect(false) writes them. For whoever runs the thread; loop_run() does. */
void log_collect(bool collecting);
/* Writes what this thread keeps. */
void log_flush(void);

/* Process-wide; atomics, so it may be called again at reload. Defaults: info, text, short
 * addresses. `full_addresses`: whether log_address() keeps the local part. */
void log_configure(enum log_level level, enum log_form form, bool full_addresses);
bool log_wants(enum log_level level);

/* An address as the configuration lets it be logged: whole, or with the local part cut to its first
 * character ("a***@contoso.com"). Writes into `room` and returns a span over it. */
struct span log_address(struct span address, char *room, size_t room_bytes);

#endif
