/* The part of the courier that asks for quota: `rates` of a backend, one batch at a time. What is
 * not granted goes back to the queue. */
#include "gateway/courier_private.h"

#include <stdio.h>

#define PARTIAL_WAIT_MAX_MS 60000
#define MESSAGE_SCOPE_MAX 96

/* A quota so small that it never grants a whole batch at once grants parts of it after so many
 * tries. */
#define PARTIAL_TRIES 4

struct quota_ask {
    struct station *station;
    size_t lane;
    struct queue_lease *lease;
    size_t recipients; /* to be sent */
    bool recipients_asked;
};

static void ask_quota(struct quota_ask *ask);

/* How many units the batch needs of what is being asked. */
static uint64_t quota_wanted(const struct quota_ask *ask)
{
    return ask->recipients_asked ? ask->recipients : 1;
}

/* The first lane may use everything there is; the others leave what limiter.h says. */
static struct limiter_share share_of(const struct quota_ask *ask)
{
    const struct lane_conf *lane = &ask->station->courier->conf->lanes[ask->lane];
    return (struct limiter_share){.name = lane->name,
                                  .percent = ask->lane == 0 ? 100 : lane->share_percent};
}

static void give_back(const struct quota_ask *ask, bool recipients, uint64_t units)
{
    const struct courier_backend_conf *conf = ask->station->conf;
    char scope[MESSAGE_SCOPE_MAX];
    (void)snprintf(scope, sizeof scope, "%s:%s", conf->backend->name,
                   recipients ? "recipients" : "messages");
    struct limiter_share share = share_of(ask);
    limiter_return_share(ask->station->courier->queue, scope,
                         recipients ? conf->recipient_windows : conf->message_windows,
                         recipients ? conf->recipient_window_count : conf->message_window_count,
                         &share, units);
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

static void close_lane(struct station *station, size_t lane, int64_t wait_ms)
{
    station->channels[lane].closed_until_ms = loop_now_ms(station->courier->loop) +
                                              (wait_ms > 0 ? wait_ms : 1);
}

/* Takes the ask. */
static void quota_granted(struct quota_ask *ask)
{
    struct station *station = ask->station;
    station->asking_quota = false;
    station->channels[ask->lane].partials = 0;
    station_launch(station, ask->lane, ask->lease, ask->recipients);
    mem_free(ask);
    courier_pump_later(station->courier);
    courier_drained_maybe(station->courier);
}

/* Takes the ask; its lane or the station is closed already. The next pump releases what waits. */
static void quota_refused(struct quota_ask *ask)
{
    struct station *station = ask->station;
    station->asking_quota = false;
    queue_release(station->courier->queue, ask->lease);
    queue_lease_free(&ask->lease);
    mem_free(ask);
    courier_pump_later(station->courier);
    courier_drained_maybe(station->courier);
}

/* Only part of the recipients were granted: the others wait a little for the rest, unless that has
 * been tried often enough. */
static void on_partial(struct quota_ask *ask, uint64_t granted)
{
    struct channel *channel = &ask->station->channels[ask->lane];
    channel->partials++;
    if (channel->partials >= PARTIAL_TRIES) {
        ask->recipients = (size_t)granted;
        quota_granted(ask);
        return;
    }
    give_back(ask, true, granted);
    if (ask->station->conf->message_window_count > 0) {
        give_back(ask, false, 1);
    }
    close_lane(ask->station, ask->lane, partial_wait(ask->station->conf));
    quota_refused(ask);
}

static void on_quota(void *ctx, int status, uint64_t granted, int64_t wait_ms, bool share_only)
{
    struct quota_ask *ask = ctx;
    struct station *station = ask->station;
    const struct courier_backend_conf *conf = station->conf;
    bool recipients_left = !ask->recipients_asked && conf->recipient_window_count > 0;
    if (status == ERR_OK && granted > 0 && !station->closing) {
        if (granted < quota_wanted(ask)) {
            on_partial(ask, granted);
        } else if (recipients_left) {
            ask->recipients_asked = true;
            ask_quota(ask);
        } else {
            quota_granted(ask);
        }
        return;
    }
    if (granted > 0) {
        give_back(ask, ask->recipients_asked, granted);
    }
    if (ask->recipients_asked && conf->message_window_count > 0) {
        give_back(ask, false, 1);
    }
    if (status == ERR_OK && granted == 0 && share_only) {
        close_lane(station, ask->lane, wait_ms);
    } else {
        station_close_locally(station, status == ERR_OK ? wait_ms : COURIER_DOWN_WAIT_MS);
    }
    quota_refused(ask);
}

static void ask_quota(struct quota_ask *ask)
{
    const struct courier_backend_conf *conf = ask->station->conf;
    char scope[MESSAGE_SCOPE_MAX];
    (void)snprintf(scope, sizeof scope, "%s:%s", conf->backend->name,
                   ask->recipients_asked ? "recipients" : "messages");
    struct limiter_share share = share_of(ask);
    int status = limiter_take_share(
        ask->station->courier->queue, scope,
        ask->recipients_asked ? conf->recipient_windows : conf->message_windows,
        ask->recipients_asked ? conf->recipient_window_count : conf->message_window_count, &share,
        quota_wanted(ask), on_quota, ask);
    if (status != ERR_OK) {
        station_close_locally(ask->station, COURIER_DOWN_WAIT_MS);
        quota_refused(ask);
    }
}

void station_start_quota(struct station *station, size_t lane, struct queue_lease *lease)
{
    size_t open = batch_open_count(&lease->batch);
    struct quota_ask *ask = mem_zero(sizeof *ask);
    *ask = (struct quota_ask){
        .station = station,
        .lane = lane,
        .lease = lease,
        .recipients = open < station->recipients_max ? open : station->recipients_max,
        .recipients_asked = station->conf->message_window_count == 0,
    };
    station->asking_quota = true;
    ask_quota(ask);
}
