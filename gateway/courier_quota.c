/* The part of the courier that asks for quota: `rates` of a backend, one batch at a time. What is
 * not granted goes back to the queue. */
#include "gateway/courier_private.h"

#include <stdio.h>

#define PARTIAL_WAIT_MAX_MS 60000
#define MESSAGE_SCOPE_MAX 96

struct quota_ask {
    struct station *station;
    size_t lane;
    struct queue_lease *lease;
    bool recipients_asked;
};

static void ask_quota(struct quota_ask *ask);

/* How many units the batch needs of what is being asked. */
static uint64_t quota_wanted(const struct quota_ask *ask)
{
    size_t open = batch_open_count(&ask->lease->batch);
    size_t tried = open < ask->station->recipients_max ? open : ask->station->recipients_max;
    return ask->recipients_asked ? tried : 1;
}

/* Some units were left but not enough: the first sub-bucket of the shortest window brings more. */
static int64_t partial_wait(const struct courier_backend_conf *conf)
{
    int64_t wait_ms = PARTIAL_WAIT_MAX_MS;
    for (size_t i = 0; i < conf->recipient_window_count; i++) {
        int64_t step_ms = conf->recipient_windows[i].window_ms / 32;
        wait_ms = step_ms < wait_ms ? step_ms : wait_ms;
    }
    return wait_ms > COURIER_REFUSED_WAIT_MS ? wait_ms : COURIER_REFUSED_WAIT_MS;
}

static void quota_refused(struct quota_ask *ask, int64_t wait_ms)
{
    struct station *station = ask->station;
    station_close_locally(station, wait_ms);
    station_release_waiting(station);
    queue_release(station->courier->queue, ask->lease);
    queue_lease_free(&ask->lease);
    mem_free(ask);
    courier_pump_later(station->courier);
}

static void on_quota(void *ctx, int status, uint64_t granted, int64_t wait_ms)
{
    struct quota_ask *ask = ctx;
    struct station *station = ask->station;
    const struct courier_backend_conf *conf = station->conf;
    if (status == ERR_OK && granted == quota_wanted(ask) && !station->closing) {
        if (!ask->recipients_asked && conf->recipient_window_count > 0) {
            ask->recipients_asked = true;
            ask_quota(ask);
            return;
        }
        station->asking_quota = false;
        station_launch(station, ask->lane, ask->lease);
        mem_free(ask);
        courier_pump_later(station->courier);
        courier_drained_maybe(station->courier);
        return;
    }
    station->asking_quota = false;
    char scope[MESSAGE_SCOPE_MAX];
    if (ask->recipients_asked && granted > 0) {
        (void)snprintf(scope, sizeof scope, "%s:recipients", conf->backend->name);
        limiter_return(station->courier->queue, scope, conf->recipient_windows,
                       conf->recipient_window_count, granted);
    }
    if (ask->recipients_asked && conf->message_window_count > 0) {
        (void)snprintf(scope, sizeof scope, "%s:messages", conf->backend->name);
        limiter_return(station->courier->queue, scope, conf->message_windows,
                       conf->message_window_count, 1);
    }
    if (status != ERR_OK) {
        wait_ms = COURIER_DOWN_WAIT_MS;
    } else if (granted > 0) {
        wait_ms = partial_wait(conf);
    }
    quota_refused(ask, wait_ms);
    courier_drained_maybe(station->courier);
}

static void ask_quota(struct quota_ask *ask)
{
    const struct courier_backend_conf *conf = ask->station->conf;
    char scope[MESSAGE_SCOPE_MAX];
    (void)snprintf(scope, sizeof scope, "%s:%s", conf->backend->name,
                   ask->recipients_asked ? "recipients" : "messages");
    int status = limiter_take(
        ask->station->courier->queue, scope,
        ask->recipients_asked ? conf->recipient_windows : conf->message_windows,
        ask->recipients_asked ? conf->recipient_window_count : conf->message_window_count,
        quota_wanted(ask), on_quota, ask);
    if (status != ERR_OK) {
        ask->station->asking_quota = false;
        quota_refused(ask, COURIER_DOWN_WAIT_MS);
    }
}

void station_start_quota(struct station *station, size_t lane, struct queue_lease *lease)
{
    struct quota_ask *ask = mem_zero(sizeof *ask);
    *ask = (struct quota_ask){
        .station = station,
        .lane = lane,
        .lease = lease,
        .recipients_asked = station->conf->message_window_count == 0,
    };
    station->asking_quota = true;
    ask_quota(ask);
}
