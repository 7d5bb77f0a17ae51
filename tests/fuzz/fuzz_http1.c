/* The HTTP/1 machine: any bytes, in pieces the input itself chooses; answers at once, later, or
 * never. Every request announced must be answered or gone exactly once, and the output must be
 * whole answers. */
#include "gateway/http1.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct world {
    struct http_request *pending;
    uint8_t mode;
    size_t announced;
    size_t ended;
    bool aborted;
};

static void answer(struct world *w, struct http_request *request)
{
    w->ended++;
    struct span query = {0};
    (void)http_request_query(request, "q", &query); /* must only not crash */
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
    ASSERT(buf_len(&request->body) <= 64);
    if ((w->mode & 2) != 0) {
        w->pending = request;
    } else {
        answer(w, request);
    }
}

static void on_gone(void *ctx, struct http_request *request)
{
    struct world *w = ctx;
    (void)request;
    w->pending = NULL;
    w->ended++;
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

static void collect(struct http_machine *machine)
{
    for (;;) {
        struct span out = {0};
        ASSERT(machine->ops->output(machine, &out) == 0);
        if (out.len == 0) {
            return;
        }
        ASSERT(span_starts(out, SPAN_LIT("HTTP/1.1 ")));
    }
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
                             .max_requests = 1,
                             .on_output = on_output,
                             .on_abort = on_abort,
                             .wall_ms = wall_ms,
                             .ctx = &w};
    struct http_machine *machine = http1_new(&host);
    size_t step = 1 + data[1] % 64;
    size_t at = 2;
    size_t end = at;
    while (at < size && !w.aborted && machine->ops->phase(machine) != HTTP_PHASE_DONE) {
        size_t used = 0;
        end = end < at + step ? at + step : end + step;
        end = end < size ? end : size;
        if (machine->ops->feed(machine, span_make((const char *)data + at, end - at), &used) != 0) {
            break;
        }
        ASSERT(used <= end - at);
        at += used;
        collect(machine);
        if (w.pending != NULL && !w.aborted && (w.mode & 4) == 0) {
            struct http_request *request = w.pending;
            w.pending = NULL;
            answer(&w, request);
            collect(machine);
        } else if (used == 0 && end == size) {
            break;
        }
    }
    if ((w.mode & 16) != 0 && !w.aborted) {
        machine->ops->timeout(machine);
        collect(machine);
    }
    machine->ops->free(machine);
    ASSERT(w.announced == w.ended);
    return 0;
}
