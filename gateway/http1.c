#include "gateway/http1.h"

#include "gateway/base/clock.h"

#include <llhttp.h>

/* Invariants several paths keep:
 * - Handlers are never called inside llhttp: its callbacks only note what happened (head_done,
 * message_done, refusal), and http1_after_* act on it once llhttp_execute() has returned.
 * - Every head line is copied to the exchange's arena before llhttp sees it, so the spans of its
 * callbacks are the spans of the request.
 * - `exchange` is NULL in HEAD before the first byte and in LINGER; http1_reply() frees it, so
 * after any call of a handler only `h` may be used.
 *
 *      HEAD --head complete--> BODY (--last chunk--> TRAILER) --complete--> WAIT --http_reply-->
 * HEAD | DONE |                      |                                            |
 *        +----- refusal --------+----------- too large ----------------------+--> LINGER --> DONE
 */
enum http1_state {
    HTTP1_HEAD,
    HTTP1_BODY,
    HTTP1_TRAILER, /* behind the last chunk: lines again, until the empty one */
    HTTP1_WAIT,
    HTTP1_LINGER,
    HTTP1_DONE,
};

/* Answers collected beyond this stop the parsing of pipelined requests until they have been
 * fetched. */
#define HTTP1_OUTPUT_SOFT_BYTES (256u * 1024u)
#define HTTP1_OUTPUT_MAX_BYTES (64u * 1024u * 1024u)
/* What is read and dropped after a refusal, so that a peer still sending gets to the answer. */
#define HTTP1_LINGER_BYTES_MAX (64u * 1024u * 1024u)
/* Empty lines borne before a request line (RFC 9112 2.2). */
#define HTTP1_EMPTY_LINES_MAX 4
/* Chunk framing borne beyond 16 bytes for each byte of body: sizes, extensions, trailers. */
#define HTTP1_FRAMING_BYTES_MAX (64u * 1024u)

struct http1 {
    struct http_machine machine;
    llhttp_t parser;
    enum http1_state state;
    struct buf line; /* the beginning of a head line whose end has not come */
    struct buf out;
    size_t out_lent; /* bytes of `out` given to the owner by the last http1_output() */
    struct http_exchange *exchange;
    size_t head_bytes;
    size_t head_lines;
    size_t trailer_bytes;
    uint64_t framing_bytes;
    uint64_t linger_bytes;
    uint64_t content_length;
    bool draining;
    /* About the current request: */
    bool is_1_1;
    bool keep_alive;
    bool has_body;
    bool in_handler_head; /* inside on_head: an answer must not free the exchange yet */
    bool head_done;
    bool message_done;
    bool too_large;
    bool field_open;   /* a header name has come, its value may follow */
    int refuse_status; /* set inside llhttp callbacks together with the sentence */
    const char *refuse_detail;
};

static struct http1 *http1_of(struct http_machine *machine)
{
    return (struct http1 *)machine;
}

/* Notes why a request is refused; the first reason stays. Returns what makes llhttp stop. */
static int http1_refuse(struct http1 *h, int status, const char *detail)
{
    if (h->refuse_status == 0) {
        h->refuse_status = status;
        h->refuse_detail = detail;
    }
    return -1;
}

/* llhttp's callbacks. */

static int http1_on_url(llhttp_t *parser, const char *at, size_t length)
{
    struct http1 *h = parser->data;
    if (http_exchange_target(h->exchange, span_make(at, length)) != 0) {
        return http1_refuse(h, 400, "The request target is not a path.");
    }
    return 0;
}

static int http1_on_method(llhttp_t *parser, const char *at, size_t length)
{
    struct http1 *h = parser->data;
    h->exchange->request.method = span_make(at, length);
    if (span_eq(h->exchange->request.method, SPAN_LIT("PRI"))) {
        /* llhttp would wait for the rest of a preface, which is not for this machine. */
        return http1_refuse(h, 400, "PRI is not a method of HTTP/1.1.");
    }
    return 0;
}

