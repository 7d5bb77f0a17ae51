/* Reads HTTP/1.1 responses, strictly (RFC 9112). Pure; thread: any.
 *
 * Must not know: what was asked. Whole lines are taken from the bytes shown; a line that has not
 * come whole stays with the caller. Bounds: 8 KiB a line, 100 header lines. Bodies are skipped, and
 * must say where they end: Content-Length or chunked. */
#ifndef HEAVE_BENCH_LOAD_HTTP_REPLY_H
#define HEAVE_BENCH_LOAD_HTTP_REPLY_H

#include "gateway/base/buf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HTTP_REPLY_LINE_MAX ((size_t)8192)
#define HTTP_REPLY_LINES_MAX 100
#define HTTP_REPLY_LOCATION_MAX 256

enum http_reply_state {
    HTTP_REPLY_STATUS,
    HTTP_REPLY_HEADER,
    HTTP_REPLY_BODY,
    HTTP_REPLY_CHUNK_SIZE,
    HTTP_REPLY_CHUNK,
    HTTP_REPLY_CHUNK_END,
    HTTP_REPLY_TRAILER,
    HTTP_REPLY_DONE,
};

/* Zero-initialised means nothing read yet; so does http_reply_reset(). */
struct http_reply {
    enum http_reply_state state;
    uint32_t status;
    size_t lines;
    uint64_t left_bytes; /* of the body or chunk */
    bool has_length;
    bool chunked;
    bool close;             /* the server ends the connection after this response */
    uint64_t retry_after_s; /* 0: none, or a date */
    size_t location_len;
    char location[HTTP_REPLY_LOCATION_MAX]; /* empty when none came or it is longer */
};

void http_reply_reset(struct http_reply *reply);
/* Takes what it can off `*bytes`. STEP_DONE: the response is whole and the rest of the bytes do not
 * belong to it; STEP_WAIT: show the rest again with more. Interim (1xx) responses are skipped.
 * Errors: ERR_PROTO. */
MUST_USE int http_reply_step(struct http_reply *reply, struct span *bytes);
static inline struct span http_reply_location(const struct http_reply *reply)
{
    return span_make(reply->location, reply->location_len);
}

#endif
