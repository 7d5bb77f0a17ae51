#include "bench/load/http_reply.h"

void http_reply_reset(struct http_reply *reply)
{
    *reply = (struct http_reply){.state = HTTP_REPLY_STATUS};
}

/* One line without CR LF. STEP_WAIT: none is whole. */
static int take_line(struct span *bytes, struct span *out_line)
{
    size_t end = span_find(*bytes, '\n');
    if (end > HTTP_REPLY_LINE_MAX) {
        return ERR_PROTO;
    }
    if (end == bytes->len) {
        return STEP_WAIT;
    }
    if (end == 0 || bytes->data[end - 1] != '\r') {
        return ERR_PROTO;
    }
    *out_line = span_make(bytes->data, end - 1);
    *bytes = span_make(bytes->data + end + 1, bytes->len - end - 1);
    return STEP_DONE;
}

/* "HTTP/1.1 202 Accepted" */
static int take_status(struct http_reply *reply, struct span line)
{
    uint64_t status = 0;
    if (!span_starts(line, SPAN_LIT("HTTP/1.")) || line.len < 12 || line.data[8] != ' ' ||
        (line.len > 12 && line.data[12] != ' ')) {
        return ERR_PROTO;
    }
    if (span_to_u64(span_make(line.data + 9, 3), 599, &status) != 0 || status < 100) {
        return ERR_PROTO;
    }
    reply->status = (uint32_t)status;
    reply->close = line.data[7] == '0';
    reply->state = HTTP_REPLY_HEADER;
    return 0;
}

static int take_length(struct http_reply *reply, struct span value)
{
    /* Two lengths, or a length and chunks, are how responses get confused with each other. */
    if (reply->has_length || reply->chunked) {
        return ERR_PROTO;
    }
    reply->has_length = true;
    return span_to_u64(value, INT64_MAX, &reply->left_bytes) == 0 ? 0 : ERR_PROTO;
}

static int take_coding(struct http_reply *reply, struct span value)
{
    if (reply->has_length || reply->chunked || !span_ieq(value, SPAN_LIT("chunked"))) {
        return ERR_PROTO;
    }
    reply->chunked = true;
    return 0;
}

static int take_field(struct http_reply *reply, struct span line)
{
    struct span value = line;
    size_t colon = span_find(line, ':');
    struct span name = span_cut(&value, ':');
    if (colon == 0 || colon == line.len || name.data[name.len - 1] == ' ' || name.data[0] == ' ' ||
        name.data[0] == '\t') {
        return ERR_PROTO;
    }
    value = span_trim(value);
    if (span_ieq(name, SPAN_LIT("content-length"))) {
        return take_length(reply, value);
    }
    if (span_ieq(name, SPAN_LIT("transfer-encoding"))) {
        return take_coding(reply, value);
    }
    if (span_ieq(name, SPAN_LIT("connection")) && span_ieq(value, SPAN_LIT("close"))) {
        reply->close = true;
    }
    if (span_ieq(name, SPAN_LIT("retry-after")) &&
        span_to_u64(value, 86400, &reply->retry_after_s) != 0) {
        reply->retry_after_s = 0;
    }
    if (span_ieq(name, SPAN_LIT("location")) && value.len < sizeof(reply->location)) {
        memcpy(reply->location, value.data, value.len);
        reply->location_len = value.len;
    }
    return 0;
}

static int end_header(struct http_reply *reply)
{
    if (reply->status == 101) {
        return ERR_PROTO; /* nobody asked for another protocol */
    }
    if (reply->status < 200) {
        http_reply_reset(reply);
        return 0;
    }
    if (reply->status == 204 || reply->status == 304) {
        reply->state = HTTP_REPLY_DONE;
        return 0;
    }
    if (!reply->has_length && !reply->chunked) {
        return ERR_PROTO;
    }
    reply->state = reply->chunked ? HTTP_REPLY_CHUNK_SIZE : HTTP_REPLY_BODY;
    return 0;
}

/* "1a2b;extension": hexadecimal, at most 15 digits so that nothing overflows. */
static int take_chunk_size(struct http_reply *reply, struct span line)
{
    struct span digits = span_trim(span_cut(&line, ';'));
    uint64_t size = 0;
    if (digits.len == 0 || digits.len > 15) {
        return ERR_PROTO;
    }
    for (size_t i = 0; i < digits.len; i++) {
        const char *alphabet = "0123456789abcdefABCDEF";
        const char *found = digits.data[i] != '\0' ? strchr(alphabet, digits.data[i]) : NULL;
        if (found == NULL) {
            return ERR_PROTO;
        }
        size_t value = (size_t)(found - alphabet);
        size = size * 16 + (value > 15 ? value - 6 : value);
    }
    reply->left_bytes = size;
    reply->state = size > 0 ? HTTP_REPLY_CHUNK : HTTP_REPLY_TRAILER;
    return 0;
}

static int take_text(struct http_reply *reply, struct span line)
{
    bool counts = reply->state == HTTP_REPLY_HEADER || reply->state == HTTP_REPLY_TRAILER;
    if (counts && ++reply->lines > HTTP_REPLY_LINES_MAX) {
        return ERR_PROTO;
    }
    if (reply->state == HTTP_REPLY_STATUS) {
        return take_status(reply, line);
    }
    if (reply->state == HTTP_REPLY_HEADER) {
        return line.len == 0 ? end_header(reply) : take_field(reply, line);
    }
    if (reply->state == HTTP_REPLY_CHUNK_SIZE) {
        return take_chunk_size(reply, line);
    }
    if (reply->state == HTTP_REPLY_CHUNK_END) {
        reply->state = HTTP_REPLY_CHUNK_SIZE;
        return line.len == 0 ? 0 : ERR_PROTO;
    }
    if (line.len == 0) {
        reply->state = HTTP_REPLY_DONE;
    }
    return 0;
}

/* Skips content; the state changes when all of it has come. */
static void skip(struct http_reply *reply, struct span *bytes)
{
    size_t part = reply->left_bytes < bytes->len ? (size_t)reply->left_bytes : bytes->len;
    *bytes = span_make(bytes->data + part, bytes->len - part);
    reply->left_bytes -= part;
    if (reply->left_bytes == 0) {
        reply->state = reply->chunked ? HTTP_REPLY_CHUNK_END : HTTP_REPLY_DONE;
    }
}

int http_reply_step(struct http_reply *reply, struct span *bytes)
{
    while (reply->state != HTTP_REPLY_DONE) {
        if (reply->state == HTTP_REPLY_BODY || reply->state == HTTP_REPLY_CHUNK) {
            skip(reply, bytes);
            if (reply->left_bytes > 0) {
                return STEP_WAIT;
            }
            continue;
        }
        struct span line;
        int rc = take_line(bytes, &line);
        if (rc == STEP_DONE) {
            rc = take_text(reply, line);
        }
        if (rc != STEP_DONE) {
            return rc;
        }
    }
    return STEP_DONE;
}