static int http1_on_field(llhttp_t *parser, const char *at, size_t length)
{
    struct http1 *h = parser->data;
    if (h->head_done) {
        return 0; /* a trailer: read, bounded as framing, not used */
    }
    char *name = (char *)at; /* the arena's copy is ours to make lower-case */
    int rc = http_exchange_header(h->exchange, name, length, span_make(at + length, 0));
    if (rc == ERR_LIMIT) {
        return http1_refuse(h, 431, "The request has too many header fields.");
    }
    if (rc != 0) {
        return http1_refuse(h, 503, "There is no memory for this request now.");
    }
    h->field_open = true;
    return 0;
}

static int http1_on_value(llhttp_t *parser, const char *at, size_t length)
{
    struct http1 *h = parser->data;
    if (h->head_done || !h->field_open) {
        return 0;
    }
    struct http_request *request = &h->exchange->request;
    struct http_header *header = &request->headers[request->header_count - 1];
    if (header->value.len > 0 && header->value.data + header->value.len == at) {
        header->value.len += length; /* llhttp may give a value in adjacent pieces */
    } else {
        header->value = span_make(at, length);
    }
    h->exchange->head_bytes += length;
    return 0;
}

static int http1_on_headers_complete(llhttp_t *parser)
{
    struct http1 *h = parser->data;
    h->head_done = true;
    h->field_open = false;
    h->is_1_1 = parser->http_major == 1 && parser->http_minor == 1;
    h->keep_alive = llhttp_should_keep_alive(parser) != 0;
    h->content_length = (parser->flags & F_CONTENT_LENGTH) != 0 ? parser->content_length : 0;
    bool is_chunked = (parser->flags & F_CHUNKED) != 0;
    h->has_body = is_chunked || h->content_length > 0;
    /* An offer to upgrade (curl --http2 sends h2c) is not taken up: the request is answered as it
     * is. */
    parser->upgrade = 0;
    if (parser->http_major != 1) {
        return http1_refuse(h, 505, "This connection speaks HTTP/1.0 and HTTP/1.1.");
    }
    if ((parser->flags & F_TRANSFER_ENCODING) != 0 &&
        ((parser->flags & F_CONTENT_LENGTH) != 0 || !h->is_1_1)) {
        return http1_refuse(h, 400,
                            "Transfer-Encoding with Content-Length or HTTP/1.0 is refused.");
    }
    return 0;
}

static int http1_on_body(llhttp_t *parser, const char *at, size_t length)
{
    struct http1 *h = parser->data;
    struct http_exchange *exchange = h->exchange;
    if (length > exchange->body_limit - buf_len(&exchange->request.body)) {
        h->too_large = true;
        return -1;
    }
    if (http_exchange_body(exchange, span_make(at, length)) != 0) {
        return http1_refuse(h, 503, "There is no room for this request now.");
    }
    h->framing_bytes -= length;
    return 0;
}

/* Stops llhttp behind the last chunk's line: trailer lines are checked as head lines are, because
 * llhttp takes a bare LF for the end of the message there. */
static int http1_on_chunk_header(llhttp_t *parser)
{
    struct http1 *h = parser->data;
    if (parser->content_length != 0) {
        return 0;
    }
    h->state = HTTP1_TRAILER;
    return HPE_PAUSED;
}

/* Stops llhttp behind the message: the next one gets a parser of its own. */
static int http1_on_message_complete(llhttp_t *parser)
{
    struct http1 *h = parser->data;
    h->message_done = true;
    return HPE_PAUSED;
}

static const llhttp_settings_t http1_settings = {
    .on_url = http1_on_url,
    .on_method = http1_on_method,
    .on_header_field = http1_on_field,
    .on_header_value = http1_on_value,
    .on_headers_complete = http1_on_headers_complete,
    .on_chunk_header = http1_on_chunk_header,
    .on_body = http1_on_body,
    .on_message_complete = http1_on_message_complete,
};

/* Ready for the next request. */
static void http1_reset(struct http1 *h)
{
    llhttp_init(&h->parser, HTTP_REQUEST, &http1_settings);
    h->parser.data = h;
    buf_release(&h->line);
    h->state = HTTP1_HEAD;
    h->head_bytes = 0;
    h->head_lines = 0;
    h->trailer_bytes = 0;
    h->framing_bytes = 0;
    h->content_length = 0;
    h->is_1_1 = false;
    h->keep_alive = false;
    h->has_body = false;
    h->head_done = false;
    h->message_done = false;
    h->too_large = false;
    h->field_open = false;
    h->refuse_status = 0;
    h->refuse_detail = NULL;
}

