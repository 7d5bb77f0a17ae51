/* The HTTP/2 machine: the client's preface is given, then any bytes as frames. Every request
 * announced must be answered or gone exactly once. */
#include "gateway/http2.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define PENDING_MAX 16

struct world {
    struct http_request *pending[PENDING_MAX];
    size_t pending_count;
    uint8_t mode;
    size_t announced;
    size_t ended;
    bool aborted;
};

static void answer(struct world *w, struct http_request *request)
{
    w->ended++;
    if ((w->mode & 8) != 0) {
        http_abort(request);
        return;
    }
    const struct http_header headers[] = {{.name = SPAN_LIT("x-target"), .value = request->target}};
    http_reply(request, 200, headers, 1, buf_span(&request->body));
}

static size_t on_head(void *ctx, struct http_request *request)
{
    struct world *w = ctx;
    w->announced++;
    if ((w->mode & 1) != 0) {
        answer(w, request);
    }
    return 64;
}

static void on_request(void *ctx, struct http_request *request)
{
    struct world *w = ctx;
    if ((w->mode & 2) != 0 && w->pending_count < PENDING_MAX) {
        w->pending[w->pending_count++] = request;
    } else {
        answer(w, request);
    }
}

static void on_gone(void *ctx, struct http_request *request)
{
    struct world *w = ctx;
    w->ended++;
    for (size_t i = 0; i < w->pending_count; i++) {
        if (w->pending[i] == request) {
            w->pending[i] = w->pending[--w->pending_count];
            return;
        }
    }
}

static void on_output(void *ctx)
{
    (void)ctx;
}

static void on_abort(void *ctx)
{
    ((struct world *)ctx)->aborted = true;
}

static int64_t wall_ms(void *ctx)
{
    (void)ctx;
    return INT64_C(1795435200000);
}

static bool collect(struct http_machine *machine)
{
    for (;;) {
        struct span out = {0};
        if (machine->ops->output(machine, &out) != 0) {
            return false;
        }
        if (out.len == 0) {
            return true;
        }
    }
}

/* Feeds `bytes` in pieces; false when the connection is over. */
static bool give(struct world *w, struct http_machine *machine, struct span bytes, size_t step)
{
    while (bytes.len > 0 && !w->aborted && machine->ops->phase(machine) != HTTP_PHASE_DONE) {
        struct span piece = span_make(bytes.data, bytes.len < step ? bytes.len : step);
        size_t used = 0;
        if (machine->ops->feed(machine, piece, &used) != 0 || !collect(machine)) {
            return false;
        }
        ASSERT(used == piece.len);
        bytes = span_make(bytes.data + used, bytes.len - used);
        if (w->pending_count > 0 && (w->mode & 4) == 0) {
            answer(w, w->pending[--w->pending_count]);
        }
    }
    return bytes.len == 0 && !w->aborted;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2) {
        return 0;
    }
    static const struct http_handler handler = {
        .on_head = on_head, .on_request = on_request, .on_gone = on_gone};
    struct world w = {.mode = data[0]};
    struct http_host host = {.handler = &handler,
                             .handler_ctx = &w,
                             .peer = "p",
                             .peer_address = "p",
                             .max_requests = 8,
                             .on_output = on_output,
                             .on_abort = on_abort,
                             .wall_ms = wall_ms,
                             .ctx = &w};
    struct http_machine *machine = http2_new(&host);
    ASSERT(machine != NULL);
    /* The preface, an empty SETTINGS frame, then the input. */
    struct span start = SPAN_LIT(HTTP2_PREFACE "\0\0\0\4\0\0\0\0\0");
    if (give(&w, machine, start, start.len) &&
        give(&w, machine, span_make((const char *)data + 2, size - 2), 1 + data[1] % 64) &&
        (w.mode & 16) != 0) {
        machine->ops->drain(machine);
        (void)collect(machine); /* its end is what free checks */
    }
    machine->ops->free(machine);
    ASSERT(w.announced == w.ended);
    return 0;
}
