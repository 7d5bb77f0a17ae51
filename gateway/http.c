#include "gateway/http.h"

#include "gateway/base/codec.h"
#include "gateway/http_machine.h"

#include <stdio.h>

#define HTTP_ARENA_EXTRA_BYTES (1024u * 1024u)
#define HTTP_QUERY_PARAMETER_MAX (16u * 1024u)
#define HTTP_DEFAULT_BODY_LIMIT (1024u * 1024u)

struct http_status_row {
    int status;
    const char *text;
};
/* RFC 9110 section 15, those a server of ours or a simulated service gives. */
static const struct http_status_row http_statuses[] = {
    {100, "Continue"},
    {200, "OK"},
    {201, "Created"},
    {202, "Accepted"},
    {204, "No Content"},
    {304, "Not Modified"},
    {307, "Temporary Redirect"},
    {308, "Permanent Redirect"},
    {400, "Bad Request"},
    {401, "Unauthorized"},
    {403, "Forbidden"},
    {404, "Not Found"},
    {405, "Method Not Allowed"},
    {406, "Not Acceptable"},
    {408, "Request Timeout"},
    {409, "Conflict"},
    {410, "Gone"},
    {411, "Length Required"},
    {412, "Precondition Failed"},
    {413, "Content Too Large"},
    {414, "URI Too Long"},
    {415, "Unsupported Media Type"},
    {417, "Expectation Failed"},
    {422, "Unprocessable Content"},
    {429, "Too Many Requests"},
    {431, "Request Header Fields Too Large"},
    {500, "Internal Server Error"},
    {501, "Not Implemented"},
    {502, "Bad Gateway"},
    {503, "Service Unavailable"},
    {504, "Gateway Timeout"},
    {505, "HTTP Version Not Supported"},
};

const char *http_status_text(int status)
{
    for (size_t i = 0; i < sizeof(http_statuses) / sizeof(http_statuses[0]); i++) {
        if (http_statuses[i].status == status) {
            return http_statuses[i].text;
        }
    }
    return "Status";
}

struct span http_request_header(const struct http_request *request, const char *name)
{
    struct span wanted = span_of(name);
    for (size_t i = 0; i < request->header_count; i++) {
        if (span_eq(request->headers[i].name, wanted)) {
            return request->headers[i].value;
        }
    }
    return (struct span){.data = NULL, .len = 0};
}

/* Decodes one query component into the arena. */
static bool http_query_decode(struct http_request *request, struct span in, struct span *out)
{
    struct buf decoded;
    buf_init(&decoded, HTTP_QUERY_PARAMETER_MAX);
    bool good = false;
    if (codec_percent_decode(in, true, &decoded) == 0) {
        struct span copy = arena_dup(&request->arena, buf_span(&decoded));
        if (copy.data != NULL) {
            *out = copy;
            good = true;
        }
    }
    buf_release(&decoded);
    return good;
}

bool http_query_next(struct http_request *request, struct span *rest, struct span *out_name,
                     struct span *out_value, bool *out_bad)
{
    while (rest->len > 0) {
        struct span value = span_cut(rest, '&');
        struct span name = span_cut(&value, '=');
        if (name.len == 0 && value.len == 0) {
            continue;
        }
        if (!http_query_decode(request, name, out_name) ||
            !http_query_decode(request, value, out_value)) {
            *out_bad = true;
            return false;
        }
        return true;
    }
    return false;
}

bool http_request_query(struct http_request *request, const char *name, struct span *out)
{
    struct span wanted = span_of(name);
    struct span rest = request->query;
    while (rest.len > 0) {
        struct span value = span_cut(&rest, '&');
        struct span found = span_cut(&value, '=');
        if (span_eq(found, wanted)) {
            return http_query_decode(request, value, out);
        }
    }
    return false;
}

void http_request_take_body(struct http_request *request, struct buf *out)
{
    *out = request->body;
    buf_init(&request->body, out->max);
}