static void http1_drop_exchange(struct http1 *h)
{
    struct http_exchange *exchange = h->exchange;
    h->exchange = NULL;
    if (exchange != NULL) {
        http_exchange_release(exchange);
        mem_free(exchange);
    }
}

static void http1_end(struct http1 *h, enum http1_state state)
{
    ASSERT(state == HTTP1_LINGER || state == HTTP1_DONE);
    h->state = state;
    h->linger_bytes = 0;
    buf_release(&h->line);
}

/* Output. */

static int http1_write_value(struct http1 *h, struct span value)
{
    for (size_t i = 0; i < value.len; i++) {
        unsigned char byte = (unsigned char)value.data[i];
        bool good = (byte >= 0x20 && byte != 0x7f) || byte == '\t';
        int rc = buf_append_byte(&h->out, good ? (char)byte : '?');
        if (rc != 0) {
            return rc;
        }
    }
    return 0;
}

static int http1_write_headers(struct http1 *h, const struct http_header *headers, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (span_eq(headers[i].name, SPAN_LIT("connection"))) {
            continue; /* decided before: see http1_reply() */
        }
        if (buf_append(&h->out, headers[i].name) != 0 || buf_append(&h->out, SPAN_LIT(": ")) != 0 ||
            http1_write_value(h, headers[i].value) != 0 ||
            buf_append(&h->out, SPAN_LIT("\r\n")) != 0) {
            return ERR_NOMEM;
        }
    }
    return 0;
}

/* Appends one whole answer. `method` may be empty when no request line was understood. */
static int http1_write_answer(struct http1 *h, struct span method, int status,
                              const struct http_header *headers, size_t count, struct span body)
{
    char date[CLOCK_TEXT_MAX];
    const struct http_host *host = h->machine.host;
    clock_http(host->wall_ms(host->ctx), date);
    int rc = buf_printf(&h->out, "HTTP/1.1 %d %s\r\ndate: %s\r\n", status, http_status_text(status),
                        date);
    if (rc == 0 && status != 204 && status != 304) {
        rc = buf_printf(&h->out, "content-length: %zu\r\n", body.len);
    }
    if (rc == 0 && !h->keep_alive) {
        rc = buf_append(&h->out, SPAN_LIT("connection: close\r\n"));
    } else if (rc == 0 && !h->is_1_1) {
        rc = buf_append(&h->out, SPAN_LIT("connection: keep-alive\r\n"));
    }
    if (rc == 0) {
        rc = http1_write_headers(h, headers, count);
    }
    if (rc == 0) {
        rc = buf_append(&h->out, SPAN_LIT("\r\n"));
    }
    if (rc == 0 && http_answer_has_body(method, status)) {
        rc = buf_append(&h->out, body);
    }
    return rc;
}

/* An answer that does not fit into memory cannot be given in part: the connection goes. */
static void http1_lost(struct http1 *h)
{
    http1_end(h, HTTP1_DONE);
    h->machine.host->on_abort(h->machine.host->ctx);
}

static void http1_notify(struct http1 *h)
{
    h->machine.host->on_output(h->machine.host->ctx);
}

/* Refuses what was received with an answer of our own and ends in `state`. */
static void http1_fail(struct http1 *h, int status, const char *detail, enum http1_state state)
{
    char room[HTTP_PROBLEM_MAX];
    struct span body = http_problem_text(status, detail, room);
    const struct http_header headers[] = {
        {.name = SPAN_LIT("content-type"), .value = SPAN_LIT("application/problem+json")},
        {.name = SPAN_LIT("retry-after"), .value = SPAN_LIT("5")}, /* our own trouble: 503 */
    };
    h->keep_alive = false;
    struct span method = {.data = NULL, .len = 0};
    if (h->exchange != NULL) {
        http_exchange_gone(h->exchange);
        method = h->exchange->request.method;
    }
    int rc = http1_write_answer(h, method, status, headers, status == 503 ? 2 : 1, body);
    http1_drop_exchange(h);
    if (rc != 0) {
        http1_lost(h);
        return;
    }
    http1_end(h, state);
    http1_notify(h);
}

