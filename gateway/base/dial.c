#include "gateway/base/dial.h"

#include "gateway/base/buf.h"
#include "gateway/base/resolve.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>

/* What must stay true: `fn` is NULL once the outcome was told or the dial cancelled; from then on
 * only the close callback of the handle is waited for, and it frees the dial. */
struct dial {
    struct loop *loop;
    dial_fn *fn;
    void *ctx;
    char *host;
    uint16_t port; /* 0: Unix socket */
    int64_t due_ms;
    struct loop_task begin;
    struct loop_timer guard;
    struct resolve *resolve; /* NULL but during the look-up */
    union {
        uv_handle_t handle;
        uv_stream_t stream;
        uv_tcp_t tcp;
        uv_pipe_t pipe;
    } io;
    bool io_open; /* the handle is initialised and its close callback has not run */
    uv_connect_t connect;
    union resolve_address addresses[RESOLVE_MAX];
    size_t count;
    size_t index; /* of the attempt under way */
};

static void attempt(struct dial *dial);
static void on_closed(uv_handle_t *handle);

static void dial_free(struct dial *dial)
{
    mem_free(dial->host);
    mem_free(dial);
}

/* Lets go of everything; the memory goes when the handle has closed. */
static void retire(struct dial *dial)
{
    dial->fn = NULL;
    loop_task_cancel(&dial->begin);
    loop_timer_stop(&dial->guard);
    resolve_cancel(&dial->resolve);
    if (!dial->io_open) {
        dial_free(dial);
    } else if (uv_is_closing(&dial->io.handle) == 0) {
        uv_close(&dial->io.handle, on_closed);
    }
}

static void tell(struct dial *dial, int status, int fd, const char *problem)
{
    dial_fn *fn = dial->fn;
    void *ctx = dial->ctx;
    char why[400];
    if (dial->port == 0) {
        (void)snprintf(why, sizeof(why), "Connecting to %.200s %s.", dial->host, problem);
    } else {
        (void)snprintf(why, sizeof(why), "Connecting to %.200s port %u %s.", dial->host,
                       (unsigned)dial->port, problem);
    }
    retire(dial);
    fn(ctx, status, fd, status == ERR_OK ? NULL : why);
}

static void fail(struct dial *dial, const char *reason)
{
    char problem[160];
    (void)snprintf(problem, sizeof(problem), "failed: %s", reason);
    tell(dial, ERR_IO, -1, problem);
}

static void on_closed(uv_handle_t *handle)
{
    struct dial *dial = handle->data;
    dial->io_open = false;
    if (dial->fn == NULL) {
        dial_free(dial);
    } else {
        attempt(dial);
    }
}

static bool has_next(const struct dial *dial)
{
    return dial->index + 1 < dial->count;
}

/* The next address comes when the handle of this one has closed. */
static void go_to_next(struct dial *dial)
{
    loop_timer_stop(&dial->guard);
    dial->index++;
    uv_close(&dial->io.handle, on_closed);
}

static void on_guard(void *ctx)
{
    struct dial *dial = ctx;
    if (has_next(dial)) {
        go_to_next(dial);
    } else {
        tell(dial, ERR_TIMEOUT, -1, "took too long");
    }
}

static void on_connect(uv_connect_t *request, int status)
{
    struct dial *dial = request->data;
    if (dial->fn == NULL || status == UV_ECANCELED) {
        return; /* the handle is closing, and on_closed knows what comes next */
    }
    if (status < 0 && has_next(dial)) {
        go_to_next(dial);
        return;
    }
    if (status < 0) {
        fail(dial, uv_strerror(status));
        return;
    }
    /* The socket changes hands by a second descriptor, because this handle closes its own. */
    int own = -1;
    ASSERT(uv_fileno(&dial->io.handle, &own) == 0);
    int fd = fcntl(own, F_DUPFD_CLOEXEC, 0);
    if (fd < 0) {
        fail(dial, uv_strerror(-errno));
        return;
    }
    tell(dial, ERR_OK, fd, "");
}

static int64_t left_ms(const struct dial *dial)
{
    int64_t left = dial->due_ms - loop_now_ms(dial->loop);
    return left > 0 ? left : 0;
}

static void attempt(struct dial *dial)
{
    uv_loop_t *uv = loop_uv(dial->loop);
    dial->connect.data = dial;
    dial->io_open = true;
    int64_t share_ms = left_ms(dial) / (int64_t)(dial->count - dial->index);
    loop_timer_start(dial->loop, &dial->guard, share_ms, on_guard, dial);
    if (dial->port == 0) {
        ASSERT(uv_pipe_init(uv, &dial->io.pipe, 0) == 0);
        dial->io.handle.data = dial;
        uv_pipe_connect(&dial->connect, &dial->io.pipe, dial->host, on_connect);
        return;
    }
    ASSERT(uv_tcp_init(uv, &dial->io.tcp) == 0);
    dial->io.handle.data = dial;
    const struct sockaddr *address = &dial->addresses[dial->index].any;
    int rc = uv_tcp_connect(&dial->connect, &dial->io.tcp, address, on_connect);
    if (rc != 0 && has_next(dial)) {
        go_to_next(dial);
    } else if (rc != 0) {
        fail(dial, uv_strerror(rc));
    }
}

static void on_resolved(void *ctx, const union resolve_address *addresses, size_t count,
                        const char *why)
{
    struct dial *dial = ctx;
    dial->resolve = NULL;
    if (why != NULL) {
        fail(dial, why);
        return;
    }
    memcpy(dial->addresses, addresses, count * sizeof(addresses[0]));
    dial->count = count;
    attempt(dial);
}

/* In the loop, so that no outcome is told inside dial_start(). */
static void on_begin(void *ctx)
{
    struct dial *dial = ctx;
    if (dial->port == 0 || resolve_literal(dial->host, dial->port, &dial->addresses[0])) {
        dial->count = 1;
        attempt(dial);
        return;
    }
    loop_timer_start(dial->loop, &dial->guard, left_ms(dial), on_guard, dial);
    if (resolve_start(dial->loop, dial->host, dial->port, on_resolved, dial, &dial->resolve) !=
        ERR_OK) {
        fail(dial, "the name cannot be looked up");
    }
}

struct dial *dial_start(struct loop *loop, const char *host, uint16_t port, int64_t due_ms,
                        dial_fn *fn, void *ctx)
{
    ASSERT(fn != NULL);
    struct dial *dial = mem_zero(sizeof(*dial));
    dial->loop = loop;
    dial->fn = fn;
    dial->ctx = ctx;
    dial->host = mem_dup(span_of(host));
    dial->port = port;
    dial->due_ms = due_ms;
    loop_defer(loop, &dial->begin, LOOP_TASK_QUEUE, on_begin, dial);
    return dial;
}

void dial_cancel(struct dial **dial_ptr)
{
    if (*dial_ptr != NULL) {
        retire(*dial_ptr);
        *dial_ptr = NULL;
    }
}
