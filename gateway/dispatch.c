#include "gateway/dispatch.h"

#include "gateway/mime.h"

#include <assert.h>
#include <stdatomic.h>

static_assert(CONF_LANES_MAX == COURIER_LANES_MAX && CONF_BACKENDS_MAX == COURIER_BACKENDS_MAX,
              "a configuration that is taken can be served");

struct dispatch {
    struct loop *loop;
    struct events *events;
    struct queue *queue;
    struct courier *courier; /* NULL once draining has ended it */
    struct courier_conf conf;
    struct lane_conf *lanes;
    struct courier_backend_conf *backends;
    struct limiter_window *windows; /* of all backends, one after the other */
    atomic_bool hinted;
    bool up;
    void (*on_drained)(void *ctx);
    void *on_drained_ctx;
};

static struct lane_conf lane_of(const struct conf_lane *lane)
{
    return (struct lane_conf){
        .name = lane->name,
        .share_percent = lane->share_percent,
        .ladder_ms = lane->retry_ms,
        .ladder_count = lane->retry_count,
        .last_repeats = lane->retry_last_repeats,
        .expires_ms = lane->expires_ms,
        .retry_unknown = lane->on_unknown == CONF_UNKNOWN_RETRY,
    };
}

/* Precedence does not hang on which lanes a file happens to name first. */
static int rank_of(const struct conf_lane *lane)
{
    return strcmp(lane->name, "alert") == 0 ? 0 : strcmp(lane->name, "bulk") == 0 ? 2 : 1;
}

static void make_lanes(struct dispatch *dispatch, const struct conf *conf)
{
    dispatch->lanes = mem_zero(conf->lane_count * sizeof *dispatch->lanes);
    size_t next = 0;
    for (int rank = 0; rank <= 2; rank++) {
        for (size_t i = 0; i < conf->lane_count; i++) {
            if (rank_of(&conf->lanes[i]) == rank) {
                dispatch->lanes[next++] = lane_of(&conf->lanes[i]);
            }
        }
    }
}

/* Copies the windows of one kind (messages or recipients) behind `next` and says how many there
 * are. */
static size_t copy_windows(const struct conf_backend *backend, bool recipients,
                           struct limiter_window *next)
{
    size_t count = 0;
    for (size_t i = 0; i < backend->rate_count; i++) {
        if (backend->rates[i].is_recipients == recipients) {
            next[count++] = (struct limiter_window){.units = backend->rates[i].units,
                                                    .window_ms = backend->rates[i].window_ms};
        }
    }
    return count;
}

static void make_backends(struct dispatch *dispatch, const struct conf *conf)
{
    size_t rates = 1;
    for (size_t i = 0; i < conf->backend_count; i++) {
        rates += conf->backends[i].rate_count;
    }
    dispatch->windows = mem_zero(rates * sizeof *dispatch->windows);
    dispatch->backends = mem_zero((conf->backend_count + 1) * sizeof *dispatch->backends);
    struct limiter_window *next = dispatch->windows;
    for (size_t i = 0; i < conf->backend_count; i++) {
        struct courier_backend_conf *backend = &dispatch->backends[i];
        backend->backend = &conf->backends[i].conf;
        backend->message_windows = next;
        backend->message_window_count = copy_windows(&conf->backends[i], false, next);
        next += backend->message_window_count;
        backend->recipient_windows = next;
        backend->recipient_window_count = copy_windows(&conf->backends[i], true, next);
        next += backend->recipient_window_count;
    }
}

static void run_hint(void *ctx)
{
    struct dispatch *dispatch = ctx;
    atomic_store_explicit(&dispatch->hinted, false, memory_order_relaxed);
    if (dispatch->courier != NULL) {
        courier_hint(dispatch->courier);
    }
}

void dispatch_hint(struct dispatch *dispatch)
{
    if (!atomic_exchange_explicit(&dispatch->hinted, true, memory_order_relaxed)) {
        loop_post(dispatch->loop, run_hint, dispatch);
    }
}

static void on_queue_state(void *ctx, bool up, const char *why)
{
    struct dispatch *dispatch = ctx;
    if (up != dispatch->up) {
        dispatch->up = up;
        events_redis(dispatch->events, up, why);
    } else if (!up) {
        events_redis_refused(dispatch->events, why);
    }
    if (up && dispatch->courier != NULL) {
        courier_hint(dispatch->courier);
    }
}

static void on_ready_hint(void *ctx)
{
    struct dispatch *dispatch = ctx;
    if (dispatch->courier != NULL) {
        courier_hint(dispatch->courier);
    }
}

static void on_sweep(void *ctx, const char *what, int64_t count)
{
    struct dispatch *dispatch = ctx;
    events_sweep(dispatch->events, what, count);
}

static void on_warning(void *ctx, const char *text)
{
    const struct dispatch *dispatch = ctx;
    events_redis_warning(dispatch->events, text);
}

static const struct queue_ops queue_callbacks = {.on_state = on_queue_state,
                                                 .on_ready_hint = on_ready_hint,
                                                 .on_sweep = on_sweep,
                                                 .on_warning = on_warning};

void dispatch_free(struct dispatch **dispatch)
{
    if (*dispatch == NULL) {
        return;
    }
    mem_free((*dispatch)->lanes);
    mem_free((*dispatch)->backends);
    mem_free((*dispatch)->windows);
    mem_free(*dispatch);
    *dispatch = NULL;
}

int dispatch_new(struct loop *loop, const struct conf *conf, const struct queue_conf *queue,
                 struct events *events, struct courier_pace *pace, struct dispatch **out,
                 struct err *err)
{
    if (conf->lane_count > COURIER_LANES_MAX || conf->backend_count > COURIER_BACKENDS_MAX) {
        return err_set(err, ERR_LIMIT, "More than %d lanes or %d backends are configured.",
                       COURIER_LANES_MAX, COURIER_BACKENDS_MAX);
    }
    struct dispatch *dispatch = mem_zero(sizeof *dispatch);
    dispatch->loop = loop;
    dispatch->events = events;
    make_lanes(dispatch, conf);
    make_backends(dispatch, conf);
    dispatch->conf = (struct courier_conf){
        .lanes = dispatch->lanes,
        .lane_count = conf->lane_count,
        .backends = dispatch->backends,
        .backend_count = conf->backend_count,
        .read_mail = mime_read,
    };
    dispatch->queue = queue_open(loop, queue, &queue_callbacks, dispatch);
    int status = courier_new(loop, dispatch->queue, &dispatch->conf, events, pace,
                             &dispatch->courier, err);
    if (status != ERR_OK) {
        /* The process ends with this sentence; the handle goes with its loop. */
        return status;
    }
    *out = dispatch;
    return ERR_OK;
}

static void on_queue_closed(void *ctx)
{
    struct dispatch *dispatch = ctx;
    dispatch->queue = NULL;
    dispatch->on_drained(dispatch->on_drained_ctx);
}

static void on_courier_drained(void *ctx)
{
    struct dispatch *dispatch = ctx;
    queue_close(dispatch->queue, on_queue_closed, dispatch);
}

void dispatch_drain(struct dispatch *dispatch, int64_t grace_ms, void (*on_drained)(void *ctx),
                    void *ctx)
{
    struct courier *courier = dispatch->courier;
    dispatch->courier = NULL;
    dispatch->on_drained = on_drained;
    dispatch->on_drained_ctx = ctx;
    courier_drain(courier, grace_ms, on_courier_drained, dispatch);
}