static bool http1_asks_close(const struct http_header *headers, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (span_eq(headers[i].name, SPAN_LIT("connection")) &&
            http_list_has(headers[i].value, SPAN_LIT("close"))) {
            return true;
        }
    }
    return false;
}

static void http1_reply(struct http_exchange *exchange, int status,
                        const struct http_header *headers, size_t header_count, struct span body)
{
    struct http1 *h = http1_of(exchange->machine);
    ASSERT(h->exchange == exchange);
    bool body_pending = h->has_body && !h->message_done;
    if (h->draining || body_pending || http1_asks_close(headers, header_count)) {
        h->keep_alive = false;
    }
    int rc = http1_write_answer(h, exchange->request.method, status, headers, header_count, body);
    if (h->in_handler_head) {
        /* http1_after_head() goes on when on_head has returned. */
        if (rc != 0) {
            http1_lost(h);
        }
        return;
    }
    http1_drop_exchange(h);
    if (rc != 0) {
        http1_lost(h);
        return;
    }
    if (h->keep_alive) {
        http1_reset(h);
    } else {
        http1_end(h, body_pending ? HTTP1_LINGER : HTTP1_DONE);
    }
    http1_notify(h);
}

static void http1_abort(struct http_exchange *exchange)
{
    struct http1 *h = http1_of(exchange->machine);
    http1_end(h, HTTP1_DONE);
    if (!h->in_handler_head) {
        http1_drop_exchange(h);
    }
    h->machine.host->on_abort(h->machine.host->ctx);
}

/* Input. */

/* Head lines end in CR LF and hold no other control byte but HTAB: stricter than llhttp, which
 * bears some bare LF and CR. `is_whole`: the line's LF is the last byte. */
static bool http1_line_good(struct span line, bool is_whole)
{
    size_t end = line.len;
    if (is_whole) {
        if (line.len < 2 || line.data[line.len - 2] != '\r') {
            return false;
        }
        end = line.len - 2;
    } else if (end > 0 && line.data[end - 1] == '\r') {
        end--; /* its LF may come with the next bytes */
    }
    for (size_t i = 0; i < end; i++) {
        unsigned char byte = (unsigned char)line.data[i];
        if ((byte < 0x20 && byte != '\t') || byte == 0x7f) {
            return false;
        }
    }
    return true;
}

/* What llhttp leaves to its user: Host exactly once on 1.1, one Transfer-Encoding and only
 * "chunked", Expect. Returns 0 or the status to refuse with. */
static int http1_check_head(struct http1 *h, const char **out_detail)
{
    struct http_request *request = &h->exchange->request;
    size_t hosts = 0;
    size_t encodings = 0;
    for (size_t i = 0; i < request->header_count; i++) {
        struct http_header *header = &request->headers[i];
        header->value = span_trim(header->value);
        if (span_eq(header->name, SPAN_LIT("host"))) {
            hosts++;
            if (request->authority.len == 0) {
                request->authority = header->value;
            }
        } else if (span_eq(header->name, SPAN_LIT("transfer-encoding"))) {
            encodings++;
            if (!span_ieq(header->value, SPAN_LIT("chunked"))) {
                *out_detail = "The only transfer coding understood is chunked.";
                return 400;
            }
        } else if (span_eq(header->name, SPAN_LIT("expect")) &&
                   !span_ieq(header->value, SPAN_LIT("100-continue"))) {
            *out_detail = "The only expectation understood is 100-continue.";
            return 417;
        }
    }
    if (hosts > 1 || (hosts == 0 && h->is_1_1)) {
        *out_detail = "An HTTP/1.1 request has exactly one Host field.";
        return 400;
    }
    if (encodings > 1) {
        *out_detail = "The request has more than one Transfer-Encoding field.";
        return 400;
    }
    return 0;
}

static void http1_too_large(struct http1 *h)
{
    h->state = HTTP1_WAIT;
    h->keep_alive = false;
    http_exchange_too_large(h->exchange);
}