void http_reply(struct http_request *request, int status, const struct http_header *headers,
                size_t header_count, struct span body)
{
    struct http_exchange *exchange = request->exchange;
    ASSERT(exchange != NULL && !exchange->replied);
    ASSERT(status >= 200 && status <= 599);
    exchange->replied = true;
    exchange->machine->ops->reply(exchange, status, headers, header_count, body);
}

void http_abort(struct http_request *request)
{
    struct http_exchange *exchange = request->exchange;
    ASSERT(exchange != NULL && !exchange->replied);
    exchange->replied = true;
    exchange->machine->ops->abort(exchange);
}

/* The protocols' side: http_machine.h. */

void http_exchange_init(struct http_exchange *exchange, struct http_machine *machine, int version)
{
    const struct http_host *host = machine->host;
    *exchange = (struct http_exchange){
        .machine = machine,
        .request = {.version = version,
                    .is_tls = host->is_tls,
                    .tls_version = host->tls_version != NULL ? host->tls_version : "",
                    .peer = host->peer,
                    .peer_address = host->peer_address,
                    .exchange = exchange},
    };
    arena_init(&exchange->request.arena, 4 * HTTP_HEAD_BYTES_MAX + HTTP_ARENA_EXTRA_BYTES);
    buf_init(&exchange->request.body, HTTP_DEFAULT_BODY_LIMIT);
}

int http_exchange_body(struct http_exchange *exchange, struct span bytes)
{
    struct http_budget *budget = exchange->machine->host->bodies;
    if (budget != NULL && budget->used_bytes > exchange->charged &&
        (budget->used_bytes > budget->max_bytes ||
         bytes.len > budget->max_bytes - budget->used_bytes)) {
        return ERR_FULL;
    }
    int rc = buf_append(&exchange->request.body, bytes);
    if (rc == 0 && budget != NULL) {
        budget->used_bytes += bytes.len;
        exchange->charged += bytes.len;
    }
    return rc;
}

void http_exchange_uncharge(struct http_exchange *exchange)
{
    if (exchange->charged > 0) {
        exchange->machine->host->bodies->used_bytes -= exchange->charged;
        exchange->charged = 0;
    }
}

void http_exchange_release(struct http_exchange *exchange)
{
    http_exchange_uncharge(exchange);
    arena_release(&exchange->request.arena);
    buf_release(&exchange->request.body);
}

/* Doubles the header table inside the arena; what is left behind goes with the arena. */
static int http_exchange_grow(struct http_exchange *exchange)
{
    struct http_request *request = &exchange->request;
    size_t room = exchange->header_room == 0 ? 16 : 2 * exchange->header_room;
    struct http_header *grown = arena_alloc(&request->arena, room * sizeof(*grown));
    if (grown == NULL) {
        return ERR_NOMEM;
    }
    if (request->header_count > 0) {
        memcpy(grown, request->headers, request->header_count * sizeof(*grown));
    }
    request->headers = grown;
    exchange->header_room = room;
    return 0;
}

int http_exchange_header(struct http_exchange *exchange, char *name, size_t name_len,
                         struct span value)
{
    struct http_request *request = &exchange->request;
    /* 32 bytes a field, as RFC 9113 6.5.2 counts a header list. */
    exchange->head_bytes += name_len + value.len + 32;
    if (request->header_count >= HTTP_HEADERS_MAX || exchange->head_bytes > HTTP_HEAD_BYTES_MAX) {
        return ERR_LIMIT;
    }
    if (request->header_count == exchange->header_room) {
        int rc = http_exchange_grow(exchange);
        if (rc != 0) {
            return rc;
        }
    }
    for (size_t i = 0; i < name_len; i++) {
        if (name[i] >= 'A' && name[i] <= 'Z') {
            name[i] = (char)(name[i] + ('a' - 'A'));
        }
    }
    request->headers[request->header_count++] = (struct http_header){
        .name = span_make(name, name_len), .value = value};
    return 0;
}