/* Tells a peer that waits for it to send the body. */
static void http1_continue(struct http1 *h)
{
    struct span expect = http_request_header(&h->exchange->request, "expect");
    if (expect.data == NULL || !h->is_1_1) {
        return;
    }
    if (buf_append(&h->out, SPAN_LIT("HTTP/1.1 100 Continue\r\n\r\n")) != 0) {
        http1_lost(h);
        return;
    }
    http1_notify(h);
}

static void http1_request_complete(struct http1 *h)
{
    h->state = HTTP1_WAIT;
    const struct http_host *host = h->machine.host;
    host->handler->on_request(host->handler_ctx, &h->exchange->request);
}

/* The handler has answered in on_head. */
static void http1_after_early_reply(struct http1 *h)
{
    http1_drop_exchange(h);
    if (h->state == HTTP1_DONE) {
        return; /* aborted or lost */
    }
    if (h->keep_alive) {
        http1_reset(h);
    } else {
        http1_end(h, h->has_body && !h->message_done ? HTTP1_LINGER : HTTP1_DONE);
    }
    http1_notify(h);
}

/* The empty line has come: checks, announces, and goes on to the body or the answer. */
static void http1_after_head(struct http1 *h)
{
    const char *detail = NULL;
    int status = http1_check_head(h, &detail);
    if (status != 0) {
        http1_fail(h, status, detail, HTTP1_LINGER);
        return;
    }
    if (h->draining) {
        h->keep_alive = false;
    }
    h->in_handler_head = true;
    bool goes_on = http_exchange_announce(h->exchange);
    h->in_handler_head = false;
    if (!goes_on) {
        http1_after_early_reply(h);
        return;
    }
    if (h->content_length > h->exchange->body_limit) {
        http1_too_large(h);
        return;
    }
    if (h->message_done) {
        http1_request_complete(h);
        return;
    }
    h->state = HTTP1_BODY;
    http1_continue(h);
}

/* Gives llhttp bytes. Returns how many it used; sets refuse_status when it refused. */
static size_t http1_execute(struct http1 *h, struct span bytes)
{
    llhttp_errno_t code = llhttp_execute(&h->parser, bytes.data, bytes.len);
    if (code == HPE_OK) {
        return bytes.len;
    }
    if (code == HPE_PAUSED) {
        llhttp_resume(&h->parser);
        return (size_t)(llhttp_get_error_pos(&h->parser) - bytes.data);
    }
    if (!h->too_large) {
        (void)http1_refuse(h, 400, "The request breaks the syntax of HTTP/1.1.");
    }
    return bytes.len;
}

/* One complete head line. */
static int http1_take_line(struct http1 *h, struct span line)
{
    if (!http1_line_good(line, true)) {
        http1_fail(h, 400,
                   "A line of the request head holds control characters or does not end in CR LF.",
                   HTTP1_LINGER);
        return 0;
    }
    bool is_empty = line.len == 2;
    if (is_empty && h->head_lines == 0 && h->head_bytes <= HTTP1_EMPTY_LINES_MAX * 2) {
        return 0;
    }
    if (h->head_lines > 0 && (line.data[0] == ' ' || line.data[0] == '\t')) {
        http1_fail(h, 400, "Folded header lines are refused.", HTTP1_LINGER);
        return 0;
    }
    h->head_lines++;
    struct span kept = arena_dup(&h->exchange->request.arena, line);
    if (kept.data == NULL) {
        return ERR_NOMEM;
    }
    (void)http1_execute(h, kept);
    if (h->refuse_status != 0) {
        http1_fail(h, h->refuse_status, h->refuse_detail, HTTP1_LINGER);
    } else if (h->head_done) {
        http1_after_head(h);
    }
    return 0;
}

static int http1_begin(struct http1 *h)
{
    h->exchange = mem_try(sizeof(*h->exchange));
    if (h->exchange == NULL) {
        return ERR_NOMEM;
    }
    http_exchange_init(h->exchange, &h->machine, 1);
    return 0;
}

static int http1_step_head(struct http1 *h, struct span bytes, size_t *out_used)
{
    int rc = 0;
    if (h->exchange == NULL && (rc = http1_begin(h)) != 0) {
        return rc;
    }
    size_t at = span_find(bytes, '\n');
    bool is_whole = at < bytes.len;
    struct span piece = span_make(bytes.data, is_whole ? at + 1 : bytes.len);
    *out_used = piece.len;
    h->head_bytes += piece.len;
    if (h->head_bytes > HTTP_HEAD_BYTES_MAX) {
        http1_fail(h, 431, "The request head is too long.", HTTP1_LINGER);
        return 0;
    }
    if (is_whole && buf_len(&h->line) == 0) {
        return http1_take_line(h, piece);
    }
    rc = buf_append(&h->line, piece);
    if (rc != 0) {
        return rc;
    }
    if (!is_whole) {
        /* Only the new bytes and the one before them: a line sent byte by byte stays linear. */
        struct span line = buf_span(&h->line);
        size_t from = line.len > piece.len ? line.len - piece.len - 1 : 0;
        if (!http1_line_good(span_make(line.data + from, line.len - from), false)) {
            http1_fail(h, 400, "The request head holds control characters.", HTTP1_LINGER);
        }
        return 0;
    }
    rc = http1_take_line(h, buf_span(&h->line));
    buf_reset(&h->line);
    return rc;
}

static int http1_step_body(struct http1 *h, struct span bytes, size_t *out_used)
{
    h->framing_bytes += bytes.len;
    *out_used = http1_execute(h, bytes);
    h->framing_bytes -= bytes.len - *out_used;
    if (h->too_large) {
        http1_too_large(h);
    } else if (h->refuse_status != 0) {
        http1_fail(h, h->refuse_status, h->refuse_detail, HTTP1_LINGER);
    } else if (h->message_done) {
        http1_request_complete(h);
    } else if (h->framing_bytes >
               HTTP1_FRAMING_BYTES_MAX + 16 * (uint64_t)buf_len(&h->exchange->request.body)) {
        http1_fail(h, 400, "The body's chunks carry more framing than content.", HTTP1_LINGER);
    }
    return 0;
}

/* One line behind the last chunk. The memory is only lent: trailers are not kept. */
static void http1_take_trailer(struct http1 *h, struct span line)
{
    if (!http1_line_good(line, true) || line.data[0] == ' ' || line.data[0] == '\t') {
        http1_fail(h, 400, "A trailer line is malformed.", HTTP1_LINGER);
        return;
    }
    (void)http1_execute(h, line);
    if (h->refuse_status != 0) {
        http1_fail(h, h->refuse_status, h->refuse_detail, HTTP1_LINGER);
    } else if (h->message_done) {
        http1_request_complete(h);
    }
}

static int http1_step_trailer(struct http1 *h, struct span bytes, size_t *out_used)
{
    size_t at = span_find(bytes, '\n');
    bool is_whole = at < bytes.len;
    struct span piece = span_make(bytes.data, is_whole ? at + 1 : bytes.len);
    *out_used = piece.len;
    h->trailer_bytes += piece.len;
    if (h->trailer_bytes > HTTP_HEAD_BYTES_MAX) {
        http1_fail(h, 431, "The trailer section is too long.", HTTP1_LINGER);
        return 0;
    }
    if (is_whole && buf_len(&h->line) == 0) {
        http1_take_trailer(h, piece);
        return 0;
    }
    int rc = buf_append(&h->line, piece);
    if (rc != 0 || !is_whole) {
        return rc;
    }
    /* The line outlives what the handler does to this machine: the buffer may be released under it.
     */
    struct buf line = h->line;
    buf_init(&h->line, HTTP_HEAD_BYTES_MAX + 2);
    http1_take_trailer(h, buf_span(&line));
    buf_release(&line);
    return 0;
}

static int http1_step_linger(struct http1 *h, struct span bytes, size_t *out_used)
{
    *out_used = bytes.len;
    h->linger_bytes += bytes.len;
    if (h->linger_bytes > HTTP1_LINGER_BYTES_MAX) {
        http1_end(h, HTTP1_DONE);
    }
    return 0;
}