/* Takes "http://authority" off an absolute-form target. */
static bool http_target_absolute(struct http_request *request, struct span *rest)
{
    static const char *const schemes[] = {"http://", "https://"};
    for (size_t i = 0; i < sizeof(schemes) / sizeof(schemes[0]); i++) {
        struct span scheme = span_of(schemes[i]);
        if (!span_istarts(*rest, scheme)) {
            continue;
        }
        struct span after = span_make(rest->data + scheme.len, rest->len - scheme.len);
        size_t cut = 0;
        while (cut < after.len && after.data[cut] != '/' && after.data[cut] != '?') {
            cut++;
        }
        if (cut == 0) {
            return false;
        }
        request->authority = span_make(after.data, cut);
        *rest = span_make(after.data + cut, after.len - cut);
        return true;
    }
    return false;
}

int http_exchange_target(struct http_exchange *exchange, struct span target)
{
    struct http_request *request = &exchange->request;
    request->target = target;
    struct span rest = target;
    if (span_find(target, '#') != target.len) {
        return ERR_INVAL;
    }
    bool is_absolute = false;
    if (target.len == 0 || (target.data[0] != '/' && !span_eq(target, SPAN_LIT("*")))) {
        is_absolute = http_target_absolute(request, &rest);
        if (!is_absolute) {
            return ERR_INVAL;
        }
    }
    struct span path = span_cut(&rest, '?');
    request->path = is_absolute && path.len == 0 ? SPAN_LIT("/") : path;
    request->query = rest;
    return 0;
}

bool http_exchange_announce(struct http_exchange *exchange)
{
    const struct http_host *host = exchange->machine->host;
    exchange->announced = true;
    exchange->machine->requests++;
    size_t limit = host->handler->on_head(host->handler_ctx, &exchange->request);
    /* An answer given in on_head leaves the exchange alive until here: the machines see to that. */
    if (exchange->replied) {
        return false;
    }
    exchange->body_limit = limit;
    exchange->request.body.max = limit > 0 ? limit : 1;
    return true;
}

void http_exchange_gone(struct http_exchange *exchange)
{
    if (!exchange->announced || exchange->replied) {
        return;
    }
    exchange->replied = true;
    const struct http_host *host = exchange->machine->host;
    if (host->handler->on_gone != NULL) {
        host->handler->on_gone(host->handler_ctx, &exchange->request);
    }
}

void http_exchange_too_large(struct http_exchange *exchange)
{
    const struct http_host *host = exchange->machine->host;
    if (host->handler->on_too_large != NULL) {
        host->handler->on_too_large(host->handler_ctx, &exchange->request);
        return;
    }
    http_exchange_gone(exchange);
    char room[HTTP_PROBLEM_MAX];
    struct span body = http_problem_text(413, "The request body is above the limit.", room);
    const struct http_header headers[] = {
        {.name = SPAN_LIT("content-type"), .value = SPAN_LIT("application/problem+json")}};
    exchange->replied = true;
    exchange->machine->ops->reply(exchange, 413, headers, 1, body);
}

bool http_answer_has_body(struct span method, int status)
{
    return status >= 200 && status != 204 && status != 304 && !span_eq(method, SPAN_LIT("HEAD"));
}

bool http_list_has(struct span value, struct span token)
{
    while (value.len > 0) {
        if (span_ieq(span_trim(span_cut(&value, ',')), token)) {
            return true;
        }
    }
    return false;
}

struct span http_problem_text(int status, const char *detail, char room[HTTP_PROBLEM_MAX])
{
    int len = snprintf(
        room, HTTP_PROBLEM_MAX,
        "{\"type\":\"about:blank\",\"title\":\"%s\",\"status\":%d,\"detail\":\"%s\"}\n",
        http_status_text(status), status, detail);
    ASSERT(len > 0 && len < HTTP_PROBLEM_MAX);
    return span_make(room, (size_t)len);
}