static int http1_feed(struct http_machine *machine, struct span bytes, size_t *out_used)
{
    struct http1 *h = http1_of(machine);
    size_t used = 0;
    int rc = 0;
    while (rc == 0 && used < bytes.len && h->state != HTTP1_WAIT && h->state != HTTP1_DONE &&
           buf_len(&h->out) < HTTP1_OUTPUT_SOFT_BYTES) {
        struct span rest = span_make(bytes.data + used, bytes.len - used);
        size_t taken = 0;
        if (h->state == HTTP1_HEAD) {
            rc = http1_step_head(h, rest, &taken);
        } else if (h->state == HTTP1_BODY) {
            rc = http1_step_body(h, rest, &taken);
        } else if (h->state == HTTP1_TRAILER) {
            rc = http1_step_trailer(h, rest, &taken);
        } else {
            rc = http1_step_linger(h, rest, &taken);
        }
        used += taken;
    }
    *out_used = h->state == HTTP1_DONE ? bytes.len : used;
    return rc;
}

static int http1_output(struct http_machine *machine, struct span *out)
{
    struct http1 *h = http1_of(machine);
    buf_consume(&h->out, h->out_lent);
    if (buf_len(&h->out) == 0) {
        buf_release(&h->out); /* idle sessions hold no buffers */
    }
    *out = buf_span(&h->out);
    h->out_lent = out->len;
    return 0;
}

static enum http_phase http1_phase(const struct http_machine *machine)
{
    const struct http1 *h = (const struct http1 *)machine;
    switch (h->state) {
    case HTTP1_HEAD:
        return h->head_lines > 0 || buf_len(&h->line) > 0 ? HTTP_PHASE_HEAD : HTTP_PHASE_IDLE;
    case HTTP1_BODY:
    case HTTP1_TRAILER:
        return HTTP_PHASE_BODY;
    case HTTP1_WAIT:
        return HTTP_PHASE_WAIT;
    case HTTP1_LINGER:
        return HTTP_PHASE_LINGER;
    case HTTP1_DONE:
        return HTTP_PHASE_DONE;
    }
    UNREACHABLE();
}

static void http1_timeout(struct http_machine *machine)
{
    struct http1 *h = http1_of(machine);
    switch (http1_phase(machine)) {
    case HTTP_PHASE_HEAD:
        http1_fail(h, 408, "The request head did not come in time.", HTTP1_DONE);
        break;
    case HTTP_PHASE_BODY:
        http1_fail(h, 408, "The request body did not come in time.", HTTP1_DONE);
        break;
    case HTTP_PHASE_IDLE:
    case HTTP_PHASE_LINGER:
        http1_end(h, HTTP1_DONE);
        break;
    case HTTP_PHASE_WAIT:
    case HTTP_PHASE_DONE:
        break;
    }
}

static void http1_drain(struct http_machine *machine)
{
    struct http1 *h = http1_of(machine);
    h->draining = true;
    if (http1_phase(machine) == HTTP_PHASE_IDLE) {
        http1_end(h, HTTP1_DONE);
        http1_notify(h);
    }
}

static void http1_free(struct http_machine *machine)
{
    struct http1 *h = http1_of(machine);
    if (h->exchange != NULL) {
        http_exchange_gone(h->exchange);
        http1_drop_exchange(h);
    }
    buf_release(&h->line);
    buf_release(&h->out);
    mem_free(h);
}

static const struct http_machine_ops http1_ops = {
    .protocol = "http1",
    .feed = http1_feed,
    .output = http1_output,
    .phase = http1_phase,
    .timeout = http1_timeout,
    .drain = http1_drain,
    .reply = http1_reply,
    .abort = http1_abort,
    .free = http1_free,
};

struct http_machine *http1_new(const struct http_host *host)
{
    struct http1 *h = mem_zero(sizeof(*h));
    h->machine = (struct http_machine){.ops = &http1_ops, .host = host};
    buf_init(&h->line, HTTP_HEAD_BYTES_MAX + 2);
    buf_init(&h->out, HTTP1_OUTPUT_MAX_BYTES);
    http1_reset(h);
    return &h->machine;
}
